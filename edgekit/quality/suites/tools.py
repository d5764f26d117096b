"""The tools of ``tool_calls``, with the types and choices of their arguments.

Tables only; `tool_phrases.py` holds the wording of requests.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from edgekit.quality.suites.words import COLORS, DAYS, ROOMS

__all__ = ["CURRENCIES", "TOOLS", "tool_definition"]

CURRENCIES = ("EUR", "USD", "GBP", "JPY", "CHF", "INR")

# name -> (description, {parameter: type or choices; a trailing "?" marks an optional one})
TOOLS: Mapping[str, tuple[str, Mapping[str, str | Sequence[str]]]] = {
    "set_timer": ("Start a countdown", {"minutes": "integer", "label?": "string"}),
    "set_alarm": (
        "Ring at a time of day",
        {"hour": "integer", "minute": "integer", "repeat?": ("weekdays", "weekends", "daily")},
    ),
    "send_message": ("Send a text", {"contact": "string", "text": "string"}),
    "play_music": (
        "Play a song",
        {"title": "string", "artist?": "string", "shuffle?": "boolean"},
    ),
    "get_weather": (
        "Look up the forecast",
        {"place": "string", "day?": ("today", "tomorrow", "weekend")},
    ),
    "create_reminder": ("Remember a task", {"text": "string", "in_hours?": "integer"}),
    "navigate_to": (
        "Show the way",
        {
            "destination": "string",
            "mode?": ("car", "bike", "walk", "bus"),
            "avoid_tolls?": "boolean",
        },
    ),
    "add_calendar_event": (
        "Add an event",
        {"title": "string", "day": DAYS, "hour?": "integer"},
    ),
    "set_brightness": ("Dim the lights", {"room": ROOMS, "percent": "integer"}),
    "set_light_color": ("Color the lights", {"room": ROOMS, "color": COLORS}),
    "toggle_device": ("Switch a device", {"device": "string", "on": "boolean"}),
    "convert_currency": (
        "Convert money",
        {"amount": "number", "from": CURRENCIES, "to": CURRENCIES},
    ),
    "search_contacts": ("Find a person", {"name": "string", "city?": "string"}),
    "set_thermostat": (
        "Set the heating",
        {"degrees": "number", "mode?": ("heat", "cool", "auto")},
    ),
    "add_to_list": (
        "Add an item to a list",
        {"item": "string", "list": ("shopping", "packing", "gift"), "quantity?": "integer"},
    ),
}


def tool_definition(name: str) -> dict[str, Any]:
    """Give one tool in the OpenAI form, `{"type": "function", "function": {...}}`."""
    description, parameters = TOOLS[name]
    properties: dict[str, dict[str, Any]] = {
        key.rstrip("?"): {"type": kind}
        if isinstance(kind, str)
        else {"type": "string", "enum": list(kind)}
        for key, kind in parameters.items()
    }
    return {
        "type": "function",
        "function": {
            "name": name,
            "description": description,
            "parameters": {
                "type": "object",
                "properties": properties,
                "required": [key for key in parameters if not key.endswith("?")],
            },
        },
    }
