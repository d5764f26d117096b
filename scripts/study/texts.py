"""The texts of the study: what models are compared on, and what methods may calibrate on.

No text is in both. A model is compared on documents that nobody tuned anything on: questions and
answers of GSM8K's test set and programs of HumanEval, read from a folder that the user names, and
prose that was written for this study; without the folder, on items of edgekit's own suites.
"""

from __future__ import annotations

import gzip
import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from edgekit.errors import UsageError
from edgekit.families.base import SourceModel
from edgekit.pipeline.calibration import Calibration, read_text
from edgekit.quality.suites import SUITES, load_suite
from edgekit.quantize.calibration_text import CalibrationText

GSM8K_NAME: Final = "gsm8k.test.jsonl"
HUMANEVAL_NAME: Final = "HumanEval.jsonl.gz"
_EVALUATION_SEED: Final = 20261127
PROSE: Final = (
    (
        "The ferry left an hour late because the captain wanted to wait for the fog to lift. "
        "Most of the passengers sat inside with paper cups of coffee and looked at their "
        "telephones, but two brothers, perhaps nine and eleven years old, stood at the rail and "
        "counted the buoys. Each of them had a notebook, and each wrote down the number that was "
        "painted on the buoy and the minute at which it went by. When they came to the island "
        "they compared their lists, found one difference, and argued about it all the way up the "
        "hill to the lighthouse, where their grandmother settled the matter with a pair of "
        "binoculars."
    ),
    (
        "A lever lets a small force move a large weight. The nearer the weight is to the point on "
        "which the bar rests, and the farther away the hand, the less force is needed; but the "
        "hand then has to travel a longer way, and the work done is the same. Scissors, "
        "wheelbarrows, bottle openers and the bones of the forearm are all levers, and they "
        "differ only in where the resting point lies. In a wheelbarrow it is the wheel at the "
        "front, in scissors the screw in the middle, and in the forearm the elbow, which is why "
        "the muscle has to pull so much harder than the hand can lift."
    ),
    (
        "Dear Ms. Okafor, thank you for your application of 3 June for the post of librarian. We "
        "received eighty-four applications and have read all of them with care. We would like to "
        "invite you to an interview on Thursday, 26 June, at 10:30 in room 214 of the town hall. "
        "Please bring your certificates and the names of two people who know your work. The "
        "conversation will last about forty-five minutes, and afterwards Mr. Lindqvist will be "
        "glad to show you the children's section, which is to be rebuilt next year. If the date "
        "does not suit you, please call us before Friday noon."
    ),
    (
        "The town had been a port until the river moved. Old maps show warehouses along the "
        "eastern wall and a crane that was turned by two men walking in a wheel; today there are "
        "gardens, and the nearest ship passes nine kilometres away. Historians long believed that "
        "a single flood had shifted the bed, but cores taken from the marsh tell a slower story: "
        "for almost two hundred years the harbour filled with silt, a few centimetres every "
        "spring, while the council quarrelled over who should pay for dredging. By the time they "
        "agreed, there was not enough water left to float a barge."
    ),
)

Document = tuple[int, ...]


def evaluation_documents(
    source: SourceModel, data: Path | None, *, n_documents: int, n_tokens: int
) -> dict[str, list[Document]]:
    """Give the documents that models are compared on, by kind.

    Args:
        source: The model, for its tokenizer and chat template.
        data: Folder with GSM8K's test set and HumanEval; None takes items of edgekit's suites.
        n_documents: Documents of each kind; of prose there are four.
        n_tokens: Longer documents end there.

    Raises:
        UsageError: A file is missing in the folder.
    """
    if data is None:
        found = {"suites": _suite_chats(n_documents, _EVALUATION_SEED)}
    else:
        found = {
            "gsm8k": [_gsm8k_chat(item) for item in _pick(_lines(data / GSM8K_NAME), n_documents)],
            "humaneval": [
                _humaneval_chat(item) for item in _pick(_lines(data / HUMANEVAL_NAME), n_documents)
            ],
        }
    documents = {
        kind: [_chat_ids(source, chat)[:n_tokens] for chat in chats]
        for kind, chats in found.items()
    }
    if data is not None:
        documents["prose"] = [_text_ids(source, text)[:n_tokens] for text in PROSE]
    return documents


def calibration_text(source: SourceModel, n_tokens: int) -> CalibrationText:
    """Give what every method calibrates on, peers' methods too: edgekit's built-in text.

    Args:
        source: The model.
        n_tokens: How many tokens.
    """
    return read_text(source, Calibration(n_tokens=n_tokens))


def _lines(path: Path) -> list[dict[str, Any]]:
    if not path.is_file():
        raise UsageError(
            f"{path.name} is missing",
            got=str(path.parent),
            wanted=f"a folder with {GSM8K_NAME} and {HUMANEVAL_NAME}",
        )
    opener = gzip.open if path.suffix == ".gz" else open
    with opener(path, "rt", encoding="utf-8") as lines:
        return [json.loads(line) for line in lines]


def _pick(items: Sequence[dict[str, Any]], n: int) -> list[dict[str, Any]]:
    """Give ``n`` items at equal distances."""
    return [items[i * len(items) // n] for i in range(min(n, len(items)))]


def _gsm8k_chat(item: Mapping[str, Any]) -> list[dict[str, str]]:
    answer = re.sub(r"<<[^>]*>>", "", item["answer"])  # notes for a calculator
    return [
        {"role": "user", "content": item["question"]},
        {"role": "assistant", "content": answer},
    ]


def _humaneval_chat(item: Mapping[str, Any]) -> list[dict[str, str]]:
    program = f"```python\n{item['prompt']}{item['canonical_solution'].rstrip()}\n```"
    question = f"Complete this function.\n\n```python\n{item['prompt'].rstrip()}\n```"
    return [{"role": "user", "content": question}, {"role": "assistant", "content": program}]


def _suite_chats(n_each: int, seed: int) -> list[list[dict[str, str]]]:
    """Give items of every suite that needs no tools in the template, as chats."""
    chats = []
    for name in SUITES:
        for item in load_suite(name).items(n_each, seed=seed):
            if not item.tools and len(str(item.messages)) < 2000:
                messages = [dict(message) for message in item.messages]
                chats.append([*messages, {"role": "assistant", "content": item.target}])
    return chats[:: max(1, len(chats) // (2 * n_each))]


def _chat_ids(source: SourceModel, chat: Sequence[Mapping[str, str]]) -> Document:
    view = source.text
    if view.tokenizer is None:
        raise UsageError("the study needs a tokenizer", got=source.checkpoint.name)
    ids = view.template.encode(list(chat), view.tokenizer, add_generation_prompt=False)
    return tuple(ids)


def _text_ids(source: SourceModel, text: str) -> Document:
    if source.text.tokenizer is None:
        raise UsageError("the study needs a tokenizer", got=source.checkpoint.name)
    return tuple(source.text.tokenizer.encode(text, allow_special=False))
