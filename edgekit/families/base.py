"""Answer one question: what does a family file provide, and what does it give with a checkpoint?

A ``Family`` is data and one function: config -> ``DecoderSpec``, canonical names <-> names in
the checkpoint. A ``SourceModel`` is a checkpoint read through its family.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

import numpy as np

from edgekit.checkpoint.config import RawConfig
from edgekit.checkpoint.prequantized.tensor import PrequantizedTensor
from edgekit.checkpoint.reader import Checkpoint
from edgekit.dtypes import DTYPES, F32Array
from edgekit.errors import CheckpointError
from edgekit.families.names import NameTable
from edgekit.families.spec import DecoderSpec
from edgekit.tensors import LazyTensor, TensorInfo

_MAX_LISTED: Final = 12


@dataclass(frozen=True, slots=True)
class Family:
    """What one family file provides.

    Attributes:
        model_type: As config.json has it.
        read_spec: Takes or ignores every key of the config, calls ``finish``, and gives the spec.
        name_tables: Weight names; the first table whose embedding the checkpoint has counts.
    """

    model_type: str
    read_spec: Callable[[RawConfig], DecoderSpec]
    name_tables: tuple[NameTable, ...]


@dataclass(frozen=True, slots=True)
class SourceTensor:
    """A checkpoint tensor under its canonical name; refuses values that are not finite."""

    info: TensorInfo
    stored: LazyTensor

    @property
    def prequantized(self) -> PrequantizedTensor | None:
        """The codes, if the source is quantized already."""
        return self.stored if isinstance(self.stored, PrequantizedTensor) else None

    def read(self) -> F32Array:
        """Read the whole tensor as float32, shape ``info.shape``.

        Raises:
            CheckpointError: The tensor holds NaN or infinity.
        """
        return self._checked(self.stored.read())

    def read_rows(self, start: int, stop: int) -> F32Array:
        """Read rows ``start:stop`` of the first axis as float32.

        Raises:
            CheckpointError: The rows hold NaN or infinity.
        """
        return self._checked(self.stored.read_rows(start, stop))

    def _checked(self, values: F32Array) -> F32Array:
        # A float64 sum of finite float32 cannot overflow; NaN and infinity survive it.
        with np.errstate(invalid="ignore"):
            total = values.sum(dtype=np.float64)
        if not np.isfinite(total):
            n_bad = int(values.size - np.isfinite(values).sum())
            raise CheckpointError(
                f"{self.info.name} ({self.stored.info.name}): weights are not finite",
                got=f"{n_bad} of {values.size} values are NaN or infinite",
                do="Download the model again.",
            )
        return values


class SourceModel:
    """A checkpoint read through its family: the spec, and weights by canonical name.

    Attributes:
        checkpoint: The open checkpoint.
        spec: The decoder.
        tensors: Every weight of ``spec.weight_shapes()``, in that order; nothing is read yet.
        left_out: Reason -> number of checkpoint tensors that are not part of the decoder.
    """

    def __init__(self, checkpoint: Checkpoint, family: Family) -> None:
        """Read the config and check names, shapes and types of all tensors.

        Raises:
            CheckpointError: Config keys or tensors are missing, unexpected or of another shape;
                all of them are named.
        """
        self.checkpoint = checkpoint
        self.spec = _with_generation_eos(family.read_spec(checkpoint.config), checkpoint)
        checkpoint.notes += checkpoint.config.notes
        stored = checkpoint.weights()
        names = _choose_names(stored, family.name_tables)
        self.tensors: Mapping[str, SourceTensor] = _match_tensors(
            checkpoint.folder, stored, names, self.spec
        )
        reasons = filter(None, map(names.why_ignored, stored))
        self.left_out: Mapping[str, int] = Counter(reasons)

    def tensor(self, name: str) -> SourceTensor:
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


def _with_generation_eos(spec: DecoderSpec, checkpoint: Checkpoint) -> DecoderSpec:
    """Add the end tokens of generation_config.json, which transformers stops at, in front."""
    path = checkpoint.assets.get("generation_config.json")
    if path is None:
        return spec
    generation = RawConfig.open(path)
    eos = generation.take_ids("eos_token_id")
    # Sampling defaults are the caller's choice, so the other keys mean nothing here.
    generation.ignore(generation)
    generation.finish()
    return replace(spec, eos_token_ids=tuple(dict.fromkeys((*eos, *spec.eos_token_ids))))


def _choose_names(tensors: Mapping[str, LazyTensor], tables: tuple[NameTable, ...]) -> NameTable:
    fitting = (table for table in tables if table.top["embed"] in tensors)
    return next(fitting, tables[0])


@dataclass(frozen=True, slots=True)
class _Rows:
    """Some rows of a stored matrix, a ``LazyTensor`` of its own."""

    info: TensorInfo
    stored: LazyTensor
    first: int

    def read(self) -> F32Array:
        return self.read_rows(0, self.info.shape[0])

    def read_rows(self, start: int, stop: int) -> F32Array:
        return self.stored.read_rows(self.first + start, self.first + stop)


def _take_rows(info: TensorInfo, stored: LazyTensor, first: int) -> LazyTensor:
    """Give the rows of ``info.shape`` from ``first`` on; rows of codes are codes."""
    if isinstance(stored, PrequantizedTensor):
        return stored.part(info, first)
    return _Rows(info, stored, first)


def _match_tensors(
    folder: Path, tensors: Mapping[str, LazyTensor], names: NameTable, spec: DecoderSpec
) -> dict[str, SourceTensor]:
    """Pair every weight of the spec with its tensor; report all faults together."""
    shapes = spec.weight_shapes()
    expected: dict[str, list[str]] = {}
    for name in shapes:
        expected.setdefault(names.to_checkpoint(name), []).append(name)
    faults: list[str] = []
    found: dict[str, SourceTensor] = {}
    for theirs, parts in expected.items():
        wanted = (sum(shapes[part][0] for part in parts), *shapes[parts[0]][1:])
        stored = tensors.get(theirs)
        if stored is None:
            faults.append(f"{theirs} is missing (wanted {list(wanted)})")
        elif stored.info.shape != wanted:
            faults.append(
                f"{theirs} has shape {list(stored.info.shape)} (config.json wants {list(wanted)})"
            )
        elif not DTYPES[stored.info.dtype].is_float:
            faults.append(f"{theirs} holds {stored.info.dtype.value} (wanted floats)")
        else:
            for part in parts:
                info = TensorInfo(part, shapes[part], stored.info.dtype)
                first = sum(shapes[above][0] for above in names.parts_above(part))
                is_whole = len(parts) == 1
                found[part] = SourceTensor(
                    info, stored if is_whole else _take_rows(info, stored, first)
                )
    for theirs in tensors:
        # Tied checkpoints often store the embedding a second time as lm_head.
        is_tied_head = spec.is_tied and names.to_canonical(theirs) == "lm_head"
        if theirs not in expected and not is_tied_head and names.why_ignored(theirs) is None:
            faults.append(f"{theirs} is unexpected")
    if faults:
        more = f" and {len(faults) - _MAX_LISTED} more" if len(faults) > _MAX_LISTED else ""
        raise CheckpointError(
            f"{folder}: {len(faults)} tensors are not what config.json says",
            got="; ".join(faults[:_MAX_LISTED]) + more,
            wanted="the names and shapes that follow from config.json",
            do="Config and weights must come from the same model; download both again.",
        )
    return {name: found[name] for name in shapes}
