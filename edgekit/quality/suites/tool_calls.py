"""The suite ``tool_calls``: turn a spoken request into the right call with the right arguments.

Each item offers two to four tools; one in sixteen asks for something that no tool does.
Graded exactly: the tool's name and every argument's value.
"""

import json
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from edgekit.draw import Draw
from edgekit.quality.suites import words
from edgekit.quality.suites.base import (
    TOOL_CALLS_TAG,
    Answer,
    Item,
    Score,
    Split,
    ToolCall,
    is_same_value,
    iter_items,
    parse_tool_calls,
)
from edgekit.quality.suites.tool_phrases import (
    LEADS,
    OTHER_REQUESTS,
    PHRASES,
    SPOKEN_CHOICES,
    TAILS,
)
from edgekit.quality.suites.tools import TOOLS, tool_definition

__all__ = ["NO_TOOL", "ToolCalls"]

NO_TOOL = "No tool fits this request."
_SLOT = re.compile(r"\{(\w+)\}")
_KINDS = (*TOOLS, "none")
_FREE_TEXT: Mapping[str, Callable[[Draw, Split], str]] = {
    "set_timer.label": words.label,
    "send_message.contact": words.person,
    "send_message.text": words.message,
    "play_music.title": words.title,
    "play_music.artist": words.person,
    "get_weather.place": words.place,
    "create_reminder.text": words.task,
    "navigate_to.destination": words.place,
    "add_calendar_event.title": words.meeting,
    "toggle_device.device": words.device,
    "search_contacts.name": words.person,
    "search_contacts.city": words.place,
    "add_to_list.item": words.label,
}
_RANGES: Mapping[str, tuple[int, int]] = {
    "set_timer.minutes": (2, 90),
    "set_alarm.hour": (5, 23),
    "set_alarm.minute": (10, 59),
    "create_reminder.in_hours": (2, 48),
    "add_calendar_event.hour": (7, 22),
    "set_brightness.percent": (5, 99),
    "convert_currency.amount": (5, 950),
    "set_thermostat.degrees": (15, 26),
    "add_to_list.quantity": (2, 24),
}


class ToolCalls:
    """Requests to a phone or home assistant."""

    name = "tool_calls"
    title = "Tool calls"
    max_tokens = 80

    def items(
        self,
        n: int,
        *,
        seed: int,
        split: Split = Split.HELD_OUT,
        count_tokens: Callable[[str], int] | None = None,
    ) -> list[Item]:
        """Make requests that go round all tools and the "no tool" case by index."""
        return [
            self.make(item_id, index, draw, split)
            for index, item_id, draw in iter_items(self.name, n, seed, split)
        ]

    def score(self, item: Item, answer: Answer) -> Score:
        """Compare the calls of `answer` with the wanted one."""
        wanted = parse_tool_calls(item.target)
        got = answer.tool_calls or parse_tool_calls(answer.text)
        if not wanted:
            return Score(not got, "unexpected_call" if got else "")
        reason = _difference(got, wanted[0])
        return Score(not reason, reason)

    def make(self, item_id: str, index: int, draw: Draw, split: Split) -> Item:
        """Make one item; `index` modulo the number of kinds says which tool is asked for."""
        kind = _KINDS[index % len(_KINDS)]
        asked = draw.pick(tuple(TOOLS)) if kind == "none" else kind
        n_tools = draw.between(2, 4)
        others = draw.sample([name for name in TOOLS if name != asked], n_tools)
        if kind == "none":
            return self.ask(item_id, None if draw.chance(40) else asked, others, draw, split)
        offered = draw.sample([asked, *others[1:]], n_tools)
        return self.ask(item_id, asked, offered, draw, split)

    def ask(
        self, item_id: str, asked: str | None, offered: Sequence[str], draw: Draw, split: Split
    ) -> Item:
        """Make a request for the tool `asked`, offered or not, or for something no tool does."""
        kind, target = "none", NO_TOOL
        if asked is None:
            text = _unrelated(draw, split)
        else:
            text, arguments = _request(asked, draw, split)
            if asked in offered:
                kind = asked
                call = {"name": asked, "arguments": arguments}
                target = TOOL_CALLS_TAG + json.dumps([call], ensure_ascii=False)
        return Item(
            id=item_id,
            suite=self.name,
            messages=({"role": "user", "content": text},),
            tools=tuple(tool_definition(name) for name in offered),
            target=target,
            meta={"kind": kind, "n_tools": len(offered)},
            max_tokens=self.max_tokens,
        )


def _difference(got: Sequence[ToolCall], wanted: ToolCall) -> str:
    if not got:
        return "no_call"
    if len(got) > 1:
        return "extra_call"
    arguments, wanted_arguments = got[0].arguments, wanted.arguments or {}
    if got[0].name != wanted.name:
        return "wrong_tool" if arguments is not None else "invalid_json"
    if arguments is None:
        return "invalid_json"
    if wanted_arguments.keys() - arguments.keys():
        return "missing_argument"
    if arguments.keys() - wanted_arguments.keys():
        return "extra_argument"
    if not all(is_same_value(arguments[k], v) for k, v in wanted_arguments.items()):
        return "wrong_argument"
    return ""


def _unrelated(draw: Draw, split: Split) -> str:
    values = {
        "noun": draw.pick(words.NOUNS),
        "place": words.place(draw, split),
        "person": words.person(draw, split),
        "color": draw.pick(words.COLORS),
        "adjective": draw.pick(words.ADJECTIVES),
    }
    core = draw.pick(OTHER_REQUESTS[split])
    return _sentence(core.lstrip("~").format(**values), draw, split, core.startswith("~"), True)


def _request(tool: str, draw: Draw, split: Split) -> tuple[str, dict[str, Any]]:
    """Word one request for `tool`; give it with the arguments in the tool's own order."""
    phrases = PHRASES[tool]
    parts = [draw.pick(phrases.cores[split])]
    for argument, wordings in phrases.clauses.items():
        if "{" + argument + "}" not in parts[0] and draw.chance(45):
            parts.append(draw.pick(wordings[split]))
    spoken: dict[str, str] = {}
    arguments: dict[str, Any] = {}
    for part in parts:
        arguments.update(phrases.fixed.get(part, {}))
        for slot in _SLOT.findall(part):
            spoken[slot], arguments[slot] = _value(tool, slot, arguments, draw, split)
    body = "".join(parts).format(**spoken)
    is_whole = body.startswith("~")
    text = _sentence(body.lstrip("~"), draw, split, is_whole, phrases.takes_tail)
    order = [key.rstrip("?") for key in TOOLS[tool][1]]
    return text, {key: arguments[key] for key in order if key in arguments}


def _sentence(body: str, draw: Draw, split: Split, is_whole: bool, takes_tail: bool) -> str:
    lead = "" if is_whole else draw.pick(LEADS[split])
    tail = draw.pick(TAILS[split]) if takes_tail else ""
    text = lead + body + tail
    if draw.chance(50):
        text = text[0].upper() + text[1:]
    return text + draw.pick(("", ".") if takes_tail else ("",))


def _value(
    tool: str, slot: str, taken: Mapping[str, Any], draw: Draw, split: Split
) -> tuple[str, Any]:
    """Draw one argument; give how it is said and its JSON value."""
    key = f"{tool}.{slot}"
    if key in _FREE_TEXT:
        text = _FREE_TEXT[key](draw, split)
        return text, text
    if key in _RANGES:
        number = draw.between(*_RANGES[key])
        kind = TOOLS[tool][1].get(slot)
        if kind == "number" and draw.chance(40):
            return f"{number}.5", number + 0.5
        return str(number), number
    parameters = TOOLS[tool][1]
    choices = parameters.get(slot) or parameters[slot + "?"]
    choice = draw.pick([c for c in choices if c not in taken.values()])
    said = SPOKEN_CHOICES.get(choice, choice)
    return said, choice
