"""Compare edgekit with optimum, try what else optimum can export, and write docs/oracle.md.

    PYTHONPATH=. python scripts/oracle.py --out docs/oracle.json

The models are tiny and random: members of edgekit's families from tests/tiny_families.py, the
others made by transformers inside optimum's environment (scripts/foreign_models.py).
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any, Final

import numpy as np

from edgekit.artifact import Artifact
from edgekit.errors import EdgekitError
from edgekit.families import FAMILIES
from edgekit.optimum import check as optimum_check
from edgekit.optimum.environment import REQUIREMENTS, OptimumEnvironment, open_environment
from edgekit.pipeline.export import export
from edgekit.pipeline.export_optimum import export_via_optimum
from edgekit.pipeline.oracle import compare_with_oracle
from edgekit.runtime import open_decoder
from tests.builders import write_tiny_checkpoint
from tests.tiny_families import TINY_CONFIGS

ROOT: Final = Path(__file__).resolve().parent.parent
N_TOKENS: Final = 200
PIECES: Final = (50, 70, 1, 1, 78)
COLUMNS: Final = (("onnx", "fp32"), ("onnx", "int4"), ("mlx", "int4"), ("coreml", "int4"))
TITLES: Final = {"onnx": "ONNX", "mlx": "MLX", "coreml": "Core ML"}


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=ROOT / "docs" / "oracle.json")
    options = parser.parse_args()
    environment = open_environment(print)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        data = {
            "versions": {
                **{package: version(package) for package in ("onnxruntime", "mlx", "numpy")},
                **environment.tool_versions,
            },
            "n_tokens": N_TOKENS,
            "environment": measure_environment(folder / "home"),
            "families": [compare_family(member, folder) for member in TINY_CONFIGS],
            "others": compare_others(environment, folder),
        }
    options.out.write_text(json.dumps(data, indent=1) + "\n", encoding="utf-8")
    options.out.with_suffix(".md").write_text(render(data), encoding="utf-8")


def measure_environment(home: Path) -> dict[str, Any]:
    """Make the environment once more in an empty cache, and measure time and size."""
    start = time.monotonic()
    done = subprocess.run(
        [sys.executable, str(ROOT / "scripts" / "optimum_env.py")],
        env={**os.environ, "EDGEKIT_HOME": str(home)},
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    seconds = time.monotonic() - start
    folder = Path(done.stdout.splitlines()[-1])
    sizes = [path.lstat().st_blocks * 512 for path in folder.rglob("*")]
    print(f"environment: {seconds:.0f} s, {sum(sizes)} bytes")
    return {"seconds": seconds, "n_bytes": sum(sizes), "python": sys.version.split()[0]}


def compare_family(member: str, folder: Path) -> dict[str, Any]:
    """Export one member in every column, and compare each with optimum's graph."""
    row: dict[str, Any] = {"member": member, "cells": {}}
    model = write_tiny_checkpoint(folder / "families" / member, member)
    ids = [(31 * i + 7) % 384 for i in range(N_TOKENS)]
    for scheme in dict.fromkeys(scheme for _, scheme in COLUMNS):
        artifacts = []
        for form, own in COLUMNS:
            if own == scheme:
                try:
                    artifacts += export(model, form, scheme, folder / "artifacts")
                except EdgekitError as error:
                    row["cells"][f"{form} {scheme}"] = {"refused": str(error.got or error.what)}
        shortest = min(artifact.manifest.context_length for artifact in artifacts)
        whole = [a for a in artifacts if a.manifest.context_length >= N_TOKENS]
        short = [a for a in artifacts if a not in whole]
        try:
            records = compare_with_oracle(whole, ids) if whole else ()
            records += compare_with_oracle(short, ids[:shortest]) if short else ()
        except EdgekitError as error:
            row["refused"] = f"{error.what.rpartition(': ')[2]} {error.got}"
            print(row)
            return row
        for record in records:
            distance = record.max_logit_error or 0.0
            row["cells"][f"{record.format} {scheme}"] = {
                "error": distance / ((record.logit_tolerance or 1.0) / 2e-4),
                "top1": record.top1_agreement,
                "n_tokens": int(record.note.split()[1]),
            }
            row["note"] = record.note.partition("; ")[2].partition("; ")[2]
    print(row)
    return row


def compare_others(environment: OptimumEnvironment, folder: Path) -> list[dict[str, Any]]:
    """Export what edgekit has no family for, and compare our engine with transformers."""
    models = folder / "others"
    program = ROOT / "scripts" / "foreign_models.py"
    subprocess.run([environment.python, "-I", program, models], check=True, capture_output=True)
    rows = []
    for model in sorted(models.iterdir()):
        row: dict[str, Any] = {"model_type": model.name, "is_family": model.name in FAMILIES}
        try:
            artifact = export_via_optimum(model, "fp32", folder / "artifacts")
            row |= compare_engine(environment, model, artifact, folder)
            try:
                row["fp16"] = fp16_error(export_via_optimum(model, "fp16", folder / "artifacts"))
            except EdgekitError as error:
                row["fp16"] = str(error.got).partition("failed:")[2] or str(error.got)
        except EdgekitError as error:
            row["refused"] = f"{error.what.rpartition('/')[2]}: {error.got}"
        print(row)
        rows.append(row)
    return rows


def fp16_error(artifact: Artifact) -> float:
    """Give the error that the export measured, as a share of the spread."""
    checked = artifact.manifest.settings["checked_against_transformers"]
    return float(checked["max_logit_error"] / checked["logit_std"])


def compare_engine(
    environment: OptimumEnvironment, model: Path, artifact: Artifact, folder: Path
) -> dict[str, Any]:
    """Run the artifact in edgekit's engine, whole and in pieces, against transformers' logits."""
    result = folder / "logits.json"
    graph = artifact.path / "model.onnx"
    subprocess.run(
        [environment.python, "-I", optimum_check.__file__, model, graph, str(N_TOKENS), result],
        check=True,
        capture_output=True,
    )
    wanted = np.load(result.with_suffix(".npy"))
    ids = optimum_check.spread_ids(N_TOKENS, artifact.manifest.decoder["vocab_size"])
    decoder = open_decoder(artifact, n_threads=1)
    whole = decoder.forward(ids, n_past=0, n_logits=N_TOKENS)
    rows, start = [], 0
    for length in PIECES:
        piece = ids[start : start + length]
        rows.append(decoder.forward(piece, n_past=start, n_logits=length))
        start += length
    decoder.close()
    pieces = np.concatenate(rows)
    return {
        "whole": float(np.abs(whole - wanted).max() / wanted.std()),
        "pieces": float(np.abs(pieces - wanted).max() / wanted.std()),
        "top1": float((pieces.argmax(-1) == wanted.argmax(-1)).mean()),
    }


def render(data: dict[str, Any]) -> str:
    """Write the page."""
    versions = ", ".join(f"{name} {number}" for name, number in data["versions"].items())
    made = data["environment"]
    lines = [
        "# Comparison with optimum",
        "",
        f"Made by `PYTHONPATH=. python scripts/oracle.py` ({versions}).",
        "",
        "## The environment",
        "",
        f"`--via optimum` and `--oracle optimum` make it once: {', '.join(REQUIREMENTS)}. On a",
        f"shared 2-core virtual machine (Linux x86-64, Python {made['python']}, the CPU build of",
        f"torch already on disk) that took {made['seconds']:.0f} s and {made['n_bytes'] / 1e9:.2f}"
        " GB of disk; the wheels are about",
        "0.3 GB. With a CUDA build of torch it is several GB more (not measured).",
        "",
        "## Families of edgekit",
        "",
        "The weights of each artifact are dequantized, written as a float32 checkpoint with the",
        "source's config, and traced by optimum. `error` is the largest difference of any logit,",
        f"as a share of the standard deviation, over {data['n_tokens']} tokens (fewer where said);",
        "the wanted bound is 2e-4. All with float activations, Core ML by the interpreter.",
        "",
        "| model | " + " | ".join(f"{TITLES[f]} {s}" for f, s in COLUMNS) + " | same top token |",
        "|---|" + "---|" * (len(COLUMNS) + 1),
    ]
    for row in data["families"]:
        if "refused" in row:
            text = f"refused: {row['refused']}"
            lines.append(f"| {row['member']} | {text} |" + " |" * len(COLUMNS))
            continue
        cells = [_cell(row["cells"].get(f"{f} {s}", {}), data["n_tokens"]) for f, s in COLUMNS]
        tops = [cell["top1"] for cell in row["cells"].values() if "top1" in cell]
        lines.append(f"| {row['member']} | " + " | ".join(cells) + f" | {100 * min(tops):.1f} % |")
    notes = {row["note"] for row in data["families"] if row.get("note")}
    lines += ["", *sorted(notes)]
    lines += [
        "",
        "edgekit rounds Gemma's embedding scale to bfloat16 for bfloat16 weights, as transformers",
        "does when it runs them in bfloat16; traced in float32 it does not. So the oracle gets a",
        "separate input embedding that includes this difference; without it the error was 7e-4.",
        "",
        "## Architectures without a family",
        "",
        "Exported with `--via optimum` and run in edgekit's engine, whole and in pieces of",
        f"{', '.join(map(str, PIECES))} tokens, against transformers' own logits. `fp16` is the",
        "error of `--scheme fp16`, or why optimum cannot.",
        "",
        "| model_type | whole | in pieces | same top token | fp16 |",
        "|---|---|---|---|---|",
    ]
    for row in data["others"]:
        if "refused" not in row:
            half = row["fp16"]
            half = f"{half:.0e}" if isinstance(half, float) else _short(half)
            lines.append(
                f"| {row['model_type']} | {row['whole']:.0e} | {row['pieces']:.0e} "
                f"| {100 * row['top1']:.1f} % | {half} |"
            )
    lines += ["", "Refused:", "", "| model_type | why |", "|---|---|"]
    for row in data["others"]:
        if "refused" in row:
            why = row["refused"]
            if ": model_type: " in why:
                why = "optimum-onnx 0.1.0 has no export for it"
            lines.append(f"| {row['model_type']} | {why[:220]} |")
    return "\n".join(lines) + "\n"


def _short(why: str) -> str:
    """Put optimum's failure in half precision into a few words."""
    if why.startswith("present."):
        return "takes keys and values as fp16 and gives float32"
    if "LayerNormalization" in why:
        return "writes a LayerNormalization of two types, which onnxruntime refuses"
    return why.partition(" over ")[0]


def _cell(cell: dict[str, Any], n_tokens: int) -> str:
    if "error" not in cell:
        return "refused"
    short = "" if cell["n_tokens"] == n_tokens else f" ({cell['n_tokens']} tokens)"
    return f"{cell['error']:.0e}{short}"


if __name__ == "__main__":
    main()
