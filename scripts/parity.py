"""Compare every family in every format with Hugging Face transformers, and write docs/parity.md.

    PYTHONPATH=. python scripts/parity.py --out docs/parity.json

The models are tiny and random (tests/tiny_families.py); the logits of transformers are those that
scripts/golden.py stored. Tokens go past every window and every change of the position encoding;
they are fed whole, and in pieces (a prefill of two chunks, then single tokens).
"""

import argparse
import json
import tempfile
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any, Final

import numpy as np

from edgekit.artifact import Artifact, Format
from edgekit.decision import Rejected
from edgekit.exporters import open_exporter
from edgekit.families import open_model
from edgekit.pipeline.agreement import open_float_decoder
from edgekit.pipeline.export import export
from edgekit.quantize.plan import plan_tensors
from edgekit.scheme import Scheme
from tests.builders import write_tiny_checkpoint
from tests.golden.tokens import CHUNKS, N_TOKENS, ROWS, golden_ids
from tests.tiny_families import TINY_CONFIGS

ROOT: Final = Path(__file__).resolve().parent.parent
GOLDEN: Final = ROOT / "tests" / "golden" / "families"
# The source is bfloat16, which fp16 holds as exactly as fp32; Core ML has no fp32.
SCHEMES: Final = {Format.ONNX: "fp32", Format.MLX: "fp32", Format.COREML: "fp16"}
TITLES: Final = {Format.ONNX: "ONNX", Format.MLX: "MLX", Format.COREML: "Core ML"}
PACKAGES: Final = ("onnxruntime", "mlx", "mlx-lm", "coremltools", "numpy")


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=ROOT / "docs" / "parity.json")
    options = parser.parse_args()
    rows = []
    for name in TINY_CONFIGS:
        with tempfile.TemporaryDirectory() as folder:
            rows += compare(name, Path(folder))
    versions = {package: version(package) for package in PACKAGES}
    versions["transformers"] = str(np.load(GOLDEN / "llama.npz")["transformers"])
    data = {"versions": versions, "n_tokens": N_TOKENS, "n_rows": len(ROWS), "rows": rows}
    options.out.write_text(json.dumps(data, indent=1) + "\n")
    options.out.with_suffix(".md").write_text(render(data))


def compare(name: str, folder: Path) -> list[dict[str, Any]]:
    """Export one member to every format and compare its logits."""
    checkpoint = write_tiny_checkpoint(folder / "model", name)
    source = open_model(checkpoint)
    spec = source.spec
    source.close()
    rows = []
    for form, scheme in SCHEMES.items():
        row: dict[str, Any] = {"member": name, "family": spec.model_type, "format": form.value}
        plans = plan_tensors(spec, Scheme.parse(scheme))
        encodings = {item.name: item.encoding for item in plans}
        decision = open_exporter(form).supports(spec, encodings)
        if isinstance(decision, Rejected):
            row["refused"] = decision.reason
        else:
            [artifact] = export(checkpoint, [form], scheme, folder / form.value)
            row |= {"notes": list(decision.notes), **measure(artifact, name)}
        rows.append(row)
        print(row)
    return rows


def measure(artifact: Artifact, name: str) -> dict[str, Any]:
    """Give the largest difference as a share of the spread, and how often the top token agrees."""
    golden = np.load(GOLDEN / f"{name}.npz")
    limit = min(artifact.manifest.context_length, N_TOKENS)
    chunked = golden["chunked"] if "chunked" in golden else golden["whole"]
    ways = {
        "whole": ([limit], golden["whole"]),
        "in pieces": (CHUNKS if limit == N_TOKENS else [limit // 2] + [1] * (limit // 2), chunked),
    }
    if limit < N_TOKENS and "short" in golden:
        ways = {way: (lengths, golden["short"]) for way, (lengths, _) in ways.items()}
    found: dict[str, Any] = {}
    for way, (lengths, wanted) in ways.items():
        got = run(artifact, lengths)
        rows = [row for row in ROWS if row < len(got)]
        ours, theirs = got[rows], wanted[: len(rows)]
        found[way] = {
            "max_error": float(np.abs(ours - theirs).max() / golden["std"]),
            "n_same_top": int((ours.argmax(1) == theirs.argmax(1)).sum()),
            "n_rows": len(rows),
            "n_tokens": len(got),
        }
    return found


def run(artifact: Artifact, lengths: Sequence[int]) -> np.ndarray[Any, np.dtype[np.float32]]:
    """Feed the golden tokens in pieces; give all logits, float32 (T, V)."""
    decoder = open_float_decoder(artifact)
    ids, start, parts = golden_ids(), 0, []
    try:
        for length in lengths:
            piece = ids[start : start + length]
            parts.append(decoder.forward(piece, n_past=start, n_logits=length))
            start += length
    finally:
        decoder.close()
    return np.concatenate(parts)


def render(data: dict[str, Any]) -> str:
    """Write the page."""
    versions = ", ".join(f"{name} {number}" for name, number in data["versions"].items())
    lines = [
        "# Parity with Hugging Face transformers",
        "",
        f"Made by `PYTHONPATH=. python scripts/parity.py` ({versions}).",
        "",
        "Each row is a tiny random checkpoint in the published layout of its family. The reference",
        "is transformers' own model in float32. ONNX and MLX are exported as fp32, Core ML as fp16",
        "from bfloat16 weights, which fp16 holds exactly; Core ML packages are executed by the",
        "interpreter with float32 arithmetic. `error` is the largest difference of any logit, as a",
        "share of the standard deviation of the logits; the wanted bound is 2e-4. `top-1` counts",
        f"positions whose best token agrees, of {data['n_rows']} spread over {data['n_tokens']}",
        "tokens, which go past every sliding window, past `original_max_position_embeddings` and",
        "past the switch of LongRoPE. Each cell: fed whole, then in pieces (50, 70, then singly).",
        "",
        "| model | " + " | ".join(f"{TITLES[f]} error | top-1" for f in SCHEMES) + " |",
        "|---|" + "---|---|" * len(SCHEMES),
    ]
    for name in dict.fromkeys(row["member"] for row in data["rows"]):
        cells = [name]
        for row in (row for row in data["rows"] if row["member"] == name):
            cells += _cells(row)
        lines.append("| " + " | ".join(cells) + " |")
    lines += ["", "## Refused, and limits", "", "| model | format | why |", "|---|---|---|"]
    for row in data["rows"]:
        whys = [row["refused"]] if "refused" in row else row["notes"]
        kind = "refused: " if "refused" in row else "limit: "
        title = TITLES[Format(row["format"])]
        lines += [f"| {row['member']} | {title} | {kind}{why} |" for why in whys]
    return "\n".join(lines) + "\n"


def _cells(row: dict[str, Any]) -> list[str]:
    if "refused" in row:
        return ["refused", ""]
    ways = [row["whole"], row["in pieces"]]
    return [
        ", ".join(f"{way['max_error']:.0e}" for way in ways),
        ", ".join(f"{way['n_same_top']}/{way['n_rows']}" for way in ways),
    ]


if __name__ == "__main__":
    main()
