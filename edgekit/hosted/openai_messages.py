"""Checks of the chat messages and tools of an OpenAI request.

Only text is supported: content given as a list of text parts is joined; images and sound are
refused.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from edgekit.hosted.api_error import ApiError, bad_value
from edgekit.runtime.base import Message

_ROLES: Final[Mapping[str, str]] = {
    "system": "system",
    "developer": "system",
    "user": "user",
    "assistant": "assistant",
    "tool": "tool",
}


def check_messages(value: Any) -> tuple[Message, ...]:
    """Check the field ``messages``; content becomes plain text.

    Raises:
        ApiError: 400, naming the message at fault.
    """
    if not isinstance(value, list) or not value:
        raise bad_value("messages", value, "a list with at least one message")
    return tuple(_message(message, f"messages[{i}]") for i, message in enumerate(value))


def check_tools(value: Any, choice: Any) -> tuple[Mapping[str, Any], ...]:
    """Check ``tools`` and ``tool_choice``; ``none`` gives no tools at all.

    Raises:
        ApiError: 400, naming the tool at fault.
    """
    if value is not None and not isinstance(value, list):
        raise bad_value("tools", value, "a list of tools")
    tools = tuple(_tool(tool, f"tools[{i}]") for i, tool in enumerate(value or ()))
    if choice not in (None, "auto", "none"):
        raise bad_value("tool_choice", choice, '"auto" or "none"')
    return () if choice == "none" else tools


def _message(value: Any, where: str) -> Message:
    if not isinstance(value, dict):
        raise bad_value(where, value, "an object with role and content")
    role = value.get("role")
    if not isinstance(role, str) or role not in _ROLES:
        raise bad_value(f"{where}.role", role, ", ".join(_ROLES))
    calls = value.get("tool_calls")
    content = value.get("content")
    if content is None and role == "assistant" and calls:
        text = ""
    else:
        text = _text(content, f"{where}.content")
    message: dict[str, Any] = {"role": _ROLES[role], "content": text}
    if calls is not None:
        message["tool_calls"] = _calls(calls, role, f"{where}.tool_calls")
    for name in ("tool_call_id", "name"):
        if value.get(name) is not None:
            if not isinstance(value[name], str):
                raise bad_value(f"{where}.{name}", value[name], "a string")
            message[name] = value[name]
    return message


def _text(content: Any, where: str) -> str:
    if isinstance(content, str):
        return content
    if not isinstance(content, list) or not content:
        raise bad_value(where, content, "a string or a list of text parts")
    for i, part in enumerate(content):
        if not isinstance(part, dict) or part.get("type") != "text":
            got = part.get("type") if isinstance(part, dict) else part
            raise bad_value(f"{where}[{i}]", got, "a part of type text; this model reads text only")
        if not isinstance(part.get("text"), str):
            raise bad_value(f"{where}[{i}].text", part.get("text"), "a string")
    return "".join(part["text"] for part in content)


def _calls(value: Any, role: str, where: str) -> list[dict[str, Any]]:
    if role != "assistant":
        raise ApiError(400, f"{where}: only an assistant message calls tools", param=where)
    if not isinstance(value, list):
        raise bad_value(where, value, "a list of tool calls")
    calls = []
    for i, call in enumerate(value):
        function = call.get("function") if isinstance(call, dict) else None
        if not isinstance(function, dict):
            raise bad_value(f"{where}[{i}]", call, "an object with id, type and function")
        for name in ("name", "arguments"):
            if not isinstance(function.get(name), str):
                raise bad_value(f"{where}[{i}].function.{name}", function.get(name), "a string")
        if not isinstance(call.get("id", ""), str):
            raise bad_value(f"{where}[{i}].id", call["id"], "a string")
        calls.append(
            {
                "id": call.get("id", ""),
                "type": "function",
                "function": {"name": function["name"], "arguments": function["arguments"]},
            }
        )
    return calls


def _tool(value: Any, where: str) -> Mapping[str, Any]:
    if not isinstance(value, dict) or value.get("type") != "function":
        raise bad_value(where, value, 'an object of type "function"')
    function = value.get("function")
    if not isinstance(function, dict):
        raise bad_value(f"{where}.function", function, "an object")
    name = function.get("name")
    if not isinstance(name, str) or not name:
        raise bad_value(f"{where}.function.name", name, "a name")
    if not isinstance(function.get("parameters", {}), dict):
        raise bad_value(f"{where}.function.parameters", function["parameters"], "a JSON schema")
    return value
