"""Tables of a verification: equal weights, and distances between logits."""

from __future__ import annotations

from collections.abc import Sequence

from edgekit.records import VerifyRecord
from edgekit.report.table import Cell, Table, make_table


def weights_table(records: Sequence[VerifyRecord]) -> Table:
    """Show whether artifacts hold the same weights, and how far their logits lie apart."""
    rows = [
        (
            record.artifact,
            record.weights_sha256[:8] or "float",
            f"{record.n_codes:,}",
            Cell(
                f"{record.n_codes_differing:,} codes, {record.n_scales_differing:,} scales",
                is_met=record.is_identical,
                has_mark=True,
            ),
            _logit_cell(record),
        )
        for record in records
    ]
    named = {f"Tolerance {r.tolerance_name}: {r.note}" for r in records if r.tolerance_name}
    return make_table(
        "weights",
        "Same weights in every format",
        ("artifact", "weights", "codes", "differing", "largest logit error"),
        rows,
        caption="Every artifact re-read from disk with the format's own library.",
        notes=tuple(sorted(named)),
    )


def oracle_table(records: Sequence[VerifyRecord]) -> Table:
    """Show how far edgekit's graphs lie from those of another exporter, over the same weights."""
    rows = [
        (
            record.artifact,
            record.weights_sha256[:8] or "float",
            "" if record.top1_agreement is None else f"{100 * record.top1_agreement:.2f} %",
            _logit_cell(record),
        )
        for record in records
    ]
    return make_table(
        "oracle",
        "Against optimum's graph over the same weights",
        ("artifact", "weights", "same top token", "largest logit error"),
        rows,
        caption="The weights of the artifact, dequantized, traced by optimum and run beside it.",
        notes=tuple(sorted({f"Compared {record.note}" for record in records})),
    )


def _logit_cell(record: VerifyRecord) -> Cell:
    error, limit = record.max_logit_error, record.logit_tolerance
    if error is None or limit is None:
        return Cell("not run")
    return Cell(
        f"{error:.1e} of {limit:.1e} ({record.tolerance_name})",
        is_met=error <= limit,
        has_mark=True,
    )
