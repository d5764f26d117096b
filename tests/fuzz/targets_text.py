"""Fuzz targets: tokenizers and chat templates."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from random import Random
from typing import Any

from edgekit.checkpoint.assets import read_end_ids, rewritten_assets
from edgekit.model_files import TEMPLATE_NAME, TOKENIZER_CONFIG_NAME, TOKENIZER_NAME
from edgekit.text.chat import ChatTemplate
from edgekit.text.files import TextFiles
from edgekit.text.tokenizer import StreamDecoder, Tokenizer
from edgekit.text.view import read_text_view
from tests.builders import CHAT_TEMPLATE, write_tiny_tokenizer
from tests.fuzz.contract import Target, join_parts, mutate_part, promise, split_parts
from tests.fuzz.mutate import mutate_bytes, mutate_json, mutate_words

TEXTS = ("", "Hello, wörld 123", "<s>[INST] a </s>", "\n\n  aaaaaaaaaaaaaaaa!", "日本 e\u0301 🙂")
MESSAGES: list[dict[str, Any]] = [
    {"role": "system", "content": "Be short."},
    {"role": "user", "content": "Hi <s> there"},
    {
        "role": "assistant",
        "content": "",
        "tool_calls": [{"function": {"name": "f", "arguments": {"a": 1}}}],
    },
    {"role": "tool", "content": "1", "tool_call_id": "x"},
]
TOOLS = [{"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}]


def run_tokenizer(data: bytes, folder: Path) -> None:
    """Ids are those of tokens, texts are texts, and a stream gives what decoding gives."""
    tokenizer_data, config_data = split_parts(data, 2)
    (folder / TOKENIZER_NAME).write_bytes(tokenizer_data)
    (folder / TOKENIZER_CONFIG_NAME).write_bytes(config_data)
    tokenizer = Tokenizer.open(folder)
    for role, text in tokenizer.named_tokens.items():
        text.encode("utf-8"), role.encode("utf-8")
    for token_id in (tokenizer.bos_id, tokenizer.eos_id, tokenizer.pad_id):
        promise(token_id is None or token_id >= 0, "a negative id")
    promise(tokenizer.vocab_size >= 0, "fewer than no tokens")
    special = set(tokenizer.special_tokens.values())
    unknown = tokenizer.token_id(tokenizer.named_tokens.get("unk_token", ""))
    for text in TEXTS:
        plain = tokenizer.encode(text, allow_special=False)
        promise(not (special - {unknown}) & set(plain), "text became a special token")
        ids = tokenizer.encode(text, allow_special=True)
        promise(all(isinstance(i, int) and i >= 0 for i in ids), "ids that are none")
        decoder = StreamDecoder(tokenizer)
        streamed = "".join(map(decoder.push, ids)) + decoder.finish()
        streamed.encode("utf-8")
        tokenizer.decode(ids, skip_special=False).encode("utf-8")
    template = ChatTemplate.open(folder)
    if "default" in template.sources:
        template.encode(MESSAGES[:2], tokenizer)


def seeds_tokenizer() -> list[bytes]:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_tiny_tokenizer(folder, vocab_size=280)
        content = json.loads((folder / TOKENIZER_NAME).read_text())
        config = (folder / TOKENIZER_CONFIG_NAME).read_bytes()
    small = {**content, "added_tokens": content["added_tokens"][:4]}
    small["model"] = {
        **content["model"],
        "vocab": {"<unk>": 0, "<s>": 1, "</s>": 2, "<pad>": 3, "a": 4, "aa": 5, "Ġ": 6},
        "merges": [["a", "a"]],
    }
    prepend = {"type": "Prepend", "prepend": "▁"}
    replace = {"type": "Replace", "pattern": {"String": " "}, "content": "▁"}
    sentence = {
        **small,
        "normalizer": {"type": "Sequence", "normalizers": [prepend, replace]},
        "pre_tokenizer": None,
        "decoder": {
            "type": "Sequence",
            "decoders": [{"type": "ByteFallback"}, {"type": "Fuse"}],
        },
    }
    split = {
        "type": "Split",
        "pattern": {"Regex": r"\p{L}+|\d{1,3}|\s+"},
        "behavior": "Isolated",
        "invert": False,
    }
    byte_level = {
        "type": "ByteLevel",
        "add_prefix_space": False,
        "trim_offsets": True,
        "use_regex": False,
    }
    regex = {**small, "pre_tokenizer": {"type": "Sequence", "pretokenizers": [split, byte_level]}}
    unigram = {
        **small,
        "model": {"type": "Unigram", "unk_id": 0, "vocab": [["<unk>", 0.0], ["a", -1.5]]},
    }
    words = {**small, "model": {
        "type": "WordPiece", "unk_token": "<unk>", "continuing_subword_prefix": "##",
        "max_input_chars_per_word": 100, "vocab": {"<unk>": 0, "a": 4, "##a": 5}}}  # fmt: skip
    several = (small, sentence, regex, unigram, words)
    return [join_parts(json.dumps(t).encode(), config) for t in several]


def mutate_tokenizer(data: bytes, rng: Random) -> bytes:
    return mutate_part(data, rng, [mutate_json, mutate_json])


TEXT_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "added_tokens.json",
    "special_tokens_map.json",
    "generation_config.json",
)


def run_text_files(data: bytes, folder: Path) -> None:
    """End tokens have rows or are stated, and what is carried says the same again."""
    for name, part in zip(TEXT_FILES, split_parts(data, len(TEXT_FILES)), strict=True):
        (folder / name).unlink(missing_ok=True)
        if part:
            (folder / name).write_bytes(part)
    files = TextFiles.of_folder(folder)
    stated = read_end_ids(files.read_object("generation_config.json"), "generation_config.json")
    view = read_text_view(files, 280, {"generation_config.json": stated})
    promise(len(set(view.end_ids)) == len(view.ends), "an end token twice")
    promise(set(stated) <= set(view.end_ids), "a stated end that is lost")
    for line in (*view.notes, *(end.text for end in view.ends)):
        line.encode("utf-8")
    if view.tokenizer is None:
        return
    carried = {name: files.read(name, 1 << 26) or b"{}" for name in files.names()}
    changed = rewritten_assets(view)
    carried |= {name: text.encode("utf-8") for name, text in changed.items() if text is not None}
    carried.pop("added_tokens.json", None)
    there = Tokenizer.open(TextFiles.of_contents("artifact", carried))
    for text in TEXTS:
        wanted = view.tokenizer.encode(text, allow_special=True)
        promise(there.encode(text, allow_special=True) == wanted, "other ids in the artifact")


def seeds_text_files() -> list[bytes]:
    tokenizer, config = split_parts(seeds_tokenizer()[0], 2)
    n = len(json.loads(tokenizer)["model"]["vocab"])
    flags = {"lstrip": True, "rstrip": False, "normalized": False, "special": True}
    listed = json.loads(config) | {"added_tokens_decoder": {str(n): {"content": "<x>", **flags}}}
    return [
        join_parts(
            tokenizer,
            config,
            json.dumps({"<|im_end|>": n, "<new>": n + 1}).encode(),
            b'{"eos_token": "<|im_end|>", "additional_special_tokens": ["<new>", "<s>"]}',
            b'{"eos_token_id": [2, 7]}',
        ),
        join_parts(tokenizer, json.dumps(listed).encode(), b"", b"", b'{"eos_token_id": 2}'),
    ]


def mutate_text_files(data: bytes, rng: Random) -> bytes:
    return mutate_part(data, rng, [mutate_json] * len(TEXT_FILES))


def run_vocabulary(data: bytes, folder: Path) -> None:
    """vocab.json and merges.txt give a tokenizer of such ids, or are refused."""
    vocab, merges, config = split_parts(data, 3)
    contents = {"vocab.json": vocab, "merges.txt": merges, "tokenizer_config.json": config}
    tokenizer = Tokenizer.open(TextFiles.of_contents(folder, contents))
    for text in TEXTS:
        tokenizer.decode(tokenizer.encode(text, allow_special=True)).encode("utf-8")


def seeds_vocabulary() -> list[bytes]:
    vocab = {"<|endoftext|>": 0, "a": 1, "aa": 2, "\u0120": 3, "H": 4, "e": 5, "He": 6}
    parts = json.dumps(vocab).encode(), b"#version: 0.2\na a\nH e\n"
    configs = {"tokenizer_class": "GPT2Tokenizer"}, {
        "tokenizer_class": "Qwen2Tokenizer", "add_bos_token": True, "bos_token": "<|endoftext|>"
    }  # fmt: skip
    return [join_parts(*parts, json.dumps(config).encode()) for config in configs]


def mutate_vocabulary(data: bytes, rng: Random) -> bytes:
    return mutate_part(data, rng, [mutate_json, mutate_bytes, mutate_json])


def run_sentencepiece(data: bytes, folder: Path) -> None:
    """A tokenizer.model gives a tokenizer, or is refused."""
    contents = {"tokenizer.model": data, "tokenizer_config.json": b'{"add_bos_token": true}'}
    tokenizer = Tokenizer.open(TextFiles.of_contents(folder, contents))
    for text in TEXTS:
        tokenizer.decode(tokenizer.encode(text, allow_special=True)).encode("utf-8")


def seeds_sentencepiece() -> list[bytes]:
    def field(number: int, value: bytes | int) -> bytes:
        if isinstance(value, int):
            return bytes([number << 3 & 0x7F | (0x80 if number > 15 else 0)]) + (
                bytes([number >> 4]) if number > 15 else b""
            ) + bytes([value])  # fmt: skip
        return bytes([number << 3 | 2, len(value)]) + value

    pieces = [("<unk>", 2), ("<s>", 3), ("</s>", 3), ("<x>", 4), ("\u2581", 1), ("a", 1)]
    pieces += [("aa", 1), *((f"<0x{byte:02X}>", 6) for byte in range(256))]
    listed = b"".join(
        field(1, field(1, text.encode()) + b"\x15\0\0\0\0" + field(3, kind))
        for text, kind in pieces
    )
    trainer, normalizer = field(3, 2) + field(35, 1), field(3, 1) + field(4, 0)
    return [listed + field(2, trainer) + field(3, normalizer)]


def run_template(data: bytes, folder: Path) -> None:
    """A template gives a text that can be written, or is refused, within the sandbox's limits."""
    (folder / TEMPLATE_NAME).write_bytes(data)
    (folder / TOKENIZER_CONFIG_NAME).write_text('{"bos_token": "<s>", "eos_token": "</s>"}')
    template = ChatTemplate.open(folder)
    for messages, tools in ((MESSAGES, TOOLS), (MESSAGES[:2], [])):
        text = template.render(messages, tools)
        promise(isinstance(text, str), "a rendering that is no text")
        text.encode("utf-8")
        promise(len(text) <= 16 << 20, "a text beyond the budget")


_POOL = (
    "messages", "message", "loop.index", "loop", "range", "namespace", "tojson", "100000",
    "1000000000",
    "-1", "0", "1.5", "'a'", '"%s"', "for", "if", "in", "not", "is", "set", "macro", "endmacro",
    "endfor", "endif", "call", "filter", "block", "recursive", "break", "continue", "join", "map",
    "attribute", "batch", "slice", "round", "list", "replace", "indent", "format", "center",
    "wordwrap",
    "truncate", "sort", "unique", "groupby", "sum", "dictsort", "int", "float", "default", "length",
    "reverse", "select", "reject", "selectattr", "items", "lipsum", "cycler", "joiner", "dict",
    "strftime_now", "raise_exception", "split", "strip", "zfill", "__class__", "__init__", "mro",
    "~", "*", "**", "//", "%", "{%", "%}", "{{", "}}", "{#", "|", "(", ")", "[", "]", ".", ",",
    "bos_token", "generation", "endgeneration", "with", "autoescape", "include", "import",
    "extends",
    "striptags", "urlize", "xmlattr", "pprint", "filesizeformat", "random", "trim", "upper",
    "title",
)  # fmt: skip


def seeds_template() -> list[bytes]:
    sources = (
        CHAT_TEMPLATE,
        "{% for m in messages %}{{ m.role ~ ': ' ~ m['content'] | trim }}{{ loop.index }}"
        "{% endfor %}",
        "{% set ns = namespace(n=0, s='') %}{% for m in messages if m.role != 'tool' %}"
        "{% set ns.n = ns.n + 1 %}{% set ns.s = ns.s ~ m.content %}{% endfor %}"
        "{{ ns.s }}{{ ns.n }}",
        "{% macro say(x, n=2) %}{% if n %}<{{ x }}>{{ say(x, n - 1) }}{% endif %}{% endmacro %}"
        "{{ say('a') }}{{ messages | map(attribute='role') | join(', ') | upper }}",
        "{{ 'x' * 3 }}{{ '%d-%s' | format(3, 'a') }}{{ 2 ** 8 }}{{ 1.55 | round(1) }}"
        "{{ [3, 1] | sort }}"
        "{{ 'a,b'.split(',') | list | tojson(indent=2) }}{{ 'abc'.replace('b', 'x') | center(9) }}",
        "{% for x in [[1, [2]], [3]] recursive %}{% if x is iterable %}{{ loop(x) }}{% else %}"
        "{{ x }}"
        "{% endif %}{% endfor %}{{ strftime_now('%Y') | length }}"
        "{{ range(5) | batch(2, 'x') | list }}",
    )
    return [source.encode() for source in sources]


def mutate_template(data: bytes, rng: Random) -> bytes:
    return mutate_words(data, rng, _POOL)


TARGETS = (
    # The tokenizers library keeps tables of its own; 10 s is the sandbox's limit for a template.
    Target("tokenizer", run_tokenizer, seeds_tokenizer, mutate_tokenizer, memory_bytes=64 << 20),
    Target(
        "text-files",
        run_text_files,
        seeds_text_files,
        mutate_text_files,
        memory_bytes=64 << 20,
        cpu_s=25.0,
    ),
    Target(
        "vocabulary", run_vocabulary, seeds_vocabulary, mutate_vocabulary, memory_bytes=64 << 20
    ),
    Target(
        "sentencepiece",
        run_sentencepiece,
        seeds_sentencepiece,
        mutate_bytes,
        memory_bytes=64 << 20,
    ),
    Target(
        "template",
        run_template,
        seeds_template,
        mutate_template,
        cpu_s=25.0,
        memory_factor=2048,
        memory_bytes=256 << 20,
    ),
)
