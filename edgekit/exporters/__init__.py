"""The exporters by format, and how to open one.

They are listed as strings, so that importing this package imports no format library.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Final, cast

from edgekit.artifact import Format
from edgekit.exporters.base import Exporter
from edgekit.lazy import load_object

EXPORTERS: Final[Mapping[Format, str]] = MappingProxyType(
    {
        Format.ONNX: "edgekit.exporters.onnx.exporter:OnnxExporter",
        Format.MLX: "edgekit.exporters.mlx.exporter:MlxExporter",
        Format.COREML: "edgekit.exporters.coreml.exporter:CoremlExporter",
        Format.GGUF: "edgekit.exporters.gguf.exporter:GgufExporter",
    }
)


def open_exporter(artifact_format: Format) -> Exporter:
    """Give the exporter of a format."""
    return cast(Exporter, load_object(EXPORTERS[artifact_format])())
