"""edgekit: export a small language model to ONNX, MLX and Core ML, measure it, compare it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from edgekit.lazy import load_object

if TYPE_CHECKING:
    from edgekit.pipeline.export import export
    from edgekit.pipeline.run import load

__version__ = "0.1.0"
__all__ = ["__version__", "export", "load"]

_PUBLIC = {"export": "edgekit.pipeline.export:export", "load": "edgekit.pipeline.run:load"}


def __getattr__(name: str) -> Any:
    """Import a public function when it is first used, so that ``import edgekit`` stays light."""
    if name in _PUBLIC:
        return load_object(_PUBLIC[name])
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
