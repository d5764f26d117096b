"""The texts on which a model's quality is measured, and the reading of a text that a user gives.

The built-in text was written for this purpose: chats, prose, code, tables and a little of three
other languages. No part of it is in the calibration of edgekit (quantize/calibration.py), so a
model cannot be fitted to it.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from edgekit.errors import CheckpointError, UsageError
from edgekit.files import open_plain, read_capped
from edgekit.quality.evaluate import SuitePlan
from edgekit.text.tokenizer import Tokenizer
from edgekit.text.view import TextView

MAX_TEXT_BYTES: Final = 256 << 20
_ITEMS_PER_SUITE: Final = 100
_PIECE_CHARS: Final = 2_000
_MIN_PIECE_CHARS: Final = 1_000
CHATS: Final = (
    (
        "What is the capital of France, and which river runs through it?",
        "The capital of France is Paris. The river Seine runs through the middle of the city.",
    ),
    (
        "Write a short poem about the sea in winter.",
        "Grey is the water, white is the foam,\nThe fishing boats have all come "
        "home.\nThe wind is cold, the gulls are few,\nAnd the far horizon is a "
        "line of blue.",
    ),
    (
        "How do I boil an egg so that the yolk stays soft?",
        "Put the egg into boiling water with a spoon, wait for six minutes, then "
        "cool it under cold running water for one minute. The white will be firm "
        "and the yolk soft.",
    ),
    (
        "Explain in two sentences why the sky is blue.",
        "Sunlight is scattered by the molecules of the air, and short wavelengths "
        "such as blue are scattered far more strongly than long ones such as red. "
        "So blue light reaches our eyes from every direction of the sky.",
    ),
    (
        "List three things to check before buying a used bicycle.",
        "1. The frame: look for cracks and dents near the welds.\n2. The brakes: "
        "they should stop both wheels firmly.\n3. The chain and gears: they should "
        "run without slipping.",
    ),
    (
        "Give me a Python function that returns the larger of two numbers.",
        'def larger(a, b):\n    """Return the larger of two numbers."""\n    '
        "return a if a > b else b",
    ),
    (
        "A train travels 120 kilometres in 90 minutes. What is its average speed?",
        "90 minutes are 1.5 hours. 120 kilometres divided by 1.5 hours is 80 kilometres per hour.",
    ),
    (
        "Can you summarize what photosynthesis does?",
        "Plants take in carbon dioxide and water and, with the energy of light, "
        "turn them into sugar and oxygen. The sugar feeds the plant, and the "
        "oxygen goes into the air.",
    ),
    (
        "Translate into German: Where is the nearest train station?",
        "Wo ist der nächste Bahnhof?\n\nIf you want to be more polite, you can begin with "
        "Entschuldigung, which means excuse me.",
    ),
    (
        "My phone battery drains quickly. What can I try?",
        "Lower the brightness of the screen, switch off location for apps that do not need it, and "
        "look in the settings which app uses the most energy. If the battery is several years "
        "old, it may have lost much of its capacity and should be replaced.",
    ),
    (
        "Write an SQL query that counts orders per customer, largest first.",
        "```sql\nSELECT customer_id, COUNT(*) AS n_orders\nFROM orders\nGROUP BY customer_id\n"
        "ORDER BY n_orders DESC;\n```\nCustomers without an order do not appear; for those, start "
        "from the table of customers and use a LEFT JOIN.",
    ),
    (
        "Give me the planets from the sun outwards as a JSON array.",
        '["Mercury", "Venus", "Earth", "Mars", "Jupiter", "Saturn", "Uranus", "Neptune"]',
    ),
    (
        "What is the difference between weather and climate?",
        "Weather is what the air does today and tomorrow: rain, wind, a warm afternoon. Climate is "
        "what can be expected in a place over thirty years or more. A cold week says little about "
        "the climate, but a shift of the average over decades does.",
    ),
    (
        "A jacket costs 80 euros and is reduced by 15 per cent. What do I pay?",
        "15 per cent of 80 euros are 0.15 * 80 = 12 euros. 80 - 12 = 68, so you pay 68 euros.",
    ),
    (
        "Please write a short email to my landlord about a dripping tap.",
        "Subject: Dripping tap in the kitchen\n\nDear Mrs. Lindqvist,\n\nthe tap in our kitchen "
        "has been dripping since Monday, and closing it tightly no longer helps. Could you send "
        "somebody to repair it? We are at home every day after five.\n\nKind regards,\nTomas",
    ),
    (
        "Explain recursion to a beginner.",
        "A recursive function calls itself on a smaller piece of the problem. To count the people "
        "in a queue, ask the person behind you how many stand behind them and add one. The last "
        "person, behind whom nobody stands, answers zero: that is the case at which it ends.",
    ),
)
PROSE: Final = (
    (
        "The old mill stood at the end of the village, where the road turned "
        "towards the hills. Nobody had ground corn there for thirty years, but the "
        "wheel still moved when the stream was high, and the children said that it "
        "was the miller who turned it at night. In spring the swallows came back "
        "to the beams under the roof, and the cat of the last house sat in the "
        "grass below and waited. When the council decided to sell the building, a "
        "young couple from the city bought it for less than the price of a small "
        "car and began to repair the floor."
    ),
    (
        "Heat moves in three ways. In solids it is passed on from one particle to "
        "the next, which is called conduction; metals do this well and wood does "
        "it badly. In liquids and gases the warm parts rise because they are "
        "lighter, and cooler parts take their place, so that a circulation begins. "
        "The third way needs no matter at all: every warm body sends out "
        "radiation, and the warmer it is, the more it sends. A good flask slows "
        "all three: its walls are thin glass with a vacuum between them, and they "
        "are coated with a bright layer of silver."
    ),
    (
        "Minutes of the meeting of 14 March. Present were all members of the board "
        "except Mr. Weber, who had excused himself. The treasurer reported that "
        "income from fees had grown by four per cent, while the cost of energy had "
        "risen by eleven per cent. It was decided that the heating of the hall be "
        "lowered by two degrees from next autumn. The question of a new roof was "
        "put off until two more offers have been received. The next meeting will "
        "be held on the second Tuesday of May at seven o'clock in the evening."
    ),
    (
        "Bread needs only flour, water, salt and time. Mix the flour with the "
        "water and let it rest for half an hour before you add the salt and the "
        "yeast. Knead the dough until it no longer sticks to your fingers, cover "
        "it with a cloth and leave it in a warm place until it has doubled. Shape "
        "a loaf, let it rise again, and bake it in a very hot oven on a stone or "
        "in an iron pot. The crust should be dark and should sound hollow when you "
        "knock on the bottom."
    ),
    (
        'def moving_average(values, width):\n    """Return the mean of each window of a '
        'list."""\n    if width < 1 or width > len(values):\n        raise ValueError("width '
        'does not fit")\n    total = sum(values[:width])\n    means = [total / width]\n    for '
        "new, old in zip(values[width:], values):\n        total += new - old\n        "
        "means.append(total / width)\n    return means\n\n\nprint(moving_average([3, 5, 7, 9], "
        "2))  # [4.0, 6.0, 8.0]\n"
    ),
    (
        "The second clerk counted the letters again and found that one was missing. He looked "
        "under the table, behind the curtain and in the pocket of his coat, and when he came back "
        "the first clerk had already written the number that he had expected into the book. "
        '"It was there this morning," he said. "I remember the stamp, a blue one with a ship." '
        '"Then it will be there tomorrow as well," said the other without looking up, "if you '
        'go home now and stop counting."'
    ),
    (
        "A lever turns a small force over a long way into a large force over a short way. If the "
        "arm on your side is four times as long as the arm of the load, a quarter of the force is "
        "enough, but your hand moves four times as far. Nothing is gained in work, which is force "
        "times way. The same holds for pulleys, gears and inclined planes: every simple machine "
        "trades one for the other, and friction takes a little of each."
    ),
    (
        "# Packing list\n\n- passport and tickets\n- two shirts, one warm jacket\n- charger and "
        "adapter\n- a book for the train\n\n| day | place | night |\n| --- | --- | --- |\n| Friday "
        "| Lyon | hotel near the station |\n| Saturday | Avignon | friends |\n| Sunday | home | |\n"
    ),
    (
        "Le marché commence à sept heures. Les marchands posent leurs caisses sur la place, et les "
        "premiers clients viennent avant le travail. On y trouve des fruits, du fromage, du pain "
        "et, au printemps, des fleurs. Vers midi tout le monde remballe, et la place est de "
        "nouveau vide."
    ),
    (
        "Die Brücke wurde im Jahr 1903 gebaut und ist seit vier Jahren gesperrt. Die Stadt hat "
        "zwei Gutachten eingeholt, die sich in den Kosten, nicht aber in der Sache widersprechen: "
        "Die Pfeiler sind gesund, die Träger müssen ersetzt werden. Im Herbst entscheidet der Rat."
    ),
    (
        "El barco salió del puerto al amanecer con doce personas a bordo. El mar estaba tranquilo "
        "y el capitán calculaba seis horas de viaje. A mediodía cambió el viento, y hubo que "
        "volver a la bahía y esperar hasta el día siguiente."
    ),
    (
        "The municipal library lends books for four weeks and films for one. A loan can be "
        "extended twice unless somebody else has reserved the title. For each day beyond the date "
        "a fee of twenty cents is due, at most five euros for one title. Lost or damaged titles "
        "are to be replaced at the price of a new copy. Children under fourteen pay no fees, but "
        "their card may be suspended until the title is returned."
    ),
    (
        "In a closed economy, what is saved equals what is invested, because output that is not "
        "consumed must have gone somewhere. With foreign trade the difference is the balance of "
        "the current account: a country that invests more than it saves borrows from abroad and "
        "imports more than it exports. Neither a surplus nor a deficit is good or bad in itself; "
        "what matters is what the borrowed money is used for."
    ),
    (
        "import { readFile } from 'node:fs/promises';\n\nexport async function countLines(path) "
        "{\n  const text = await readFile(path, 'utf8');\n  const lines = text.split('\\n');\n  "
        "return lines.at(-1) === '' ? lines.length - 1 : lines.length;\n}\n"
    ),
    (
        "Of the 212 patients, 108 received the new treatment and 104 the usual one. After twelve "
        "weeks the mean score had fallen by 6.1 points in the first group and by 4.8 in the "
        "second (difference 1.3, 95 % confidence interval -0.2 to 2.8). Nine patients in the first "
        "group and seven in the second left the study early. No serious side effects were seen."
    ),
)


def builtin_documents(view: TextView) -> Iterator[list[int]]:
    """Give the token ids of the built-in chats, in the model's own form, and of the prose.

    Raises:
        UsageError: The model has no tokenizer.
    """
    tokenizer = _tokenizer(view)
    for question, answer in CHATS:
        yield _chat(
            view,
            tokenizer,
            [{"role": "user", "content": question}, {"role": "assistant", "content": answer}],
        )
    for text in PROSE:
        yield _plain(tokenizer, text)


def suite_documents(view: TextView) -> Iterator[list[int]]:
    """Give the token ids of questions of the task suites with their right answers, mixed.

    Raises:
        UsageError: The model has no tokenizer.
        CheckpointError: The chat template refuses a question.
    """
    tokenizer = _tokenizer(view)
    offers_tools = view.template.offers_tools(tokenizer)
    suites = SuitePlan(n_items=_ITEMS_PER_SUITE).make_items(
        lambda text: len(tokenizer.encode(text, allow_special=False)), offers_tools=offers_tools
    )
    for pack in zip(*suites.values(), strict=True):
        for item in pack:
            yield view.template.encode(item.messages, tokenizer, item.tools) + tokenizer.encode(
                item.target, allow_special=True
            )


def read_documents(view: TextView, path: Path) -> Iterator[list[int]]:
    """Give the token ids of the documents in a file.

    A file whose name ends in ``.jsonl`` has an object on each line, with ``text``, with
    ``messages`` (a whole conversation) or with ``ids``. Any other is one plain text, which is cut
    at ends of lines into pieces of about 2,000 characters.

    Args:
        view: Tokenizer and template of the model.
        path: UTF-8 text.

    Raises:
        UsageError: The file cannot be read, or is not what it should be; or it holds text and the
            model has no tokenizer.
    """
    try:
        with open_plain(path) as stream:
            text = read_capped(stream, MAX_TEXT_BYTES).decode("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        got = "not UTF-8" if isinstance(error, UnicodeDecodeError) else error.strerror or error
        raise UsageError(f"{path}: the text cannot be read", got=got) from error
    if path.suffix != ".jsonl":
        tokenizer = _tokenizer(view)
        return (_plain(tokenizer, piece) for piece in split_text(text))
    lines = [(n, line) for n, line in enumerate(text.split("\n"), start=1) if line.strip()]
    return (_read_line(view, line, f"{path}, line {n}") for n, line in lines)


def take_tokens(
    documents: Iterator[Sequence[int]], n_tokens: int, max_length: int
) -> tuple[list[list[int]], bool]:
    """Take documents until they have ``n_tokens`` tokens that a next one follows.

    Args:
        documents: Token ids; no more are made than are needed.
        n_tokens: The last document is cut to fit.
        max_length: Longer documents are cut.

    Returns:
        The documents, and whether there were more.

    Raises:
        UsageError: There is no document of two tokens.
    """
    taken: list[list[int]] = []
    n_left = n_tokens
    has_more = False
    for ids in documents:
        if n_left < 1:
            has_more = True
            break
        part = list(ids[: min(max_length, n_left + 1)])
        has_more = len(part) < len(ids)
        if len(part) >= 2:
            taken.append(part)
            n_left -= len(part) - 1
    if not taken:
        raise UsageError("the text to measure on", got="no document of two tokens or more")
    return taken, has_more


def split_text(text: str) -> Iterator[str]:
    """Cut a text into pieces of at most 2,000 characters, at the last end of a line if it can.

    A piece that would be shorter than 1,000 characters is cut at a blank, or anywhere.
    """
    at = 0
    while at < len(text):
        end = at + _PIECE_CHARS
        if end < len(text):
            for mark in ("\n", " "):
                found = text.rfind(mark, at + _MIN_PIECE_CHARS, end)
                if found >= 0:
                    end = found + 1
                    break
        if text[at:end].strip():
            yield text[at:end]
        at = end


def _read_line(view: TextView, line: str, where: str) -> list[int]:
    readers: Mapping[str, Callable[[Any], list[int]]] = {
        "text": lambda value: _plain(_tokenizer(view), _checked(value, str)),
        "messages": lambda value: _chat(
            view, _tokenizer(view), [_checked(message, dict) for message in _checked(value, list)]
        ),
        "ids": lambda value: [_checked(i, int) for i in _checked(value, list)],
    }
    try:
        data = _checked(json.loads(line), dict)
        (name,) = data.keys() & readers.keys()
        return readers[name](data[name])
    except (ValueError, TypeError, RecursionError) as error:
        raise UsageError(
            f"{where}: not a document",
            got=line[:60],
            wanted='an object with "text", "messages" or "ids"',
        ) from error


def _checked(value: Any, kind: type[Any]) -> Any:
    if type(value) is not kind:
        raise TypeError(f"{value!r} is no {kind.__name__}")
    return value


def _tokenizer(view: TextView) -> Tokenizer:
    if view.tokenizer is None:
        raise UsageError(
            "the model has no tokenizer, so no text can be given to it",
            do='Give token ids: --text FILE.jsonl with {"ids": [...]} on each line.',
        )
    return view.tokenizer


def _chat(view: TextView, tokenizer: Tokenizer, messages: Sequence[Mapping[str, Any]]) -> list[int]:
    """Encode a conversation; as plain text where the model has no template or it refuses it."""
    try:
        return view.template.encode(messages, tokenizer, add_generation_prompt=False)
    except CheckpointError:
        texts = [str(message.get("content", "")) for message in messages]
        return _plain(tokenizer, "\n\n".join(texts))


def _plain(tokenizer: Tokenizer, text: str) -> list[int]:
    """Encode plain text, with a begin token if the model needs one."""
    around = tokenizer.encode("", allow_special=True, add_special=True)
    begin = around[:1] if around[:1] == [tokenizer.bos_id] else []
    return begin + tokenizer.encode(text, allow_special=False)
