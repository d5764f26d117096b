"""The onnxruntime engine for graphs with plain key and value inputs, as optimum writes them.

Each run takes the keys and values of the past and gives back those of past and present together.
They stay in onnxruntime's memory between runs; only a rewind copies. The graph is untrusted: every
input and output is checked against the manifest before it runs.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final

import numpy as np

from edgekit.artifact import Artifact
from edgekit.dtypes import DTYPES, DType, F32Array
from edgekit.errors import EngineCrashError, EngineLoadError
from edgekit.formats.onnx_io import (
    ATTENTION_MASK,
    GRAPH_NAME,
    INPUT_IDS,
    LOGITS,
    POSITION_IDS,
    TYPE_NAMES,
    GraphPorts,
    is_past,
    past_of,
)
from edgekit.lazy import require
from edgekit.records import EngineInfo
from edgekit.runtime.base import check_forward
from edgekit.runtime.onnx_session import PROVIDER, foreign_errors, make_session

_AGAIN: Final = "Export the model again."
_FLOATS: Final[Mapping[str, DType]] = {
    TYPE_NAMES[dtype]: dtype for dtype in (DType.FP32, DType.FP16)
}
_SIZES: Final = ("vocab_size", "n_layers", "n_kv_heads", "head_width")


class PlainOnnxDecoder:
    """A ``Decoder`` over a graph whose cache grows. Made by ``OnnxruntimeDecoder.open``."""

    def __init__(
        self,
        session: Any,
        info: EngineInfo,
        sizes: Mapping[str, int],
        context_length: int,
        chunk: int,
    ) -> None:
        self._info = info
        self._vocab_size = sizes["vocab_size"]
        self._context_length = context_length
        self._chunk = chunk
        self._session = session
        self._foreign = foreign_errors()
        self._wrap = require("onnxruntime").OrtValue.ortvalue_from_numpy
        types = {arg.name: arg.type for arg in session.get_inputs()}
        self._has_positions = POSITION_IDS in types
        self._outputs = [arg.name for arg in session.get_outputs()]
        self._past_names = [past_of(name) for name in self._outputs if name != LOGITS]
        self._cache_dtype = DTYPES[_FLOATS[types[self._past_names[0]]]].numpy
        self._cache_shape = (1, sizes["n_kv_heads"], 0, sizes["head_width"])
        self._mask = np.ones((1, context_length), dtype=np.int64)
        self._n_cached = 0
        # The positions that the cache really holds: more than are valid after a failed call.
        self._cache: list[Any] = self._empty_cache()

    @classmethod
    def load(
        cls, artifact: Artifact, n_threads: int | None, context_length: int, chunk: int
    ) -> PlainOnnxDecoder:
        """Load an artifact that optimum wrote; the caller has checked the options.

        Raises:
            EngineLoadError: onnxruntime refused the files, or they are not what the manifest says.
        """
        sizes = _read_sizes(artifact)
        try:
            session = make_session(artifact.path, n_threads)
            _check_signature(session, sizes, artifact)
            info = EngineInfo(
                engine="onnxruntime",
                version=require("onnxruntime").__version__,
                model=artifact.name,
                n_threads=n_threads,
                settings={
                    "provider": PROVIDER,
                    "activation": artifact.manifest.scheme,
                    "chunk": chunk,
                    "graph": "optimum, plain key and value inputs",
                },
            )
            return cls(session, info, sizes, context_length, chunk)
        except foreign_errors() as error:
            raise EngineLoadError(
                f"onnxruntime cannot load {artifact.path}", got=str(error), do=_AGAIN
            ) from error

    @property
    def info(self) -> EngineInfo:
        """Engine name, version, threads and settings."""
        return self._info

    @property
    def vocab_size(self) -> int:
        """V."""
        return self._vocab_size

    @property
    def context_length(self) -> int:
        """Most positions the cache holds."""
        return self._context_length

    def forward(self, token_ids: Sequence[int], *, n_past: int, n_logits: int = 1) -> F32Array:
        """Run ``token_ids`` after the first ``n_past`` positions of the cache.

        Args:
            token_ids: T >= 1 ids.
            n_past: Positions already in the cache that stay valid.
            n_logits: How many of the last positions to return logits for, 1 .. T.

        Returns:
            float32, shape (n_logits, V); the caller may keep it.

        Raises:
            UsageError: The call is not valid (see ``Decoder.forward``).
            EngineCrashError: onnxruntime failed, or the decoder is closed.
        """
        if self._session is None:
            raise EngineCrashError("onnxruntime: the model is closed", do="Open it again.")
        check_forward(
            token_ids,
            n_past,
            n_logits,
            n_cached=self._n_cached,
            vocab_size=self._vocab_size,
            context_length=self._context_length,
        )
        n_tokens = len(token_ids)
        result: F32Array = np.empty((n_logits, self._vocab_size), dtype=np.float32)
        first = n_tokens - n_logits
        ids = np.asarray(token_ids, dtype=np.int64)[None]  # (1, T)
        try:
            self._rewind(n_past)
            for start in range(0, n_tokens, self._chunk):
                stop = min(start + self._chunk, n_tokens)
                logits = self._run(ids[:, start:stop])
                n_rows = stop - max(start, first)
                if n_rows > 0:
                    rows = logits.numpy()[0, -n_rows:]
                    result[stop - n_rows - first : stop - first] = rows
        except self._foreign as error:
            # The cache may still hold the positions before this call, but that is not certain.
            self._n_cached = min(self._n_cached, n_past)
            raise EngineCrashError(
                "onnxruntime failed while running",
                got=str(error),
                do="Export the model again; with less free memory, shorten the prompt.",
            ) from error
        return result

    def close(self) -> None:
        """Free the model. Safe to call twice."""
        self._session = None
        self._cache = []

    def _run(self, ids: Any) -> Any:
        """Run one piece after the cached positions; the cache grows by it. Give its logits."""
        start, stop = self._n_cached, self._n_cached + ids.shape[1]
        binding = self._session.io_binding()
        binding.bind_cpu_input(INPUT_IDS, np.ascontiguousarray(ids))
        binding.bind_cpu_input(ATTENTION_MASK, self._mask[:, :stop])
        if self._has_positions:
            binding.bind_cpu_input(POSITION_IDS, np.arange(start, stop, dtype=np.int64)[None])
        for name, value in zip(self._past_names, self._cache, strict=True):
            binding.bind_ortvalue_input(name, value)
        for name in self._outputs:
            binding.bind_output(name, "cpu")
        self._session.run_with_iobinding(binding)
        found = dict(zip(self._outputs, binding.get_outputs(), strict=True))
        logits = found.pop(LOGITS)
        # A traced graph may contain the length of its example; then the shapes show it.
        wanted = (1, self._cache_shape[1], stop, self._cache_shape[3])
        for name, value in found.items():
            if tuple(value.shape()) != wanted:
                raise EngineCrashError(
                    f"{GRAPH_NAME}: {name} after {stop} positions",
                    got=tuple(value.shape()),
                    wanted=wanted,
                    do=_AGAIN,
                )
        self._cache = list(found.values())
        self._n_cached = stop
        return logits

    def _rewind(self, n_past: int) -> None:
        """Cut the cache to the first ``n_past`` positions."""
        if n_past == 0:
            self._cache = self._empty_cache()
        elif n_past < self._n_cached:
            kept = (np.ascontiguousarray(value.numpy()[:, :, :n_past]) for value in self._cache)
            self._cache = [self._wrap(array) for array in kept]
        self._n_cached = n_past

    def _empty_cache(self) -> list[Any]:
        empty = np.zeros(self._cache_shape, dtype=self._cache_dtype)
        return [self._wrap(empty) for _ in self._past_names]


def _read_sizes(artifact: Artifact) -> dict[str, int]:
    decoder = artifact.manifest.decoder
    sizes = {name: decoder.get(name) for name in _SIZES}
    wrong = [
        name
        for name, value in sizes.items()
        if isinstance(value, bool) or not isinstance(value, int) or not 0 < value < 1 << 31
    ]
    if wrong:
        raise EngineLoadError(
            f"{artifact.path}: decoder in the manifest",
            got=", ".join(f"{name} {sizes[name]!r}" for name in wrong),
            wanted="positive numbers",
            do=_AGAIN,
        )
    return {name: int(value) for name, value in sizes.items() if value is not None}


def _check_signature(session: Any, sizes: Mapping[str, int], artifact: Artifact) -> None:
    """Refuse a graph whose inputs and outputs are not those of the decoder in the manifest.

    Raises:
        EngineLoadError: A name, type or fixed size differs.
    """
    path = artifact.path / GRAPH_NAME
    n_layers = sizes["n_layers"]
    inputs = {arg.name: arg for arg in session.get_inputs()}
    outputs = {arg.name: arg for arg in session.get_outputs()}
    n_caches = sum(is_past(name) for name in inputs)
    if n_caches != 2 * n_layers:
        raise EngineLoadError(
            f"{path}: key and value inputs",
            got=n_caches,
            wanted=f"{2 * n_layers} for the decoder in the manifest",
            do=_AGAIN,
        )
    cache_type = next(a.type for n, a in inputs.items() if is_past(n))
    logits_type = outputs[LOGITS].type if LOGITS in outputs else "absent"
    if cache_type not in _FLOATS or logits_type not in _FLOATS:
        raise EngineLoadError(
            f"{path}: type of keys, values and logits",
            got=f"{cache_type}, {logits_type}",
            wanted=" or ".join(_FLOATS),
            do=_AGAIN,
        )
    ports = GraphPorts(
        n_layers,
        sizes["n_kv_heads"],
        sizes["head_width"],
        sizes["vocab_size"],
        cache=_FLOATS[cache_type],
        logits=_FLOATS[logits_type],
        is_traced=True,
        has_positions=POSITION_IDS in inputs,
    )
    wanted_in = {port.name: port.signature for port in ports.inputs}
    wanted_out = {port.name: port.signature for port in ports.outputs}
    for found, wanted in ((inputs, wanted_in), (outputs, wanted_out)):
        for name in sorted(found.keys() | wanted.keys()):
            arg = found.get(name)
            got = arg and (arg.type, tuple(n for n in arg.shape if isinstance(n, int)))
            if got != wanted.get(name):
                raise EngineLoadError(
                    f"{path}: {name} is not that of the decoder in the manifest",
                    got=got or "absent",
                    wanted=wanted.get(name, "absent"),
                    do=_AGAIN,
                )
