"""Claims about help: whole sentences that fit a terminal, and a page that says the same."""

from __future__ import annotations

import inspect
import re
import typing

import pytest
import typer

from edgekit.cli import app
from scripts.cli_reference import PAGE, WIDTH, command_names, help_text, make_page

COMMANDS = {str(command.name): command.callback for command in app.registered_commands}


# Without these nothing is done in their place.
NOTHING_WITHOUT = {
    "adapter", "artifacts", "ignore_config_keys", "out", "record", "replay", "server",
    "server_model", "stop", "system",
}  # fmt: skip


def parameters(name: str) -> dict[str, tuple[typing.Any, typing.Any, typing.Any]]:
    """Give the type, the typer declaration and the default of each parameter of a command."""
    found = {}
    hints = typing.get_type_hints(COMMANDS[name], include_extras=True)
    for parameter in inspect.signature(COMMANDS[name]).parameters.values():
        kind, declared = typing.get_args(hints[parameter.name])
        found[parameter.name] = (kind, declared, parameter.default)
    return found


def test_the_page_is_what_the_commands_say_today():
    assert PAGE.read_text(encoding="utf-8") == make_page(), "run scripts/cli_reference.py"


@pytest.mark.parametrize("name", ["", *command_names()])
def test_nothing_is_cut_and_no_line_is_wider_than_a_terminal(name):
    text = help_text([name] if name else [])
    assert "..." not in text.partition("\n")[2].replace("[ARGS]...", ""), text
    assert max(map(len, text.splitlines())) <= WIDTH


def test_the_list_has_the_whole_first_line_of_every_command():
    listed = help_text().partition("Commands:\n")[2]
    for name, function in COMMANDS.items():
        first = (inspect.getdoc(function) or "").splitlines()[0]
        assert re.search(rf"^  {name} +{re.escape(first)}$", listed, re.M), first


@pytest.mark.parametrize("name", command_names())
def test_an_example_can_be_copied(name):
    text = help_text([name])
    lines = text.partition("\n  Example:\n")[2].partition("\n\n")[0].splitlines()
    assert lines[0].strip().startswith(f"edgekit {name}")
    assert all(line.endswith("\\") for line in lines[:-1])
    assert not lines[-1].endswith("\\")


@pytest.mark.parametrize("name", command_names())
def test_every_option_says_in_a_sentence_what_it_is(name):
    for parameter, (kind, declared, default) in parameters(name).items():
        text = declared.help
        assert text and text[0].isupper() and text.endswith("."), (parameter, text)
        if not isinstance(declared, typer.models.OptionInfo):
            continue
        if kind not in (bool, bool | None):
            assert declared.metavar, f"{parameter}: a word for the value, not its Python type"
        if default is None and parameter not in NOTHING_WITHOUT:
            assert isinstance(declared.show_default, str), f"{parameter}: what is the default?"


@pytest.mark.parametrize("name", command_names())
def test_units_are_named(name):
    units = {
        "SECONDS": "seconds", "TOKENS": "tokens", "POINTS": "points", "SPEED": "tokens per second",
    }  # fmt: skip
    for parameter, (_, declared, _) in parameters(name).items():
        if unit := units.get(declared.metavar):
            assert unit in declared.help.lower(), parameter
