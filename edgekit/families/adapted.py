"""Merging of an adapter into the weights of the model that it belongs to."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

from edgekit.checkpoint.adapter import Adapter, ModuleChange
from edgekit.checkpoint.merging import (
    ColumnLengths,
    LatestMatrices,
    LowRank,
    MergedTensor,
    Offset,
    Rows,
)
from edgekit.errors import CheckpointError
from edgekit.families.left_out import UNUSED, kind_outside
from edgekit.families.names import NameTable, align
from edgekit.tensors import LazyTensor

_MAX_LISTED: Final = 8


@dataclass(frozen=True, slots=True)
class _Target:
    """A module of the adapter and the names of its tensors in the base model."""

    module: str
    change: ModuleChange
    weight: str
    bias: str


def merge_adapter(
    adapter: Adapter, weights: dict[str, LazyTensor], names: NameTable, notes: list[str]
) -> None:
    """Add the adapter's changes to the weights of its base model; nothing is read yet.

    Where embedding and output matrix are one tensor, a change of only one of them makes them two,
    as they were while the adapter was trained.

    Args:
        adapter: The adapter.
        weights: The base model's weights under the names of ``names``; changed in place.
        names: The family's table.
        notes: Gets what is done and what is left out.

    Raises:
        CheckpointError: A part belongs to no weight of the model, or has another shape; all such
            parts are named.
    """
    targets, left_out, faults = _find_targets(adapter, weights, names)
    embed, head = names.top["embed"], names.top["lm_head"]
    for target in targets:
        for kind, tensor in target.change.base.items():
            name = target.weight if kind == "weight" else target.bias
            if name == head and head not in weights:
                name = embed
            if name in weights:
                weights[name] = tensor
            else:
                faults.append(f"{target.module}.{kind} (the model has none)")
    trained = {t.weight for t in targets if t.change.a is not None or "weight" in t.change.whole}
    is_tied = head not in weights and embed in weights
    if is_tied and trained & {embed, head} and not adapter.keeps_tie:
        weights[head] = weights[embed]
    latest = LatestMatrices()
    for target in targets:
        if target.weight == head and head not in weights:
            continue
        faults += _merge_module(target, weights, latest, is_embedding=target.weight == embed)
    if faults:
        more = f" and {len(faults) - _MAX_LISTED} more" if len(faults) > _MAX_LISTED else ""
        raise CheckpointError(
            f"{adapter.folder}: the adapter does not fit the model",
            got="; ".join(faults[:_MAX_LISTED]) + more,
            wanted="changes of weights that the model has, in their shapes",
            do=f"Name the model that it was made for: {adapter.base}"
            if adapter.base
            else "Name the model that it was made for.",
        )
    notes.append(
        f"merged with the adapter {adapter.name} (sha256 {adapter.sha256()[:12]}): "
        f"{len(targets)} modules"
    )
    for kind, modules in left_out.items():
        more = f" and {len(modules) - 1} more" if len(modules) > 1 else ""
        notes.append(f"left out of the adapter: {modules[0]}{more} ({kind})")


def _find_targets(
    adapter: Adapter, weights: dict[str, LazyTensor], names: NameTable
) -> tuple[list[_Target], dict[str, list[str]], list[str]]:
    """Find the base model's tensors of every module: (found, left out by kind, faults)."""
    of_module = {f"{module}.weight": module for module in adapter.changes}
    renamed = align(of_module, (names,)).renamed
    targets: list[_Target] = []
    left_out: dict[str, list[str]] = {}
    faults: list[str] = []
    for theirs, module in of_module.items():
        ours = renamed.get(theirs)
        is_known = ours is not None and (ours in weights or ours == names.top["lm_head"])
        if ours is not None and is_known:
            bias = f"{ours.removesuffix('.weight')}.bias"
            targets.append(_Target(module, adapter.changes[module], ours, bias))
            continue
        is_in_layer = ours is not None and names.layer_of(ours) is not None
        kind = None if is_in_layer else kind_outside(theirs, is_inside_root=True)
        if kind is None or kind == UNUSED:
            faults.append(f"{module} (the model has no such weight)")
        else:
            left_out.setdefault(kind, []).append(module)
    return targets, left_out, faults


def _merge_module(
    target: _Target,
    weights: dict[str, LazyTensor],
    latest: LatestMatrices,
    *,
    is_embedding: bool,
) -> Iterator[str]:
    """Apply one module's change to its weight and bias; give what does not fit."""
    change, module = target.change, target.module
    for kind, tensor in change.whole.items():
        name = target.weight if kind == "weight" else target.bias
        if name not in weights:
            yield f"{module}.{kind} (the model has none)"
        else:
            weights[name] = tensor
    stored = weights.get(target.weight)
    if stored is None:
        return
    if change.a is not None and change.b is not None:
        shape = stored.info.shape
        # PEFT's embedding has A (r, V) and B (C, r); mlx-lm's has them as they are multiplied.
        is_swapped = change.is_embedding or (change.is_transposed and is_embedding)
        left, right = (change.a, change.b) if is_swapped else (change.b, change.a)
        needs_transpose = change.is_embedding or (change.is_transposed and not is_embedding)
        lengths = None if change.magnitude is None else change.magnitude.read().reshape(-1)
        row_lengths = None if change.is_embedding else lengths
        product = LowRank(left, right, change.scale, needs_transpose, row_lengths, latest)
        if product.shape != shape:
            yield f"{module} changes a matrix of {list(product.shape)} (the model's: {list(shape)})"
            return
        wanted = shape[1 if change.is_embedding else 0]
        if lengths is not None and len(lengths) != wanted:
            yield f"{module} has {len(lengths)} magnitudes (the model's weight wants {wanted})"
        elif lengths is not None and change.is_embedding:
            columns = ColumnLengths(stored, product, lengths)
            weights[target.weight] = MergedTensor(stored, columns)
        else:
            weights[target.weight] = MergedTensor(stored, product)
    if change.rows is not None:
        rows = change.rows.read()
        if rows.shape[1:] != stored.info.shape[1:] or max(change.row_ids) >= stored.info.shape[0]:
            yield f"{module} replaces rows of a matrix of another shape"
        else:
            by_row = dict(zip(change.row_ids, rows, strict=True))
            weights[target.weight] = MergedTensor(weights[target.weight], Rows(by_row))
    if change.b_bias is not None:
        bias = weights.get(target.bias)
        if bias is None or bias.info.shape != change.b_bias.info.shape:
            yield f"{module} adds to a bias (the model has none there)"
        else:
            offset = Offset(change.b_bias.read() * change.scale)
            weights[target.bias] = MergedTensor(bias, offset)
