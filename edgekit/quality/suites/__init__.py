"""The task suites by name, and how to load one."""

import difflib
import importlib
from collections.abc import Mapping

from edgekit.errors import UsageError
from edgekit.quality.suites.base import (
    Answer,
    Item,
    Score,
    Split,
    Suite,
    ToolCall,
    parse_tool_calls,
)

__all__ = [
    "SUITES",
    "Answer",
    "Item",
    "Score",
    "Split",
    "Suite",
    "ToolCall",
    "load_suite",
    "parse_tool_calls",
]

SUITES: Mapping[str, str] = {
    "tool_calls": "edgekit.quality.suites.tool_calls:ToolCalls",
    "structured_output": "edgekit.quality.suites.structured_output:StructuredOutput",
    "long_context": "edgekit.quality.suites.long_context:LongContext",
    "multi_step": "edgekit.quality.suites.multi_step:MultiStep",
}


def load_suite(name: str) -> Suite:
    """Give the suite called `name`.

    Raises:
        UsageError: There is no such suite.
    """
    if name not in SUITES:
        close = difflib.get_close_matches(name, SUITES, n=1)
        hint = f"did you mean {close[0]!r}?" if close else f"use one of {', '.join(SUITES)}"
        message = f"no suite is called {name!r}; {hint}"
        raise UsageError(message)
    module, _, attribute = SUITES[name].partition(":")
    suite: Suite = getattr(importlib.import_module(module), attribute)()
    return suite
