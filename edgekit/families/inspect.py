"""Summary of a model, made from config.json and the headers of the weight files.

No weight is read.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from edgekit.artifact import EndToken
from edgekit.errors import CheckpointError
from edgekit.families import open_model
from edgekit.families.base import SourceModel
from edgekit.families.rope_spec import Llama3Scaling, LongRopeScaling, YarnScaling
from edgekit.families.spec import DecoderSpec
from edgekit.scheme import Scheme

SCHEMES: Final = (
    Scheme.parse("fp32"),
    Scheme.parse("fp16"),
    Scheme.parse("int8"),
    Scheme.parse("int4"),
)
_GROUPS: Final[Mapping[str, tuple[str, ...]]] = {
    "embedding": ("embed", "lm_head"),
    "attention": ("q", "k", "v", "o"),
    "ffn": ("gate", "up", "down"),
    "norm": (
        "attn_norm",
        "attn_post_norm",
        "ffn_norm",
        "ffn_post_norm",
        "q_norm",
        "k_norm",
        "final_norm",
    ),
}


@dataclass(frozen=True, slots=True)
class ModelSummary:
    """Facts about a model from its config and headers.

    Attributes:
        parameters_by_group: Weights in embedding, attention, ffn and norm.
        context_length: Positions, with what rope scaling adds to them.
        rope_scaling: How the position encoding is stretched; empty if it is not.
        dtypes: Stored types, most bytes first; for codes, format, bits and group.
        prequantized: Label of an existing quantization whose codes may be kept -> number of
            matrices.
        decoded: Label of an existing quantization that is read as floats -> number of matrices.
        file_bytes: Bytes of the weights as stored.
        kv_bytes_per_token: Key/value cache per position, by cache type (fp32, fp16).
        left_out: Reason -> number of stored tensors that are not part of the decoder.
        n_sliding_layers: Layers that see ``sliding_window`` keys only.
        notes: What is left out, ignored or changed while reading, one sentence each.
        end_tokens: Tokens that end an answer, as far as the files at hand say.
        license: From the front matter of the model card; empty if it does not say.
    """

    name: str
    origin: str
    model_type: str
    n_parameters: int
    parameters_by_group: Mapping[str, int]
    context_length: int
    rope_scaling: str
    sliding_window: int | None
    n_layers: int
    hidden_width: int
    ffn_width: int
    n_heads: int
    n_kv_heads: int
    head_width: int
    vocab_size: int
    is_tied: bool
    dtypes: tuple[str, ...]
    file_bytes: int
    kv_bytes_per_token: Mapping[str, int]
    left_out: Mapping[str, int]
    n_sliding_layers: int
    license: str
    prequantized: Mapping[str, int] = field(default_factory=dict)
    decoded: Mapping[str, int] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    end_tokens: tuple[EndToken, ...] = ()


def inspect_model(model: str | Path) -> ModelSummary:
    """Summarize a model without reading its weights.

    Args:
        model: Folder, bundled name, or Hub id.

    Raises:
        CheckpointError: No such model, or it is damaged or not supported.
        FormatError: A weight file is damaged.
    """
    source = open_model(model, headers_only=True)
    try:
        return summarize(source)
    finally:
        source.close()


def summarize(source: SourceModel) -> ModelSummary:
    """Summarize an open model; see ``inspect_model``."""
    spec, checkpoint = source.spec, source.checkpoint
    n_bytes_of: dict[str, int] = {}
    prequantized: Counter[str] = Counter()
    decoded: Counter[str] = Counter()
    for tensor in source.tensors.values():
        stored, n_stored = tensor.info.dtype.value, tensor.info.n_bytes
        if tensor.prequantized is not None:
            stored = tensor.prequantized.label
            n_stored = tensor.info.n_elements * tensor.prequantized.bits // 8
            prequantized[stored] += 1
        elif tensor.decoded is not None:
            stored = tensor.decoded.label
            n_stored = tensor.info.n_elements * tensor.decoded.bits // 8
            decoded[stored] += 1
        n_bytes_of[stored] = n_bytes_of.get(stored, 0) + n_stored
    ends, notes = _read_ends(source)
    n_kv_values = 2 * spec.n_layers * spec.kv_width
    return ModelSummary(
        name=checkpoint.name,
        origin=checkpoint.origin,
        model_type=spec.model_type,
        n_parameters=source.n_parameters,
        parameters_by_group=_by_group(source),
        context_length=spec.context_length,
        rope_scaling=_describe_scaling(spec),
        sliding_window=spec.sliding_window,
        n_layers=spec.n_layers,
        hidden_width=spec.hidden_width,
        ffn_width=spec.ffn_width,
        n_heads=spec.n_heads,
        n_kv_heads=spec.n_kv_heads,
        head_width=spec.head_width,
        vocab_size=spec.vocab_size,
        is_tied=spec.is_tied,
        dtypes=tuple(sorted(n_bytes_of, key=lambda name: -n_bytes_of[name])),
        file_bytes=checkpoint.weights_bytes,
        kv_bytes_per_token={"fp32": 4 * n_kv_values, "fp16": 2 * n_kv_values},
        left_out=dict(source.left_out),
        n_sliding_layers=sum(spec.attention(i).window is not None for i in range(spec.n_layers)),
        license=checkpoint.license,
        prequantized=dict(prequantized),
        decoded=dict(decoded),
        notes=(*checkpoint.notes, *notes),
        end_tokens=ends,
    )


def _describe_scaling(spec: DecoderSpec) -> str:
    """Say in a few words how the layers with full attention reach their context length."""
    rope = spec.rope
    match rope.scaling:
        case YarnScaling() | Llama3Scaling():
            stretched = f"{rope.scaling.factor:g} times {rope.scaling.original_context_length:,}"
            return f"{rope.scaling.kind} scaling, {stretched}"
        case LongRopeScaling():
            return f"longrope scaling, from {rope.scaling.original_context_length:,}"
    return f"linear scaling, {rope.linear_factor:g} times" if rope.linear_factor != 1 else ""


def _read_ends(source: SourceModel) -> tuple[tuple[EndToken, ...], tuple[str, ...]]:
    """Give the end tokens, and notes about the text files of a model.

    The text files of a model on the Hub are not here yet; a fault in them is noted now and refused
    at export.
    """
    stated = tuple(EndToken(i, "", ("eos_token_id",)) for i in source.spec.eos_token_ids)
    if not source.checkpoint.has_weights:
        return stated, ()
    try:
        return source.text.ends, source.text.notes
    except CheckpointError as error:
        return stated, (f"no export: {error}",)


def _by_group(source: SourceModel) -> dict[str, int]:
    counts = dict.fromkeys(_GROUPS, 0)
    group_of = {part: group for group, parts in _GROUPS.items() for part in parts}
    for name, tensor in source.tensors.items():
        counts[group_of[_part(name)]] += tensor.info.n_elements
    return counts


def _part(name: str) -> str:
    """Give ``q`` of ``layers.3.q.bias``."""
    return name.removesuffix(".bias").rpartition(".")[2]
