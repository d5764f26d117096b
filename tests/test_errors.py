"""Claims about the error tree: one root, the exit codes of the table, four parts in a message."""

from __future__ import annotations

import inspect
import json

import pytest

from edgekit import errors
from edgekit.errors import EdgekitError, MissingExtraError, NoFitError, ServerError, UnknownKeyError

EXIT_CODES = {"UsageError": 2, "MissingExtraError": 3, "NoFitError": 4}
CLASSES = {
    name: item
    for name, item in vars(errors).items()
    if inspect.isclass(item) and issubclass(item, Exception)
}


@pytest.mark.parametrize("name", CLASSES)
def test_every_error_is_an_edgekit_error_with_its_exit_code(name):
    assert issubclass(CLASSES[name], EdgekitError)
    assert CLASSES[name].exit_code == EXIT_CODES.get(name, 1)


def test_the_tree_is_the_one_in_the_module_docstring():
    drawn = [
        line.strip(" │├└─").split()[0] for line in errors.__doc__.splitlines() if "Error" in line
    ]
    assert drawn[0] == "EdgekitError"
    assert sorted(drawn) == sorted(CLASSES)


def test_a_message_says_what_got_wanted_and_do_in_this_order():
    error = EdgekitError("size of x", got=3, wanted="4", do="Make it bigger.")
    assert str(error) == "size of x; got 3; wanted 4. Make it bigger."
    assert str(EdgekitError("size of x")) == "size of x"
    assert str(EdgekitError("size of x", got=0)) == "size of x; got 0"


def test_an_error_as_json_has_every_field_even_when_empty():
    wanted = {"error": "ServerError", "what": "no", "got": None, "wanted": None, "do": "Wait."}
    assert json.loads(json.dumps(ServerError("no", status=503, do="Wait.").as_dict())) == wanted


def test_errors_carry_what_a_program_needs():
    assert ServerError("no", status=503).status == 503
    unknown = UnknownKeyError("c", keys={"a": "1", "b": "'x'"})
    assert (unknown.keys, unknown.got) == (("a", "b"), "a = 1, b = 'x'")
    assert NoFitError("none", reasons={"x": "too big"}).reasons == {"x": "too big"}
    assert str(NoFitError("none", reasons={"x": "big", "y": "old"})) == "none; got x: big; y: old"


def test_a_missing_package_says_how_to_install_it():
    error = MissingExtraError("cannot import q", package="q-kit")
    assert error.package == "q-kit"
    assert error.do == "Run: pip install q-kit"
