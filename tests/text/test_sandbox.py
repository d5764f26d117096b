from __future__ import annotations

import datetime
import json

import jinja2
import pytest
from transformers.utils.chat_template_utils import render_jinja_template

from edgekit.errors import CheckpointError
from edgekit.text.chat import ChatTemplate
from edgekit.text.sandbox import TemplateSandbox

# A value that grows with every round, and what is done with it at last.
GROW = (
    "{{% set n = namespace(x={0}) %}}{{% for i in range(60) %}}{{% set n.x = {1} %}}{{% endfor %}}"
)
NEST = GROW.format("[1]", "[n.x, n.x]")


def render(source, **values):
    return TemplateSandbox().render_text(source, values)


def refusal(tmp_path, source):
    (tmp_path / "chat_template.jinja").write_text(source)
    with pytest.raises(CheckpointError) as caught:
        ChatTemplate.open(tmp_path).render([{"role": "user", "content": "x" * 1000}])
    assert "chat template failed" in caught.value.what
    return caught.value.got


@pytest.mark.parametrize(
    "source",
    [
        "{% for m in messages %}\n  {{- m.role ~ ': ' ~ m.content }}\n{% endfor %}",
        "{% for m in messages if m.role == 'user' %}{{ loop.index0 }}{{ m.content }}{% endfor %}",
        "{{ messages | tojson }}",
        "{{ messages | tojson(indent=2) }}",
        "{% set ns = namespace(n=0) %}{% for m in messages %}{% set ns.n = ns.n + 1 %}{% endfor %}"
        "{{ ns.n }}",
        "{% for m in messages %}{% if loop.last %}{% break %}{% endif %}x{% endfor %}",
        "{% for m in messages %}{% generation %}{{ m.content }}{% endgeneration %}{% endfor %}",
        "{% macro say(x) %}<{{ x }}>{% endmacro %}{{ say(messages[0].content) }}{{ say('é') }}",
        "{{ messages | map(attribute='role') | join(', ') }}{{ messages | length }}",
        "{{ 'a%sb' % 'c' }}{{ '%d' | format(3) }}{{ 'x' * 3 }}{{ 2 ** 8 }}{{ 7 % 4 }}",
        "{{ messages[0].content.replace('H', 'J').split(' ')[0].upper() }}",
        "{{ undefined_name }}|{{ messages[0].nothing }}|{{ none }}|{{ true }}|{{ 1.5 }}",
        "{{ messages[0]['content'] | replace('l', 'L') | indent(2) | default('x') }}",
    ],
)
def test_templates_render_as_in_transformers(source):
    messages = [
        {"role": "user", "content": " Hello <b> & 'x' \"y\" é "},
        {"role": "assistant", "content": "Hi\nthere"},
    ]
    theirs, _ = render_jinja_template([messages], chat_template=source)
    assert render(source, messages=messages) == theirs[0]


def test_json_is_not_escaped_for_html():
    value = {"a": "<é> & 'x'", "b": [1, None, True]}
    assert render("{{ v | tojson }}", v=value) == json.dumps(value, ensure_ascii=False)


def test_the_date_is_todays():
    before = datetime.date.today().isoformat()
    got = render("{{ strftime_now('%Y-%m-%d') }}")
    assert before <= got <= datetime.date.today().isoformat()


@pytest.mark.parametrize(
    "source",
    [
        "{{ ''.__class__.__mro__ }}",
        "{{ messages.append(1) }}",
        "{{ messages[0].update({'a': 1}) }}",
        "{{ raise_exception.__globals__ }}",
        "{{ cycler.__init__.__globals__.os }}",
        "{% include 'x' %}",
        "{% import 'os' as os %}",
    ],
)
def test_a_template_gets_at_nothing_outside(tmp_path, source):
    got = refusal(tmp_path, source + "{{ [][9].x }}")
    assert "Error" in got


@pytest.mark.parametrize(
    "source",
    [
        # loops
        "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}",
        "{% set r = range(99999) | list %}"
        "{% for a in r %}{% for b in r if false %}{% endfor %}{% endfor %}",
        "{% for a in range(10 ** 9) %}{% endfor %}",
        "{% macro f(n) %}{{ f(n) }}{% endmacro %}{{ f(1) }}",
        "{% macro f(n) %}{% if n %}{{ f(n - 1) ~ f(n - 1) }}{% endif %}{% endmacro %}{{ f(60) }}",
        # text that doubles
        GROW.format("'ab'", "n.x + n.x"),
        GROW.format("'ab'", "n.x ~ n.x"),
        GROW.format("['a']", "n.x + n.x"),
        NEST + "{{ n.x }}",
        NEST + "{{ n.x | tojson }}",
        NEST + "{{ 'a' ~ n.x }}",
        GROW.format("3", "n.x * n.x"),
        # one operation
        "{{ 'x' * 10 ** 12 }}",
        "{{ 10 ** 12 * 'x' }}",
        "{{ [1] * 10 ** 12 }}",
        "{{ 10 ** (10 ** 10) }}",
        "{{ 'x' | center(10 ** 12) }}",
        "{{ 'x'.ljust(10 ** 12) }}",
        "{{ 'x'.zfill(10 ** 12) }}",
        "{{ '\\t'.expandtabs(10 ** 12) }}",
        "{{ '%999999999999d' % 1 }}",
        "{{ '%*d' % (10 ** 12, 1) }}",
        "{{ '%999999999999d' | format(1) }}",
        "{{ '{:>999999999999}'.format(1) }}",
        "{{ messages | tojson(indent=10 ** 12) }}",
        "{{ (messages[0].content * 60).replace('x', messages[0].content * 60) }}",
        "{{ (messages[0].content * 60) | replace('x', messages[0].content * 60) }}",
        "{{ (messages[0].content * 60) | list | join(messages[0].content * 60) }}",
        "{{ (messages[0].content * 60).join((messages[0].content * 60) | list) }}",
        # output
        "{% for i in range(99999) %}{{ messages[0].content }}{% endfor %}",
    ],
)
def test_a_template_that_would_never_end_or_fill_the_memory_is_refused(tmp_path, source):
    got = refusal(tmp_path, source)
    assert got.startswith(
        ("TemplateLimitError: ", "RecursionError: ", "OverflowError: Range too big")
    )


def test_each_rendering_has_a_budget_of_its_own():
    sandbox = TemplateSandbox()
    source = "{% for i in range(20000) %}{% endfor %}ok"
    assert [sandbox.render_text(source, {}) for _ in range(4)] == ["ok"] * 4
    with pytest.raises(jinja2.TemplateError):
        sandbox.render_text(source * 4, {})


def test_a_long_chat_fits_the_budget():
    source = (
        "{% for m in messages %}{{ '[' + m.role ~ ']' + m.content | trim }}"
        "{{ messages | length }}{% endfor %}"
    )
    messages = [{"role": "user", "content": "word " * 2000} for _ in range(100)]
    assert len(render(source, messages=messages)) == 100 * (6 + 9999 + 3)


@pytest.mark.parametrize("source", ["{{", "{% if %}", "{% unknown %}", "{{ 1 | nofilter }}"])
def test_a_template_that_is_no_jinja_is_refused(tmp_path, source):
    assert refusal(tmp_path, source).startswith("Template")


@pytest.mark.parametrize(
    "source", ["{{ 1 / 0 }}", "{{ {}['a'].b }}", "{{ 'a' + 1 }}", "{{ [1] | join(1, 2, 3, 4) }}"]
)
def test_a_template_that_fails_is_refused(tmp_path, source):
    refusal(tmp_path, source)


def test_a_limit_is_a_template_error():
    with pytest.raises(jinja2.TemplateError):
        render("{{ 'x' * 10 ** 12 }}")
