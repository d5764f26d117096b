"""The page of the study: one table for each model, between marks in a page written by hand."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Final

import numpy as np

from study.measure import TokenValues, ratio_interval

YARDSTICK: Final = "padded-q4_k_m-imatrix"
"""The row that others are divided by: M."""


def make_table(
    rows: Sequence[TokenValues],
    n_of_kind: Mapping[str, int],
    n_calibration: int,
    missing: Mapping[str, str],
) -> list[str]:
    """Write the lines of a model's table.

    Args:
        rows: What was measured, in order.
        n_of_kind: Number of documents of each kind.
        n_calibration: Tokens of the calibration text.
        missing: Names of rows that were not run, with the reason.
    """
    if not rows:
        return ["Nothing was measured."]
    yardstick = next((row for row in rows if row.about["name"] == YARDSTICK), None)
    kinds = ", ".join(f"{n} of {kind}" for kind, n in n_of_kind.items())
    lines = [
        f"{sum(rows[0].counts):,} tokens in {len(rows[0].counts)} documents ({kinds}); "
        f"{n_calibration:,} other tokens to calibrate on.",
        "",
        "| weights | bits, linear | bits, all | KL | KL / M | top-1 | perplexity |",
        "| --- | --- | --- | --- | --- | --- | --- |",
    ]
    for row in rows:
        low, high = row.kl_interval()
        about = row.about
        lines.append(
            f"| {about['label']} | {about['linear_bits']:.2f} | {about['all_bits']:.2f} "
            f"| {_short(row.kl_mean)} [{_short(low)}, {_short(high)}] | {_ratio(row, yardstick)} "
            f"| {row.is_same.mean():.3f} | {row.perplexity:.2f} |"
        )
    if missing:
        lines += ["", "Not run:", ""]
        reasons: dict[str, list[str]] = {}
        for name, reason in missing.items():
            reasons.setdefault(reason, []).append(name)
        lines += [f"- {', '.join(names)}: {reason}" for reason, names in reasons.items()]
    tools = sorted({str(row.about["tool"]) for row in rows})
    return [*lines, "", f"Tools: {'; '.join(tools)}; numpy {np.__version__}."]


def _short(value: float) -> str:
    """Write a KL with three significant digits."""
    return f"{value:#.3g}" if value >= 1e-4 else f"{value:.1e}"


def _ratio(row: TokenValues, yardstick: TokenValues | None) -> str:
    if yardstick is None:
        return ""
    low, high = ratio_interval(row.document_sums(), yardstick.document_sums())
    return f"{row.kl_mean / yardstick.kl_mean:.2f} [{low:.2f}, {high:.2f}]"


def write_table(
    page: Path,
    model: str,
    rows: Sequence[TokenValues],
    n_of_kind: Mapping[str, int],
    n_calibration: int,
    missing: Mapping[str, str],
) -> None:
    """Replace what follows a model's mark in the page, up to the next heading or the end."""
    mark = f"<!-- measured: {model} -->"
    text = page.read_text(encoding="utf-8")
    before, found, after = text.partition(mark)
    if not found:
        raise SystemExit(f"{page} has no line {mark}")
    heading = after.find("\n## ")
    rest = after[heading:] if heading >= 0 else ""
    body = "\n".join(make_table(rows, n_of_kind, n_calibration, missing))
    page.write_text(f"{before}{mark}\n\n{body}\n{rest}", encoding="utf-8")
