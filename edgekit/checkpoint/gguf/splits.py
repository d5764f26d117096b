"""How the byte-level tokenizers of GGUF files split text before merging, by their names.

``tokenizer.ggml.pre`` is only a name. Its meaning is in llama.cpp's source, and in the
tokenizer.json of the model after which it is named. Where the two differ (such as in whether
Unicode is normalized first), the model's tokenizer.json is followed: the model was trained with it.

Source: https://github.com/ggml-org/llama.cpp, src/llama-vocab.cpp (``llm_tokenizer_bpe`` and
``llama_vocab::impl::load``), where the original expressions are quoted.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

_GPT2_END: Final = r"\s+(?!\S)|\s+"
_CONTRACTIONS: Final = "(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_REST: Final = rf" ?[^\s\p{{L}}\p{{N}}]+[\r\n]*|\s*[\r\n]+|{_GPT2_END}"


def _words(numbers: str) -> str:
    """Give an expression like that of OpenAI's cl100k; ``numbers`` says how numbers are split."""
    return rf"{_CONTRACTIONS}|[^\r\n\p{{L}}\p{{N}}]?\p{{L}}+|{numbers}|{_REST}"


def _cased(numbers: str, contractions: str = "") -> str:
    """Give an expression like that of OpenAI's o200k: words are split before a capital letter."""
    upper, lower = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]", r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
    before = r"[^\r\n\p{L}\p{N}]?"
    return (
        rf"{before}{upper}*{lower}+{contractions}|{before}{upper}+{lower}*{contractions}"
        rf"|{numbers}| ?[^\s\p{{L}}\p{{N}}]+[\r\n/]*|\s*[\r\n]+|{_GPT2_END}"
    )


@dataclass(frozen=True, slots=True)
class Split:
    """How a tokenizer splits text, and the other settings that its name implies.

    Attributes:
        patterns: Expressions, each of which splits the pieces of the one before.
        has_gpt2: Whether GPT-2's expression is used last.
        digits: Whether each digit is split off first.
        is_composed: Whether Unicode is composed first (NFC).
        ignores_merges: Whether a piece that is itself a token is not merged from parts.
        adds_bos: Whether a text begins with the begin token where the file does not say.
    """

    patterns: tuple[str, ...] = ()
    has_gpt2: bool = False
    digits: bool = False
    is_composed: bool = False
    ignores_merges: bool = False
    adds_bos: bool = False

    def pre_tokenizer(self) -> dict[str, Any]:
        """Give the section of tokenizer.json."""
        steps: list[dict[str, Any]] = []
        if self.digits:
            steps.append({"type": "Digits", "individual_digits": True})
        steps += [
            {"type": "Split", "pattern": {"Regex": p}, "behavior": "Isolated", "invert": False}
            for p in self.patterns
        ]
        steps.append(
            {
                "type": "ByteLevel",
                "add_prefix_space": False,
                "trim_offsets": True,
                "use_regex": self.has_gpt2,
            }
        )
        return {"type": "Sequence", "pretokenizers": steps} if len(steps) > 1 else steps[0]


_GPT2: Final = Split(has_gpt2=True)
_DIGITS: Final = Split(has_gpt2=True, digits=True)
_LLAMA3: Final = Split((_words(r"\p{N}{1,3}"),), ignores_merges=True, adds_bos=True)
_CL100K: Final = Split((_words(r"\p{N}{1,3}"),))
_SINGLE: Final = Split((_words(r"\p{N}"),))
_QWEN2: Final = Split((_words(r"\p{N}"),), is_composed=True)
_QWEN35: Final = Split(
    (
        rf"{_CONTRACTIONS}|[^\r\n\p{{L}}\p{{N}}]?[\p{{L}}\p{{M}}]+|\p{{N}}"
        rf"| ?[^\s\p{{L}}\p{{M}}\p{{N}}]+[\r\n]*|\s*[\r\n]+|{_GPT2_END}",
    ),
    is_composed=True,
)
_TEKKEN: Final = Split((_cased(r"\p{N}"),), ignores_merges=True, adds_bos=True)
_O200K: Final = Split((_cased(r"\p{N}{1,3}", f"{_CONTRACTIONS}?"),))
_DEEPSEEK3: Final = Split(
    (
        r"\p{N}{1,3}",
        "[\u4e00-\u9fa5\u3040-\u309f\u30a0-\u30ff]+",
        r"[!\"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+"
        r"|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+| ?[\p{P}\p{S}]+[\r\n]*"
        rf"|\s*[\r\n]+|{_GPT2_END}",
    )
)
_DEEPSEEK_CODER: Final = Split(
    (
        r"[\r\n]",
        r"\s?\p{L}+",
        r"\s?\p{P}+",
        "[\u4e00-\u9fa5\u0800-\u4e00\uac00-\ud7ff]+",
        r"\p{N}",
    )
)
_FALCON: Final = Split(
    (
        r"[\p{P}\$\+<=>\^~\|`]+",
        rf"'s|'t|'re|'ve|'m|'ll|'d| ?\p{{L}}+| ?\p{{N}}+| ?[^\s\p{{L}}\p{{N}}]+|{_GPT2_END}",
        "[0-9][0-9][0-9]",
    )
)
# For files older than the key: llama.cpp splits them this way, whatever the model was trained with.
_UNNAMED: Final = Split(
    (
        r"[\p{P}\$\+<=>\^~\|]+",
        rf"'s|'t|'re|'ve|'m|'ll|'d| ?\p{{L}}+| ?\p{{N}}+| ?[^\s\p{{L}}\p{{N}}]+|{_GPT2_END}",
        r"\p{N}+",
        "[0-9][0-9][0-9]",
    )
)
SPLITS: Final[Mapping[str, Split]] = {
    name: split
    for split, names in (
        (_UNNAMED, "default"),
        (_GPT2, "gpt-2 phi-2 mpt olmo jais trillion granite-docling exaone4 gigachat a.x-4.0 "
                "mellum jina-es jina-de jina-v2-es jina-v2-de"),
        (_DIGITS, "starcoder refact command-r smollm codeshell exaone minerva-7b mellum2"),
        (_LLAMA3, "llama3 llama-v3 llama-bpe falcon3 falcon-h1 pixtral midm-2.0 lfm2 "
                  "jina-v5-nano"),
        (_CL100K, "dbrx smaug-bpe glm4 chatglm-bpe"),
        (_SINGLE, "stablelm2 hunyuan solar-open grok-2 deepseek-r1-qwen kormo f2llmv2 megrez"),
        (_QWEN2, "qwen2"),
        (_QWEN35, "qwen35"),
        (_TEKKEN, "tekken"),
        (_O200K, "gpt-4o llama4 kanana2 talkie minimax-m2"),
        (_DEEPSEEK3, "deepseek-v3 hunyuan-dense joyai-llm"),
        (_DEEPSEEK_CODER, "deepseek-coder"),
        (_FALCON, "falcon"),
    )
    for name in names.split()
}  # fmt: skip
