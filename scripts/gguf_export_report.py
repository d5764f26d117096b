"""Write docs/gguf_export.md: what edgekit writes as GGUF, and what llama.cpp makes of it.

    PYTHONPATH=. python scripts/gguf_export_report.py           what the code knows
    PYTHONPATH=. python scripts/gguf_export_report.py MODEL     and what a model gives

MODEL is a folder. Wanted for it: llama-cpp-python (edgekit's engine) and xllamacpp (llama.cpp's own
server). The results are kept in docs/gguf_export.json.
"""

from __future__ import annotations

import json
import os
import re
import sys
import tempfile
from collections.abc import Collection
from pathlib import Path
from typing import Any, Final

import edgekit
from edgekit.exporters.gguf.graphs import GRAPHS, Graph
from edgekit.pipeline.verify import verification_tokens
from edgekit.quality.divergence import token_divergence
from edgekit.quality.evaluate import SuitePlan
from edgekit.runtime import open_decoder
from edgekit.runtime.base import GenerateOptions
from edgekit.runtime.session import Session
from edgekit.runtime.stock import STOCK_RUNTIMES, ask_llama_cpp

ROOT: Final = Path(__file__).resolve().parent.parent
PAGE: Final = ROOT / "docs" / "gguf_export.md"
FOUND: Final = ROOT / "docs" / "gguf_export.json"
SCHEMES: Final = ("int4", "int8")
N_PROMPTS: Final = 50
_SUITES: Final = ("multi_step", "tool_calls", "structured_output")  # the short ones
N_NEW_TOKENS: Final = 16
N_READ: Final = 256
_LONGEST: Final = 220  # tokens of a prompt
QUESTIONS: Final = (
    "What is the capital of France?",
    "Name three primary colors.",
    "What is 2 + 2?",
    "Write one sentence about the sea.",
    "What does a carpenter do?",
    "Translate 'good morning' into Spanish.",
    "Why is the sky blue?",
    "List two animals that can fly.",
)
_MARKED: Final = "<!-- {name}: written by {script} -->\n{text}<!-- end of {name} -->"
_SCRIPT: Final = "scripts/gguf_export_report.py"


def main() -> int:
    """Write the page; with a model, its results first."""
    if len(sys.argv) > 1:
        found = {scheme: measure(Path(sys.argv[1]), scheme) for scheme in SCHEMES}
        text = json.dumps(found, indent=1, ensure_ascii=False) + "\n"
        FOUND.write_text(text, encoding="utf-8")
    page = PAGE.read_text(encoding="utf-8")
    for name, table in tables().items():
        pattern = re.escape(_MARKED.format(name=name, script=_SCRIPT, text="\0"))
        parts = re.findall(pattern.replace("\0", ".*?"), page, flags=re.DOTALL)
        if len(parts) != 1:
            raise SystemExit(f"{PAGE}: no single place for the table {name}")
        page = page.replace(parts[0], _MARKED.format(name=name, script=_SCRIPT, text=table))
    PAGE.write_text(page, encoding="utf-8")
    print(PAGE)
    return 0


def tables() -> dict[str, str]:
    """Give the tables of the page by name."""
    found = json.loads(FOUND.read_text(encoding="utf-8")) if FOUND.is_file() else {}
    return {"architectures": architectures(), "measured": measured(found)}


def architectures() -> str:
    """Give what each architecture computes, as the code knows it."""
    lines = ["| `general.architecture` | computes | rows of q and k |", "| --- | --- | --- |"]
    lines += [
        f"| `{graph.name}` | {_features(graph)} | "
        f"{'moved' if graph.architecture.interleaves_heads else 'in place'} |"
        for graph in GRAPHS.values()
    ]
    return "\n".join(lines) + "\n"


def _features(graph: Graph) -> str:
    parts = [f"norms {graph.norm_placement.value} a block"]
    if graph.qk_norm.value != "none":
        parts.append(f"norms of q and k ({graph.qk_norm.value})")
    if graph.architecture.norm_shift:
        parts.append("norms around 1")
    parts += [f"{kind.__name__.removesuffix('Scaling').lower()} rope" for kind in graph.ropes]
    if graph.windows.name != "IGNORED":
        parts.append(f"sliding windows ({graph.windows.name.lower().replace('_', ' ')})")
    if graph.no_rope.name != "NONE":
        parts.append(f"layers without rope ({graph.no_rope.name.lower().replace('_', ' ')})")
    if graph.softcaps.name != "NEVER":
        parts.append("capped logits")
    if graph.has_query_scaling:
        parts.append("queries that grow with position")
    if graph.scales:
        parts.append("factors of scores, embedding, residual and logits")
    return ", ".join(parts)


def measured(found: dict[str, Any]) -> str:
    """Give the results of the real model."""
    if not found:
        return "Not measured yet.\n"
    lines = ["| what | " + " | ".join(found) + " |", "| --- |" + " --- |" * len(found)]
    for key in next(iter(found.values()))["facts"]:
        row = " | ".join(str(values["facts"][key]) for values in found.values())
        lines += [f"| {key} | {row} |"]
    lines += ["", "| scheme | question | answer |", "| --- | --- | --- |"]
    for scheme, values in found.items():
        lines += [f"| {scheme} | {q} | {_cell(a)} |" for q, a in values["answers"]]
    return "\n".join(lines) + "\n"


def _cell(text: str) -> str:
    return text.strip().replace("\n", " / ").replace("|", "\\|")


def measure(model: Path, scheme: str) -> dict[str, Any]:
    """Compare one artifact with stock llama.cpp and with its ONNX twin."""
    with tempfile.TemporaryDirectory() as out:
        artifact, twin = edgekit.export(model, ["gguf", "onnx"], scheme, out)
        suites = SuitePlan(suites=_SUITES, n_items=N_PROMPTS).make_items(None)
        items = [item for pack in zip(*suites.values(), strict=False) for item in pack]
        threads = os.cpu_count() or 1
        with edgekit.load(artifact) as session:
            prompts = _prompts(session, items)
            ours = [_answer(session, ids) for _, ids in prompts]
            answers = [
                (q, session.chat([{"role": "user", "content": q}], max_tokens=40).text)
                for q in QUESTIONS
            ]
            engine, ends = session.info.version, session.eos_ids
        theirs = _own_loop(artifact.path / "model.gguf", [ids for _, ids in prompts], ends)
        request = {
            "path": str(artifact.path), "n_new_tokens": N_NEW_TOKENS, "n_threads": threads,
            "prompts": [{"messages": messages, "ids": ids} for messages, ids in prompts],
        }  # fmt: skip
        stock = ask_llama_cpp(request, lambda *_, **__: None)["answers"]
        ids = verification_tokens(artifact, N_READ)
        logits = {}
        for made in (artifact, twin):
            decoder = open_decoder(made, n_threads=threads)
            logits[made.format.value] = decoder.forward(ids, n_past=0, n_logits=len(ids))
            decoder.close()
        divergence = token_divergence(logits["onnx"], logits["gguf"])
        same_top = logits["onnx"].argmax(-1) == logits["gguf"].argmax(-1)
        n_ids = sum(s["prompt_ids"] == i for s, (_, i) in zip(stock, prompts, strict=True))
        n_same = sum(t == o for t, o in zip(theirs, ours, strict=True))
        n_server = sum(s["ids"] == o for s, o in zip(stock, ours, strict=True))
        return {
            "facts": {
                "engine": engine,
                "llama.cpp's server": STOCK_RUNTIMES[artifact.format].title,
                "file": f"{(artifact.path / 'model.gguf').stat().st_size:,} bytes",
                "prompts with the same token ids in llama.cpp's server": (
                    f"{n_ids} of {len(prompts)}"
                ),
                f"greedy answers of {N_NEW_TOKENS} tokens equal to those of llama-cpp-python": (
                    f"{n_same} of {len(prompts)}"
                ),
                "the same with llama.cpp's server, another build": f"{n_server} of {len(prompts)}",
                f"KL(onnx || gguf), {len(ids)} tokens": f"{divergence.mean():.2g} nats per token",
                "same most likely token as ONNX": f"{100 * same_top.mean():.1f} %",
            },
            "answers": answers,
        }


def _prompts(session: Session, items: list[Any]) -> list[tuple[list[dict[str, Any]], list[int]]]:
    made = [
        ([dict(m) for m in item.messages], session.encode_chat(item.messages)) for item in items
    ]
    return [(m, ids) for m, ids in made if len(ids) < _LONGEST][:N_PROMPTS]


def _own_loop(path: Path, prompts: list[list[int]], ends: Collection[int]) -> list[list[int]]:
    """Answer with llama-cpp-python's own generation, each prompt from an empty cache."""
    import llama_cpp  # an optional package, as its engine

    threads = os.cpu_count() or 1
    llama = llama_cpp.Llama(
        str(path), n_ctx=_LONGEST + N_NEW_TOKENS, n_threads=threads, n_threads_batch=threads,
        flash_attn=True, verbose=False,
    )  # fmt: skip
    answers = []
    for ids in prompts:
        llama.reset()  # else it goes on from what two prompts share, in other batches
        made: list[int] = []
        for token in llama.generate(ids, temp=0.0, repeat_penalty=1.0):
            made.append(int(token))
            if token in ends or len(made) == N_NEW_TOKENS:
                break
        answers.append(made)
    llama.close()
    return answers


def _answer(session: Session, ids: list[int]) -> list[int]:
    events = session.generate(ids, GenerateOptions(max_tokens=N_NEW_TOKENS))
    return [event.token_id for event in events if event.token_id is not None]


if __name__ == "__main__":
    raise SystemExit(main())
