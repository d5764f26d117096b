"""Claims about generated pages: they say what the code says today."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

import edgekit

ROOT = Path(edgekit.__file__).parent.parent


def load_script(name: str):
    path = ROOT / "scripts" / f"{name}.py"
    spec = importlib.util.spec_from_file_location(f"scripts_{name}", path)
    module = sys.modules[spec.name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_page_of_refusals_holds_todays_words():
    """If this fails, run the script that the page names, and read the difference."""
    wanted = load_script("refusals").make_text()
    assert (ROOT / "docs" / "refusals.md").read_text(encoding="utf-8") == wanted
