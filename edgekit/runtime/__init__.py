"""The engines by name, which formats each runs, and how to load an artifact into one.

They are listed as strings, so that importing this package imports no runtime library.
"""

from __future__ import annotations

import platform
from collections.abc import Mapping
from difflib import get_close_matches
from types import MappingProxyType
from typing import Any, Final, cast

from edgekit.artifact import Artifact, Format
from edgekit.errors import UsageError
from edgekit.lazy import load_object
from edgekit.runtime.base import Decoder

ENGINES: Final[Mapping[str, str]] = MappingProxyType(
    {
        "onnxruntime": "edgekit.runtime.onnxruntime:OnnxruntimeDecoder",
        "mlx": "edgekit.runtime.mlx:MlxDecoder",
        "coreml": "edgekit.runtime.coreml:CoremlDecoder",
        "mil": "edgekit.runtime.mil:MilDecoder",
        "llama_cpp": "edgekit.runtime.llama_cpp:LlamaCppDecoder",
        "fake": "edgekit.runtime.fake:FakeDecoder",
    }
)
"""Engines with ``open(artifact, *, n_threads=None, context_length=None, options=None)``."""

ENGINE_FORMATS: Final[Mapping[str, frozenset[Format]]] = MappingProxyType(
    {
        "onnxruntime": frozenset({Format.ONNX}),
        "mlx": frozenset({Format.MLX}),
        "coreml": frozenset({Format.COREML}),
        "mil": frozenset({Format.COREML}),
        "llama_cpp": frozenset({Format.GGUF}),
        "fake": frozenset(Format),
    }
)

_DEFAULT_ENGINES: Final[Mapping[Format, str]] = MappingProxyType(
    {
        Format.ONNX: "onnxruntime",
        Format.MLX: "mlx",
        Format.COREML: "mil",
        Format.GGUF: "llama_cpp",
    }
)
_DARWIN_ENGINES: Final[Mapping[Format, str]] = MappingProxyType({Format.COREML: "coreml"})


def default_engine(artifact_format: Format, host_os: str) -> str:
    """Name the engine that runs a format on an operating system.

    Args:
        artifact_format: The format.
        host_os: What ``platform.system()`` returns, in any case: darwin, linux, windows.
    """
    if host_os.lower() in ("darwin", "macos"):
        return _DARWIN_ENGINES.get(artifact_format, _DEFAULT_ENGINES[artifact_format])
    return _DEFAULT_ENGINES[artifact_format]


def check_engine_name(name: str) -> None:
    """Refuse a name that no engine has.

    Raises:
        UsageError: See above.
    """
    if name not in ENGINES:
        near = get_close_matches(name, ENGINES, n=1)
        raise UsageError(
            "unknown engine",
            got=repr(name),
            wanted=", ".join(ENGINES),
            do=f"Did you mean {near[0]}?" if near else None,
        )


def open_decoder(
    artifact: Artifact,
    *,
    engine: str | None = None,
    n_threads: int | None = None,
    context_length: int | None = None,
    options: Mapping[str, Any] | None = None,
    is_checked: bool = False,
) -> Decoder:
    """Load an artifact into an engine, unless it changed since the export.

    Args:
        artifact: What to run.
        engine: A name of ``ENGINES``; None takes the default of this system.
        n_threads: Threads to compute with; None leaves it to the engine.
        context_length: Positions of the cache; None takes the artifact's own.
        options: Choices that only this engine knows.
        is_checked: The caller has just called ``artifact.check_unchanged``.

    Raises:
        ArtifactError: The artifact is not as it was exported.
        UsageError: No such engine, it does not run this format, or an option is wrong.
        MissingExtraError: The engine's package is not installed.
        EngineLoadError: The engine refuses the files.
    """
    name = engine or default_engine(artifact.format, platform.system())
    check_engine_name(name)
    if artifact.format not in ENGINE_FORMATS[name]:
        raise UsageError(
            f"engine {name} does not run {artifact.format.value}",
            got=str(artifact.path),
            wanted=" or ".join(sorted(f.value for f in ENGINE_FORMATS[name])),
            do=f"Use --engine {default_engine(artifact.format, platform.system())}.",
        )
    if not is_checked:
        artifact.check_unchanged()
    decoder = load_object(ENGINES[name]).open(
        artifact, n_threads=n_threads, context_length=context_length, options=dict(options or {})
    )
    return cast(Decoder, decoder)
