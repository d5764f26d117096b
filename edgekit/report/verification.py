"""Tables of a verification: one for each check of ``edgekit verify``.

a) the weights that are stored, b) logits with float activations, c) the artifact as it runs by
default; then the stock runtimes, and the graphs of another exporter.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

from edgekit.records import (
    AnswerDifference,
    LogitsCheck,
    OracleRecord,
    RunCheck,
    StockCheck,
    VerifyRecord,
)
from edgekit.report.table import Cell, Table, make_table


def verification_tables(records: Sequence[VerifyRecord]) -> Iterator[Table]:
    """Give the table of every check that was made."""
    yield weights_table(records)
    if any(record.logits for record in records):
        yield logits_table(records)
    if any(record.run for record in records):
        yield run_table(records)
    if any(record.stock for record in records):
        yield stock_table(records)


def weights_table(records: Sequence[VerifyRecord]) -> Table:
    """Show whether artifacts hold the same weights."""
    rows = [
        (
            record.artifact,
            record.weights.weights_sha256[:8] or "float",
            f"{record.weights.n_codes:,}",
            _met(
                f"{record.weights.n_codes_differing:,} codes, "
                f"{record.weights.n_scales_differing:,} scales",
                record.weights.is_met,
            ),
        )
        for record in records
    ]
    libraries = dict.fromkeys(record.weights.library for record in records)
    return make_table(
        "weights",
        "a) Weights: the same codes and scales in every format",
        ("artifact", "weights", "codes", "differing"),
        rows,
        caption="Re-read from disk with the formats' own libraries ("
        + ", ".join(libraries)
        + ") and compared with the first artifact of the scheme.",
    )


def logits_table(records: Sequence[VerifyRecord]) -> Table:
    """Show how far graphs with float activations are from the reference."""
    checks = [(record.artifact, record.logits) for record in records if record.logits]
    rows = [
        (
            artifact,
            check.engine,
            _percent(check.top1_agreement),
            _met(f"{check.max_error:.2g} of {check.limit:.2g}", check.is_met),
        )
        for artifact, check in checks
    ]
    first = checks[0][1]
    return make_table(
        "logits",
        f"b) Logits: each graph in float32 against {first.compared_with}",
        ("artifact", "engine", "same top token", "largest error of allowed"),
        rows,
        caption=f"{first.n_tokens} tokens, over the weights as re-read.",
        notes=_tolerance_notes(check for _, check in checks),
    )


def run_table(records: Sequence[VerifyRecord]) -> Table:
    """Show how far artifacts are from the reference as their default engine runs them."""
    checks = [(record.artifact, record.run) for record in records if record.run]
    has_answers = any(check.answers for _, check in checks)
    rows: list[tuple[Cell | str, ...]] = [
        (
            artifact,
            f"{check.engine.partition(' ')[0]}, {check.arithmetic}",
            _met(f"{check.kl_mean:.2g} of {check.limit:g}", check.kl_mean <= check.limit),
            _percent(check.top1_agreement),
            *([_equal_answers(check)] if has_answers else []),
        )
        for artifact, check in checks
    ]
    written = max(check.n_written for _, check in checks)
    answered = f" and up to {written} of its own greedy answers" if has_answers else ""
    return make_table(
        "run",
        "c) As run: the default engine against the plain numpy forward",
        ("artifact", "engine", "nats of allowed", "same top", *(["answers"] * has_answers)),
        rows,
        caption="Each engine with the number type of its activations. Nats: KL divergence per "
        f"token over {checks[0][1].n_read} tokens read{answered}. Same top: tokens with the same "
        "most likely next token." + " Answers: those that are the same." * has_answers,
        notes=_tolerance_notes(check for _, check in checks),
    )


def stock_table(records: Sequence[VerifyRecord]) -> Table:
    """Show what the stock runtimes said to the same prompts."""
    rows = [
        (record.artifact, record.stock.runtime, _stock_cell(record.stock))
        for record in records
        if record.stock
    ]
    return make_table(
        "stock",
        "Stock runtimes against the default engine",
        ("artifact", "runtime", "result"),
        rows,
        caption="Prompt ids, end tokens, answers, their text and why they end. Each runtime has a "
        "process of its own, and its own tokenizer, template and loop.",
    )


def oracle_table(records: Sequence[OracleRecord]) -> Table:
    """Show how far edgekit's graphs are from those of another exporter, over the same weights."""
    rows = [
        (
            record.artifact,
            record.weights_sha256[:8] or "float",
            _percent(record.logits.top1_agreement),
            _met(f"{record.logits.max_error:.2g} of {record.logits.limit:.2g}",
                 record.logits.is_met),
        )
        for record in records
    ]  # fmt: skip
    said = {f"Compared over {r.logits.n_tokens} tokens; {r.logits.compared_with}" for r in records}
    return make_table(
        "oracle",
        "Against optimum's graph over the same weights",
        ("artifact", "weights", "same top token", "largest error of allowed"),
        rows,
        caption="The weights of the artifact, dequantized, traced by optimum and run beside it.",
        notes=tuple(sorted(said)),
    )


def detail_lines(records: Sequence[VerifyRecord]) -> Iterator[str]:
    """Give a line for each answer that differs and each problem found, with what explains it."""
    for record in records:
        for title, check, other in (
            ("as run", record.run, "the reference"),
            ("stock", record.stock, "edgekit"),
        ):
            if check is None:
                continue
            name = f"{record.artifact}, {title}"
            yield from (f"{name}: {problem}" for problem in check.problems)
            yield from (f"{name}: {_difference(d, other)}" for d in check.differences)


def verdict(records: Sequence[VerifyRecord], oracle: Sequence[OracleRecord] = ()) -> str:
    """Say in a sentence whether all is verified, else which check of which artifact is not."""
    failed = [
        f"{record.artifact}: {title}"
        for record in records
        for title, check in (
            ("weights", record.weights),
            ("logits", record.logits),
            ("as run", record.run),
            ("stock runtime", record.stock),
        )
        if check is not None and check.is_met is False
    ]
    failed += [f"{record.artifact}: oracle" for record in oracle if not record.logits.is_met]
    if failed:
        return "NOT verified: " + "; ".join(failed)
    unseen = dict.fromkeys(f"{r.artifact}: {r.not_run}" for r in records if r.not_run)
    unseen |= dict.fromkeys(
        f"{record.stock.runtime}: {record.stock.not_run}"
        for record in records
        if record.stock and record.stock.is_met is None
    )
    return "verified" + (f" (not run: {'; '.join(unseen)})" if unseen else "")


def _difference(difference: AnswerDifference, other: str) -> str:
    place = f"token {difference.index + 1} of the answer to {difference.prompt}"
    after = f", after {difference.before!r}," if difference.before else ""
    if difference.limit is None:
        judged = "their numbers are rounded otherwise: not judged"
    elif difference.is_met:
        judged = f"a tie, up to {difference.limit:.2g} is explained"
    else:
        judged = f"NOT explained: both compute alike, allowed is {difference.limit:.2g}"
    return (
        f"{place}{after} is {difference.got!r}, in {other} {difference.wanted!r}; "
        f"their logits are {difference.margin:.4f} apart ({judged})"
    )


def _equal_answers(check: RunCheck) -> Cell:
    if not check.answers:
        return Cell("not asked")
    n_total = len(check.answers)
    is_met = not check.problems and all(d.is_met for d in check.differences)
    text = f"{n_total - len(check.differences)} of {n_total}"
    # Where numbers are rounded, another answer is listed and not judged.
    has_mark = not is_met or not check.differences
    return Cell(text, is_met=is_met, has_mark=has_mark)


def _stock_cell(check: StockCheck) -> Cell:
    if check.not_run:
        return Cell(f"not run: {check.not_run}")
    if check.failure:
        return _met(f"failed: {check.failure}", False)
    n_same = check.n_prompts - len(check.differences)
    text = f"{n_same} of {check.n_prompts} answers equal"
    if check.problems:
        text += f", {len(check.problems)} problems (below)"
    return _met(text, bool(check.is_met))


def _tolerance_notes(checks: Iterable[LogitsCheck | RunCheck]) -> tuple[str, ...]:
    return tuple(sorted({f"Tolerance {check.tolerance}: {check.reason}." for check in checks}))


def _percent(share: float) -> str:
    return f"{100 * share:.2f} %"


def _met(text: str, is_met: bool) -> Cell:
    return Cell(text, is_met=is_met, has_mark=True)
