"""What quantizing costs, as a table and as a picture (``edgekit quality-cost``)."""

from __future__ import annotations

from typing import Final

from edgekit.records import CostRecord, Divergence, QualityRecord
from edgekit.report.scatter import Dot, Scatter, draw_scatter
from edgekit.report.sections import suite_table
from edgekit.report.table import Table, make_table
from edgekit.units import MIB, format_bytes, format_pct

_ON_FRONT: Final = "*"


def cost_tables(record: CostRecord) -> tuple[Table, ...]:
    """Give size and quality of each setting, and the suites where they were asked."""
    rows = [
        (
            point.name,
            f"{point.n_bytes / MIB:,.1f}",
            f"{point.linear_bits:.2f}",
            _with_half_width(point.divergence),
            format_pct(point.divergence.top1_agreement),
            _perplexity(point.divergence.perplexity),
            _ON_FRONT if point.name in record.front else "",
        )
        for point in record.points
    ]
    table = make_table(
        "quality-cost",
        f"What quantizing costs: {record.model}",
        ("setting", "MiB", "bits", "KL, 95 %", "top-1", "ppl", "best"),
        rows,
        caption=(
            f"{record.n_tokens:,} tokens in {record.n_documents} documents (text: {record.text}). "
            f"Float model: {format_bytes(record.float_bytes)}, perplexity "
            f"{_perplexity(record.float_perplexity)}."
        ),
        notes=(
            "MiB: the whole artifact. bits: of a weight in the layers, scales included. KL: nats "
            "per token from the float model, with half the width of the 95 % interval over "
            "documents. top-1: same likeliest token. ppl: perplexity. *: no other setting is as "
            "small and as near.",
            f"Float model {record.reference}.",
            *record.notes,
        ),
    )
    asked = [
        QualityRecord(point.name, point.engine, point.divergence, point.suites)
        for point in record.points
        if point.suites
    ]
    return (table, suite_table(asked)) if asked else (table,)


def _with_half_width(d: Divergence) -> str:
    return f"{d.kl_mean:#.4g} ±{(d.kl_high - d.kl_low) / 2:.2g}"


def _perplexity(value: float) -> str:
    return f"{value:.2f}" if value < 1000 else f"{value:,.0f}"


def cost_picture(record: CostRecord) -> str:
    """Draw size against KL as an SVG file, with the front that no setting beats."""
    dots = tuple(
        Dot(
            label=point.name,
            x=point.n_bytes / MIB,
            y=point.divergence.kl_mean,
            low=point.divergence.kl_low,
            high=point.divergence.kl_high,
            text=f"{format_bytes(point.n_bytes)}, KL {point.divergence.kl_mean:#.4g}",
            is_best=point.name in record.front,
        )
        for point in record.points
    )
    return draw_scatter(
        Scatter(
            title=f"{record.model}: quality against size",
            message="Distance from the float model against the size of the artifact; filled points "
            "are those that no other beats in both, the dashed line connects them.",
            x_title="size of the artifact, MiB",
            y_title="KL from the float model, nats per token",
            dots=dots,
        )
    )
