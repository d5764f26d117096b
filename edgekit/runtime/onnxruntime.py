"""The onnxruntime engine: runs an ONNX artifact on the CPU.

Everything is bound once: token ids, logits, and one key/value buffer per layer that is both past
and present. So a decode step only binds the attention mask and runs. Buffers are numpy arrays that
onnxruntime writes into; rows past the current length are never read.
"""

from __future__ import annotations

import mmap
from collections.abc import Mapping, Sequence
from math import prod
from types import MappingProxyType
from typing import Any, Final

import numpy as np

from edgekit.artifact import Artifact, Format
from edgekit.dtypes import F32Array
from edgekit.errors import EngineCrashError, EngineLoadError, UsageError
from edgekit.families.rope_spec import LongRopeScaling
from edgekit.families.spec import DecoderSpec
from edgekit.formats.onnx_io import (
    ATTENTION_MASK,
    CACHE_PARTS,
    CALL_LENGTH,
    GRAPH_NAME,
    INPUT_IDS,
    LOGITS,
    LOGITS_START,
    GraphPorts,
    past_name,
    present_name,
)
from edgekit.lazy import require
from edgekit.records import EngineInfo
from edgekit.runtime.base import check_forward
from edgekit.runtime.onnx_plain import PlainOnnxDecoder
from edgekit.runtime.onnx_session import (
    PROVIDER,
    OnnxruntimeOptions,
    foreign_errors,
    make_session,
)
from edgekit.runtime.opening import check_format, chosen_length

# Outputs come back in the order they were bound; logits are bound first.
_LOGITS_INDEX: Final = 0
_NO_OPTIONS: Final[Mapping[str, Any]] = MappingProxyType({})


class OnnxruntimeDecoder:
    """A ``Decoder`` on onnxruntime's CPU kernels. Make one with ``open``."""

    def __init__(
        self, session: Any, spec: DecoderSpec, info: EngineInfo, context_length: int, chunk: int
    ) -> None:
        self._info = info
        self._vocab_size = spec.vocab_size
        self._context_length = context_length
        self._chunk = chunk
        self._session = session
        self._foreign = foreign_errors()
        self._wrap = require("onnxruntime").OrtValue.ortvalue_from_numpy
        self._n_cached = 0
        self._mask = np.ones((1, context_length), dtype=np.int64)
        self._token_id = np.zeros((1, 1), dtype=np.int64)
        self._start = np.full(1, -1, dtype=np.int64)
        self._call_length = np.zeros(1, dtype=np.int64)
        self._last_row: F32Array = np.empty((1, spec.vocab_size), dtype=np.float32)
        self._token_value = self._wrap(self._token_id)
        self._logits_value = self._wrap(self._last_row[None])
        self._binding = session.io_binding()
        self._binding.bind_ortvalue_input(LOGITS_START, self._wrap(self._start))
        if any(arg.name == CALL_LENGTH for arg in session.get_overridable_initializers()):
            self._binding.bind_ortvalue_input(CALL_LENGTH, self._wrap(self._call_length))
        self._bind_decode()
        shape = (1, spec.n_kv_heads, context_length, spec.head_width)
        for layer in range(spec.n_layers):
            for part in CACHE_PARTS:
                cache = self._wrap(_lazy_buffer(shape))
                self._binding.bind_ortvalue_input(past_name(layer, part), cache)
                self._binding.bind_ortvalue_output(present_name(layer, part), cache)

    @classmethod
    def open(
        cls,
        artifact: Artifact,
        *,
        n_threads: int | None = None,
        context_length: int | None = None,
        options: Mapping[str, Any] = _NO_OPTIONS,
    ) -> OnnxruntimeDecoder | PlainOnnxDecoder:
        """Load an ONNX artifact: a graph of edgekit's own, or one that optimum wrote.

        Args:
            artifact: In ``Format.ONNX``.
            n_threads: Threads within an operator; None leaves it to onnxruntime, which takes
                one per physical core.
            context_length: Positions of the cache; None takes all the artifact holds.
            options: See ``OnnxruntimeOptions``.

        Raises:
            UsageError: Another format, or an impossible option.
            EngineLoadError: onnxruntime refused the files, or they are not this decoder.
        """
        check_format(artifact, "onnxruntime", Format.ONNX, "ONNX")
        chosen = OnnxruntimeOptions.parse(options)
        if n_threads is not None and n_threads < 1:
            raise UsageError("n_threads", got=n_threads, wanted="1 or more")
        n_positions = chosen_length(artifact, context_length)
        if artifact.is_traced:
            return PlainOnnxDecoder.load(artifact, n_threads, n_positions, chosen.chunk)
        try:
            spec = DecoderSpec.from_dict(artifact.manifest.decoder)
        except (KeyError, TypeError, ValueError) as error:
            raise EngineLoadError(
                f"{artifact.path}: decoder in the manifest",
                got=f"{type(error).__name__}: {error}",
                do="Export the model again.",
            ) from error
        is_float = chosen.activation == "fp32"
        try:
            session = make_session(artifact.path, n_threads, is_float)
            _check_signature(session, spec, artifact)
            _check_positions(artifact, spec, n_positions)
            info = EngineInfo(
                engine="onnxruntime",
                version=require("onnxruntime").__version__,
                model=artifact.name,
                n_threads=n_threads,
                settings={
                    "provider": PROVIDER,
                    "activation": chosen.activation if artifact.is_quantized else "fp32",
                    "chunk": chosen.chunk,
                },
            )
            return cls(session, spec, info, n_positions, chosen.chunk)
        except foreign_errors() as error:
            raise EngineLoadError(
                f"onnxruntime cannot load {artifact.path}",
                got=str(error),
                do="Check the files with: edgekit verify, or export the model again.",
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
        # If the call fails below, only the positions before it remain valid.
        self._n_cached = n_past
        n_tokens = len(token_ids)
        try:
            if n_tokens == 1:
                self._token_id[0, 0] = token_ids[0]
                self._run(n_past + 1)
                logits = self._last_row.copy()
            else:
                logits = self._run_chunks(token_ids, n_past, n_logits)
        except self._foreign as error:
            raise EngineCrashError(
                "onnxruntime failed while running",
                got=str(error),
                do="Run edgekit verify on the artifact; with less free memory, shorten the prompt.",
            ) from error
        self._n_cached = n_past + n_tokens
        return logits

    def close(self) -> None:
        """Free the model. Safe to call twice."""
        self._session = self._binding = None

    def _run(self, n_positions: int) -> None:
        """Run the bound inputs with a mask over the first ``n_positions``."""
        self._binding.bind_cpu_input(ATTENTION_MASK, self._mask[:, :n_positions])
        # No RunOptions: with them, onnxruntime 1.32 raises and swallows an exception per call,
        # 50 microseconds.
        self._session.run_with_iobinding(self._binding)

    def _run_chunks(self, token_ids: Sequence[int], n_past: int, n_logits: int) -> F32Array:
        """Run in pieces of ``chunk`` tokens and join the wanted rows of their logits."""
        n_tokens = len(token_ids)
        ids = np.asarray(token_ids, dtype=np.int64)[None]  # (1, T)
        result: F32Array = np.empty((n_logits, self._vocab_size), dtype=np.float32)
        first = n_tokens - n_logits
        # LongRoPE depends on the whole call, so that its chunks do not change the answer.
        self._call_length[0] = n_past + n_tokens
        try:
            for start in range(0, n_tokens, self._chunk):
                stop = min(start + self._chunk, n_tokens)
                n_rows = stop - max(start, first)
                self._binding.bind_cpu_input(INPUT_IDS, ids[:, start:stop])
                if n_rows > 1:
                    # The graph declares one row, and onnxruntime limits a bound buffer to that; it
                    # gives more rows only when it allocates them itself.
                    self._start[0] = -n_rows
                    self._binding.bind_output(LOGITS, "cpu")
                else:
                    self._start[0] = -1
                    self._binding.bind_ortvalue_output(LOGITS, self._logits_value)
                self._run(n_past + stop)
                if n_rows > 0:
                    logits = self._binding.get_outputs()[_LOGITS_INDEX].numpy()
                    result[stop - n_rows - first : stop - first] = logits[0]
        finally:
            self._bind_decode()
        return result

    def _bind_decode(self) -> None:
        """Bind one token in and one row of logits out, as every decode step uses them."""
        self._start[0] = -1
        self._call_length[0] = 0
        self._binding.bind_ortvalue_input(INPUT_IDS, self._token_value)
        self._binding.bind_ortvalue_output(LOGITS, self._logits_value)


def _lazy_buffer(shape: tuple[int, ...]) -> F32Array:
    """Give float32 memory that the system commits page by page as it is written.

    ``np.empty`` asks for huge pages above 4 MiB, which would commit a whole cache at once.
    """
    memory = mmap.mmap(-1, 4 * prod(shape))
    return np.frombuffer(memory, dtype=np.float32).reshape(shape)


def _check_positions(artifact: Artifact, spec: DecoderSpec, n_positions: int) -> None:
    """Refuse a manifest that states more positions than the artifact has tables for.

    Raises:
        EngineLoadError: See above; the buffers for such a context might not fit in memory.
    """
    n_channels = sum(rope.rotary_width or spec.head_width for rope in spec.ropes)
    if n_positions * n_channels * 4 > artifact.n_bytes:
        raise EngineLoadError(
            f"{artifact.path}: context length in the manifest",
            got=n_positions,
            wanted="what the position tables in the weight file hold",
            do="Export the model again.",
        )


def _changes_rope(spec: DecoderSpec, n_positions: int) -> bool:
    """Tell whether an artifact with this many positions holds both sets of a LongRoPE."""
    scalings = (rope.scaling for rope in spec.ropes)
    return any(
        isinstance(s, LongRopeScaling) and n_positions > s.original_context_length for s in scalings
    )


def _check_signature(session: Any, spec: DecoderSpec, artifact: Artifact) -> None:
    """Refuse a graph whose inputs and outputs are not those of the decoder in the manifest.

    Raises:
        EngineLoadError: A name, type or fixed size differs.
    """
    path = artifact.path / GRAPH_NAME
    n_caches = len(session.get_inputs()) - 2
    if n_caches != 2 * spec.n_layers:
        raise EngineLoadError(
            f"{path}: key and value inputs",
            got=n_caches,
            wanted=f"{2 * spec.n_layers} for the decoder in the manifest",
            do="Export the model again.",
        )
    ports = GraphPorts(
        spec.n_layers,
        spec.n_kv_heads,
        spec.head_width,
        spec.vocab_size,
        has_call_length=_changes_rope(spec, artifact.manifest.context_length),
    )
    all_ports = (*ports.inputs, *ports.defaults, *ports.outputs)
    wanted = {port.name: port.signature for port in all_ports}
    found = {
        arg.name: (arg.type, tuple(n for n in arg.shape if isinstance(n, int)))
        for arg in (
            *session.get_inputs(),
            *session.get_overridable_initializers(),
            *session.get_outputs(),
        )
    }
    differing = sorted(
        name for name in wanted.keys() | found.keys() if wanted.get(name) != found.get(name)
    )
    if differing:
        name = differing[0]
        raise EngineLoadError(
            f"{path}: {name} is not that of the decoder in the manifest",
            got=found.get(name, "absent"),
            wanted=wanted.get(name, "absent"),
            do="Export the model again.",
        )
