"""``Family`` and ``SourceModel``: what a family file provides, and a checkpoint read through it.

A ``Family`` is data and one function: config -> ``DecoderSpec``, and names in the checkpoint <->
canonical names. A ``SourceModel`` is a checkpoint read through its family. The config says what to
compute; the stored tensors decide whether the head is the embedding and how many rows the
vocabulary has.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Final

import numpy as np

from edgekit.checkpoint.adapter import plain_name
from edgekit.checkpoint.assets import read_end_ids, read_text
from edgekit.checkpoint.base import Checkpoint
from edgekit.checkpoint.config import RawConfig
from edgekit.checkpoint.prequantized.tensor import DecodedTensor, PrequantizedTensor
from edgekit.dtypes import DTYPES, DType, F32Array
from edgekit.errors import CheckpointError, EdgekitError
from edgekit.families.adapted import merge_adapter
from edgekit.families.left_out import (
    PREDICTION,
    UNREAD_BIASES,
    ZERO_BIASES,
    kind_in_layer,
    kind_outside,
    predicts_tokens,
)
from edgekit.families.names import Alignment, NameTable, align
from edgekit.families.spec import DecoderSpec
from edgekit.formats.safetensors import SafetensorsTensor
from edgekit.model_files import GENERATION_NAME
from edgekit.tensors import LazyTensor, TensorInfo, row_blocks
from edgekit.text.tokenizer import Tokenizer
from edgekit.text.view import TextView

_MAX_LISTED: Final = 12
# Prefixes of the text decoder in published checkpoints that hold more than one.
_WRAPPERS: Final = ("language_model.model.", "model.language_model.")
_MAX_BIAS_ELEMENTS: Final = 1 << 20


@dataclass(frozen=True, slots=True)
class Family:
    """What one family file provides.

    Attributes:
        model_type: As config.json has it.
        read_spec: Takes or ignores every key of the config, calls ``finish``, and gives the spec.
        name_tables: Weight names as published; the table that fits the checkpoint best is used.
            A prefix that a program added to all names, or removed, needs no table of its own.
    """

    model_type: str
    read_spec: Callable[[RawConfig], DecoderSpec]
    name_tables: tuple[NameTable, ...]


@dataclass(frozen=True, slots=True)
class Weight:
    """A weight of the decoder: rows of a stored tensor under a canonical name, a ``LazyTensor``.

    Reading it refuses values that are not finite.

    Attributes:
        info: Canonical name, shape, and the type as stored.
        stored: The tensor in the checkpoint; larger where it holds other rows too.
        first: The row of ``stored`` that row 0 is.
    """

    info: TensorInfo
    stored: LazyTensor
    first: int = 0

    @property
    def prequantized(self) -> PrequantizedTensor | None:
        """The codes, if the source is quantized already."""
        if not isinstance(self.stored, PrequantizedTensor):
            return None
        if self.stored.info.shape == self.info.shape:
            return self.stored
        return self.stored.part(self.info, self.first)

    @property
    def decoded(self) -> DecodedTensor | None:
        """The source's form, if it is quantized in a way whose codes cannot be kept."""
        return self.stored if isinstance(self.stored, DecodedTensor) else None

    def read(self) -> F32Array:
        """Read the whole tensor as float32, shape ``info.shape``.

        Raises:
            CheckpointError: The tensor holds NaN or infinity.
        """
        if self.stored.info.shape == self.info.shape:
            return self._checked(self.stored.read())
        return self.read_rows(0, self.info.shape[0])

    def read_rows(self, start: int, stop: int) -> F32Array:
        """Read rows ``start:stop`` of the first axis as float32.

        Raises:
            CheckpointError: The rows hold NaN or infinity.
        """
        return self._checked(self.stored.read_rows(self.first + start, self.first + stop))

    def _checked(self, values: F32Array) -> F32Array:
        # NaN and infinity survive a sum of squares; only where it is no number, all are looked at.
        flat = values.reshape(-1)
        with np.errstate(invalid="ignore", over="ignore"):
            is_finite = bool(np.isfinite(np.dot(flat, flat)))
        n_bad = 0 if is_finite else int(values.size - np.isfinite(values).sum())
        if n_bad:
            raise CheckpointError(
                f"{self.info.name} ({self.stored.info.name}): weights are not finite",
                got=f"{n_bad} of {values.size} values are NaN or infinite",
                do="The training failed or the file is damaged; use another copy of the model.",
            )
        return values


class SourceModel:
    """A checkpoint read through its family: the spec, and weights by canonical name.

    What is unusual about the weights is added to ``checkpoint.notes``.

    Attributes:
        checkpoint: The open checkpoint.
        spec: The decoder; of its end tokens, those that config.json and generation_config.json
            state (``text`` has them all).
        tensors: Every weight of ``spec.weight_shapes()``, in that order; nothing is read yet.
        left_out: What they are -> number of checkpoint tensors that are not part of the decoder.
    """

    def __init__(self, checkpoint: Checkpoint, family: Family) -> None:
        """Read the config and check names, shapes and types of all tensors.

        Raises:
            CheckpointError: Config keys or tensors are missing, unexpected or of another shape;
                all of them are named.
        """
        self.checkpoint = checkpoint
        spec = family.read_spec(checkpoint.config)
        self._config_ends = spec.eos_token_ids
        generation = checkpoint.text_files.read_object(GENERATION_NAME)
        where = checkpoint.text_files.path(GENERATION_NAME)
        ends = (*read_end_ids(generation, where), *spec.eos_token_ids)
        spec = replace(spec, eos_token_ids=tuple(dict.fromkeys(ends)))
        checkpoint.notes += checkpoint.config.notes
        stored = {plain_name(name): tensor for name, tensor in checkpoint.weights().items()}
        found = align(stored, family.name_tables)
        _note_prefix(found, checkpoint.notes)
        weights = {found.renamed[name]: t for name, t in stored.items() if name in found.renamed}
        spec = _decide_head(spec, weights, found.table, checkpoint)
        if checkpoint.adapter is not None:
            merge_adapter(checkpoint.adapter, weights, found.table, checkpoint.notes)
            spec = _decide_head_again(spec, weights, found.table, checkpoint)
        self.spec = _decide_rows(spec, weights, found.table, checkpoint)
        tensors, faults = _match_tensors(weights, found.table, self.spec)
        left_out, unexpected = _sort_extra(stored, found, self.spec, reads=checkpoint.has_weights)
        _refuse(checkpoint, faults + unexpected)
        self.tensors: Mapping[str, Weight] = tensors
        self.left_out: Mapping[str, int] = {kind: len(names) for kind, names in left_out.items()}
        checkpoint.notes += [
            f"left out: {_and_more(names)} ({kind})" for kind, names in left_out.items()
        ]
        wide = [t.stored.info.name for t in tensors.values() if t.info.dtype is DType.FP64]
        if wide:
            checkpoint.notes.append(f"rounded from F64 to float32: {_and_more(wide)}")

    @cached_property
    def text(self) -> TextView:
        """The tokenizer, the chat template and all end tokens of the model.

        Raises:
            CheckpointError: See ``read_text_view``.
        """
        return read_text(self.checkpoint, self.spec.vocab_size, self._config_ends)

    def tensor(self, name: str) -> Weight:
        """Give a weight by its canonical name.

        Raises:
            CheckpointError: The decoder has no such weight.
        """
        try:
            return self.tensors[name]
        except KeyError as error:
            raise CheckpointError(
                f"no weight {name!r}", wanted="a canonical name such as layers.0.q"
            ) from error

    @property
    def n_parameters(self) -> int:
        """Number of weights, a tied embedding counted once."""
        return sum(tensor.info.n_elements for tensor in self.tensors.values())

    def close(self) -> None:
        """Close the checkpoint."""
        self.checkpoint.close()


def _and_more(names: Sequence[str]) -> str:
    return names[0] + (f" and {len(names) - 1} more" if len(names) > 1 else "")


def _note_prefix(found: Alignment, notes: list[str]) -> None:
    """Add a note about a prefix that a program added; wrappers of other parts are published so."""
    if found.renamed and found.prefix not in (found.table.root, *_WRAPPERS):
        usual = repr(found.table.root)
        notes.append(
            f"tensor names begin with {found.prefix!r} in place of {usual}"
            if found.prefix
            else f"tensor names lack the usual {usual}"
        )


def _decide_head(
    spec: DecoderSpec, weights: dict[str, LazyTensor], names: NameTable, checkpoint: Checkpoint
) -> DecoderSpec:
    """Decide from the stored tensors whether the output matrix is the embedding.

    As in transformers: a stored head that differs is used, whatever ``tie_word_embeddings`` says;
    one that is identical or absent is the embedding. Weights that are not needed are removed from
    ``weights``.

    Source:
        transformers 5.23, ``PreTrainedModel.tie_weights``.
    """
    notes, embed, head = checkpoint.notes, names.top["embed"], names.top["lm_head"]
    if head not in weights:
        if not spec.is_tied and embed in weights:
            notes.append(
                f"no {head} is stored: the embedding is the output matrix too, although "
                "config.json says tie_word_embeddings: false"
            )
        return replace(spec, is_tied=spec.is_tied or embed in weights)
    if embed not in weights:
        if spec.is_tied:
            notes.append(f"no {embed} is stored: {head} is the embedding too")
            weights[embed] = weights.pop(head)
        return spec
    if not checkpoint.has_weights:
        if spec.is_tied:
            notes.append(
                f"{head} is stored besides the embedding; an export compares them, and uses it if "
                "it differs"
            )
            del weights[head]
        return spec
    are_floats = all(DTYPES[weights[name].info.dtype].is_float for name in (head, embed))
    is_equal = are_floats and _are_equal(weights[head], weights[embed])
    if is_equal:
        if not spec.is_tied:
            notes.append(f"{head} is identical to the embedding and is stored once")
        del weights[head]
    elif spec.is_tied:
        notes.append(
            f"{head} differs from the embedding and is used as the output matrix, although "
            "config.json says tie_word_embeddings: true"
        )
    return replace(spec, is_tied=is_equal)


def _decide_head_again(
    spec: DecoderSpec, weights: dict[str, LazyTensor], names: NameTable, checkpoint: Checkpoint
) -> DecoderSpec:
    """Tell whether an adapter separated the output matrix from the embedding, or joined them."""
    embed, head = names.top["embed"], names.top["lm_head"]
    if head not in weights or embed not in weights:
        return spec
    is_equal = checkpoint.has_weights and _are_equal(weights[head], weights[embed])
    if is_equal:
        del weights[head]
    elif spec.is_tied:
        checkpoint.notes.append(
            "the adapter changes the embedding and the output matrix in different ways: "
            "they are two separate matrices in the export"
        )
    return replace(spec, is_tied=is_equal)


def _are_equal(one: LazyTensor, other: LazyTensor) -> bool:
    """Tell whether two tensors have the same shape and values, whatever their types.

    Reads a block of rows of both at a time, up to the first difference.
    """
    if one.info.shape != other.info.shape:
        return False
    blocks = row_blocks(one.info.shape)
    if (
        isinstance(one, SafetensorsTensor)
        and isinstance(other, SafetensorsTensor)
        and one.info.dtype is other.info.dtype
    ):
        return all(
            one.raw_rows(b.start, b.stop).tobytes() == other.raw_rows(b.start, b.stop).tobytes()
            for b in blocks
        )
    return all(
        np.array_equal(one.read_rows(b.start, b.stop), other.read_rows(b.start, b.stop))
        for b in blocks
    )


def _decide_rows(
    spec: DecoderSpec, weights: Mapping[str, LazyTensor], names: NameTable, checkpoint: Checkpoint
) -> DecoderSpec:
    """Take the size of the vocabulary from the stored rows where config.json says another.

    Rows beyond ``vocab_size`` that no token of the tokenizer has are padding and are left out.
    If head and embedding have different numbers of rows, the smaller number counts for both.

    Raises:
        CheckpointError: A token that begins or ends a text has no row.
    """
    matrices = [names.top["embed"], *([] if spec.is_tied else [names.top["lm_head"]])]
    rows = [weights[name].info.shape[0] for name in matrices if len(_shape(weights, name)) == 2]
    if len(rows) == len(matrices) and set(rows) != {spec.vocab_size} and min(rows) > 0:
        n_rows, n_before = min(rows), spec.vocab_size
        n_tokens = _n_tokens(checkpoint)
        is_padded = n_rows > n_before and n_tokens is not None and n_tokens <= n_before
        spec = replace(spec, vocab_size=n_before if is_padded else n_rows)
        said = " and ".join(f"{n} rows in {name}" for n, name in zip(rows, matrices, strict=True))
        checkpoint.notes.append(
            f"vocabulary of {spec.vocab_size}: {said}, vocab_size {n_before} in config.json"
            + (f", {n_tokens} tokens" if n_tokens is not None else "")
        )
    ids = (spec.bos_token_id, *spec.eos_token_ids)
    lost = sorted({i for i in ids if i is not None and i >= spec.vocab_size})
    if lost:
        raise CheckpointError(
            f"{checkpoint.config.where}: "
            + "; ".join(f"token id {i} is outside vocab_size {spec.vocab_size}" for i in lost),
            wanted="ids that have a row in the embedding",
            do="Compare bos_token_id and eos_token_id with the model's original files.",
        )
    if spec.pad_token_id is not None and spec.pad_token_id >= spec.vocab_size:
        checkpoint.notes.append(f"pad_token_id {spec.pad_token_id} has no row and is not used")
        spec = replace(spec, pad_token_id=None)
    return spec


def _shape(weights: Mapping[str, LazyTensor], name: str) -> tuple[int, ...]:
    return weights[name].info.shape if name in weights else ()


def _n_tokens(checkpoint: Checkpoint) -> int | None:
    """Count the tokens of the tokenizer; None if there is none or it is damaged."""
    try:
        return Tokenizer.open(checkpoint.text_files).vocab_size
    except EdgekitError:
        return None


def _match_tensors(
    weights: Mapping[str, LazyTensor], names: NameTable, spec: DecoderSpec
) -> tuple[dict[str, Weight], list[str]]:
    """Pair every weight of the spec with its tensor; all faults are returned together."""
    shapes = spec.weight_shapes()
    expected: dict[str, list[str]] = {}
    for name in shapes:
        expected.setdefault(names.to_checkpoint(name), []).append(name)
    faults: list[str] = []
    found: dict[str, Weight] = {}
    for theirs, parts in expected.items():
        wanted = (sum(shapes[part][0] for part in parts), *shapes[parts[0]][1:])
        stored = weights.get(theirs)
        if stored is None:
            faults.append(f"{theirs} is missing (wanted {list(wanted)})")
        elif not DTYPES[stored.info.dtype].is_float:
            faults.append(f"{stored.info.name} holds {_type_name(stored)} (wanted floats)")
        elif not _fits(
            _shape_or(stored, wanted), wanted, is_vocabulary=parts[0] in ("embed", "lm_head")
        ):
            faults.append(
                f"{stored.info.name} has shape {list(stored.info.shape)} "
                f"(config.json wants {list(wanted)})"
            )
        else:
            for part in parts:
                first = sum(shapes[above][0] for above in names.parts_above(part))
                info = TensorInfo(part, shapes[part], stored.info.dtype)
                found[part] = Weight(info, stored, first)
    return {name: found[name] for name in shapes if name in found}, faults


def _shape_or(stored: LazyTensor, wanted: tuple[int, ...]) -> tuple[int, ...]:
    """Give a tensor's shape, or the wanted one if no header states it."""
    is_known = not isinstance(stored, DecodedTensor) or stored.has_shape
    return stored.info.shape if is_known else wanted


def _fits(shape: tuple[int, ...], wanted: tuple[int, ...], *, is_vocabulary: bool) -> bool:
    """Compare shapes; the vocabulary's matrices may have more rows than are used."""
    if is_vocabulary and len(shape) == 2:
        return shape[0] >= wanted[0] and shape[1] == wanted[1]
    return shape == wanted


def _type_name(stored: LazyTensor) -> str:
    if isinstance(stored, SafetensorsTensor):
        return stored.type_name
    return stored.info.dtype.value


def _sort_extra(
    stored: Mapping[str, LazyTensor], found: Alignment, spec: DecoderSpec, *, reads: bool
) -> tuple[dict[str, list[str]], list[str]]:
    """Sort the tensors that are not weights of the decoder: (what they are -> names, faults)."""
    table = found.table
    used = {table.to_checkpoint(name) for name in spec.weight_shapes()}
    # A copy of the embedding, or one that is compared later.
    used |= {table.top["embed"], table.top["lm_head"]}
    left_out: dict[str, list[str]] = {}
    faults: list[str] = []
    extra = {name: found.renamed.get(name) for name in stored}
    extra = {name: ours for name, ours in extra.items() if ours not in used}
    layers = {name: None if ours is None else table.layer_of(ours) for name, ours in extra.items()}
    predicting = {layers[name] for name in extra if predicts_tokens(name)}
    for name, ours in extra.items():
        layer = layers[name]
        if layer is None:
            kind = kind_outside(name, is_inside_root=ours is not None)
        elif layer >= spec.n_layers and layer in predicting:
            kind = PREDICTION
        else:
            kind = kind_in_layer(name)
        if kind is None and name.endswith(".bias") and (layer or 0) < spec.n_layers:
            kind = _kind_of_bias(stored[name], reads=reads)
        if kind is None:
            faults.append(f"{name} is unexpected")
        else:
            left_out.setdefault(kind, []).append(name)
    return left_out, faults


def _kind_of_bias(stored: LazyTensor, *, reads: bool) -> str | None:
    """Tell whether a bias that the config does not announce changes nothing.

    Programs that write GPTQ give every linear layer a bias of zeros.
    """
    info = stored.info
    if len(info.shape) != 1 or info.n_elements > _MAX_BIAS_ELEMENTS:
        return None
    if not DTYPES[info.dtype].is_float:
        return None
    if not reads:
        return UNREAD_BIASES
    return None if stored.read().any() else ZERO_BIASES


def _refuse(checkpoint: Checkpoint, faults: list[str]) -> None:
    if not faults:
        return
    more = f" and {len(faults) - _MAX_LISTED} more" if len(faults) > _MAX_LISTED else ""
    only_types = all("(wanted floats)" in fault for fault in faults)
    raise CheckpointError(
        f"{checkpoint.folder}: {len(faults)} tensors are not what config.json says",
        got="; ".join(faults[:_MAX_LISTED]) + more,
        wanted="the names and shapes that follow from config.json",
        do="Save these tensors as float32 or bfloat16."
        if only_types
        else "Config and weights must come from the same model and the same save.",
    )
