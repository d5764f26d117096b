"""Wordings of requests for each tool, in training and in the held-out set.

A request is lead + core + optional clauses + tail. `{slot}` names an argument, `{slot=value}` in
`fixed` sets one that the wording implies. Held-out cores, clauses, leads and tails are sentences
that are not in the training data, made of words that are.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from edgekit.quality.suites.base import Split

__all__ = ["LEADS", "OTHER_REQUESTS", "PHRASES", "SPOKEN_CHOICES", "TAILS", "Phrases"]

Fixed = Mapping[str, str | bool]


@dataclass(frozen=True, slots=True)
class Phrases:
    """Wordings of one tool.

    Attributes:
        cores: Per split, imperative sentences; a leading "~" marks one that takes no lead.
        clauses: Optional argument -> per split, wordings that follow the core.
        fixed: Argument values that a clause or core implies without a slot.
        takes_tail: Whether a closing "please" could not be mistaken for part of a free text.
    """

    cores: Mapping[Split, Sequence[str]]
    clauses: Mapping[str, Mapping[Split, Sequence[str]]] = field(default_factory=dict)
    fixed: Mapping[str, Fixed] = field(default_factory=dict)
    takes_tail: bool = True


def _by_split(train: Sequence[str], held_out: Sequence[str]) -> Mapping[Split, Sequence[str]]:
    return {Split.TRAIN: train, Split.HELD_OUT: held_out}


LEADS = _by_split(
    (
        "", "", "please ", "hey, ", "can you ", "could you ", "could you please ", "ok, ",
        "I need you to ", "I want you to ", "would you ", "hi, please ", "now ", "quick, ",
        "I would like you to ", "hello, can you ", "go ahead and ",
    ),
    ("", "hey, could you ", "ok, now please ", "hi, I need you to ", "would you please "),
)  # fmt: skip
TAILS = _by_split(
    ("", "", "", "", " please", ", thanks", " for me", " right now", ", please", " now"),
    ("", "", " for me please", " right now, thanks"),
)

SPOKEN_CHOICES: Mapping[str, str] = {
    "car": "car", "bike": "bike", "walk": "foot", "bus": "bus",
    "EUR": "euros", "USD": "dollars", "GBP": "pounds", "JPY": "yen", "CHF": "francs",
    "INR": "rupees",
}  # fmt: skip

PHRASES: Mapping[str, Phrases] = {
    "set_timer": Phrases(
        _by_split(
            (
                "set a timer for {minutes} minutes", "start a {minutes} minute timer",
                "count down {minutes} minutes", "give me a timer of {minutes} minutes",
                "start a countdown of {minutes} minutes", "~I need a {minutes} minute timer",
                "put {minutes} minutes on the timer", "time {minutes} minutes",
                "tell me when {minutes} minutes have passed", "~timer, {minutes} minutes",
            ),
            (
                "start the timer, {minutes} minutes", "set a countdown for {minutes} minutes",
                "~I want a timer for {minutes} minutes",
            ),
        ),
        {
            "label": _by_split(
                (" for the {label}", " called {label}", " and call it {label}",
                 " with the label {label}", ", name it {label}"),
                (" and label it {label}", ", call it {label}"),
            )
        },
    ),
    "set_alarm": Phrases(
        _by_split(
            (
                "wake me at {hour}:{minute}", "set an alarm for {hour}:{minute}",
                "ring at {hour}:{minute}", "make the alarm ring at {hour}:{minute}",
                "~I have to get up at {hour}:{minute}", "wake me up at {hour}:{minute}",
                "~alarm at {hour}:{minute}", "put an alarm at {hour}:{minute}",
                "~I need an alarm at {hour}:{minute}", "get me up at {hour}:{minute}",
            ),
            (
                "set the alarm, I have to get up at {hour}:{minute}",
                "~I want to wake up at {hour}:{minute}", "give me an alarm for {hour}:{minute}",
            ),
        ),
        {
            "repeat": _by_split(
                (" on {repeat}", ", repeat it on {repeat}", " and repeat {repeat}",
                 ", {repeat}", ", only {repeat}"),
                (" and repeat it {repeat}", ", make it {repeat}"),
            )
        },
    ),
    "send_message": Phrases(
        _by_split(
            (
                "tell {contact} that {text}", "text {contact} that {text}",
                "send {contact} a message saying {text}", "let {contact} know that {text}",
                "message {contact}: {text}", "write {contact} that {text}",
                "send a text to {contact} saying {text}", "send {contact} this: {text}",
                "write a message to {contact}, {text}", "text {contact}: {text}",
                "~{contact} should know that {text}",
            ),
            (
                "write to {contact} that {text}", "send {contact} a text: {text}",
                "let {contact} know, {text}",
            ),
        ),
        takes_tail=False,
    ),
    "play_music": Phrases(
        _by_split(
            (
                "play {title}", "play the song {title}", "put on {title}",
                "start the music with {title}", "~I want to hear {title}", "let me hear {title}",
                "~I would like to listen to {title}", "start playing {title}",
                "find {title} and play it", "turn on the song {title}",
            ),
            (
                "let me listen to {title}", "start the song {title}",
                "~I would like to hear the song {title}",
            ),
        ),
        {
            "artist": _by_split(
                (" by {artist}", " from {artist}", ", the one by {artist}",
                 ", the {artist} version", " sung by {artist}"),
                (", the song by {artist}", ", the version from {artist}"),
            ),
            "shuffle": _by_split(
                (" on shuffle", ", shuffle on", " and turn shuffle on", " with shuffle",
                 " with shuffle off", ", shuffle off", " and turn shuffle off"),
                (" with shuffle on", " and turn off shuffle"),
            ),
        },
        {
            " on shuffle": {"shuffle": True}, ", shuffle on": {"shuffle": True},
            " and turn shuffle on": {"shuffle": True}, " with shuffle": {"shuffle": True},
            " with shuffle on": {"shuffle": True}, " with shuffle off": {"shuffle": False},
            ", shuffle off": {"shuffle": False}, " and turn shuffle off": {"shuffle": False},
            " and turn off shuffle": {"shuffle": False},
        },
    ),
    "get_weather": Phrases(
        _by_split(
            (
                "~what is the weather in {place}", "check the weather in {place}",
                "~how is the weather in {place}", "show me the forecast for {place}",
                "~will it rain in {place}", "~is it going to be cold in {place}",
                "look up the forecast for {place}", "~do I need a coat in {place}",
                "tell me the weather in {place}", "~how warm is it in {place}",
            ),
            (
                "~what is the forecast for {place}", "look up the weather in {place}",
                "~is it warm in {place}",
            ),
        ),
        {
            "day": _by_split(
                (" {day}", " for {day}", ", I mean {day}", ", {day}"),
                (", I mean for {day}", ", only {day}"),
            )
        },
    ),
    "create_reminder": Phrases(
        _by_split(
            (
                "remind me to {text}", "make a reminder to {text}", "~I must not forget to {text}",
                "set a reminder to {text}", "do not let me forget to {text}",
                "add a reminder: {text}", "~reminder: {text}", "remember that I have to {text}",
                "~in {in_hours} hours remind me to {text}",
                "~in {in_hours} hours I have to {text}, remind me",
            ),
            (
                "make a reminder: {text}", "remind me that I have to {text}",
                "~in {in_hours} hours, set a reminder to {text}",
            ),
        ),
        {
            "in_hours": _by_split(
                (" in {in_hours} hours", ", {in_hours} hours from now",
                 " when {in_hours} hours have passed"),
                (", in {in_hours} hours from now",),
            )
        },
        takes_tail=False,
    ),
    "navigate_to": Phrases(
        _by_split(
            (
                "navigate to {destination}", "take me to {destination}",
                "show me the way to {destination}", "~how do I get to {destination}",
                "find a route to {destination}", "guide me to {destination}",
                "~I have to go to {destination}", "start the route to {destination}",
                "give me directions to {destination}", "get me to {destination}",
            ),
            (
                "guide me on the way to {destination}", "~I want to go to {destination}",
                "find the way to {destination}",
            ),
        ),
        {
            "mode": _by_split(
                (" by {mode}", ", I go by {mode}", " on the {mode} route", ", by {mode}"),
                (", I want to go by {mode}",),
            ),
            "avoid_tolls": _by_split(
                (" and avoid tolls", " without tolls", ", no tolls", ", avoid tolls",
                 ", tolls are fine", " and tolls are ok"),
                (" and take no tolls", ", tolls are ok"),
            ),
        },
        {
            " and avoid tolls": {"avoid_tolls": True}, " without tolls": {"avoid_tolls": True},
            ", no tolls": {"avoid_tolls": True}, ", avoid tolls": {"avoid_tolls": True},
            ", tolls are fine": {"avoid_tolls": False}, " and tolls are ok": {"avoid_tolls": False},
            " and take no tolls": {"avoid_tolls": True}, ", tolls are ok": {"avoid_tolls": False},
        },
    ),
    "add_calendar_event": Phrases(
        _by_split(
            (
                "add {title} to my calendar on {day}", "put {title} on the calendar for {day}",
                "schedule {title} for {day}", "~I have a {title} on {day}, add it to the calendar",
                "plan a {title} on {day}", "book {title} on {day}",
                "on {day}, put {title} on my calendar", "create an event called {title} on {day}",
                "save {day} for the {title}", "make {day} the day of the {title}",
            ),
            (
                "on {day}, schedule {title}", "put a {title} on my calendar for {day}",
                "create {title} on the calendar on {day}",
            ),
        ),
        {
            "hour": _by_split(
                (" at {hour}", ", it starts at {hour}", " at {hour} o'clock", ", {hour} o'clock"),
                (", it starts at {hour} o'clock",),
            )
        },
    ),
    "set_brightness": Phrases(
        _by_split(
            (
                "set the {room} lights to {percent} percent", "dim the {room} to {percent} percent",
                "make the {room} {percent} percent bright",
                "turn the {room} lights to {percent} percent",
                "~I want {percent} percent light in the {room}",
                "bring the lights in the {room} to {percent} percent",
                "change the brightness of the {room} to {percent}",
                "~{room} lights at {percent} percent", "set brightness {percent} in the {room}",
                "give the {room} {percent} percent light",
            ),
            (
                "in the {room}, dim the lights to {percent} percent",
                "set the brightness of the {room} to {percent} percent",
                "turn the lights in the {room} to {percent}",
            ),
        ),
    ),
    "set_light_color": Phrases(
        _by_split(
            (
                "make the {room} lights {color}", "turn the {room} {color}",
                "set the color of the {room} to {color}", "~I want {color} light in the {room}",
                "change the {room} lights to {color}", "light the {room} in {color}",
                "give the {room} a {color} light", "~{room} lights in {color}",
                "switch the lights in the {room} to {color}", "color the {room} {color}",
            ),
            (
                "set the lights in the {room} to {color}",
                "in the {room}, make the lights {color}",
                "~I want the {room} in {color}",
            ),
        ),
    ),
    "toggle_device": Phrases(
        _by_split(
            (
                "turn on the {device}", "switch on the {device}", "switch the {device} on",
                "start the {device}", "~I want the {device} on", "power on the {device}",
                "turn off the {device}", "switch off the {device}", "switch the {device} off",
                "stop the {device}", "~I want the {device} off", "power off the {device}",
            ),
            ("turn the {device} on", "turn the {device} off", "power the {device} off",
             "power the {device} on"),
        ),
        fixed={
            "turn on the {device}": {"on": True}, "switch on the {device}": {"on": True},
            "switch the {device} on": {"on": True}, "start the {device}": {"on": True},
            "~I want the {device} on": {"on": True}, "power on the {device}": {"on": True},
            "turn off the {device}": {"on": False}, "switch off the {device}": {"on": False},
            "switch the {device} off": {"on": False}, "stop the {device}": {"on": False},
            "~I want the {device} off": {"on": False}, "power off the {device}": {"on": False},
            "turn the {device} on": {"on": True}, "turn the {device} off": {"on": False},
            "power the {device} off": {"on": False}, "power the {device} on": {"on": True},
        },
    ),
    "convert_currency": Phrases(
        _by_split(
            (
                "convert {amount} {from} to {to}", "~how much is {amount} {from} in {to}",
                "change {amount} {from} into {to}", "turn {amount} {from} into {to}",
                "~I have {amount} {from}, how much is that in {to}",
                "tell me what {amount} {from} are in {to}", "~{amount} {from} to {to}",
                "give me {amount} {from} in {to}", "~how many {to} are {amount} {from}",
                "~how many {to} do I get for {amount} {from}",
            ),
            (
                "~I have {amount} {from}, convert that to {to}",
                "~what are {amount} {from} in {to}", "tell me how many {to} {amount} {from} are",
            ),
        ),
    ),
    "search_contacts": Phrases(
        _by_split(
            (
                "find {name} in my contacts", "look up {name} in the contacts",
                "search my contacts for {name}", "~do I have the number of {name}",
                "show me the contact {name}", "get the number of {name}",
                "~what is the number of {name}", "look for {name} in my address book",
                "open the contact of {name}", "find the address of {name}",
            ),
            (
                "look for {name} in my contacts", "~do I have {name} in the address book",
                "show me the number of {name}",
            ),
        ),
        {
            "city": _by_split(
                (" from {city}", " who lives in {city}", ", the one from {city}", " in {city}"),
                (", the one who lives in {city}",),
            )
        },
    ),
    "set_thermostat": Phrases(
        _by_split(
            (
                "set the heating to {degrees} degrees", "make it {degrees} degrees in here",
                "set the thermostat to {degrees}", "~I want it to be {degrees} degrees",
                "turn the thermostat to {degrees} degrees", "change the temperature to {degrees}",
                "bring the house to {degrees} degrees", "~thermostat at {degrees} degrees",
                "keep it at {degrees} degrees", "put the heating at {degrees} degrees",
            ),
            (
                "change the thermostat to {degrees} degrees", "keep the house at {degrees} degrees",
                "~I want the temperature to be {degrees} degrees",
            ),
        ),
        {
            "mode": _by_split(
                (" in {mode} mode", ", mode {mode}", " and use {mode} mode", " on {mode}"),
                (", use {mode} mode",),
            )
        },
    ),
    "add_to_list": Phrases(
        _by_split(
            (
                "add {item} to the {list} list", "put {item} on the {list} list",
                "~I need {item} on my {list} list", "write {item} on the {list} list",
                "add {quantity} {item} to the {list} list",
                "put {quantity} {item} on my {list} list",
                "~the {list} list needs {item}", "~the {list} list needs {quantity} {item}",
                "on the {list} list, write {item}", "save {item} on the {list} list",
                "~{list} list: {quantity} {item}", "note {quantity} {item} on my {list} list",
            ),
            (
                "on the {list} list, put {item}", "write {quantity} {item} on my {list} list",
                "~I need {quantity} {item} on the {list} list",
            ),
        ),
    ),
}  # fmt: skip

OTHER_REQUESTS = _by_split(
    (
        "tell me a story about a {noun}", "~who built the first {noun}",
        "write a poem about {place}", "~why is the {noun} {color}",
        "~what is the meaning of {noun}", "sing something {adjective}",
        "~how old is {person}", "explain how a {noun} works", "draw a {color} {noun}",
        "~how many people live in {place}", "translate {noun} for me", "tell {adjective} jokes",
        "order a {color} {noun}", "count the words in this text", "~are you {adjective}",
    ),
    (
        "write a story about {place}", "~who is {person}", "draw a {noun} for me",
        "~what is the meaning of {adjective}", "explain why the {noun} is {color}",
    ),
)  # fmt: skip
