"""Answer one question: how do chat messages become a prompt, as text and as token ids?"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, Final

from edgekit.checkpoint.config import read_object
from edgekit.checkpoint.guard import encode_guarded, find_foreign_spans, is_suspect
from edgekit.checkpoint.tokenizer import TOKENIZER_CONFIG_NAME, Tokenizer, read_named_tokens
from edgekit.errors import CheckpointError
from edgekit.files import read_inside
from edgekit.lazy import require

TEMPLATE_NAME: Final = "chat_template.jinja"
MAX_TEMPLATE_BYTES: Final = 1 << 18
# What Python itself raises when a template misuses the values it is given.
_TEMPLATE_FAULTS: Final = (
    ArithmeticError,
    AssertionError,
    AttributeError,
    LookupError,
    MemoryError,
    RuntimeError,
    SyntaxError,
    TypeError,
    ValueError,
)


class ChatTemplate:
    """The chat template of a model folder; it runs in a sandbox.

    Attributes:
        where: File that the template came from.
        sources: Template text by name: ``default``, and ``tool_use`` where there is one.
    """

    def __init__(
        self, where: Path, sources: Mapping[str, str], named_tokens: Mapping[str, str]
    ) -> None:
        """Keep template texts; see ``open``."""
        self.where = where
        self.sources = dict(sources)
        self._named_tokens = dict(named_tokens)

    @classmethod
    def open(cls, folder: str | Path) -> ChatTemplate:
        """Read the template of a model folder; ``chat_template.jinja`` wins.

        A folder without one gives an object that says so when it is asked to render.

        Raises:
            CheckpointError: A file is damaged or too large.
        """
        folder = Path(folder)
        named_tokens = read_named_tokens(folder)
        path = folder / TEMPLATE_NAME
        if path.is_file():
            return cls(path, {"default": _read_template(path)}, named_tokens)
        path = folder / TOKENIZER_CONFIG_NAME
        entry = read_object(path).get("chat_template") if path.is_file() else None
        return cls(path, _sources(entry, path), named_tokens)

    def render(
        self,
        messages: Sequence[Mapping[str, Any]],
        tools: Sequence[Mapping[str, Any]] = (),
        *,
        add_generation_prompt: bool = True,
    ) -> str:
        """Write messages as a prompt.

        Args:
            messages: The chat, in OpenAI form.
            tools: Tools on offer, in OpenAI form.
            add_generation_prompt: End with what opens the assistant's answer.

        Raises:
            CheckpointError: There is no template, it refuses these messages, it fails, or it
                does more work than the sandbox allows.
        """
        source = self.sources.get("tool_use" if tools and "tool_use" in self.sources else "default")
        if source is None:
            raise CheckpointError(
                f"{self.where.parent}: no chat template",
                wanted=f"{TEMPLATE_NAME}, or chat_template in {TOKENIZER_CONFIG_NAME}",
                do="Use plain text generation, or a model made for chat.",
            )
        jinja2 = require("jinja2")
        values = {
            **self._named_tokens,
            "messages": list(messages),
            "tools": list(tools) or None,
            "documents": None,
            "add_generation_prompt": add_generation_prompt,
        }
        try:
            text: str = self._sandbox.render_text(source, values)
            text.encode("utf-8")
        except (jinja2.TemplateError, *_TEMPLATE_FAULTS) as error:
            raise CheckpointError(
                f"{self.where}: chat template failed",
                got=f"{type(error).__name__}: {str(error)[:300]}",
                do="Check the roles and the order of the messages.",
            ) from error
        return text

    def encode(
        self,
        messages: Sequence[Mapping[str, Any]],
        tokenizer: Tokenizer,
        tools: Sequence[Mapping[str, Any]] = (),
        *,
        add_generation_prompt: bool = True,
    ) -> list[int]:
        """Give the token ids of a prompt; special-token names in messages stay text.

        Without such names the ids are those of the rendered text.

        Raises:
            CheckpointError: As ``render``; or a message holds the name of a special token and
                the template changes it so that it cannot be told from the template's own.
        """

        def render(
            messages: Sequence[Mapping[str, Any]], tools: Sequence[Mapping[str, Any]]
        ) -> str:
            return self.render(messages, tools, add_generation_prompt=add_generation_prompt)

        rendered = render(messages, tools)
        pattern = tokenizer.special_pattern
        everything = [*messages, *tools]
        if not is_suspect(everything, pattern):
            return tokenizer.encode(rendered, allow_special=True)
        spans = find_foreign_spans(rendered, messages, tools, pattern, render)
        if spans is None:
            raise CheckpointError(
                "a message holds the name of a special token, and the chat template changes the "
                "message so that the two cannot be told apart",
                got=next(iter(pattern.findall(str(everything))), None),
                do="Remove it from the message.",
            )
        return encode_guarded(tokenizer, rendered, spans)

    @cached_property
    def _sandbox(self) -> Any:
        return require("edgekit.checkpoint.sandbox").TemplateSandbox()


def _read_template(path: Path) -> str:
    try:
        return read_inside(path, MAX_TEMPLATE_BYTES).decode("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise CheckpointError(
            f"{path}: cannot be read",
            got=str(error),
            wanted=f"text in UTF-8 of at most {MAX_TEMPLATE_BYTES} bytes",
        ) from error


def _sources(entry: Any, path: Path) -> dict[str, str]:
    """Read the ``chat_template`` of tokenizer_config.json: a text, or a list of named ones."""
    if entry is None:
        return {}
    items = [{"name": "default", "template": entry}] if isinstance(entry, str) else entry
    sources: dict[str, str] = {}
    for item in items if isinstance(items, list) else [items]:
        name = item.get("name") if isinstance(item, dict) else None
        template = item.get("template") if isinstance(item, dict) else None
        if not isinstance(name, str) or not isinstance(template, str):
            raise CheckpointError(
                f"{path}: chat_template", wanted="a text, or a list of {name, template}"
            )
        _check_size(len(template), path)
        sources[name] = template
    return sources


def _check_size(n_bytes: int, path: Path) -> None:
    if n_bytes > MAX_TEMPLATE_BYTES:
        raise CheckpointError(
            f"{path}: chat template", wanted=f"at most {MAX_TEMPLATE_BYTES} bytes"
        )
