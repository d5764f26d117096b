"""Compare the damage of single matrices with what trials of several layers together say.

    python scripts/sensitivity.py MODEL [--layers 4] [--parts v,down] [--tokens 256]

Prints, for each kind of matrix, the correlation of the logarithms and the damage in sum. Single
trials are the truth; their number times the cost of half a model is what this takes.
"""

from __future__ import annotations

import argparse
import time

import numpy as np

from edgekit.families import open_model
from edgekit.pipeline.mixed_precision import round_by_importance
from edgekit.quantize.calibration_text import built_in_text
from edgekit.quantize.encoded_model import find_scales
from edgekit.quantize.fold import ChannelScales
from edgekit.quantize.prequantized import plan_source
from edgekit.quantize.sensitivity import measure_sensitivity, some_sequences
from edgekit.scheme import Scheme


def main() -> None:
    """Measure both ways, and print."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("model")
    parser.add_argument("--scheme", default="balanced")
    parser.add_argument("--layers", type=int, default=4, help="layers of a trial of several")
    parser.add_argument("--parts", default="q,k,v,o,gate,up,down")
    parser.add_argument("--tokens", type=int, default=512)
    options = parser.parse_args()
    parts = options.parts.split(",")
    source = open_model(options.model)
    spec, scheme = source.spec, Scheme.parse(options.scheme)
    text = built_in_text(source.text, n_rows=spec.vocab_size, context_length=spec.context_length)
    plans = plan_source(source, scheme)
    scales = find_scales(source, plans) if scheme.fold else ChannelScales()
    candidates = {
        item.name: [item.encoding]
        for item in plans
        if item.name.startswith("layers.") and item.name.rpartition(".")[2] in parts
    }
    found: list[dict[str, float]] = []
    for together in (1, options.layers):
        start = time.process_time()
        measured = measure_sensitivity(
            spec,
            lambda name: scales.apply(name, source.tensor(name)).read(),
            round_by_importance,
            candidates,
            some_sequences(text.sequences, options.tokens),
            n_layers_together=together,
        )
        found.append({name: next(iter(d.values())) for name, d in measured.damages.items()})
        print(f"{measured.method}: {time.process_time() - start:.0f} s of CPU")
    single, shared = found
    print("| matrices | correlation of logarithms | single trials in sum | together in sum |")
    print("|---|---|---|---|")
    for part in (*parts, "all"):
        names = [n for n in single if part in ("all", n.rpartition(".")[2])]
        ours, theirs = (np.array([max(d[n], 1e-9) for n in names]) for d in (single, shared))
        r = np.corrcoef(np.log(ours), np.log(theirs))[0, 1]
        print(f"| {part} | {r:.3f} | {ours.sum():.4f} | {theirs.sum():.4f} |")
    source.close()


if __name__ == "__main__":
    main()
