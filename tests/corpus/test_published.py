"""Every published config opens, or is refused for the reason that its maths gives."""

from __future__ import annotations

import pytest

from scripts.configs import DOC, make_text
from tests.corpus.published import names, outcome, rows

EXPECTED = {row["name"]: row for row in rows("EXPECTED.tsv")}


@pytest.fixture(scope="module")
def outcomes(tmp_path_factory):
    root = tmp_path_factory.mktemp("published")
    return {name: outcome(name, root) for name in names()}


def test_the_tables_name_every_config():
    assert sorted(EXPECTED) == names()
    assert sorted(row["name"] for row in rows("SOURCES.tsv")) == names()


@pytest.mark.parametrize("name", EXPECTED)
def test_a_published_config_opens_or_is_refused_for_its_reason(outcomes, name):
    found, wanted = outcomes[name], EXPECTED[name]
    assert found.result == wanted["result"], found.what
    if wanted["result"] == "opens":
        assert found.what == wanted["what"]
    else:
        for words in wanted["what"].split(" ... "):
            assert words in found.what
    for words in filter(None, wanted["said"].split(" ... ")):
        assert words in "; ".join(found.said)


def test_the_page_is_what_the_script_makes_today(outcomes):
    assert DOC.read_text(encoding="utf-8") == make_text(outcomes)
