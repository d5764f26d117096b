"""The merges of the small tokenizers of the tests.

Byte-pair merges trained here, in plain Python, on a text written for it: the same everywhere and
for ever, whatever the tokenizers library's own trainer does.
"""

from __future__ import annotations

import re
from collections import Counter
from functools import cache
from itertools import pairwise
from typing import Final

TEXT: Final = """\
The quick answer is that the tokens of a text are the same wherever the text goes. The model reads
tokens, not letters; when the tokens are wrong, the answers are wrong, and nobody says why. There
are three things to check: the text, the tokens, and the text that the tokens give back. What is
it that you want? I think that I'll take the other one, it's what they've asked for, isn't it?
You're right, we'd better go there in the morning. Hello, world! How are you? Thanks, and good bye.
Set a timer for ten minutes. Is it going to rain in Paris today? The weather is cloudy, 21 degrees.
Please set the alarm, then read the list of names: Ana, Ben, Carla, Dirk, Eva and the others.
In 2024 there were 365 or 366 days, 12 months, 52 weeks; 1,000,000 is more than 999,999.
The assistant answers the user, the user asks the assistant, the system says what is allowed.
Le garçon naïf a mangé à la crêperie, où l'été était déjà passé; il a été très étonné.
El niño pequeño está en España, mañana irá a la montaña. ¿Qué tal estás? Información, acción.
Die größte Straße führt über die Brücke; schöne Grüße, müde Füße, süße Früchte für alle.
Привет, как дела? Сегодня хорошая погода, и мы идём гулять по городу. Спасибо, что пришли.
Καλημέρα κόσμε, τι κάνεις σήμερα; Η μέρα είναι καλή και ο ήλιος είναι στον ουρανό.
مرحبا بالعالم، كيف حالك اليوم؟ هذا نص قصير باللغة العربية.
שלום עולם, מה שלומך היום? זה טקסט קצר בעברית.
नमस्ते दुनिया, आप कैसे हैं? यह एक छोटा वाक्य है।
สวัสดีชาวโลก วันนี้เป็นอย่างไรบ้าง
你好，世界！今天天气很好，我们去公园吧。你叫什么名字？我是一个助手。
こんにちは世界。今日はとても良い天気ですね。ありがとうございます。
안녕하세요 세계, 오늘 날씨가 좋네요. 감사합니다.
def main(args):
    for index, value in enumerate(args):
        if value is None:
            return index
        print(f"{index}: {value}")
class Point:
    def __init__(self, x, y):
        self.x = x
        self.y = y
function add(a, b) { return a + b; }
const values = [1, 2, 3].map((value) => value * 2);
int main(void) { int i; for (i = 0; i < 10; i++) { printf("%d\\n", i); } return 0; }
SELECT name, value FROM table WHERE value > 10 ORDER BY name;
{"type": "function", "function": {"name": "get_weather", "description": "The weather of a city",
"parameters": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}}}
{"name": "set_timer", "arguments": {"seconds": 600}} <html><body><p class="text">Hello</p></body>
"""
_WORD: Final = re.compile(r"\s?[^\W\d_]+|\s?\d|\s?[^\w\s]+|_+|\s+")


def byte_alphabet() -> dict[int, str]:
    """Give the character that byte-level tokenizers write for each byte (GPT-2's table)."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in printable]
    return {byte: chr(byte) for byte in printable} | {
        byte: chr(256 + place) for place, byte in enumerate(others)
    }


@cache
def byte_merges(n_merges: int) -> list[tuple[str, str]]:
    """Give the merges of a byte-level tokenizer."""
    table = byte_alphabet()
    words = ["".join(table[byte] for byte in word.encode()) for word in _WORD.findall(TEXT)]
    return _train(words, n_merges)


@cache
def piece_merges(n_merges: int) -> list[tuple[str, str]]:
    """Give the merges of a tokenizer of sentencepiece's kind, where a space is written as "▁"."""
    words = [word.replace(" ", "▁") for word in _WORD.findall(TEXT) if "\n" not in word]
    # Runs of spaces are tokens of their own, as in vocabularies made for code.
    return [("▁" * n, "▁" * n) for n in (1, 2, 4)] + _train(words, n_merges - 3)


def _train(words: list[str], n_merges: int) -> list[tuple[str, str]]:
    counts = Counter(words)
    parts = {word: list(word) for word in counts}
    merges: list[tuple[str, str]] = []
    while len(merges) < n_merges:
        pairs: Counter[tuple[str, str]] = Counter()
        for word, pieces in parts.items():
            for pair in pairwise(pieces):
                pairs[pair] += counts[word]
        best = min(pairs, key=lambda pair: (-pairs[pair], pair))
        merges.append(best)
        for pieces in parts.values():
            _merge(pieces, best)
    return merges


def _merge(pieces: list[str], pair: tuple[str, str]) -> None:
    place = 0
    while place < len(pieces) - 1:
        if (pieces[place], pieces[place + 1]) == pair:
            pieces[place : place + 2] = ["".join(pair)]
        place += 1
