"""Answer one question: which exporter writes a format?

Exporters are named by strings, so that importing this package imports no format library.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from types import MappingProxyType, ModuleType
from typing import Any, Final, cast

from edgekit.artifact import Format
from edgekit.export.base import Exporter
from edgekit.lazy import load_object

EXPORTERS: Final[Mapping[Format, str]] = MappingProxyType(
    {
        Format.ONNX: "edgekit.export.onnx:OnnxExporter",
        Format.MLX: "edgekit.export.mlx:MlxExporter",
        Format.COREML: "edgekit.export.coreml:CoremlExporter",
    }
)


def open_exporter(artifact_format: Format) -> Exporter:
    """Give the exporter of a format."""
    return cast(Exporter, load_object(EXPORTERS[artifact_format])())


class _CallablePackage(ModuleType):
    """Let ``edgekit.export(...)`` work although importing this package takes that name."""

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return load_object("edgekit.pipeline.export:export")(*args, **kwargs)


sys.modules[__name__].__class__ = _CallablePackage
