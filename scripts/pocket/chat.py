"""Token ids of the chats that the model is trained on.

This module has the tokenizer and the chat template. Prompts always go through the template itself,
so training and a runtime see the same text.
"""

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NoReturn

from jinja2.sandbox import ImmutableSandboxedEnvironment
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers, trainers

from edgekit.quality.suites.base import TOOL_CALLS_TAG, Item

__all__ = ["CHAT_TEMPLATE", "SPECIAL_TOKENS", "Chat", "train_tokenizer"]

SPECIAL_TOKENS = (
    "<pad>",
    "<s>",
    "</s>",
    "[INST]",
    "[/INST]",
    "[SYSTEM_PROMPT]",
    "[/SYSTEM_PROMPT]",
    "[AVAILABLE_TOOLS]",
    "[/AVAILABLE_TOOLS]",
    TOOL_CALLS_TAG,
    "[TOOL_RESULTS]",
    "[/TOOL_RESULTS]",
)

# A tool becomes one line, `name(key: type, optional?: a|b): description`, which costs a fifth of
# the tokens of its JSON schema.
CHAT_TEMPLATE = """\
{{- bos_token -}}
{%- if messages and messages[0]['role'] == 'system' -%}
{{- '[SYSTEM_PROMPT]' + messages[0]['content'] + '[/SYSTEM_PROMPT]' -}}
{%- endif -%}
{%- if tools is defined and tools -%}
{{- '[AVAILABLE_TOOLS]' -}}
{%- for tool in tools -%}
{%- set f = tool['function'] if 'function' in tool else tool -%}
{%- if not loop.first -%}{{- '\\n' -}}{%- endif -%}
{{- f['name'] + '(' -}}
{%- if 'parameters' in f and f['parameters'] and 'properties' in f['parameters'] -%}
{%- set required = f['parameters']['required'] if 'required' in f['parameters'] else [] -%}
{%- for key, spec in f['parameters']['properties'].items() -%}
{%- if not loop.first -%}{{- ', ' -}}{%- endif -%}
{{- key -}}
{%- if key not in required -%}{{- '?' -}}{%- endif -%}
{{- ': ' -}}
{%- if 'enum' in spec -%}{{- spec['enum'] | join('|') -}}
{%- elif 'type' in spec and spec['type'] is string -%}{{- spec['type'] -}}
{%- else -%}{{- 'any' -}}{%- endif -%}
{%- endfor -%}
{%- endif -%}
{{- ')' -}}
{%- if 'description' in f and f['description'] -%}{{- ': ' + f['description'] -}}{%- endif -%}
{%- endfor -%}
{{- '[/AVAILABLE_TOOLS]' -}}
{%- endif -%}
{%- for message in messages -%}
{%- if message['role'] == 'system' -%}
{%- if not loop.first -%}
{{- raise_exception('a system message must come first') -}}
{%- endif -%}
{%- elif message['role'] == 'user' -%}
{{- '[INST]' + message['content'] + '[/INST]' -}}
{%- elif message['role'] == 'assistant' -%}
{%- if 'tool_calls' in message and message['tool_calls'] -%}
{{- '[TOOL_CALLS][' -}}
{%- for call in message['tool_calls'] -%}
{%- set c = call['function'] if 'function' in call else call -%}
{%- if not loop.first -%}{{- ', ' -}}{%- endif -%}
{{- '{"name": "' + c['name'] + '", "arguments": ' -}}
{%- if c['arguments'] is string -%}{{- c['arguments'] -}}
{%- else -%}{{- c['arguments'] | tojson -}}{%- endif -%}
{{- '}' -}}
{%- endfor -%}
{{- ']' + eos_token -}}
{%- else -%}
{{- message['content'] + eos_token -}}
{%- endif -%}
{%- elif message['role'] == 'tool' -%}
{{- '[TOOL_RESULTS]' + message['content'] + '[/TOOL_RESULTS]' -}}
{%- else -%}
{{- raise_exception('unknown role: ' + message['role']) -}}
{%- endif -%}
{%- endfor -%}
"""


_TRAINING_SPLIT = r" ?\p{Ll}+|\p{L}\p{Ll}*|\p{N}| ?[^\s\p{L}\p{N}]+|\s"
_PUBLISHED_SPLIT = (
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+"
    r"|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*"
    r"|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)


def _raise_exception(message: str) -> NoReturn:
    raise ValueError(message)


def _to_json(value: object) -> str:
    return json.dumps(value, ensure_ascii=False)


def train_tokenizer(texts: Iterable[str], vocab_size: int) -> Tokenizer:
    """Train a byte-level BPE with single digits.

    A capital starts a token without the space before it, so that a name has the same tokens in
    running text and after a quotation mark, and copying it is copying tokens.

    Stock runtimes know few splitting patterns by heart. The published one is among them and only
    ever joins pieces of the training one, so the learned merges, which cross none of its borders,
    give the same ids.
    """
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = _split_by(_TRAINING_SPLIT)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=[AddedToken(t, special=True, normalized=False) for t in SPECIAL_TOKENS],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    tokenizer.pre_tokenizer = _split_by(_PUBLISHED_SPLIT)
    return tokenizer


def _split_by(pattern: str) -> pre_tokenizers.PreTokenizer:
    return pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(pattern), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )


class Chat:
    """The tokenizer with the template compiled."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        """Compile the template as transformers does."""
        self.tokenizer = tokenizer
        environment = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True)
        environment.filters["tojson"] = _to_json
        environment.globals["raise_exception"] = _raise_exception
        self._template = environment.from_string(CHAT_TEMPLATE)
        self.pad_id, self.bos_id, self.eos_id = (
            SPECIAL_TOKENS.index(t) for t in ("<pad>", "<s>", "</s>")
        )

    @classmethod
    def open(cls, path: Path) -> "Chat":
        """Read a tokenizer.json."""
        return cls(Tokenizer.from_file(str(path)))

    def render(
        self, messages: Sequence[Mapping[str, Any]], tools: Sequence[Mapping[str, Any]] = ()
    ) -> str:
        """Give the text that a runtime would feed the model."""
        return self._template.render(
            messages=messages,
            tools=list(tools),
            bos_token=SPECIAL_TOKENS[self.bos_id],
            eos_token=SPECIAL_TOKENS[self.eos_id],
        )

    def encode(self, text: str) -> list[int]:
        """Give token ids, special tokens included."""
        ids: list[int] = self.tokenizer.encode(text, add_special_tokens=False).ids
        return ids

    def count(self, text: str) -> int:
        """Give the number of tokens of `text`."""
        return len(self.encode(text))

    def prompt_ids(self, item: Item) -> list[int]:
        """Give the prompt of one item."""
        return self.encode(self.render(item.messages, item.tools))

    def talk_ids(
        self, turns: Sequence[Item], prefix: Sequence[Mapping[str, str]] = ()
    ) -> tuple[list[int], list[bool]]:
        """Give the ids of a whole talk, and which of them the model must write."""
        ids = self.encode(self.render([*prefix, *turns[0].messages], turns[0].tools))
        written = [False] * len(ids)
        for i, item in enumerate(turns):
            if i:
                question = self.encode(f"[INST]{item.messages[0]['content']}[/INST]")
                ids += question
                written += [False] * len(question)
            answer = [*self.encode(item.target), self.eos_id]
            ids += answer
            written += [True] * len(answer)
        return ids, written
