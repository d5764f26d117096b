"""Documents that a model is calibrated on: edgekit's own, and those of a user's file.

A document is a chat or a plain text. edgekit's own are made from texts that were written for it
(calibration_texts.toml) and from templates with numbers and names drawn from a seed: chats in
several languages, sums, JSON, tool calls, tables, code, lists and prose. So few input channels stay
silent that speak in use.
"""

from __future__ import annotations

import json
import tomllib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, Final

from edgekit.draw import Draw
from edgekit.errors import FormatError, UsageError
from edgekit.files import NotTrustedError, open_plain, read_capped
from edgekit.strict_json import parse_object

MAX_FILE_BYTES: Final = 64 << 20
MAX_LINE_BYTES: Final = 1 << 20
_TEXTS_PATH: Final = Path(__file__).with_name("calibration_texts.toml")
_JSONL_SUFFIXES: Final = (".jsonl", ".ndjson")
_PIECE_CHARS: Final = 2_000  # of a plain text; about one sequence of tokens
_ROLES: Final = ("system", "developer", "user", "assistant", "tool")
Message = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Document:
    """A chat, or a plain text.

    Attributes:
        where: What it is, for messages: a kind and a number, or a file and a line.
        messages: The chat in OpenAI form; empty for a plain text.
        tools: Tools on offer in the chat, in OpenAI form.
        text: The plain text; empty for a chat.
    """

    where: str
    messages: tuple[Message, ...] = ()
    tools: tuple[Message, ...] = ()
    text: str = ""

    @property
    def plain_text(self) -> str:
        """What is said, without any chat template."""
        if not self.messages:
            return self.text
        return "\n\n".join(str(message.get("content") or "") for message in self.messages)


def own_documents(seed: int = 0) -> Iterator[Document]:
    """Give edgekit's own documents, endlessly; the kinds take turns.

    Args:
        seed: Other numbers, names and orders for another seed.
    """
    number = 0
    while True:
        for kind, make in _KINDS.items():
            yield make(Draw("calibration", seed, kind, number), number, f"{kind} {number}")
        number += 1


def own_prompts(seed: int = 0) -> list[str]:
    """Give questions that the model answers itself, in an order that follows from the seed."""
    prompts: list[str] = _texts()["prompts"]["texts"]
    return Draw("calibration", seed, "prompts").sample(prompts, len(prompts))


def read_documents(path: str | Path) -> tuple[list[Document], bytes]:
    """Read a user's file: plain text, or one JSON object a line (``.jsonl``, ``.ndjson``).

    An object is ``{"messages": [{"role": ..., "content": ...}, ...]}``, with ``"tools"`` if there
    are any, or ``{"text": ...}``. Its other keys change nothing. Plain text is cut into pieces at
    line ends.

    Args:
        path: A file that the user names.

    Returns:
        The documents in file order, and the bytes of the file.

    Raises:
        UsageError: The file cannot be read, is too large or empty, is not UTF-8, or a line is not
            what is said above; the message names the line.
    """
    try:
        with open_plain(Path(path)) as stream:
            data = read_capped(stream, MAX_FILE_BYTES)
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise UsageError(
            f"{path}: calibration text",
            got=f"byte {error.start} that is not UTF-8",
            wanted="UTF-8",
            do="Save the file as UTF-8.",
        ) from error
    except OSError as error:
        is_refused = isinstance(error, NotTrustedError)
        raise UsageError(
            f"{path}: calibration text cannot be read",
            got=str(error) if is_refused else error.strerror or str(error),
            wanted=f"a plain file of at most {MAX_FILE_BYTES >> 20} MiB",
        ) from error
    is_jsonl = Path(path).suffix.lower() in _JSONL_SUFFIXES
    documents = list(_read_lines(text, str(path)) if is_jsonl else _cut(text, str(path)))
    if not documents:
        raise UsageError(
            f"{path}: calibration text", got="no text", wanted="text such as the model will meet"
        )
    return documents, data


def _cut(text: str, where: str) -> Iterator[Document]:
    """Cut a plain text into pieces of whole lines; a very long line is cut anywhere."""
    piece, first = "", 1
    for number, line in enumerate(text.splitlines(keepends=True), start=1):
        if piece and len(piece) + len(line) > _PIECE_CHARS:
            yield Document(f"{where}:{first}", text=piece)
            piece, first = "", number
        piece += line
        while len(piece) > _PIECE_CHARS:
            yield Document(f"{where}:{first}", text=piece[:_PIECE_CHARS])
            piece, first = piece[_PIECE_CHARS:], number
    if piece.strip():
        yield Document(f"{where}:{first}", text=piece)


def _read_lines(text: str, path: str) -> Iterator[Document]:
    # Only line feeds end a line of JSON; other line ends may stand inside a text.
    for number, line in enumerate(text.split("\n"), start=1):
        if line.strip():
            yield _read_line(line, f"{path}:{number}")


def _read_line(line: str, where: str) -> Document:
    data = line.encode()
    if len(data) > MAX_LINE_BYTES:
        raise UsageError(
            f"{where}: length of the line",
            got=f"{len(data)} bytes",
            wanted=f"at most {MAX_LINE_BYTES}",
        )
    try:
        value = parse_object(data, where)
    except FormatError as error:
        raise UsageError(error.what, got=error.got, wanted=error.wanted) from error
    has_messages, has_text = "messages" in value, "text" in value
    if has_messages == has_text:
        raise UsageError(
            f"{where}: keys",
            got="both messages and text" if has_text else ", ".join(map(repr, value)) or "none",
            wanted='"messages" or "text"',
        )
    if has_text:
        if not isinstance(value["text"], str) or not value["text"].strip():
            raise UsageError(f"{where}: text", got=_shown(value["text"]), wanted="a text")
        return Document(where, text=value["text"])
    return Document(where, _read_messages(value["messages"], where), _read_tools(value, where))


def _read_messages(value: Any, where: str) -> tuple[Message, ...]:
    if not isinstance(value, list) or not value:
        raise UsageError(f"{where}: messages", got=_shown(value), wanted="a list of messages")
    for number, message in enumerate(value):
        at = f"{where}: message {number}"
        if not isinstance(message, dict):
            raise UsageError(at, got=_shown(message), wanted='{"role": ..., "content": ...}')
        if message.get("role") not in _ROLES:
            raise UsageError(
                f"{at}: role", got=_shown(message.get("role")), wanted=", ".join(_ROLES)
            )
        content = message.get("content")
        says_nothing = content is None and message.get("tool_calls")
        if not isinstance(content, str) and not says_nothing:
            raise UsageError(f"{at}: content", got=_shown(content), wanted="a text")
    return tuple(value)


def _read_tools(value: Mapping[str, Any], where: str) -> tuple[Message, ...]:
    tools = value.get("tools") or []
    if not isinstance(tools, list) or not all(isinstance(tool, dict) for tool in tools):
        raise UsageError(f"{where}: tools", got=_shown(tools), wanted="a list of objects")
    return tuple(tools)


def _shown(value: Any) -> str:
    return "nothing" if value is None else repr(value)[:80]


@cache
def _texts() -> dict[str, Any]:
    return tomllib.loads(_TEXTS_PATH.read_text(encoding="utf-8"))


def _chat(where: str, *turns: tuple[str, str], system: str = "") -> Document:
    """Make a chat of questions and answers."""
    messages: list[Message] = [{"role": "system", "content": system}] if system else []
    for question, answer in turns:
        messages.append({"role": "user", "content": question})
        messages.append({"role": "assistant", "content": answer})
    return Document(where, tuple(messages))


def _written(kind: str, n_turns: int) -> Callable[[Draw, int, str], Document]:
    """Make chats of texts of one kind; every text comes once before any comes again."""

    def make(draw: Draw, number: int, where: str) -> Document:
        pairs = _texts()[kind]
        first = number * n_turns
        turns = [pairs[(first + turn) % len(pairs)] for turn in range(n_turns)]
        system = draw.pick(_SYSTEMS) if draw.chance(30) else ""
        return _chat(where, *((pair["ask"], pair["answer"]) for pair in turns), system=system)

    return make


def _passage(draw: Draw, number: int, where: str) -> Document:
    passages = _texts()["passages"]
    return Document(where, text=passages[number % len(passages)]["text"])


def _sum(draw: Draw, number: int, where: str) -> Document:
    """Make a sum in words, worked out step by step."""
    name, other = draw.sample(_NAMES, 2)
    thing, price = draw.pick(_GOODS)
    n_first, n_second = draw.between(3, 24), draw.between(2, 19)
    cents = price + 5 * draw.between(0, 30)
    n_all = n_first + n_second
    total = n_all * cents
    paid = (total // 1000 + 1) * 1000
    question = (
        f"{name} buys {n_first} {thing} and {other} buys {n_second} more. Each costs "
        f"{_money(cents)}. How much change do they get from {_money(paid)}?"
    )
    answer = (
        f"Together they buy {n_first} + {n_second} = {n_all} {thing}.\n"
        f"These cost {n_all} x {_money(cents)} = {_money(total)}.\n"
        f"The change is {_money(paid)} - {_money(total)} = {_money(paid - total)}.\n\n"
        f"Answer: {_money(paid - total)}"
    )
    a, b, c = draw.between(12, 99), draw.between(12, 99), draw.between(2, 9)
    follow = f"And what is {a} * {b} + {c}?"
    steps = f"{a} * {b} = {a} * {b // 10 * 10} + {a} * {b % 10}"
    parts = f"{a * (b // 10 * 10)} + {a * (b % 10)} = {a * b}"
    return _chat(
        where, (question, answer), (follow, f"{steps} = {parts}, plus {c} is {a * b + c}.")
    )


def _extraction(draw: Draw, number: int, where: str) -> Document:
    """Make a request to put a sentence into JSON."""
    name, (thing, price) = draw.pick(_NAMES), draw.pick(_GOODS)
    city, n_ordered, is_express = draw.pick(_CITIES), draw.between(1, 40), draw.chance(40)
    order: dict[str, Any] = {
        "order_id": f"{draw.pick('ABCDEFGH')}{draw.between(1000, 9999)}",
        "customer": {"name": name, "city": city},
        "items": [{"product": thing, "quantity": n_ordered, "unit_price": price / 100}],
        "express": is_express,
        "deliver_on": f"20{draw.between(23, 27)}-{draw.between(1, 12):02}-{draw.between(1, 28):02}",
        "note": None,
    }
    speed = "as fast as possible" if is_express else "by normal mail"
    sentence = (
        f"{name} from {city} orders {n_ordered} {thing} at "
        f"{_money(price)} each (order {order['order_id']}), {speed}, for {order['deliver_on']}."
    )
    indent = 2 if draw.chance(50) else None
    answer = json.dumps(order, indent=indent, ensure_ascii=False)
    if draw.chance(40):
        answer = f"```json\n{answer}\n```"
    return _chat(where, (f"Extract the order as JSON.\n\n{sentence}", answer))


def _tool_call(draw: Draw, number: int, where: str) -> Document:
    """Make a chat in which the assistant calls a tool and uses what it returns."""
    city, name = draw.pick(_CITIES), draw.pick(_NAMES)
    degrees, minutes = draw.between(-8, 35), draw.between(5, 90)
    sky = draw.pick(("clear", "light rain", "fog", "snow showers", "thunderstorms"))
    cases = (
        (
            f"How warm is it in {city} right now?",
            "get_weather",
            {"city": city, "unit": "celsius"},
            {"temperature": degrees, "sky": sky, "wind_kmh": draw.between(0, 60)},
            f"It is {degrees} °C in {city}, with {sky}.",
        ),
        (
            f"Wake me up in {minutes} minutes, please.",
            "set_timer",
            {"minutes": minutes, "label": "wake up"},
            {"ok": True, "timer_id": draw.between(100, 999)},
            f"Done. The timer rings in {minutes} minutes.",
        ),
        (
            f"Tell {name} that I will be {minutes} minutes late.",
            "send_message",
            {"to": name, "text": f"I will be {minutes} minutes late.", "urgent": minutes > 30},
            {"status": "delivered"},
            f"I told {name} that you will be {minutes} minutes late.",
        ),
    )
    question, tool, arguments, result, answer = draw.pick(cases)
    call = {"id": f"call{draw.between(10000, 99999)}", "type": "function"}
    messages: tuple[Message, ...] = (
        {"role": "user", "content": question},
        {
            "role": "assistant",
            "content": "",
            "tool_calls": [{**call, "function": {"name": tool, "arguments": arguments}}],
        },
        {
            "role": "tool",
            "name": tool,
            "tool_call_id": call["id"],
            "content": json.dumps(result, ensure_ascii=False),
        },
        {"role": "assistant", "content": answer},
    )
    offered = draw.sample(_TOOLS, len(_TOOLS))
    if draw.chance(50):
        offered.remove(next(t for t in offered if t["function"]["name"] != tool))
    return Document(where, messages, tuple(offered))


def _table(draw: Draw, number: int, where: str) -> Document:
    """Make a table of numbers, and a question about it."""
    cities = draw.sample(_CITIES, draw.between(4, 7))
    years = (2021, 2022, 2023)
    rows = {city: [draw.between(110, 9900) for _ in years] for city in cities}
    head = ("city", *map(str, years))
    lines = [(city, *map(str, values)) for city, values in rows.items()]
    if draw.chance(50):
        text = "\n".join(",".join(line) for line in (head, *lines))
    else:
        rule = ("---",) * len(head)
        text = "\n".join(f"| {' | '.join(line)} |" for line in (head, rule, *lines))
    year = draw.below(len(years))
    best = max(rows, key=lambda city: rows[city][year])
    total = sum(values[year] for values in rows.values())
    question = f"{text}\n\nWhich city sold most in {years[year]}, and how much did all sell?"
    answer = (
        f"In {years[year]} {best} sold most ({rows[best][year]}). All together: "
        f"{' + '.join(str(values[year]) for values in rows.values())} = {total}."
    )
    return _chat(where, (question, answer))


def _money(cents: int) -> str:
    return f"${cents // 100}.{cents % 100:02}"


_SYSTEMS: Final = (
    "You are a helpful assistant.",
    "You are a concise assistant. Answer in at most four sentences.",
    "You help customers of a small online shop. Be friendly and exact.",
    "You are an experienced software engineer.",
    "Answer in the language of the question.",
)
_NAMES: Final = (
    "Amara", "Benedikt", "Chiara", "Dmitri", "Elif", "Farid", "Greta", "Hiroshi", "Ingrid", "Jamal",
    "Katarzyna", "Leandro", "Mei", "Nadia", "Oskar", "Priya", "Quentin", "Rosa", "Samuel", "Thandi",
)  # fmt: skip
_CITIES: Final = (
    "Aarhus", "Bologna", "Cape Town", "Daejeon", "Edinburgh", "Fortaleza", "Graz", "Hanoi", "Izmir",
    "Jaipur", "Kyoto", "Lyon", "Montevideo", "Nairobi", "Oulu", "Portland", "Quito", "Rotterdam",
)  # fmt: skip
# What is bought, in the plural, and its least price in cents.
_GOODS: Final = (
    ("notebooks", 250), ("light bulbs", 480), ("train tickets", 1290), ("mugs", 720),
    ("bags of soil", 399), ("concert tickets", 2450), ("bottles of juice", 185),
    ("bicycle tyres", 1875), ("stamps", 95), ("jars of honey", 640),
)  # fmt: skip


def _tool(name: str, about: str, **properties: str) -> Message:
    parameters = {
        "type": "object",
        "properties": {key: {"type": kind} for key, kind in properties.items()},
        "required": [next(iter(properties))],
    }
    function = {"name": name, "description": about, "parameters": parameters}
    return {"type": "function", "function": function}


_TOOLS: Final = (
    _tool("get_weather", "Current weather of a city.", city="string", unit="string"),
    _tool("set_timer", "Start a timer.", minutes="integer", label="string"),
    _tool("send_message", "Send a text message.", to="string", text="string", urgent="boolean"),
)
_KINDS: Final[Mapping[str, Callable[[Draw, int, str], Document]]] = {
    "chat": _written("chats", 2),
    "sum": _sum,
    "code": _written("code", 1),
    "json": _extraction,
    "language": _written("languages", 1),
    "tool call": _tool_call,
    "list": _written("lists", 1),
    "table": _table,
    "passage": _passage,
}
