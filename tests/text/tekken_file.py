"""A small tekken.json.

The layout of the published files, with the vocabulary that the other small tokenizers have.
"""

from __future__ import annotations

import base64
from pathlib import Path
from typing import Any

from tests.text.token_families import MINISTRAL_NAMES, TEKKEN_PATTERN
from tests.text.token_parts import write_json
from tests.text.token_training import byte_alphabet, byte_merges

N_SPARE = 7


def write_tekken(folder: Path, *, has_list: bool = True) -> Path:
    """Write tekken.json; without the list of control tokens as the first files were."""
    names = MINISTRAL_NAMES[:36] if has_list else ()
    ranked = _ranked_bytes()
    n_control = 40
    content: dict[str, Any] = {
        "config": {
            "pattern": TEKKEN_PATTERN,
            "num_vocab_tokens": len(ranked),
            # The last ones are in the file and not in the vocabulary, as in the published files.
            "default_vocab_size": n_control + len(ranked) - N_SPARE,
            "default_num_special_tokens": n_control,
            "version": "v13" if has_list else "v3",
        },
        "vocab": [
            {"rank": i, "token_bytes": base64.b64encode(piece).decode(), "token_str": None}
            for i, piece in enumerate(ranked)
        ],
    }
    if has_list:
        content["special_tokens"] = [
            {"rank": i, "token_str": name, "is_control": True} for i, name in enumerate(names)
        ]
    folder.mkdir(parents=True, exist_ok=True)
    write_json(folder / "tekken.json", content)
    return folder


def _ranked_bytes() -> list[bytes]:
    byte_of = {letter: byte for byte, letter in byte_alphabet().items()}
    merged = dict.fromkeys("".join(pair) for pair in byte_merges(600))
    pieces = [bytes(byte_of[letter] for letter in piece) for piece in merged]
    return [bytes([byte]) for byte in range(256)] + pieces
