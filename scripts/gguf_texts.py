"""A thousand texts that tokenizers disagree on: scripts, code, numbers, white space, emoji, names.

The same on every machine; scripts/gguf_report.py compares the token ids of a GGUF file on them.
"""

from __future__ import annotations

import random
from typing import Final

_WORDS: Final = """
the of and to in is you that it he was for on are as with his they I at be this have from or
one had by word but not what all were we when your can said there use an each which she do
how their if will up other about out many then them these so some her would make like him
"""
WORDS: Final = tuple(_WORDS.split())
SCRIPTS: Final = (
    "Привет, мир!", "中文分词没有空格", "日本語のテキスト、カタカナ", "한국어 텍스트입니다", "العربية نص",
    "עברית טקסט", "हिन्दी में पाठ", "ภาษาไทยไม่มีช่องว่าง", "ελληνικό κείμενο", "Tiếng Việt có dấu",
    "naïve café résumé coöperate", "e\u0301a\u0300 combining", "ａｂｃ１２３ wide", "𝒜𝓁𝑔𝑒𝒷𝓇𝒶 ∑∏∫ √2≠π",
    "½ ¼ Ⅷ ² ³ ١٢٣ ४५६",
)  # fmt: skip
CODE: Final = (
    "def f(x):\n    return x**2 + 1\n", "for (int i = 0; i < 10; ++i) {\n\ta[i] = i * 2;\n}\n",
    "SELECT * FROM t WHERE a='b' AND c<>3;", '{"a": [1, 2, 3], "b": null}',
    "if x == 10:\n        y  =  20\n    # 3 things\n", '<div class="x">&nbsp;</div>',
    "git commit -m 'fix: a\\nb' && ls -la | grep 12", "a_b.c->d::e@f#g$h%i^j&k*l",
    "x = 0x1F + 1e-10 - 3.14159",
)  # fmt: skip
EMOJI: Final = ("😀", "👩‍👩‍👧‍👦", "🏳️‍🌈", "🇩🇪", "👍🏽", "❤️", "🤷🏿‍♀️", "\u200d", "\ufeff")
NAMES: Final = (
    "<|im_start|>", "<|im_end|>", "<|endoftext|>", "<repo_name>", "<file_sep>", "<jupyter_code>",
    "<|im_start|>user\nhi<|im_end|>\n", "<s>", "</s>", "[INST]", "<|user|>",
)  # fmt: skip
SPACES: Final = (
    " ", "  ", "   ", "        ", "\t", "\t\t", "\n", "\n\n", "\n\n\n", " \n ", "\r\n", "\u00a0",
    "\u3000", "\u2028", "\v", "\f",
)  # fmt: skip
NUMBERS: Final = (
    "1", "12", "123", "1234567890", "3.14", "1,000,000", "-5", "1/2", "2026-11-27", "007", "12:30",
    "+49 30 1234",
)  # fmt: skip
MARKS: Final = (*"!?.,;:'\"()[]{}<>/\\|@#$%^&*~`-_=+", "'s", "'RE", "don't", "I'LL", "we've", " 's")
_POOLS: Final = (WORDS, WORDS, WORDS, SCRIPTS, CODE, EMOJI, NAMES, SPACES, SPACES, NUMBERS, MARKS)


def varied_texts(n_texts: int = 1000, seed: int = 20261127) -> list[str]:
    """Give ``n_texts`` texts; each part of the pools alone comes first."""
    rng = random.Random(seed)
    texts = ["", *(text for pool in _POOLS[3:] for text in dict.fromkeys(pool))]
    while len(texts) < n_texts:
        parts = []
        for _ in range(rng.randint(1, 14)):
            parts.append(rng.choice(rng.choice(_POOLS)))
            parts.append(" " if rng.random() < 0.6 else "")
        if rng.random() < 0.1:
            ranges = ((32, 0x2FF), (0x370, 0xD7FF), (0x10000, 0x1FFFF))
            parts += [chr(rng.randint(*rng.choice(ranges))) for _ in range(rng.randint(1, 12))]
        texts.append("".join(parts))
    return texts[:n_texts]
