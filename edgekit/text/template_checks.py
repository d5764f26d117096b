"""Checks that a rendered prompt contains what the chat template was given.

A template may leave out the question or the tools, or not open the answer. The prompt then looks
fine and the model seems bad. Each fault is found by rendering once more with a small change, so
nothing is guessed from the wording.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from edgekit.errors import CheckpointError

# Renders (messages, tools, add_generation_prompt) to text.
Render = Callable[[Sequence[Mapping[str, Any]], Sequence[Mapping[str, Any]], bool], str]
_MARK: Final = "edgekit4mark7"


def check_prompt(
    where: Path,
    rendered: str,
    messages: Sequence[Mapping[str, Any]],
    tools: Sequence[Mapping[str, Any]],
    render: Render,
    *,
    opens_answer: bool,
    is_proven: bool = False,
) -> None:
    """Refuse a prompt that lacks the user's text, the tools, or the opening of the answer.

    Args:
        where: The template's file, for messages.
        rendered: The prompt.
        messages: The chat.
        tools: The tools on offer.
        render: The template itself.
        opens_answer: Whether the prompt should end with the text that opens the answer.
        is_proven: The template passed before: only checks without another rendering are made.

    Raises:
        CheckpointError: Something is missing.
    """
    _check_question(where, rendered, messages, tools, render, opens_answer=opens_answer)
    if tools:
        absent = _absent_tools(rendered, tools)
        if absent or (not is_proven and _try(render, messages, (), opens_answer) == rendered):
            raise CheckpointError(
                f"{where}: the chat template leaves out the tools",
                got=f"a prompt without {', '.join(absent) or 'any of them'}"[:200],
                do="Ask without tools (evaluate: name other suites), or use a model that takes "
                "tools.",
            )
    if opens_answer and not is_proven:
        _check_opening(where, rendered, messages, tools, render)


def _check_question(
    where: Path,
    rendered: str,
    messages: Sequence[Mapping[str, Any]],
    tools: Sequence[Mapping[str, Any]],
    render: Render,
    *,
    opens_answer: bool,
) -> None:
    places = [i for i, m in enumerate(messages) if m.get("role") == "user" and any(_words(m))]
    if not places or any(word in rendered for word in _words(messages[places[-1]])):
        return
    # The text may be written differently, such as escaped; a plain word still shows.
    probe = [*messages]
    probe[places[-1]] = {**messages[places[-1]], "content": _marked(messages[places[-1]])}
    marked = _try(render, probe, tools, opens_answer)
    if marked is not None and _MARK not in marked.lower():
        raise CheckpointError(
            f"{where}: the chat template leaves out the user's message",
            got=repr(rendered[-80:]),
            wanted="a prompt that holds the user's message",
            do="Use the template that belongs to the model.",
        )


def _absent_tools(rendered: str, tools: Sequence[Mapping[str, Any]]) -> list[str]:
    absent = []
    for tool in tools:
        function = tool.get("function", tool)
        name = str(function.get("name", "")) if isinstance(function, Mapping) else ""
        quoted = (json.dumps(name), json.dumps(name, ensure_ascii=False), repr(name))
        if not any(form in rendered for form in (name, *(form[1:-1] for form in quoted))):
            absent.append(name)
    return absent


def _check_opening(
    where: Path,
    rendered: str,
    messages: Sequence[Mapping[str, Any]],
    tools: Sequence[Mapping[str, Any]],
    render: Render,
) -> None:
    if not messages or messages[-1].get("role") == "assistant":
        return
    if _try(render, messages, tools, False) != rendered:
        return
    # The template ignores add_generation_prompt. That is right where the answer directly follows
    # the question, as in Mistral's format.
    answered = [*messages, {"role": "assistant", "content": _MARK}]
    whole = _try(render, answered, tools, False)
    if whole is None or _MARK not in whole:
        return
    before = whole[: whole.index(_MARK)]
    opening = before[len(rendered) :].strip() if before.startswith(rendered) else ""
    if opening:
        raise CheckpointError(
            f"{where}: the chat template does not open the assistant's answer",
            got=f"a prompt that ends in {rendered[-60:]!r}",
            wanted=f"{opening[:60]!r} at the end when add_generation_prompt is set",
            do="Use the template that belongs to the model.",
        )


def _try(render: Render, *arguments: Any) -> str | None:
    """Render, or None where the template refuses such a chat."""
    try:
        return render(*arguments)
    except CheckpointError:
        return None


def _words(message: Mapping[str, Any]) -> Iterator[str]:
    content = message.get("content")
    parts = content if isinstance(content, list | tuple) else [{"text": content}]
    for part in parts:
        text = part.get("text") if isinstance(part, Mapping) else None
        if isinstance(text, str):
            yield from text.split()


def _marked(message: Mapping[str, Any]) -> Any:
    """Give the content of a message with a plain word for its text."""
    content = message["content"]
    if isinstance(content, str):
        return _MARK
    return [
        {**part, "text": _MARK} if isinstance(part, Mapping) and "text" in part else part
        for part in content
    ]
