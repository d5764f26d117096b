"""The llama_cpp engine: runs a GGUF artifact with llama.cpp, through the package llama-cpp-python.

The package's low-level functions are llama.cpp's own; its high-level class, which has a tokenizer,
templates and samplers of its own, is not used. llama.cpp ends the process where it meets a file
that breaks its assumptions, so the strict reader looks at the file first.

Matrices of codes are multiplied with activations that are rounded to 8 bits, those of fp16 with
activations in fp16. With the option ``activation`` ``fp32`` the engine runs a copy of the file
whose weights are float32, with the key/value cache in float32: for comparing results, not for
speed.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import tempfile
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any, Final, Self

import numpy as np

from edgekit.artifact import Artifact, Format
from edgekit.devices.profile import OPTIONAL_ENGINES
from edgekit.dtypes import F32Array
from edgekit.encoding import BF16, FP16
from edgekit.errors import (
    EngineCrashError,
    EngineLoadError,
    FormatError,
    MissingExtraError,
    UsageError,
)
from edgekit.formats.gguf import GgufFile
from edgekit.formats.gguf_widen import widen_file
from edgekit.lazy import require
from edgekit.records import EngineInfo
from edgekit.runtime.base import check_forward
from edgekit.runtime.opening import check_format, chosen_length, chosen_options

FILE_NAME: Final = "model.gguf"
PACKAGE: Final = "llama-cpp-python"
ACTIVATIONS: Final = ("native", "fp32")
_CHUNK_TOKENS: Final = 512
_USUAL_THREADS: Final = 4  # llama.cpp's own number, where the machine has as many
_SEQUENCE: Final = 0
_TO_THE_END: Final = -1
_F32: Final = 0
_NO_FLASH_ATTENTION: Final = 0
_ERROR_LEVELS: Final = (2, 3)
# What llama.cpp said last about something wrong; it has one log for the whole process.
_complaints: deque[str] = deque(maxlen=4)
_callbacks: list[Any] = []


class LlamaCppDecoder:
    """A model in llama.cpp; made by ``open``."""

    def __init__(
        self, library: Any, model: Any, context: Any, info: EngineInfo, n_ctx: int
    ) -> None:
        self._library = library
        self._model = model
        self._context = context
        self._info = info
        self._context_length = n_ctx
        self._vocab_size = int(library.llama_vocab_n_tokens(library.llama_model_get_vocab(model)))
        self._batch = library.llama_batch_init(_CHUNK_TOKENS, 0, 1)
        self._n_cached = 0

    @classmethod
    def open(
        cls,
        artifact: Artifact,
        *,
        n_threads: int | None = None,
        context_length: int | None = None,
        options: Mapping[str, Any] | None = None,
    ) -> Self:
        """Load a GGUF artifact.

        Args:
            artifact: The folder that the exporter wrote.
            n_threads: Threads to compute with; None takes 4, or as many as the machine has.
            context_length: Positions of the cache; None takes the artifact's own.
            options: ``activation``: ``native``, or ``fp32`` for a float32 copy of the weights.

        Raises:
            UsageError: Another format, an unknown option, or one out of range.
            MissingExtraError: llama-cpp-python is not installed.
            EngineLoadError: llama.cpp refuses the file.
        """
        check_format(artifact, "llama_cpp", Format.GGUF, "GGUF")
        if n_threads is not None and n_threads < 1:
            raise UsageError("n_threads", got=n_threads, wanted="1 or more")
        n_ctx = chosen_length(artifact, context_length)
        activation = chosen_options("llama_cpp", options, {"activation": "native"})["activation"]
        if activation not in ACTIVATIONS:
            raise UsageError(
                "llama_cpp option activation", got=activation, wanted=" or ".join(ACTIVATIONS)
            )
        library = _library()
        with _loadable(artifact, is_wide=activation == "fp32") as path:
            model = _load_model(library, path, artifact)
        arithmetic = activation if activation == "fp32" else _arithmetic(artifact)
        try:
            context = _make_context(library, model, n_ctx, n_threads, arithmetic)
        except EngineLoadError:
            library.llama_model_free(model)
            raise
        info = EngineInfo(
            engine="llama_cpp",
            version=f"{PACKAGE} {version(PACKAGE)}",
            model=artifact.name,
            n_threads=n_threads,
            settings={
                "activation": arithmetic,
                "cache": "fp32" if arithmetic == "fp32" else "fp16",
            },
        )
        return cls(library, model, context, info, n_ctx)

    @property
    def info(self) -> EngineInfo:
        """Version, threads, the number types of activations and of the cache."""
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
        """Run the tokens; see ``Decoder.forward``.

        Raises:
            UsageError: See ``Decoder.forward``.
            EngineCrashError: llama.cpp failed, or the decoder is closed.
        """
        if self._context is None:
            raise EngineCrashError("llama_cpp: the model is closed", do="Open it again.")
        check_forward(
            token_ids,
            n_past,
            n_logits,
            n_cached=self._n_cached,
            vocab_size=self._vocab_size,
            context_length=self._context_length,
        )
        library = self._library
        memory = library.llama_get_memory(self._context)
        if not library.llama_memory_seq_rm(memory, _SEQUENCE, n_past, _TO_THE_END):
            raise EngineCrashError("llama_cpp: the cache cannot forget its last positions")
        self._n_cached = n_past
        logits = np.empty((n_logits, self._vocab_size), np.float32)
        first = len(token_ids) - n_logits  # the first token whose logits are wanted
        for start in range(0, len(token_ids), _CHUNK_TOKENS):
            chunk = token_ids[start : start + _CHUNK_TOKENS]
            self._decode(chunk, n_past + start, first - start)
            for place in range(max(0, first - start), len(chunk)):
                row = library.llama_get_logits_ith(self._context, place)
                logits[start + place - first] = np.ctypeslib.as_array(row, (self._vocab_size,))
            self._n_cached = n_past + start + len(chunk)
        return logits

    def close(self) -> None:
        """Free the model. Safe to call twice."""
        if self._context is not None:
            self._library.llama_batch_free(self._batch)
            self._library.llama_free(self._context)
            self._library.llama_model_free(self._model)
            self._context = self._model = self._batch = None

    def _decode(self, token_ids: Sequence[int], position: int, first: int) -> None:
        """Run one chunk; logits are kept from its token ``first`` on."""
        batch = self._batch
        batch.n_tokens = len(token_ids)
        for place, token_id in enumerate(token_ids):
            batch.token[place] = token_id
            batch.pos[place] = position + place
            batch.n_seq_id[place] = 1
            batch.seq_id[place][0] = _SEQUENCE
            batch.logits[place] = place >= first
        _complaints.clear()
        status = self._library.llama_decode(self._context, batch)
        if status:
            raise EngineCrashError(
                "llama_cpp failed",
                got="; ".join(_complaints) or f"status {status}",
                do="Try a shorter context.",
            )


def _library() -> Any:
    """Give llama.cpp's functions, with its log kept and not printed."""
    try:
        library = require("llama_cpp.llama_cpp", package=PACKAGE)
    except (MissingExtraError, OSError, RuntimeError) as error:  # or its compiled part is missing
        raise MissingExtraError(
            f"engine llama_cpp needs {PACKAGE}: {getattr(error, 'what', error)}",
            package=PACKAGE,
            do=f"Run: {OPTIONAL_ENGINES['llama_cpp']}, which compiles llama.cpp.",
        ) from error
    if not _callbacks:
        _callbacks.append(library.llama_log_callback(_keep_complaint))
        library.llama_log_set(_callbacks[0], ctypes.c_void_p(0))
        library.llama_backend_init()
    return library


def _keep_complaint(level: int, text: bytes, data: object) -> None:
    del data
    said = text.decode("utf-8", "replace").strip()
    if level in _ERROR_LEVELS and said:
        _complaints.append(said)


@contextlib.contextmanager
def _loadable(artifact: Artifact, *, is_wide: bool) -> Iterator[Path]:
    """Give the file to load, once the strict reader has seen it; a wide copy lives as long."""
    path = artifact.path / FILE_NAME
    try:
        with GgufFile(path):
            pass
        if not is_wide:
            yield path
            return
        with tempfile.TemporaryDirectory(prefix="edgekit-float32-") as folder:
            wide = Path(folder) / FILE_NAME
            widen_file(path, wide)
            yield wide
    except (FormatError, OSError) as error:
        raise EngineLoadError(
            f"llama.cpp cannot load {artifact.path}", got=error, do="Export the model again."
        ) from error


def _load_model(library: Any, path: Path, artifact: Artifact) -> Any:
    params = library.llama_model_default_params()
    _complaints.clear()
    model = library.llama_model_load_from_file(os.fsencode(path), params)
    if not model:
        raise EngineLoadError(
            f"llama.cpp cannot load {artifact.path}",
            got="; ".join(_complaints) or "no reason given",
            do="Export the model again.",
        )
    return model


def _make_context(
    library: Any, model: Any, n_ctx: int, n_threads: int | None, arithmetic: str
) -> Any:
    params = library.llama_context_default_params()
    params.n_ctx = n_ctx
    params.n_batch = params.n_ubatch = _CHUNK_TOKENS
    chosen = n_threads or min(_USUAL_THREADS, os.cpu_count() or 1)
    params.n_threads = params.n_threads_batch = chosen
    params.no_perf = True
    params.swa_full = True  # so that positions can be forgotten also behind a sliding window
    if arithmetic == "fp32":
        params.type_k = params.type_v = _F32
        params.flash_attn_type = _NO_FLASH_ATTENTION
    _complaints.clear()
    context = library.llama_init_from_model(model, params)
    if not context:
        raise EngineLoadError(
            "llama.cpp cannot make a cache",
            got="; ".join(_complaints) or "no reason given",
            wanted=f"{n_ctx} positions",
            do="Try a shorter --context.",
        )
    return context


def _arithmetic(artifact: Artifact) -> str:
    """Name the number type of the activations that most matrices are multiplied with."""
    if artifact.is_quantized:
        return "int8"
    encodings = {entry.encoding for entry in artifact.manifest.tensors if len(entry.shape) > 1}
    return next((kind.kind for kind in (FP16, BF16) if str(kind) in encodings), "fp32")
