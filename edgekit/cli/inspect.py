"""`edgekit inspect`: what is in a model folder, and what would exporting it give?"""

from __future__ import annotations

from typing import TYPE_CHECKING

from edgekit.cli.options import JsonOpt, ModelArg
from edgekit.cli.output import Output
from edgekit.decision import Accepted

if TYPE_CHECKING:
    from edgekit.families.inspect import ModelSummary
    from edgekit.pipeline.inspect import Inspection


def command(model: ModelArg, as_json: JsonOpt = False) -> None:
    """Show what MODEL is, which formats can hold it, and how large; reads no weights.

    Example: edgekit inspect pocket
    """
    from edgekit.pipeline.inspect import describe_support, inspect
    from edgekit.records import to_data
    from edgekit.report.table import make_table
    from edgekit.report.terminal import print_table
    from edgekit.units import format_bytes

    found = inspect(model)
    summary = found.summary
    rows = [
        ("model type", summary.model_type),
        ("parameters", f"{summary.n_parameters:,}"),
        *[(f"  {group}", f"{count:,}") for group, count in summary.parameters_by_group.items()],
        ("layers, heads, kv heads", f"{summary.n_layers}, {summary.n_heads}, {summary.n_kv_heads}"),
        ("context length", f"{summary.context_length:,}"),
        ("sliding window", _window(summary)),
        ("stored as", ", ".join(summary.dtypes)),
        *[
            ("already quantized", f"{n} matrices as {label}; kept where the grid holds them")
            for label, n in summary.coded.items()
        ],
        ("weights on disk", format_bytes(summary.file_bytes)),
        *[
            (f"KV cache per token, {t}", format_bytes(n))
            for t, n in summary.kv_bytes_per_token.items()
        ],
        *[("left out", f"{n} tensors: {why}") for why, n in summary.left_out.items()],
        ("licence", summary.license or "not stated"),
        *[
            (f"as {scheme}", f"about {format_bytes(n)} of weights")
            for scheme, n in summary.weight_bytes.items()
        ],
        *[
            (f"in {form.value}", line)
            for form, by_scheme in found.support.items()
            for line in describe_support(by_scheme)
        ],
    ]
    Output(is_json=as_json).result(
        {**to_data(summary), "support": _support(found)},
        lambda console: print_table(
            make_table("model", summary.name, ("what", "value"), rows), console
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


def _window(summary: ModelSummary) -> str:
    if summary.sliding_window is None:
        return "none"
    return f"{summary.sliding_window:,} keys in {summary.n_sliding_layers} layers"
