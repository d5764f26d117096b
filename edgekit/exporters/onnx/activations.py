"""The precision of activations in an ONNX artifact: what each matmul gets, and why.

onnxruntime's fast kernels round what goes into a matmul to int8, block by block
(accuracy_level 4). Its other levels keep floats and are slow: about a third less speed with 4-bit
codes, hundreds of times slower with 8-bit ones. In between, a matmul can take its activations as
the sum of two int8 terms, which leaves next to no error: one token becomes two rows that meet the
weights together, a prompt twice the work. With ``ExportOptions.exact_activations`` all of them do.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Final

from edgekit.artifact import Manifest, TensorEntry
from edgekit.encoding import Encoding
from edgekit.exporters.onnx.weights import Linear
from edgekit.families.spec import DecoderSpec

ACCURACY_LEVEL: Final = 4
_ONE: Final = "one int8 term: fast, and its error is small beside that of the codes"
_HEAD: Final = "two int8 terms: its error goes straight into the logits, and it runs on one token"
_EXACT: Final = "two int8 terms: exact activations were asked for"
EXACT_KEY: Final = "exact_activations"  # of a manifest's settings
_KEPT: Final = (
    "two int8 terms: the 8-bit codes are those of the source, whose channels are as uneven as they "
    "were, and one term would cost more than the codes do"
)


@dataclass(frozen=True, slots=True)
class Precision:
    """How a matmul takes its activations: in how many int8 terms, and why."""

    n_terms: int
    reason: str


def plan_precision(
    spec: DecoderSpec, entries: Iterable[TensorEntry], *, is_exact: bool
) -> dict[str, Precision]:
    """Decide how the matmul of every quantized matrix takes its activations.

    Args:
        spec: The decoder.
        entries: Its tensors.
        is_exact: Whether all take two terms.

    Returns:
        Canonical name to precision; a tied head is ``lm_head``.
    """
    found = {}
    for entry in entries:
        encoding = Encoding.parse(entry.encoding)
        name = "lm_head" if entry.name == "embed" and spec.is_tied else entry.name
        if encoding.block is None or name == "embed":
            continue
        if name == "lm_head":
            found[name] = Precision(2, _HEAD)
        elif entry.keeps_codes and encoding.bits == 8:
            found[name] = Precision(2, _KEPT)
        elif is_exact:
            found[name] = Precision(2, _EXACT)
        else:
            found[name] = Precision(1, _ONE)
    return found


def is_exact(manifest: Manifest) -> bool:
    """Tell whether an artifact was exported with exact activations."""
    return manifest.settings.get(EXACT_KEY) is True


def terms_of(precision: Mapping[str, Precision]) -> dict[str, int]:
    """Give the number of terms by canonical name."""
    return {name: item.n_terms for name, item in precision.items()}


def describe_precision(
    precision: Mapping[str, Precision], linears: Iterable[Linear]
) -> list[dict[str, Any]]:
    """Give what a manifest says of the activations: matmuls by name, with the reason of each.

    Args:
        precision: From ``plan_precision``.
        linears: The matmuls of the graph; one that joins several matrices takes the most terms
            of any.
    """
    matmuls: dict[Precision, list[str]] = {}
    for linear in linears:
        parts = ("lm_head",) if linear.name == "lm_head" else linear.parts
        known = [precision[part] for part in parts if part in precision]
        if known:
            matmuls.setdefault(max(known, key=lambda p: p.n_terms), []).append(linear.name)
    return [
        {
            "accuracy_level": ACCURACY_LEVEL,
            "n_terms": item.n_terms,
            "reason": item.reason,
            "matmuls": names,
        }
        for item, names in matmuls.items()
    ]
