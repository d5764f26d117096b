"""The mlx engine: runs an MLX artifact with mlx-lm.

Method: stock ``mlx_lm`` model code and key/value caches. Positions whose logits are not needed run
in chunks of which only the caches are evaluated (mlx is lazy). So the vocabulary projection runs
for the needed positions only, as in mlx-lm's own generation.

On Metal the artifact's own float type is used. The CPU backend of mlx sums in the storage type
(bf16: 5e-2 relative error of one matmul), so there every float is converted to fp32 unless the
option ``activation`` is ``native``. The CPU backend is for comparing results; its speed says
nothing about a device.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from importlib.metadata import version
from typing import Any, Final, Self

import numpy as np

from edgekit.artifact import Artifact, Format
from edgekit.dtypes import F32Array
from edgekit.errors import EngineCrashError, EngineLoadError, FormatError, UsageError
from edgekit.formats.safetensors import SafetensorsFile
from edgekit.lazy import require
from edgekit.records import EngineInfo
from edgekit.runtime.base import check_forward
from edgekit.runtime.opening import (
    check_format,
    chosen_length,
    chosen_options,
    refuse_threads,
)

ACTIVATIONS: Final = ("native", "fp32")
_CHUNK_TOKENS: Final = 512
# mlx-lm checks no config: wrong values raise any exception of the line that uses them first.
_LOAD_ERRORS: Final = (
    FormatError,
    OSError,
    RuntimeError,
    ValueError,
    TypeError,
    LookupError,
    AttributeError,
    AssertionError,
    ArithmeticError,
)

# mlx-lm's model files that scale the embedding by sqrt(hidden_size) in the type of the weights.
_ROOT_FACTOR_FILES: Final = ("gemma2",)


class MlxDecoder:
    """A model loaded by ``mlx_lm.utils.load_model``; made by ``open``."""

    def __init__(self, model: Any, info: EngineInfo, vocab_size: int, context_length: int) -> None:
        self._model = model
        self._info = info
        self._vocab_size = vocab_size
        self._context_length = context_length
        self._cache: list[Any] = []
        self._cached_ids: list[int] = []

    @classmethod
    def open(
        cls,
        artifact: Artifact,
        *,
        n_threads: int | None = None,
        context_length: int | None = None,
        options: Mapping[str, Any] | None = None,
    ) -> Self:
        """Load an MLX artifact.

        Args:
            artifact: The folder that the exporter wrote.
            n_threads: Must be None; mlx chooses its own number.
            context_length: Positions of the cache; None takes the artifact's own.
            options: ``activation``: ``native`` or ``fp32``; default fp32 on the CPU backend.

        Raises:
            UsageError: Another format, an unknown option, or one out of range.
            MissingExtraError: mlx or mlx-lm is not installed.
            EngineLoadError: mlx-lm refuses the files.
        """
        check_format(artifact, "mlx", Format.MLX, "MLX")
        refuse_threads("mlx", n_threads)
        length = chosen_length(artifact, context_length)
        mx = require("mlx.core")
        mlx_utils = require("mlx_lm.utils")
        backend = _backend(mx)
        if backend == "cpu":
            # With a C++ compiler on the PATH mlx would write sources to a folder for temporary
            # files that everybody can name beforehand, compile them and load what lies there.
            mx.disable_compile()
        activation = _chosen_activation(options, backend)
        with _mapped_load_errors(artifact):
            for path in sorted(artifact.path.glob("model*.safetensors")):
                # mlx trusts the header, so the strict reader checks it first.
                with SafetensorsFile(path):
                    pass
            model, config = mlx_utils.load_model(artifact.path, lazy=activation == "fp32")
            if activation == "fp32":
                _keep_embed_factor(mx, model, artifact)
                model.apply(lambda array: _widened(mx, array))
                mx.eval(model.parameters())
            vocab_size = int(config["vocab_size"])
        info = EngineInfo(
            engine="mlx",
            version=f"mlx {version('mlx')}, mlx-lm {version('mlx-lm')}",
            model=artifact.name,
            settings={"backend": backend, "activation": activation},
        )
        return cls(model, info, vocab_size, length)

    @property
    def info(self) -> EngineInfo:
        """Versions, backend and activation type."""
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
            EngineCrashError: mlx failed, or the decoder is closed.
        """
        if self._model is None:
            raise EngineCrashError("mlx: the model is closed", do="Open it again.")
        check_forward(
            token_ids,
            n_past,
            n_logits,
            n_cached=len(self._cached_ids),
            vocab_size=self._vocab_size,
            context_length=self._context_length,
        )
        mx = require("mlx.core")
        n_silent = len(token_ids) - n_logits
        try:
            self._rewind(mx, n_past)
            self._fill(mx, token_ids[:n_silent])
            blocks = []
            for start in range(n_silent, len(token_ids), _CHUNK_TOKENS):
                logits = self._run(mx, token_ids[start : start + _CHUNK_TOKENS])
                blocks.append(np.array(logits[0].astype(mx.float32)))
        except (RuntimeError, ValueError, MemoryError) as error:
            self._cache, self._cached_ids = [], []
            raise EngineCrashError("mlx failed", got=error, do="Try a shorter context.") from error
        self._cached_ids = [*self._cached_ids[:n_past], *token_ids]
        return blocks[0] if len(blocks) == 1 else np.concatenate(blocks)

    def close(self) -> None:
        """Free the model. Safe to call twice."""
        if self._model is not None:
            self._model, self._cache, self._cached_ids = None, [], []
            require("mlx.core").clear_cache()

    def _run(self, mx: Any, token_ids: Sequence[int]) -> Any:
        """Queue one chunk: (T,) ids to logits (1, T, V)."""
        return self._model(mx.array([list(token_ids)]), cache=self._cache)

    def _fill(self, mx: Any, token_ids: Sequence[int]) -> None:
        """Add tokens to the caches; their logits are never computed."""
        for start in range(0, len(token_ids), _CHUNK_TOKENS):
            self._run(mx, token_ids[start : start + _CHUNK_TOKENS])
            mx.eval([layer.state for layer in self._cache])

    def _rewind(self, mx: Any, n_past: int) -> None:
        """Forget every position from ``n_past`` on."""
        caches = require("mlx_lm.models.cache")
        n_back = len(self._cached_ids) - n_past
        if n_past == 0:
            self._cache = caches.make_prompt_cache(self._model)
        elif n_back and caches.can_trim_prompt_cache(self._cache):
            caches.trim_prompt_cache(self._cache, n_back)
        elif n_back:
            # A full window has dropped keys that the earlier positions need.
            self._cache = caches.make_prompt_cache(self._model)
            self._fill(mx, self._cached_ids[:n_past])


def _backend(mx: Any) -> str:
    if mx.default_device() == mx.Device(mx.cpu):
        return "cpu"
    return "metal" if mx.metal.is_available() else "cuda"


def _chosen_activation(options: Mapping[str, Any] | None, backend: str) -> str:
    default = "fp32" if backend == "cpu" else "native"
    activation = chosen_options("mlx", options, {"activation": default})["activation"]
    if activation not in ACTIVATIONS:
        raise UsageError("mlx option activation", got=activation, wanted=" or ".join(ACTIVATIONS))
    return str(activation)


def _widened(mx: Any, array: Any) -> Any:
    """Give floats as fp32, everything else unchanged."""
    return array.astype(mx.float32) if mx.issubdtype(array.dtype, mx.floating) else array


def _keep_embed_factor(mx: Any, model: Any, artifact: Artifact) -> None:
    """Keep the embedding's factor of the original type when the weights become wider.

    gemma2.py multiplies by ``args.hidden_size ** 0.5``, which mlx rounds to the type of the
    embedding. The rounded factor is part of the model, unlike the type of the sums. Nothing else
    reads that argument once the modules exist.
    """
    if model.model_type not in _ROOT_FACTOR_FILES:
        return
    dtype = getattr(mx, artifact.manifest.settings["float_dtype"])
    args = model.model.args
    root = mx.array(args.hidden_size**0.5, dtype).astype(mx.float32)
    args.hidden_size = root.item() ** 2


@contextlib.contextmanager
def _mapped_load_errors(artifact: Artifact) -> Iterator[None]:
    try:
        yield
    except _LOAD_ERRORS as error:
        raise EngineLoadError(
            f"mlx cannot load {artifact.path}",
            got=f"{type(error).__name__}: {error}",
            do="Export the model again.",
        ) from error
