#!/usr/bin/env python3
"""Write docs/verify.md: what ``edgekit verify --stock`` says of the bundled and of a real model.

The real model is a Hugging Face folder. It is exported with ``torch_dtype`` set to float32, which
changes no code and no scale: mlx-lm then computes in float32 here too. In bfloat16 its CPU backend
takes seconds for a token and sums in bfloat16, which no Mac does.

Usage:
    python scripts/verify_report.py [--real FOLDER]
"""

from __future__ import annotations

import argparse
import io
import json
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Final

from rich.console import Console

from edgekit.artifact import Artifact
from edgekit.pipeline.agreement import make_prompts
from edgekit.pipeline.export import export
from edgekit.pipeline.verify import usual_plan, verify
from edgekit.progress import Progress
from edgekit.records import Answered, VerifyRecord
from edgekit.report.terminal import print_verification

ROOT: Final = Path(__file__).resolve().parent.parent
SCHEMES: Final = ("int8", "int4")
# With exact activations in ONNX, all of these compute with floats or as good as.
FORMATS_WITH_FLOATS: Final = ("onnx", "mlx", "coreml")
N_PROMPTS: Final = 8
HEAD: Final = """# What ships is what was proven

Written by `python scripts/verify_report.py`. `edgekit verify` makes three checks and says which
is which:

- **a) Weights.** Codes and scales are re-read from disk with each format's own library: `onnx`
  (after `onnx.checker`, at the offsets that the file says), `mlx.core.load` (with
  `mlx.core.dequantize` as a second opinion), coremltools' parser and blob reader. They must be
  equal in every format, and be what the manifest says.
- **b) Logits.** Each graph runs with float activations; its logits must be those of a plain numpy
  computation over the weights of a), up to the order of float32 sums.
- **c) As run.** Each artifact runs as `edgekit run` runs it, activations rounded as its engine
  rounds them. The KL divergence from the logits of b), over texts read and its own greedy answers,
  must be within the limit of the arithmetic. Where an engine computes in float32, its answers must
  be those of b). Where it rounds, an answer may part at a token whose logit is near another's; that
  distance is shown.

`--stock` asks the runtimes that others use, each in a process of its own, and compares the token
ids of the prompts, the end tokens, the tokens of the answers, their text and why they end. A
runtime that is not installed, or that does not run on this system, is said to be so.

Definitions of tools are left out of the prompts: onnxruntime-genai 0.18 rewrites them (without
`required` and `enum`) before the chat template sees them.
"""


def main() -> None:
    """Export, verify, and write the page."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--real", type=Path, help="folder of a real model")
    parser.add_argument("--out", type=Path, default=ROOT / "docs" / "verify.md")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="edgekit-verify-") as name:
        scratch = Path(name)
        parts = [HEAD, section("the bundled model", "pocket", scratch)]
        if options.real is not None:
            copy = in_float32(options.real, scratch)
            parts.append(section(options.real.name, str(copy), scratch))
            title = f"{options.real.name}, exact activations"
            parts.append(section(title, str(copy), scratch, is_exact=True))
    options.out.write_text("\n".join(parts), encoding="utf-8")


def in_float32(folder: Path, scratch: Path) -> Path:
    """Copy a model with ``torch_dtype`` float32 in its config; the weights stay as they are."""
    copy = Path(shutil.copytree(folder, scratch / folder.name))
    path = copy / "config.json"
    config = json.loads(path.read_text(encoding="utf-8"))
    config.pop("dtype", None)
    path.write_text(json.dumps({**config, "torch_dtype": "float32"}), encoding="utf-8")
    return copy


def section(title: str, model: str, scratch: Path, *, is_exact: bool = False) -> str:
    """Export a model in every format and scheme, verify it, and render what was found."""
    out, formats = scratch / f"out {title}", FORMATS_WITH_FLOATS if is_exact else ("all",)
    artifacts = [
        artifact
        for scheme in SCHEMES
        for artifact in export(model, formats, scheme, out, exact_activations=is_exact)
    ]
    plan = replace(usual_plan(artifacts[0]), n_prompts=N_PROMPTS, asks_stock=True)
    records = verify(artifacts, plan, progress=told())
    asked = [f"--format {name}" for name in formats]
    asked += [f"--scheme {scheme}" for scheme in SCHEMES]
    asked += ["--exact-activations"] * is_exact
    return render(title, artifacts, records, " ".join(asked))


def told() -> Progress:
    """Print each new step."""
    last = ""

    def tell(what: str, n_done: int, n_total: int) -> None:
        nonlocal last
        if what != last:
            print(what, flush=True)
        last = what

    return tell


def render(
    title: str, artifacts: Sequence[Artifact], records: Sequence[VerifyRecord], asked: str
) -> str:
    """Give the part of the page about one model."""
    stream = io.StringIO()
    console = Console(file=stream, width=80, highlight=False)
    print_verification(records, (), console)
    shown = "\n".join(f"    {line}".rstrip() for line in stream.getvalue().splitlines())
    name = artifacts[0].manifest.model_name
    lines = [
        f"## {title[0].upper()}{title[1:]}",
        "",
        f"    edgekit export {name} {asked}",
        f"    edgekit verify artifacts/{name}-* --prompts {N_PROMPTS} --stock",
        "",
        shown,
        "",
        *answers(records),
    ]
    return "\n".join(lines)


def answers(records: Sequence[VerifyRecord]) -> Iterator[str]:
    """Give every prompt with its answers, and who gave which."""
    prompts = {item.id: str(item.messages[-1]["content"]) for item in make_prompts(N_PROMPTS)}
    for scheme in dict.fromkeys(record.scheme for record in records):
        yield f"### Answers, {scheme}"
        yield ""
        for number, (name, question) in enumerate(prompts.items(), start=1):
            yield f"{number}. `{name}`: {quoted(question)}"
            given: dict[str, list[str]] = {}
            for record in (r for r in records if r.scheme == scheme):
                for who, found in answered_by(record):
                    for text in (a.text.strip() for a in found if a.prompt == name):
                        given.setdefault(text, []).append(who)
            for answer, names in given.items():
                yield f"   - {', '.join(names)}: {quoted(answer)}"
        yield ""


def answered_by(record: VerifyRecord) -> Iterator[tuple[str, tuple[Answered, ...]]]:
    """Give what answered, by name, and its answers."""
    if record.run is not None:
        engine = record.run.engine.partition(" ")[0]
        yield f"{record.format} ({engine}, {record.run.arithmetic})", record.run.answers
    if record.stock is not None:
        yield record.stock.runtime, record.stock.answers


def quoted(text: str) -> str:
    """Write a text in one line, as code."""
    return "`` " + json.dumps(text, ensure_ascii=False) + " ``"


if __name__ == "__main__":
    main()
