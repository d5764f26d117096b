"""Chat templates: messages in, prompt out, as text and as token ids."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path, PurePosixPath
from typing import Any, Final

from edgekit.errors import CheckpointError
from edgekit.lazy import require
from edgekit.model_files import (
    OLD_TEMPLATE_NAME,
    TEMPLATE_NAME,
    TEMPLATES_FOLDER,
    TOKENIZER_CONFIG_NAME,
)
from edgekit.text.escaping import Names, encode_escaped, find_foreign_spans, has_names
from edgekit.text.files import TextFiles
from edgekit.text.template_checks import check_prompt
from edgekit.text.tokenizer import Tokenizer
from edgekit.text.tokenizer_file import read_named_tokens

# The smallest chat that every chat template must accept.
PROBE: Final[tuple[Mapping[str, str], ...]] = ({"role": "user", "content": "Hello"},)
_PROBE_TOOL: Final[Mapping[str, Any]] = {
    "type": "function",
    "function": {
        "name": "probe",
        "description": "Probe",
        "parameters": {"type": "object", "properties": {}},
    },
}
_REASONING_KEYS: Final = ("reasoning_content", "thinking", "reasoning")
_LINE_END: Final = re.compile(r"\r\n?")
_NOTHING: Final = "{{ '' }}"
MAX_TEMPLATE_BYTES: Final = 1 << 18
# Errors that Python itself raises when a template misuses the values it is given.
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
        # Jinja reads every line end as a line feed; other runtimes keep line ends as written.
        self.sources = {name: _LINE_END.sub("\n", text) for name, text in sources.items()}
        self._named_tokens = dict(named_tokens)
        # Cases (with or without tools and opening) in which a prompt was found complete.
        self._proven: set[tuple[bool, bool]] = set()

    @classmethod
    def open(cls, source: str | Path | TextFiles) -> ChatTemplate:
        """Read the templates of a model; template files win over tokenizer_config.json.

        A model without one gives an object that says so when it is asked to render.

        Args:
            source: A model folder, or its text files.

        Raises:
            CheckpointError: A file is damaged or too large.
        """
        files = TextFiles.of(source)
        named_tokens = read_named_tokens(files)
        named = [name for name in files.names() if name.startswith(f"{TEMPLATES_FOLDER}/")]
        if files.has(TEMPLATE_NAME) or named:
            sources = {PurePosixPath(name).stem: _read_template(files, name) for name in named}
            if files.has(TEMPLATE_NAME):
                sources["default"] = _read_template(files, TEMPLATE_NAME)
            return cls(files.path(TEMPLATE_NAME), sources, named_tokens)
        for name in (TOKENIZER_CONFIG_NAME, OLD_TEMPLATE_NAME):
            entry = files.read_object(name).get("chat_template")
            if entry is not None:
                return cls(files.path(name), _sources(entry, files.path(name)), named_tokens)
        return cls(files.path(TOKENIZER_CONFIG_NAME), {}, named_tokens)

    @property
    def single_text(self) -> str | None:
        """One template that writes what these do, for runtimes that read only one; or None.

        With tools it is ``tool_use``, without them ``default``.
        """
        default, with_tools = self.sources.get("default"), self.sources.get("tool_use")
        if default is None or with_tools is None:
            return default
        # Jinja drops the last line end of a template, but here it would be in the middle.
        default, with_tools = default.removesuffix("\n"), with_tools.removesuffix("\n")
        # The empty expressions keep the tags from removing white space of the templates.
        return (
            f"{{% if tools %}}{_NOTHING}{with_tools}{_NOTHING}"
            f"{{% else %}}{_NOTHING}{default}{_NOTHING}{{% endif %}}"
        )

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
            add_generation_prompt: End with the text that opens the assistant's answer.

        Raises:
            CheckpointError: There is no template, it refuses these messages, it fails, or it
                does more work than the sandbox allows.
        """
        source = self._source(tools)
        jinja2 = require("jinja2")
        values = {
            **self._named_tokens,
            "messages": [_as_transformers_gives(message) for message in messages],
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
        """Give the token ids of a prompt; names of control tokens in messages stay text.

        Without such names the ids are those of the rendered text. Control tokens are the special
        ones and those added tokens that the template writes, such as ``<tool_call>``.

        Raises:
            CheckpointError: As ``render``; the prompt lacks the user's text, the tools or the
                opening of the answer; or a message holds the name of a control token and the
                template changes it so that it cannot be told from the template's own.
        """

        def render(
            messages: Sequence[Mapping[str, Any]],
            tools: Sequence[Mapping[str, Any]],
            add_generation_prompt: bool = add_generation_prompt,
        ) -> str:
            return self.render(messages, tools, add_generation_prompt=add_generation_prompt)

        rendered = render(messages, tools)
        source, case = self._source(tools), (bool(tools), add_generation_prompt)
        check_prompt(
            self.where,
            rendered,
            messages,
            tools,
            render,
            opens_answer=add_generation_prompt,
            is_proven=case in self._proven,
        )
        self._proven.add(case)
        # White space, for which Gemma has tokens, is not a control token anywhere.
        escaping = tokenizer.with_control(
            name for name in tokenizer.added_tokens if name in source and not name.isspace()
        )
        names = Names(tokenizer.special_pattern, escaping.special_pattern)
        if not has_names([*messages, *tools], names):
            return tokenizer.encode(rendered, allow_special=True)
        spans = find_foreign_spans(rendered, messages, tools, names, render)
        if spans is None:
            raise CheckpointError(
                "a message holds the name of a control token, and the chat template changes the "
                "message so that the two cannot be told apart",
                got=next(iter(names.control.findall(str([*messages, *tools]))), None),
                do="Remove it from the message.",
            )
        return encode_escaped(escaping, rendered, spans)

    def offers_tools(self, tokenizer: Tokenizer) -> bool:
        """Tell whether tools given to the template come out in the prompt."""
        try:
            self.encode(PROBE, tokenizer, [_PROBE_TOOL])
        except CheckpointError:
            return False
        return True

    def _source(self, tools: Sequence[Mapping[str, Any]]) -> str:
        name = "tool_use" if tools and "tool_use" in self.sources else "default"
        if name in self.sources:
            return self.sources[name]
        raise CheckpointError(
            f"{self.where.parent}: no chat template",
            got=f"templates named {', '.join(self.sources)} alone" if self.sources else None,
            wanted=f"{TEMPLATE_NAME}, or chat_template in {TOKENIZER_CONFIG_NAME}",
            do="Continue plain text with --raw, or use a model made for chat.",
        )

    @cached_property
    def _sandbox(self) -> Any:
        return require("edgekit.text.sandbox").TemplateSandbox()


def _as_transformers_gives(message: Mapping[str, Any]) -> dict[str, Any]:
    """Leave out empty keys, and give the reasoning under each name that templates read."""
    given = {key: value for key, value in message.items() if value is not None}
    reasoning = next((given[key] for key in _REASONING_KEYS if key in given), None)
    if reasoning is None:
        return given
    return {"thinking": reasoning, **given, "reasoning_content": reasoning}


def _read_template(files: TextFiles, name: str) -> str:
    return files.read_text(name, MAX_TEMPLATE_BYTES) or ""


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
