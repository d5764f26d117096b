"""The suite ``structured_output``: fill a JSON schema from a short text, and write nothing else.

The schema asks for some of the facts in the text, in its own order. An optional field that the text
leaves out must be null or absent, as the schema says. Graded as JSON values.
"""

import json
from collections.abc import Callable, Mapping, Sequence, Set
from typing import Any

from edgekit.draw import Draw
from edgekit.quality.suites.base import (
    Answer,
    Item,
    Score,
    Split,
    is_same_value,
    iter_items,
    load_json,
)
from edgekit.quality.suites.record_kinds import RECORD_KINDS, Field, Value

__all__ = ["StructuredOutput"]

_KINDS = tuple(RECORD_KINDS)
_ASKS = {
    Split.TRAIN: (
        "Fill in the schema from the text.",
        "Extract the record as JSON.",
        "Read the text and write JSON for this schema.",
        "Turn the text into JSON.",
        "Write the JSON record that the text describes.",
        "Give me JSON that follows the schema.",
        "Answer with JSON for the schema.",
    ),
    Split.HELD_OUT: (
        "Read the text and extract the JSON record.",
        "Turn the text into JSON that follows the schema.",
        "Fill in the JSON for this text.",
    ),
}


class StructuredOutput:
    """Records from text under a schema."""

    name = "structured_output"
    title = "Structured output"
    max_tokens = 128

    def items(
        self,
        n: int,
        *,
        seed: int,
        split: Split = Split.HELD_OUT,
        count_tokens: Callable[[str], int] | None = None,
    ) -> list[Item]:
        """Make records whose kind goes round by index."""
        return [
            self.record(item_id, index, draw.between(3, 5), draw, split)
            for index, item_id, draw in iter_items(self.name, n, seed, split)
        ]

    def record(self, item_id: str, index: int, n_fields: int, draw: Draw, split: Split) -> Item:
        """Make one text with `n_fields` asked fields and up to two that are not asked."""
        return self.record_asked_twice(item_id, index, n_fields, draw, split)[0]

    def record_asked_twice(
        self, item_id: str, index: int, n_fields: int, draw: Draw, split: Split
    ) -> tuple[Item, Item]:
        """Make one text; the second item has another schema for it, without the text."""
        kind = _KINDS[index % len(_KINDS)]
        fields = RECORD_KINDS[kind]
        told = draw.sample(tuple(fields), n_fields + draw.between(0, 2))
        values: dict[str, Value] = {}
        sentences = []
        nullable: set[str] = set()
        for key in told:
            field = fields[key]
            if draw.chance(50):
                nullable.add(key)
            if not field.is_optional or draw.chance(50):
                sentence, values[key] = _tell(field, draw, split)
                sentences.append(sentence)
        text = " ".join(draw.sample(sentences, len(sentences)))
        ask, ask_again = draw.pick(_ASKS[split]), draw.pick(_ASKS[split])
        asked_again = draw.sample(told, draw.between(2, len(told)))
        return (
            self._item(item_id, kind, told[:n_fields], values, nullable, ask, f"\nText: {text}"),
            self._item(f"{item_id}-again", kind, asked_again, values, nullable, ask_again, ""),
        )

    def _item(
        self,
        item_id: str,
        kind: str,
        asked: Sequence[str],
        values: Mapping[str, Value],
        nullable: Set[str],
        ask: str,
        text: str,
    ) -> Item:
        fields = RECORD_KINDS[kind]
        schema = {
            "type": "object",
            "properties": {key: _schema(fields[key], key in nullable) for key in asked},
            "required": [k for k in asked if not fields[k].is_optional or k in nullable],
        }
        compact = json.dumps(schema, separators=(",", ":"))
        record = {key: values.get(key) for key in asked if key in values or key in nullable}
        return Item(
            id=item_id,
            suite=self.name,
            messages=({"role": "user", "content": f"{ask}\nSchema: {compact}{text}"},),
            tools=(),
            target=json.dumps(record, ensure_ascii=False),
            meta={"kind": kind, "n_fields": len(asked), "schema": compact},
            max_tokens=self.max_tokens,
        )

    def score(self, item: Item, answer: Answer) -> Score:
        """Compare the JSON object in the answer, in a code fence or bare, with the wanted one."""
        _, wanted = load_json(item.target)
        is_json, got = load_json(_strip_fence(answer.text))
        if not is_json:
            return Score(False, "invalid_json")
        reason = _difference(got, wanted)
        return Score(not reason, reason)


def _difference(got: object, wanted: Mapping[str, Any]) -> str:
    if not isinstance(got, dict):
        return "not_an_object"
    if wanted.keys() - got.keys():
        return "missing_field"
    if got.keys() - wanted.keys():
        return "extra_field"
    return "" if is_same_value(got, dict(wanted)) else "wrong_value"


def _strip_fence(text: str) -> str:
    before, fence, rest = text.partition("```")
    if not fence or "{" in before:
        return text
    return rest.removeprefix("json").partition("```")[0]


def _tell(field: Field, draw: Draw, split: Split) -> tuple[str, Value]:
    is_train = split is Split.TRAIN
    if field.make is None:
        if draw.chance(50):
            return draw.pick(field.train if is_train else field.held_out), True
        return draw.pick(field.train_false if is_train else field.held_out_false), False
    value = field.make(draw, split)
    said = _spoken_list(value) if isinstance(value, list) else str(value)
    sentence = draw.pick(field.train if is_train else field.held_out).format(v=said)
    return sentence[0].upper() + sentence[1:], value


def _spoken_list(parts: list[str]) -> str:
    return ", ".join(parts[:-1]) + " and " + parts[-1]


def _schema(field: Field, is_nullable: bool) -> dict[str, Any]:
    if field.kind == "strings":
        return {"type": "array", "items": {"type": "string"}}
    if field.kind == "enum":
        choices: list[str | None] = list(field.choices)
        if field.is_optional and is_nullable:
            return {"enum": [*choices, None]}
        return {"enum": choices}
    if field.is_optional and is_nullable:
        return {"type": [field.kind, "null"]}
    return {"type": field.kind}
