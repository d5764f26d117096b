"""Made-up people, places, titles and texts for suite items.

Entities are composed from syllables and word lists, then assigned to one split by a hash of the
whole entity. So a held-out name never appears in training, although its parts may.
"""

from collections.abc import Callable

from edgekit.draw import Draw
from edgekit.quality.suites.base import Split, split_of

__all__ = [
    "ADJECTIVES",
    "COLORS",
    "DAYS",
    "FOODS",
    "NOUNS",
    "ROOMS",
    "company",
    "device",
    "digits",
    "food_list",
    "gadget",
    "label",
    "meeting",
    "message",
    "owned",
    "person",
    "place",
    "pseudo_word",
    "task",
    "title",
]

_ONSETS = (
    "b", "br", "c", "d", "dr", "f", "g", "gr", "h", "j", "k", "kl", "l", "m", "n", "p", "pr",
    "r", "s", "sh", "st", "t", "tr", "v", "w", "y", "z", "th",
)  # fmt: skip
_VOWELS = ("a", "e", "i", "o", "u", "a", "e", "o", "ai", "ea", "ou")
_CODAS = ("", "", "", "n", "r", "l", "s", "m", "t", "k")
_PLACE_ENDS = ("ford", "ham", "ville", "stad", "mere", "ton", "wick", "burg", "dale", "port")
_PLACE_HEADS = ("Port", "New", "Lake", "North", "Old", "Mount")
ADJECTIVES = (
    "old", "silver", "quiet", "golden", "broken", "little", "cold", "bright", "empty", "gentle",
    "heavy", "hidden", "honest", "lonely", "lucky", "narrow", "open", "patient", "proud", "rapid",
    "round", "secret", "simple", "slow", "soft", "strange", "sunny", "tall", "warm", "wild",
)  # fmt: skip
COLORS = ("red", "blue", "green", "yellow", "black", "white", "orange", "purple")
NOUNS = (
    "river", "garden", "window", "harbor", "lantern", "mountain", "market", "bridge", "forest",
    "station", "letter", "engine", "pocket", "kitchen", "candle", "ladder", "museum", "island",
    "pencil", "tower", "valley", "wagon", "whistle", "blanket", "bottle", "button", "carpet",
    "castle", "cloud", "copper", "corner", "desert", "feather", "field", "fountain", "hammer",
    "helmet", "hill", "journey", "kettle", "meadow", "mirror", "moon", "morning", "needle",
    "ocean", "orchard", "paper", "piano", "planet", "rabbit", "road", "saddle", "shadow", "ship",
    "storm", "street", "summer", "ticket", "village",
)  # fmt: skip
FOODS = (
    "rice", "bread", "milk", "apples", "eggs", "cheese", "butter", "coffee", "tea", "pasta",
    "onions", "carrots", "beans", "honey", "flour", "lemons", "tomatoes", "oats", "soup",
    "pears", "salt", "sugar", "plums", "nuts",
)  # fmt: skip
ROOMS = (
    "kitchen", "bedroom", "hallway", "office", "bathroom", "garage", "attic", "living room",
    "basement", "study", "dining room", "nursery",
)  # fmt: skip
DAYS = ("monday", "tuesday", "wednesday", "thursday", "friday", "saturday", "sunday")
_DEVICES = (
    "lamp", "fan", "heater", "speaker", "radio", "screen", "camera", "light", "printer", "router",
    "humidifier", "projector",
)  # fmt: skip
_VERBS = (
    "water", "clean", "fix", "move", "paint", "check", "wash", "pack", "order", "return", "sell",
    "measure", "borrow", "carry", "fold", "label", "open", "polish", "replace", "sort",
)  # fmt: skip
_SUBJECTS = (
    "the train", "dinner", "the meeting", "the bus", "the parcel", "my flight", "the doctor",
    "the cat", "the window", "the car", "the concert", "the key", "the dog", "our table",
)  # fmt: skip
_STATES = (
    "is late", "is ready", "is here", "is at the station", "is on the table", "was great",
    "is in the garage", "starts soon", "is outside", "needs you", "is by the door", "is too small",
    "was moved", "is almost over", "is still open", "is gone",
)  # fmt: skip
_PLANS = (
    "we meet at the", "i am at the", "i left my coat at the", "wait for me at the",
    "the keys are at the", "come to the", "i parked near the", "we walked past the",
)  # fmt: skip
_MEETING_KINDS = (
    "budget", "design", "sales", "safety", "garden", "hiring", "music", "travel", "book", "chess",
    "film", "harbor", "school", "science", "cooking", "history",
)  # fmt: skip
_MEETING_FORMS = (
    "meeting", "review", "lunch", "call", "workshop", "class", "talk", "party", "club", "check",
)  # fmt: skip
_GADGETS = (
    "kettle", "backpack", "lamp", "keyboard", "jacket", "tent", "chair", "bicycle", "camera",
    "drill", "blender", "watch", "mirror", "desk", "speaker", "helmet",
)  # fmt: skip
_COMPANY_ENDS = ("Works", "Labs", "Foods", "Tools", "Books", "Motors", "Paper", "Systems")


def _of(split: Split, make: Callable[[], str]) -> str:
    while split_of(entity := make()) is not split:
        pass
    return entity


def _syllables(draw: Draw, n: int) -> str:
    body = "".join(draw.pick(_ONSETS) + draw.pick(_VOWELS) for _ in range(n))
    return body + draw.pick(_CODAS)


def pseudo_word(draw: Draw, split: Split) -> str:
    """Make a lower-case word without a meaning."""
    return _of(split, lambda: _syllables(draw, 2))


def person(draw: Draw, split: Split) -> str:
    """Make a person's first name."""
    return _of(split, lambda: _syllables(draw, 2 if draw.chance(80) else 3).capitalize())


def place(draw: Draw, split: Split) -> str:
    """Make the name of a town."""

    def make() -> str:
        if draw.chance(25):
            return draw.pick(_PLACE_HEADS) + " " + _syllables(draw, 2).capitalize()
        return (_syllables(draw, 1) + draw.pick(_PLACE_ENDS)).capitalize()

    return _of(split, make)


def title(draw: Draw, split: Split) -> str:
    """Make a song title of two or three words."""

    def make() -> str:
        words = [draw.pick(ADJECTIVES), draw.pick(NOUNS)]
        if draw.chance(30):
            words.append(draw.pick(NOUNS))
        return " ".join(word.capitalize() for word in words)

    return _of(split, make)


def label(draw: Draw, split: Split) -> str:
    """Make a short label such as `cold soup`."""
    return _of(split, lambda: f"{draw.pick(ADJECTIVES)} {draw.pick(FOODS + NOUNS)}")


def task(draw: Draw, split: Split) -> str:
    """Make a thing to do such as `polish the green kettle`."""

    def make() -> str:
        kind = draw.pick(COLORS + ADJECTIVES)
        noun = draw.pick(NOUNS + FOODS)
        return (
            f"{draw.pick(_VERBS)} the {kind} {noun}"
            if draw.chance(60)
            else (f"{draw.pick(_VERBS)} the {noun}")
        )

    return _of(split, make)


def message(draw: Draw, split: Split) -> str:
    """Make the text of a short message."""

    def make() -> str:
        if draw.chance(50):
            return f"{draw.pick(_SUBJECTS)} {draw.pick(_STATES)}"
        return f"{draw.pick(_PLANS)} {draw.pick(COLORS + ADJECTIVES)} {draw.pick(NOUNS)}"

    return _of(split, make)


def meeting(draw: Draw, split: Split) -> str:
    """Make the title of a calendar entry."""

    def make() -> str:
        return f"{draw.pick(_MEETING_KINDS + ADJECTIVES)} {draw.pick(_MEETING_FORMS)}"

    return _of(split, make)


def device(draw: Draw, split: Split) -> str:
    """Make the name of a device at home."""
    return _of(split, lambda: f"{draw.pick(ROOMS)} {draw.pick(_DEVICES)}")


def gadget(draw: Draw, split: Split) -> str:
    """Make the name of a thing for sale."""
    return _of(split, lambda: f"{draw.pick(ADJECTIVES)} {draw.pick(_GADGETS)}")


def company(draw: Draw, split: Split) -> str:
    """Make the name of a company."""

    def make() -> str:
        return f"{_syllables(draw, 2).capitalize()} {draw.pick(_COMPANY_ENDS)}"

    return _of(split, make)


def food_list(draw: Draw, split: Split) -> list[str]:
    """Make two or three different foods whose joint text belongs to `split`."""

    def make() -> str:
        return ",".join(draw.sample(FOODS, draw.between(2, 3)))

    return _of(split, make).split(",")


def owned(draw: Draw) -> str:
    """Make a plural of things that can be counted and handed over."""
    return draw.pick(
        ("apples", "coins", "books", "cards", "stones", "pencils", "tickets", "buttons",
         "candles", "shells", "pears", "letters", "stamps", "marbles", "bottles", "nuts")
    )  # fmt: skip


def digits(draw: Draw, split: Split, n: int) -> str:
    """Make a code of `n` digits without a leading zero."""
    return _of(split, lambda: str(draw.between(10 ** (n - 1), 10**n - 1)))
