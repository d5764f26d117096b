"""What templates may use gives the text that transformers gives, and cannot change its values."""

from __future__ import annotations

import copy

import pytest
from transformers.utils.chat_template_utils import render_jinja_template

from edgekit.errors import CheckpointError
from edgekit.text.chat import ChatTemplate
from tests.text.token_texts import TIMER, WEATHER

MESSAGES = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": "Grüße <b>&</b> 'a' \"b\" 你"},
    {"role": "assistant", "content": "x", "tool_calls": [{"function": {"name": "f"}}]},
    {"role": "assistant", "content": "y", "thinking": "z"},
]
TOOLS = [WEATHER, TIMER]
FEATURES = {
    "date": "{{ strftime_now('%d %b %Y') }}",
    "date if there": "{% if strftime_now is defined %}{{ strftime_now('%Y-%m-%d') }}{% endif %}",
    "dict": "{{ dict(a=1, b='ü') | tojson }}{{ dict.fromkeys(['a', 'b'], 0) }}",
    "namespace": "{% set ns = namespace(n=0) %}{% for m in messages %}{% set ns.n = ns.n + 1 %}"
    "{% endfor %}{{ ns.n }}",
    "tojson": "{{ tools | tojson }}{{ tools | tojson(indent=4) }}{{ messages[1] | tojson }}",
    "tojson options": "{{ tools[0] | tojson(ensure_ascii=true, sort_keys=true) }}"
    "{{ tools[0] | tojson(separators=(',', ':')) }}",
    "repr": "{{ tools[0] }}{{ tools | string }}",
    "generation": "a{% generation %}{{ messages[2].content }}{% endgeneration %}b",
    "break": "{% for m in messages %}{% if loop.index > 2 %}{% break %}{% endif %}"
    "{% if m.role == 'system' %}{% continue %}{% endif %}{{ m.content }}{% endfor %}",
    "undefined": "{{ date_string is defined }}{{ enable_thinking is not defined }}"
    "{{ documents is none }}{{ tools is none }}{{ eos_token }}{{ nothing }}",
    "white space": "  {% if true %}\n  a\n  {% endif %}\n\n{{- 'b' -}}\n\n c \n",
    "last newline": "a\n",
    "macro": "{% macro f(x, y=2) %}{{ x }}-{{ y }}{% endmacro %}{{ f(1) }}{{ f('ü', y=none) }}",
    "filters": "{{ messages | selectattr('role', 'equalto', 'user') | list | length }}"
    "{{ messages | map(attribute='role') | join(',') }}{{ ' x ' | trim }}{{ 'a' | capitalize }}",
    "methods": "{{ 'a b'.split(' ')[::-1] }}{{ 'abc'.startswith('a') }}{{ '  x'.lstrip() }}"
    "{{ tools[0].function.items() | list }}",
    "reasoning": "{{ messages[3].reasoning_content }}{{ messages[3].reasoning }}",
    "in": "{{ 'tool_calls' in messages[2] }}{{ messages[1].tool_calls is defined }}",
    "arithmetic": "{{ 7 // 2 }}{{ 7 % 4 }}{{ 2 ** 5 }}{{ 1 ~ 'a' ~ none }}{{ 1.50 }}",
    "slices": "{{ messages[1:] | length }}{{ messages[-1].content }}{{ 'abcdef'[1:4] }}",
    "escapes": r"{{ 'a\nb\t\\c\'' }}{{ '\u00fc' }}",
    "comments": "{# nothing #}a{#- b -#} c",
    "conditional": "{{ 'a' if messages[0].role == 'system' else 'b' }}{{ none or 'c' }}",
}


def ours(tmp_path, source, messages=MESSAGES, tools=TOOLS):
    (tmp_path / "chat_template.jinja").write_text(source, encoding="utf-8")
    return ChatTemplate.open(tmp_path).render(messages, tools)


@pytest.mark.parametrize("name", list(FEATURES))
def test_a_feature_gives_the_text_of_transformers(tmp_path, name):
    rendered, _ = render_jinja_template(
        [MESSAGES], tools=TOOLS, chat_template=FEATURES[name], add_generation_prompt=True
    )
    assert [ours(tmp_path, FEATURES[name])] == rendered


@pytest.mark.parametrize(
    "source",
    [
        "{{ dict.update(messages[1], {'content': 'x'}) }}",
        "{{ dict.clear(tools[0].function) }}",
        "{{ dict.pop(tools[0].function, 'name') }}",
        "{{ messages[1].update({'content': 'x'}) }}",
        "{{ messages.append(1) }}",
        "{% set ns = namespace(__class__=1) %}",
        "{% set ns = namespace() %}{% set ns.__class__ = dict %}",
        "{% set ns = namespace({'_x': 1}) %}",
        "{{ namespace.__init__ }}{{ namespace.__init__.__globals__.x }}",
        "{{ dict.__call__.__globals__.x }}",
    ],
)
def test_a_template_changes_nothing_that_it_was_given(tmp_path, source):
    messages, tools = copy.deepcopy(MESSAGES), copy.deepcopy(TOOLS)
    with pytest.raises(CheckpointError, match="chat template failed"):
        ours(tmp_path, source, messages, tools)
    assert (messages, tools) == (MESSAGES, TOOLS)
