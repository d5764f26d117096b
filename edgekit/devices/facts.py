"""The facts about an artifact that matching and speed projection need.

Plain numbers, read from the manifest only; no weights are read and no format is opened.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import prod
from typing import Any, Final

from edgekit.artifact import Artifact, Format, Manifest
from edgekit.encoding import Encoding
from edgekit.errors import ArtifactError

KV_ELEMENT_BYTES: Final[dict[Format, int]] = {
    Format.ONNX: 4,  # fp32 activations, so an fp32 cache
    Format.MLX: 2,  # fp16
    Format.COREML: 2,  # fp16 states; Core ML has no other
    Format.GGUF: 2,  # fp16
}
"""Width of one cached key or value element in the engine's default setting."""


@dataclass(frozen=True, slots=True)
class ArtifactFacts:
    """The sizes of an artifact that decide where it runs and how fast.

    Attributes:
        name: Short name for tables.
        format: File format.
        scheme: How the weights are stored, as text.
        weight_bytes: All weights as stored.
        streamed_bytes: Weights that one decoded token reads; without the rows of an untied
            input embedding, of which a token reads one.
        kv_bytes_per_token: Keys and values of one position over all layers.
        context_length: Positions the artifact holds.
        n_parameters: Parameters that take part in a token's arithmetic.
    """

    name: str
    format: Format
    scheme: str
    weight_bytes: int
    streamed_bytes: int
    kv_bytes_per_token: int
    context_length: int
    n_parameters: int


def facts_of(artifact: Artifact) -> ArtifactFacts:
    """Read the facts from an artifact's manifest.

    Raises:
        ArtifactError: The manifest's decoder or a tensor lacks what is needed.
    """
    manifest = artifact.manifest
    decoder = manifest.decoder
    try:
        weights = {entry.name: entry for entry in manifest.tensors}
        stored = {name: _stored_bytes(e.shape, e.encoding) for name, e in weights.items()}
        is_tied = decoder["is_tied"]
        embed_rows, embed_width = weights["embed"].shape
        kv_elements = 2 * decoder["n_layers"] * decoder["n_kv_heads"] * decoder["head_width"]
    except (KeyError, TypeError, ValueError) as error:
        raise ArtifactError(
            f"{artifact.path}: manifest",
            got=f"{type(error).__name__}: {error}",
            wanted="decoder sizes and an embed tensor",
            do="Export the model again.",
        ) from error
    weight_bytes = sum(stored.values())
    # A token reads one row of an untied embedding; a tied one is also the head and read whole.
    unread = 0 if is_tied else stored["embed"] - stored["embed"] // embed_rows
    idle = 0 if is_tied else embed_rows * embed_width
    return ArtifactFacts(
        name=artifact.name,
        format=artifact.format,
        scheme=manifest.scheme,
        weight_bytes=weight_bytes,
        streamed_bytes=weight_bytes - unread,
        kv_bytes_per_token=kv_elements * _kv_width(manifest),
        context_length=manifest.context_length,
        n_parameters=manifest.n_parameters - idle,
    )


def _stored_bytes(shape: tuple[int, ...], encoding: str) -> int:
    n_rows, n_cols = shape if len(shape) == 2 else (1, prod(shape))
    return Encoding.parse(encoding).bytes_of(n_rows, n_cols)


def _kv_width(manifest: Manifest) -> int:
    """Bytes of one cached element: as the exporter recorded it, else the format's default."""
    kv_type: Any = manifest.settings.get("cache_type")
    widths = {"fp32": 4, "fp16": 2, "bf16": 2, "int8": 1}
    return widths.get(kv_type, KV_ELEMENT_BYTES[manifest.format])
