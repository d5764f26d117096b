"""Claims: docs/security.md says the caps that the code has, and names corpus files that exist."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent.parent
PAGE = (ROOT / "docs" / "security.md").read_text(encoding="utf-8")


@pytest.fixture
def document(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "scripts"))
    from fuzzing import document

    yield document
    for name in [name for name in sys.modules if name.split(".")[0] == "fuzzing"]:
        del sys.modules[name]


def test_the_page_holds_the_caps_of_the_code(document):
    assert document.caps_table() in PAGE


def test_the_page_holds_the_budget_of_the_results(document):
    data = json.loads((ROOT / "docs" / "fuzzing.json").read_text(encoding="utf-8"))
    assert document.budget_table(data) in PAGE
    assert not any(row["findings"] for c in data["campaigns"] for row in c["targets"])


def test_the_corpus_files_that_the_page_names_exist():
    corpus = ROOT / "tests" / "fuzz" / "corpus"
    named = re.findall(r"`([a-z-]+/[a-z0-9-]+\.(?!py)[a-z]+)`", PAGE)
    assert len(named) >= 25
    assert [name for name in named if not (corpus / name).is_file()] == []
