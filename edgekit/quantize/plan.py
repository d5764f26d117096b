"""The quantization plan: which tensor gets which encoding, and why.

Matrices get what the scheme says of them. Norms and biases stay fp32:
they are small and affect every activation.
"""

from __future__ import annotations

from dataclasses import dataclass

from edgekit.artifact import TensorEntry
from edgekit.encoding import BLOCKS, FP32, Encoding
from edgekit.errors import QuantError
from edgekit.families.spec import DecoderSpec
from edgekit.scheme import Scheme


@dataclass(frozen=True, slots=True)
class TensorPlan:
    """The plan for one tensor: canonical name, shape, encoding, and the reason in words.

    ``keeps_codes``: the source's own codes go in; ``imported``: and its scales, unchanged, from
    this format.
    """

    name: str
    shape: tuple[int, ...]
    encoding: Encoding
    reason: str
    keeps_codes: bool = False
    imported: str | None = None

    def entry(self, sha256: str | None) -> TensorEntry:
        """Give the manifest's entry of the tensor, once the hash of its codes is known."""
        encoding = str(self.encoding)
        return TensorEntry(
            self.name, self.shape, encoding, self.reason, sha256, self.imported, self.keeps_codes
        )


def plan_tensors(spec: DecoderSpec, scheme: Scheme) -> tuple[TensorPlan, ...]:
    """Decide the encoding of every tensor of a decoder, in file order.

    Args:
        spec: The decoder.
        scheme: What was asked for.

    Returns:
        One plan per canonical weight.

    Raises:
        QuantError: No allowed block divides the input width of some matrices; all are named.
    """
    plans: list[TensorPlan] = []
    misfits: list[str] = []
    for name, shape in spec.weight_shapes().items():
        if len(shape) == 1:
            reason = "bias stays float" if name.endswith(".bias") else "norm stays float"
            plans.append(TensorPlan(name, shape, FP32, reason))
            continue
        rule = scheme.rule_of(name)
        encoding = scheme.encoding if rule is None else rule.encoding
        reasons = [] if rule is None else [rule.reason]
        if encoding.block is not None:
            length = shape[0] if encoding.has_palette else shape[1]
            block = fitting_block(length, encoding.block)
            if block is None:
                misfits.append(f"{name} ({length})")
                continue
            if block != encoding.block:
                reasons.append(f"blocks of {block}: {encoding.block} does not divide {length}")
                encoding = Encoding(encoding.kind, block)
        plans.append(TensorPlan(name, shape, encoding, "; ".join(reasons) or "as asked"))
    if misfits:
        raise QuantError(
            f"scheme {scheme}: lengths that no block divides",
            got=", ".join(misfits),
            wanted=f"multiples of {min(BLOCKS)}",
            do="Export this model with scheme fp16.",
        )
    return tuple(plans)


def fitting_block(n_cols: int, wanted: int) -> int | None:
    """Give the largest allowed block, at most ``wanted``, that divides the row length."""
    return max((block for block in BLOCKS if block <= wanted and n_cols % block == 0), default=None)
