"""`edgekit inspect`: what is in a model, and what exporting it would give and cost."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated

import typer

from edgekit.cli.options import AdapterOpt, IgnoreKeysOpt, JsonOpt, ModelArg
from edgekit.cli.output import Output
from edgekit.decision import Accepted

if TYPE_CHECKING:
    from rich.console import Console

    from edgekit.exporters.context import ContextRange
    from edgekit.families.inspect import ModelSummary
    from edgekit.pipeline.inspect import Inspection
    from edgekit.pipeline.preflight import ExportPrediction
    from edgekit.pipeline.rates import Rates
    from edgekit.report.table import Table


def command(
    model: ModelArg,
    is_measuring: Annotated[
        bool | None,
        typer.Option(
            "--measure/--no-measure",
            help="Measure how fast this machine exports, for the predicted times: again, or never.",
            show_default="once, then remembered",
        ),
    ] = None,
    adapter: AdapterOpt = None,
    ignore_config_keys: IgnoreKeysOpt = None,
    as_json: JsonOpt = False,
) -> None:
    """Show what a model is and what exporting it would take.

    Reads the config and the names and shapes of the weights, not the weights. Says which formats
    can hold the model, and the size, disk, memory and time of each export.

    Example:
      edgekit inspect pocket
    """
    from edgekit.pipeline.inspect import describe_support, inspect
    from edgekit.pipeline.preflight import EXPECTED_ERROR
    from edgekit.pipeline.rates import known_rates, machine_rates
    from edgekit.records import to_data
    from edgekit.report.table import make_table
    from edgekit.report.terminal import print_table
    from edgekit.units import format_bytes

    output = Output(is_json=as_json)

    def find_rates() -> Rates | None:
        if is_measuring is False:
            return None
        if is_measuring or known_rates() is None:
            output.message("measuring how fast this machine exports, once; --no-measure skips it")
        with output.progress() as progress:
            return machine_rates(is_fresh=bool(is_measuring), progress=progress)

    found = inspect(model, find_rates, ignore_config_keys=ignore_config_keys or (), adapter=adapter)
    summary = found.summary
    rows = [
        ("model type", summary.model_type),
        ("parameters", f"{summary.n_parameters:,}"),
        *[(f"  {group}", f"{count:,}") for group, count in summary.parameters_by_group.items()],
        ("layers, heads, kv heads", f"{summary.n_layers}, {summary.n_heads}, {summary.n_kv_heads}"),
        ("context length", _context(summary)),
        ("sliding window", _window(summary)),
        ("stored as", ", ".join(summary.dtypes)),
        *[
            ("already quantized", f"{n} matrices as {label}; kept where the grid holds them")
            for label, n in summary.prequantized.items()
        ],
        *[
            ("already quantized", f"{n} matrices as {label}; read as floats")
            for label, n in summary.decoded.items()
        ],
        ("weights on disk", format_bytes(summary.file_bytes)),
        *[
            (f"KV cache per 1,000 tokens, {t}", format_bytes(1000 * n))
            for t, n in summary.kv_bytes_per_token.items()
        ],
        ("end tokens", _ends(summary)),
        ("licence", summary.license or "not stated"),
        *[
            (f"in {form.value}", line)
            for form, by_scheme in found.support.items()
            for line in describe_support(by_scheme)
        ],
        *[
            (f"positions in {form.value}", _positions(held))
            for form, held in found.positions.items()
        ],
    ]
    model_table = make_table("model", summary.name, ("what", "value"), rows)
    data = {
        **to_data(summary),
        "support": _support(found),
        "positions": {form.value: to_data(held) for form, held in found.positions.items()},
        "export": to_data(found.predictions),
        "export_expected_error": to_data(EXPECTED_ERROR),
    }

    def show(console: Console) -> None:
        print_table(model_table, console)
        print_table(_export_table(found.predictions), console)

    for note in summary.notes:
        output.message(note)
    output.result(data, show)


def _export_table(predictions: Sequence[ExportPrediction]) -> Table:
    from edgekit.artifact import Format
    from edgekit.pipeline.preflight import EXPECTED_ERROR
    from edgekit.report.table import make_table
    from edgekit.units import format_bytes, format_seconds

    formats = [form.value for form in Format]
    rows = [
        (
            item.scheme,
            *(
                format_bytes(item.artifact_bytes[form]) if form in item.artifact_bytes else "no"
                for form in formats
            ),
            format_bytes(item.disk_bytes),
            format_bytes(item.memory_bytes),
            "-" if item.time_s is None else format_seconds(item.time_s),
        )
        for item in predictions
    ]
    return make_table(
        "export",
        "An export will take (projected)",
        ("scheme", *formats, "disk", "memory", "time"),
        rows,
        notes=(
            "All formats that take the scheme, in one run: most disk at once, most memory at once, "
            "and time on this machine without the download.",
            "Measured exports took "
            + ", ".join(
                f"{name.partition('_')[0]} {100 * low:+.0f} to {100 * high:+.0f} %"
                for name, (low, high) in EXPECTED_ERROR.items()
                if name in ("memory_bytes", "time_s")
            )
            + " of what was said (docs/predictions.md).",
        ),
    )


def _support(found: Inspection) -> dict[str, dict[str, dict[str, object]]]:
    return {
        form.value: {
            scheme: {
                "is_possible": isinstance(decision, Accepted),
                "notes": list(decision.notes)
                if isinstance(decision, Accepted)
                else [decision.reason],
            }
            for scheme, decision in by_scheme.items()
        }
        for form, by_scheme in found.support.items()
    }


def _context(summary: ModelSummary) -> str:
    if not summary.rope_scaling:
        return f"{summary.context_length:,}"
    return f"{summary.context_length:,} ({summary.rope_scaling})"


def _positions(held: ContextRange) -> str:
    if held.default == held.longest:
        return f"{held.default:,}"
    return f"{held.default:,} by default, up to {held.longest:,} with --context"


def _ends(summary: ModelSummary) -> str:
    shown = [
        f"{end.id} {end.text!r} ({', '.join(end.origins)})" if end.text else str(end.id)
        for end in summary.end_tokens
    ]
    return "; ".join(shown) or "none"


def _window(summary: ModelSummary) -> str:
    if summary.sliding_window is None:
        return "none"
    return f"{summary.sliding_window:,} keys in {summary.n_sliding_layers} layers"
