"""The quantization plan: which tensor gets which scheme, and why.

Matrices get the scheme asked for. The embedding and ``lm_head`` keep 8 bits when the rest gets
4: their error goes straight into the first activation or the logits, and no later layer can
average it away. Norms and biases stay fp32: they are small and affect every activation.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from edgekit.artifact import TensorEntry
from edgekit.errors import QuantError
from edgekit.families.spec import DecoderSpec
from edgekit.scheme import FP32, GROUPS, Scheme

_EDGE_TENSORS: Final = ("embed", "lm_head")


@dataclass(frozen=True, slots=True)
class TensorPlan:
    """The plan for one tensor: canonical name, shape, scheme, and the reason in words.

    ``keeps_codes``: the source's own codes go in; ``imported``: and its scales, unchanged, from
    this format.
    """

    name: str
    shape: tuple[int, ...]
    scheme: Scheme
    reason: str
    keeps_codes: bool = False
    imported: str | None = None

    def entry(self, sha256: str | None) -> TensorEntry:
        """Give the manifest's entry of the tensor, once the hash of its codes is known."""
        scheme = str(self.scheme)
        return TensorEntry(
            self.name, self.shape, scheme, self.reason, sha256, self.imported, self.keeps_codes
        )


def plan_tensors(spec: DecoderSpec, scheme: Scheme) -> tuple[TensorPlan, ...]:
    """Decide the scheme of every tensor of a decoder, in file order.

    Args:
        spec: The decoder.
        scheme: What was asked for.

    Returns:
        One plan per canonical weight.

    Raises:
        QuantError: No allowed group divides the input width of some matrices; all are named.
    """
    plans: list[TensorPlan] = []
    misfits: list[str] = []
    for name, shape in spec.weight_shapes().items():
        if len(shape) == 1:
            reason = "bias stays float" if name.endswith(".bias") else "norm stays float"
            plans.append(TensorPlan(name, shape, FP32, reason))
        elif scheme.group is None:
            plans.append(TensorPlan(name, shape, scheme, "as asked"))
        elif (group := _fitting_group(shape[1], scheme.group)) is None:
            misfits.append(f"{name} ({shape[1]})")
        else:
            plans.append(_plan_codes(name, shape, scheme, group, is_tied=spec.is_tied))
    if misfits:
        raise QuantError(
            f"scheme {scheme}: row lengths that no group divides",
            got=", ".join(misfits),
            wanted=f"multiples of {min(GROUPS)}",
            do="Export this model with scheme fp16.",
        )
    return tuple(plans)


def _plan_codes(
    name: str, shape: tuple[int, ...], scheme: Scheme, group: int, *, is_tied: bool
) -> TensorPlan:
    kind, reasons = scheme.kind, []
    if kind == "int4" and name in _EDGE_TENSORS:
        kind = "int8"
        reaches = ["first activation"] if name == "embed" else []
        reaches += ["logits"] if name == "lm_head" or is_tied else []
        reasons.append(f"8 bits: its error goes straight into the {' and the '.join(reaches)}")
    if group != scheme.group:
        reasons.append(f"group {group}: {scheme.group} does not divide {shape[1]}")
    return TensorPlan(name, shape, Scheme(kind, group), "; ".join(reasons) or "as asked")


def _fitting_group(n_cols: int, wanted: int) -> int | None:
    """Give the largest allowed group, at most ``wanted``, that divides the row length."""
    return max((g for g in GROUPS if g <= wanted and n_cols % g == 0), default=None)
