"""Parser of OpenAI requests: bytes in, a checked ``HostedRequest`` out.

Every field is used, ignored by name, or refused, so a client never gets an answer to another
question than it asked. This module knows nothing about sockets.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from edgekit.errors import FormatError
from edgekit.hosted.api_error import ApiError, bad_value
from edgekit.hosted.openai_messages import check_messages, check_tools
from edgekit.runtime.base import GenerateOptions, Message
from edgekit.strict_json import parse_object

MAX_DEPTH: Final = 64
MAX_STOPS: Final = 16
MAX_LOGPROBS: Final = 20
_MAX_SEED: Final = 2**63 - 1
_DEFAULT_COMPLETION_TOKENS: Final = 16

_SHARED_FIELDS: Final = frozenset(
    {"model", "temperature", "top_p", "top_k", "seed", "stop", "max_tokens", "stream"}
    | {"stream_options", "n", "logprobs", "ignore_eos"}
)
_CHAT_FIELDS: Final = _SHARED_FIELDS | {
    "messages", "tools", "tool_choice", "max_completion_tokens", "top_logprobs", "response_format"
}  # fmt: skip
_COMPLETION_FIELDS: Final = _SHARED_FIELDS | {"prompt", "echo", "best_of", "suffix"}
# Fields that do not change the text of one answer by one local model.
_IGNORED_FIELDS: Final = frozenset(
    {"user", "store", "metadata", "parallel_tool_calls", "service_tier", "safety_identifier"}
    | {"prompt_cache_key"}
)
# Fields that may be sent as long as their value asks for nothing.
_NEUTRAL_VALUES: Final[Mapping[str, tuple[Any, ...]]] = {
    "presence_penalty": (0,),
    "frequency_penalty": (0,),
    "logit_bias": ({},),
    "functions": ([],),
    "modalities": (["text"],),
}


@dataclass(frozen=True, slots=True)
class HostedRequest:
    """One checked request for a completion.

    Attributes:
        is_chat: Chat completion, else a plain completion of ``prompt``.
        model: Name the client asked for.
        messages: Chat messages.
        tools: Tools the model may call; empty after ``tool_choice: none``.
        prompt: Text to continue.
        options: Sampling; ``max_tokens`` is not yet cut to the context.
        has_max_tokens: False when the answer may fill the context.
        is_stream: Answer as server-sent events.
        has_usage_chunk: Close the stream with a usage chunk.
        has_logprobs: Report log probabilities; alternatives as in ``n_alternatives``.
        n_alternatives: Alternatives to show per token.
        is_echo: Repeat the prompt before the completion.
    """

    is_chat: bool
    model: str
    messages: tuple[Message, ...]
    tools: tuple[Mapping[str, Any], ...]
    prompt: str
    options: GenerateOptions
    has_max_tokens: bool
    is_stream: bool
    has_usage_chunk: bool
    has_logprobs: bool
    n_alternatives: int
    is_echo: bool


def parse_request(body: bytes, *, is_chat: bool) -> HostedRequest:
    """Read the body of POST /v1/chat/completions or /v1/completions.

    Raises:
        ApiError: 400, with the field at fault.
    """
    try:
        fields = parse_object(body, "the request body")
    except FormatError as error:
        raise ApiError(400, error.what, got=error.got, wanted=error.wanted) from error
    _check_tree(fields)
    _check_names(fields, _CHAT_FIELDS if is_chat else _COMPLETION_FIELDS)
    fields = {name: value for name, value in fields.items() if value is not None}
    _check_count(fields)
    is_stream = _boolean(fields, "stream")
    has_logprobs, n_alternatives = _logprobs(fields, is_chat)
    has_max_tokens, max_tokens = _max_tokens(fields, is_chat)
    if is_chat:
        _check_response_format(fields.get("response_format"))
    options = GenerateOptions(
        max_tokens=max_tokens,
        temperature=_number(fields, "temperature", 1.0, low=0.0, high=2.0),
        top_p=_number(fields, "top_p", 1.0, low=0.0, high=1.0),
        top_k=_integer(fields, "top_k", 0, low=0),
        seed=_integer(fields, "seed", 0, low=-_MAX_SEED) & _MAX_SEED if "seed" in fields else None,
        stop=_stops(fields.get("stop")),
        ignore_eos=_boolean(fields, "ignore_eos"),
        n_logprobs=max(n_alternatives, 1) if has_logprobs else 0,
    )
    return HostedRequest(
        is_chat=is_chat,
        model=_model(fields),
        messages=check_messages(fields.get("messages")) if is_chat else (),
        tools=check_tools(fields.get("tools"), fields.get("tool_choice")) if is_chat else (),
        prompt="" if is_chat else _prompt(fields),
        options=options,
        has_max_tokens=has_max_tokens,
        is_stream=is_stream,
        has_usage_chunk=_usage_chunk(fields.get("stream_options"), is_stream),
        has_logprobs=has_logprobs,
        n_alternatives=n_alternatives,
        is_echo=_boolean(fields, "echo"),
    )


def _check_tree(fields: Mapping[str, Any]) -> None:
    """Refuse nesting that is too deep for templates, and text that is not Unicode."""
    level: list[Any] = [fields]
    for _ in range(MAX_DEPTH):
        below: list[Any] = []
        for value in level:
            if isinstance(value, dict):
                below.extend(value.keys())
                below.extend(value.values())
            elif isinstance(value, list):
                below.extend(value)
            elif isinstance(value, str):
                _check_text(value)
        if not below:
            return
        level = below
    raise ApiError(400, "the request body is nested too deep", wanted=f"at most {MAX_DEPTH} levels")


def _check_text(text: str) -> None:
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise ApiError(
            400,
            "a string holds half a surrogate pair",
            got=repr(text[error.start]),
            wanted="Unicode",
        ) from error


def _check_names(fields: Mapping[str, Any], known: frozenset[str]) -> None:
    unknown = sorted(fields.keys() - known - _IGNORED_FIELDS - _NEUTRAL_VALUES.keys())
    if unknown:
        raise ApiError(
            400, "unknown request fields", got=", ".join(unknown)[:200], param=unknown[0][:80],
            code="unknown_parameter", do="Leave them out.",
        )  # fmt: skip
    for name, neutral in _NEUTRAL_VALUES.items():
        if fields.get(name) is not None and fields[name] not in neutral:
            raise ApiError(
                400, f"{name} is not supported", param=name, code="unsupported_parameter",
                do="Leave it out.",
            )  # fmt: skip


def _check_count(fields: Mapping[str, Any]) -> None:
    for name in ("n", "best_of"):
        if _integer(fields, name, 1, low=1) != 1:
            raise bad_value(name, fields[name], "1", "Send one request per answer.")
    if "suffix" in fields and fields["suffix"] != "":
        raise ApiError(400, "suffix is not supported", param="suffix", code="unsupported_parameter")


def _check_response_format(value: Any) -> None:
    if value is None:
        return
    if not isinstance(value, dict) or value.get("type") != "text":
        raise bad_value(
            "response_format", value, '{"type": "text"}', "Ask for JSON in the prompt and check it."
        )


def _model(fields: Mapping[str, Any]) -> str:
    model = fields.get("model")
    if not isinstance(model, str) or not model:
        raise bad_value("model", model, "the name of a model; see GET /v1/models")
    return model


def _prompt(fields: Mapping[str, Any]) -> str:
    prompt = fields.get("prompt")
    if isinstance(prompt, list) and len(prompt) == 1:
        prompt = prompt[0]
    if not isinstance(prompt, str):
        raise bad_value("prompt", prompt, "one string")
    return prompt


def _max_tokens(fields: Mapping[str, Any], is_chat: bool) -> tuple[bool, int]:
    names = ("max_completion_tokens", "max_tokens") if is_chat else ("max_tokens",)
    for name in names:
        if name in fields:
            return True, _integer(fields, name, 1, low=1)
    return not is_chat, _DEFAULT_COMPLETION_TOKENS


def _logprobs(fields: Mapping[str, Any], is_chat: bool) -> tuple[bool, int]:
    """Say whether log probabilities are wanted and how many alternatives."""
    if not is_chat:
        n_alternatives = _integer(fields, "logprobs", 0, low=0, high=MAX_LOGPROBS)
        return "logprobs" in fields, n_alternatives
    has_logprobs = _boolean(fields, "logprobs")
    n_alternatives = _integer(fields, "top_logprobs", 0, low=0, high=MAX_LOGPROBS)
    if n_alternatives and not has_logprobs:
        raise bad_value("top_logprobs", n_alternatives, "logprobs: true with it")
    return has_logprobs, n_alternatives


def _usage_chunk(value: Any, is_stream: bool) -> bool:
    if value is None:
        return False
    if not is_stream:
        raise bad_value("stream_options", value, "stream: true with it")
    if not isinstance(value, dict):
        raise bad_value("stream_options", value, "an object")
    unknown = value.keys() - {"include_usage", "include_obfuscation"}
    if unknown:
        raise bad_value("stream_options", sorted(unknown), "include_usage")
    return _boolean(value, "include_usage", where="stream_options.")


def _stops(value: Any) -> tuple[str, ...]:
    stops = [value] if isinstance(value, str) else value
    if stops is None:
        return ()
    if not isinstance(stops, list) or not all(isinstance(stop, str) and stop for stop in stops):
        raise bad_value("stop", value, "a text or a list of texts, none of them empty")
    if len(stops) > MAX_STOPS:
        raise bad_value("stop", f"{len(stops)} texts", f"at most {MAX_STOPS}")
    return tuple(stops)


def _boolean(fields: Mapping[str, Any], name: str, where: str = "") -> bool:
    value = fields.get(name, False)
    if not isinstance(value, bool):
        raise bad_value(where + name, value, "true or false")
    return value


def _integer(
    fields: Mapping[str, Any], name: str, default: int, *, low: int, high: int = _MAX_SEED
) -> int:
    value = fields.get(name, default)
    if not isinstance(value, int) or isinstance(value, bool) or not low <= value <= high:
        wanted = f"a whole number from {low}" + (f" to {high}" if high != _MAX_SEED else "")
        raise bad_value(name, value, wanted)
    return value


def _number(
    fields: Mapping[str, Any], name: str, default: float, *, low: float, high: float
) -> float:
    value = fields.get(name, default)
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    if not is_number or not math.isfinite(value) or not low <= value <= high:
        raise bad_value(name, value, f"a number from {low:g} to {high:g}")
    return float(value)
