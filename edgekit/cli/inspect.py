"""`edgekit inspect`: what is in a model folder, and what would exporting it give?"""

from __future__ import annotations

from edgekit.cli.options import JsonOpt, ModelArg
from edgekit.cli.output import Output


def command(model: ModelArg, as_json: JsonOpt = False) -> None:
    """Show family, size, layout and predicted artifact sizes of MODEL; reads no weights.

    Example: edgekit inspect pocket
    """
    from edgekit.families.inspect import inspect_model
    from edgekit.records import to_data
    from edgekit.report.table import make_table
    from edgekit.report.terminal import print_table
    from edgekit.units import format_bytes

    summary = inspect_model(model)
    rows = [
        ("model type", summary.model_type),
        ("parameters", f"{summary.n_parameters:,}"),
        *[(f"  {group}", f"{count:,}") for group, count in summary.parameters_by_group.items()],
        ("layers, heads, kv heads", f"{summary.n_layers}, {summary.n_heads}, {summary.n_kv_heads}"),
        ("context length", f"{summary.context_length:,}"),
        ("stored as", ", ".join(summary.dtypes)),
        ("weights on disk", format_bytes(summary.file_bytes)),
        *[
            (f"KV cache per token, {t}", format_bytes(n))
            for t, n in summary.kv_bytes_per_token.items()
        ],
        ("licence", summary.license or "not stated"),
        *[
            (f"as {scheme}", f"about {format_bytes(n)} of weights")
            for scheme, n in summary.weight_bytes.items()
        ],
    ]
    Output(is_json=as_json).result(
        to_data(summary),
        lambda console: print_table(
            make_table("model", summary.name, ("what", "value"), rows), console
        ),
    )
