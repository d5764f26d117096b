"""Small tokenizers with the structure of each family's published one.

The structure is: kind of model, normalizer, split pattern, decoder, the tokens put around a text,
and the added tokens with their flags. Vocabulary
and chat templates are made here; the names of control tokens and the patterns are facts about the
families.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, Final

from tests.text.token_parts import (
    Json,
    added,
    byte_level,
    byte_model,
    config_json,
    piece_decoder,
    piece_model,
    prepend_space,
    put_around,
    replace_space,
    split_bytes,
    tokenizer_json,
    write_json,
)

TEMPLATES: Final = Path(__file__).parent / "templates"
TEKKEN_PATTERN: Final = (
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+"
    r"|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*"
    r"|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
CL100K_PATTERN: Final = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_QWEN: Final = CL100K_PATTERN.replace(r"\p{N}{1,3}", r"\p{N}")
_O200K: Final = (
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+"
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)?"
    r"|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*"
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)?"
    r"|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_FAST: Final = "PreTrainedTokenizerFast"
_MISTRAL_V3: Final = (
    "[INST]", "[/INST]", "[TOOL_CALLS]", "[AVAILABLE_TOOLS]", "[/AVAILABLE_TOOLS]",
    "[TOOL_RESULTS]", "[/TOOL_RESULTS]",
)  # fmt: skip
_TEKKEN_NAMES: Final = (
    "<unk>", "<s>", "</s>", "[INST]", "[/INST]", "[AVAILABLE_TOOLS]", "[/AVAILABLE_TOOLS]",
    "[TOOL_RESULTS]", "[/TOOL_RESULTS]", "[TOOL_CALLS]", "[IMG]", "<pad>", "[IMG_BREAK]",
    "[IMG_END]", "[PREFIX]", "[MIDDLE]", "[SUFFIX]",
)  # fmt: skip
MINISTRAL_NAMES: Final = (
    *_TEKKEN_NAMES, "[SYSTEM_PROMPT]", "[/SYSTEM_PROMPT]", "[TOOL_CONTENT]",
    *(f"<SPECIAL_{i}>" for i in range(20, 32)), "[ARGS]", "[CALL_ID]", "[THINK]", "[/THINK]",
    *(f"<SPECIAL_{i}>" for i in range(36, 40)),
)  # fmt: skip


def write_family(name: str, folder: Path) -> Path:
    """Write tokenizer.json, tokenizer_config.json, config.json and the template of a family."""
    folder.mkdir(parents=True, exist_ok=True)
    model_type, tokenizer, config = FAMILY_TOKENIZERS[name]()
    template = (TEMPLATES / f"{name}.jinja").read_text(encoding="utf-8")
    write_json(folder / "tokenizer.json", tokenizer)
    write_json(folder / "config.json", {"model_type": model_type})
    if name in TEMPLATE_IN_CONFIG:
        config = config | {"chat_template": template}
    else:
        (folder / "chat_template.jinja").write_text(template, encoding="utf-8")
    write_json(folder / "tokenizer_config.json", config)
    return folder


def _mistral_v1() -> tuple[str, Json, Json]:
    names = ("<unk>", "<s>", "</s>")
    tokens = [added(i, name) for i, name in enumerate(names)]
    built = tokenizer_json(
        piece_model(names), tokens, normalizer=prepend_space(), post=put_around("<s>", 1),
        decoder=piece_decoder(strip=True),
    )  # fmt: skip
    return "mistral", built, config_json(
        tokens, tokenizer_class="LlamaTokenizer", legacy=True, add_bos_token=True,
        add_eos_token=False, bos_token="<s>", eos_token="</s>", unk_token="<unk>", pad_token=None,
        additional_special_tokens=[],
    )  # fmt: skip


def _mistral_v3() -> tuple[str, Json, Json]:
    names = ("<unk>", "<s>", "</s>", *_MISTRAL_V3)
    tokens = [added(i, name) for i, name in enumerate(names)]
    scheme = {"type": "Metaspace", "replacement": "▁", "prepend_scheme": "first", "split": False}
    built = tokenizer_json(
        piece_model(names), tokens, pre=scheme, post=put_around("<s>", 1),
        decoder=piece_decoder(strip=True),
    )  # fmt: skip
    return "mistral", built, config_json(
        tokens, tokenizer_class="LlamaTokenizer", legacy=False, add_bos_token=True,
        add_eos_token=False, add_prefix_space=True, bos_token="<s>", eos_token="</s>",
        unk_token="<unk>",
    )  # fmt: skip


def _tekken(
    model_type: str, names: tuple[str, ...], tokenizer_class: str
) -> tuple[str, Json, Json]:
    tokens = [added(i, name) for i, name in enumerate(names)]
    built = tokenizer_json(
        byte_model(names, ignore_merges=True), tokens, pre=split_bytes(TEKKEN_PATTERN),
        post=put_around("<s>", 1), decoder=byte_level(),
    )  # fmt: skip
    return model_type, built, config_json(
        tokens, tokenizer_class=tokenizer_class, bos_token="<s>", eos_token="</s>",
        unk_token="<unk>", pad_token="<pad>",
    )  # fmt: skip


def _llama2(model_type: str = "llama", name: str = "LlamaTokenizer") -> tuple[str, Json, Json]:
    names = ("<unk>", "<s>", "</s>")
    tokens = [added(i, token) for i, token in enumerate(names)]
    infill = ("▁<PRE>", "▁<SUF>", "▁<MID>", "▁<EOT>") if name == "CodeLlamaTokenizer" else ()
    model = piece_model(names, infill)
    tokens += [added(model["vocab"][token], token) for token in infill]
    built = tokenizer_json(
        model, tokens, normalizer=prepend_space(), post=put_around("<s>", 1),
        decoder=piece_decoder(strip=True),
    )  # fmt: skip
    fill: Json = {"fill_token": None, "suffix_first": False} if infill else {}
    return model_type, built, config_json(
        tokens, tokenizer_class=name, legacy=None if infill else False, add_bos_token=True,
        add_eos_token=False, bos_token="<s>", eos_token="</s>", unk_token="<unk>", **fill,
    )  # fmt: skip


def _byte_family(
    model_type: str,
    pre: Json,
    names: Iterable[str],
    tokenizer_class: str,
    *,
    plain: Iterable[str] = (),
    stripped: Iterable[str] = (),
    normalizer: Json | None = None,
    begin: str = "",
    ignore_merges: bool = False,
    **roles: Any,
) -> tuple[str, Json, Json]:
    """A byte-level tokenizer whose control tokens come after the vocabulary."""
    model = byte_model(ignore_merges=ignore_merges)
    start = len(model["vocab"])
    stripped = set(stripped)
    tokens = [added(start + i, name, strip="r" * (name in stripped)) for i, name in enumerate(names)]  # fmt: skip
    start += len(tokens)
    tokens += [added(start + i, name, special=False) for i, name in enumerate(plain)]
    ids = {token["content"]: token["id"] for token in tokens}
    post: Json = byte_level(trim_offsets=False)
    if begin:
        steps = [byte_level(), put_around(begin, ids[begin])]
        post = {"type": "Sequence", "processors": steps}
    built = tokenizer_json(
        model, tokens, normalizer=normalizer, pre=pre, post=post, decoder=byte_level()
    )
    return model_type, built, config_json(tokens, tokenizer_class=tokenizer_class, **roles)


def _llama3() -> tuple[str, Json, Json]:
    names = (
        "<|begin_of_text|>", "<|end_of_text|>", "<|reserved_special_token_0|>",
        "<|finetune_right_pad_id|>", "<|start_header_id|>", "<|end_header_id|>", "<|eom_id|>",
        "<|eot_id|>", "<|python_tag|>",
    )  # fmt: skip
    return _byte_family(
        "llama", split_bytes(CL100K_PATTERN), names, _FAST, begin="<|begin_of_text|>", ignore_merges=True,
        bos_token="<|begin_of_text|>", eos_token="<|eot_id|>", clean_up_tokenization_spaces=True,
    )  # fmt: skip


def _qwen(model_type: str, plain: tuple[str, ...]) -> tuple[str, Json, Json]:
    names = ("<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|object_ref_start|>")
    return _byte_family(
        model_type, split_bytes(_QWEN), names, "Qwen2Tokenizer", plain=plain,
        normalizer={"type": "NFC"}, add_bos_token=False, add_prefix_space=False, bos_token=None,
        eos_token="<|im_end|>", pad_token="<|endoftext|>", unk_token=None,
        additional_special_tokens=["<|im_start|>", "<|im_end|>", "<|object_ref_start|>"],
        errors="replace", split_special_tokens=False,
    )  # fmt: skip


def _gemma3() -> tuple[str, Json, Json]:
    names = ("<pad>", "<eos>", "<bos>", "<unk>", "<mask>", "[multimodal]", "<unused0>")
    turns = ("<start_of_turn>", "<end_of_turn>")
    spans = ("\n", "\n\n", "\n\n\n", "▁▁", "▁▁▁▁", "\t", "<b>", "</b>", "<code>")
    model = piece_model([*names, *turns], spans)
    tokens = [added(i, name, special=name not in ("[multimodal]", "<unused0>")) for i, name in enumerate([*names, *turns])]  # fmt: skip
    tokens += [added(model["vocab"][name], name, special=False) for name in spans]
    image = len(model["vocab"])
    tokens.append(added(image, "<image_soft_token>"))
    pre = {"type": "Split", "pattern": {"String": " "}, "behavior": "MergedWithPrevious", "invert": False}  # fmt: skip
    built = tokenizer_json(
        model, tokens, normalizer=replace_space(), pre=pre, post=put_around("<bos>", 2),
        decoder=piece_decoder(strip=False),
    )  # fmt: skip
    return "gemma3_text", built, config_json(
        tokens, tokenizer_class="GemmaTokenizer", add_bos_token=True, add_eos_token=False,
        bos_token="<bos>", eos_token="<eos>", unk_token="<unk>", pad_token="<pad>",
        image_token="<image_soft_token>", use_default_system_prompt=False, sp_model_kwargs=None,
        spaces_between_special_tokens=False,
    )  # fmt: skip


def _phi3() -> tuple[str, Json, Json]:
    names = ("<unk>", "<s>", "</s>")
    turns = (
        "<|endoftext|>", "<|assistant|>", "<|placeholder1|>", "<|system|>", "<|end|>", "<|user|>",
    )  # fmt: skip
    model = piece_model(names, turns)
    tokens = [added(0, "<unk>"), added(1, "<s>"), added(2, "</s>", special=False, strip="r")]
    tokens += [
        added(model["vocab"][name], name, strip="" if name == "<|endoftext|>" else "r")
        for name in turns
    ]
    built = tokenizer_json(
        model, tokens, normalizer=prepend_space(), post=put_around("<s>", 1),
        decoder=piece_decoder(strip=True),
    )  # fmt: skip
    return "phi3", built, config_json(
        tokens, tokenizer_class="LlamaTokenizer", legacy=False, add_bos_token=False,
        add_eos_token=False, bos_token="<s>", eos_token="<|endoftext|>", unk_token="<unk>",
        pad_token="<|endoftext|>", padding_side="left", use_default_system_prompt=False,
    )  # fmt: skip


def _phi4_mini() -> tuple[str, Json, Json]:
    turns = (
        "<|assistant|>", "<|end|>", "<|user|>", "<|system|>", "<|tool|>", "<|/tool|>",
        "<|tool_call|>", "<|/tool_call|>", "<|tool_response|>",
    )  # fmt: skip
    return _byte_family(
        "phi3", split_bytes(_O200K), ("<|endoftext|>", "<|endofprompt|>", *turns), "GPT2Tokenizer",
        stripped=turns, add_bos_token=False, add_eos_token=False, add_prefix_space=False,
        bos_token="<|endoftext|>", eos_token="<|endoftext|>", pad_token="<|endoftext|>",
        unk_token="<|endoftext|>",
    )  # fmt: skip


def _smollm3() -> tuple[str, Json, Json]:
    names = ("<|begin_of_text|>", "<|end_of_text|>", "<|im_start|>", "<|im_end|>")
    plain = ("<think>", "</think>", "<tool_call>", "</tool_call>", "<tool_response>")
    return _byte_family(
        "smollm3", split_bytes(CL100K_PATTERN), names, _FAST, plain=plain, ignore_merges=True, bos_token=None,
        eos_token="<|im_end|>", pad_token="<|im_end|>", fast=False,
        clean_up_tokenization_spaces=True, model_input_names=["input_ids", "attention_mask"],
    )  # fmt: skip


def _granite() -> tuple[str, Json, Json]:
    names = (
        "<|end_of_text|>", "<fim_prefix>", "<fim_middle>", "<|start_of_role|>", "<|end_of_role|>",
        "<|tool_call|>", "<|start_of_cite|>",
    )  # fmt: skip
    pre = {"type": "Sequence", "pretokenizers": [{"type": "Digits", "individual_digits": True}, byte_level()]}  # fmt: skip
    return _byte_family(
        "granite", pre, names, "GPT2Tokenizer", add_bos_token=False, add_prefix_space=False,
        bos_token="<|end_of_text|>", eos_token="<|end_of_text|>", pad_token="<|end_of_text|>",
        unk_token="<|end_of_text|>", additional_special_tokens=list(names[3:]), errors="replace",
    )  # fmt: skip


def _olmo2() -> tuple[str, Json, Json]:
    names = ("<|endoftext|>", "<|endofprompt|>", "<|pad|>")
    plain = ("|||PHONE_NUMBER|||", "<|im_start|>", "<|im_end|>")
    return _byte_family(
        "olmo2", split_bytes(CL100K_PATTERN), names, "GPT2Tokenizer", plain=plain, add_prefix_space=False,
        bos_token="<|endoftext|>", eos_token="<|endoftext|>", pad_token="<|pad|>",
        unk_token="<|endoftext|>",
    )  # fmt: skip


FAMILY_TOKENIZERS: Final[dict[str, Callable[[], tuple[str, Json, Json]]]] = {
    "mistral-v1": _mistral_v1,
    "mistral-v3": _mistral_v3,
    "mistral-nemo": lambda: _tekken("mistral", (*_TEKKEN_NAMES, "<SPECIAL_17>"), "GPT2Tokenizer"),
    "ministral3": lambda: _tekken("mistral3", MINISTRAL_NAMES, "TokenizersBackend"),
    "llama2": _llama2,
    "code-llama": lambda: _llama2("llama", "CodeLlamaTokenizer"),
    "llama3": _llama3,
    "qwen2.5": lambda: _qwen("qwen2", ("<tool_call>", "</tool_call>")),
    "qwen3": lambda: _qwen(
        "qwen3",
        (
            "<tool_call>",
            "</tool_call>",
            "<tool_response>",
            "</tool_response>",
            "<think>",
            "</think>",
        ),
    ),
    "gemma3": _gemma3,
    "phi3": _phi3,
    "phi4-mini": _phi4_mini,
    "smollm3": _smollm3,
    "granite": _granite,
    "olmo2": _olmo2,
}
TEMPLATE_IN_CONFIG: Final = frozenset({"mistral-v1", "llama2", "qwen2.5", "phi3", "granite"})
