"""Every module of edgekit and of scripts/ begins with a line that says what the module is."""

import ast
from pathlib import Path

import pytest

import edgekit

ROOT = Path(edgekit.__file__).parent.parent
MAX_FIRST_LINE_CHARS = 100
FEWEST_WORDS = 2


def modules(*folders: str) -> list[str]:
    files = (path for folder in folders for path in (ROOT / folder).rglob("*.py"))
    return sorted(path.relative_to(ROOT).as_posix() for path in files)


def docstring_of(name: str) -> str | None:
    return ast.get_docstring(ast.parse((ROOT / name).read_text(encoding="utf-8")), clean=False)


def find_fault(docstring: str | None) -> str | None:
    """Say what is wrong with a module docstring, or None."""
    if docstring is None:
        return "no docstring"
    first = docstring.split("\n", 1)[0]
    if first.casefold().startswith("answer one question"):
        return "the formula of questions instead of what the module is"
    if len(f'"""{first}') > MAX_FIRST_LINE_CHARS:
        return f"a first line of more than {MAX_FIRST_LINE_CHARS} characters"
    if first != first.strip() or len(first.split()) < FEWEST_WORDS:
        return "a first line that is empty, indented or one word"
    if not first.endswith("."):
        return "a first line that is not a statement with a full stop"
    return None


@pytest.mark.parametrize("name", modules("edgekit", "scripts"))
def test_a_module_says_in_its_first_line_what_it_is(name):
    assert find_fault(docstring_of(name)) is None


@pytest.mark.parametrize("name", modules("tests"))
def test_a_test_module_that_has_a_docstring_does_not_begin_with_the_formula(name):
    assert not (docstring_of(name) or "").casefold().startswith("answer one question")


@pytest.mark.parametrize(
    ("docstring", "fault"),
    [
        (None, "no docstring"),
        ("", "a first line that is empty"),
        ("Sampling", "or one word"),
        ("\nSampling of tokens.", "a first line that is empty"),
        ("Answer one question: which token comes next?", "the formula"),
        ("What is the next token?", "not a statement"),
        ("Sampling of tokens", "not a statement"),
        ("Sampling of the next token, which\ngoes on.", "not a statement"),
        ("S" * 50 + " " + "s" * 50 + ".", "more than 100 characters"),
    ],
)
def test_what_is_wrong_with_a_first_line_is_found(docstring, fault):
    assert fault in find_fault(docstring)


def test_a_sentence_passes():
    assert find_fault("Sampling of the next token: temperature, top-k, top-p.\n\nMore.") is None
