"""Answer one question: what does a Hub look like to every test here that asks one?"""

from __future__ import annotations

import pytest

from edgekit.checkpoint import hub as hub_module
from tests.builders import write_tiny_checkpoint
from tests.checkpoint.hub_server import add_what_nobody_wants, serve


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """A Hub with a model of two weight files, and an empty cache."""
    folder = write_tiny_checkpoint(tmp_path / "source", shards=2)
    (folder / "README.md").write_text("---\nlicense: apache-2.0\n---\n", encoding="utf-8")
    add_what_nobody_wants(folder)
    monkeypatch.setenv("HF_HOME", str(tmp_path / "home"))
    for name in ("HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE", "HF_HUB_OFFLINE", "HF_TOKEN"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(hub_module, "_RETRY_S", 0.0)
    with serve(folder) as server:
        monkeypatch.setenv("HF_ENDPOINT", server.url)
        yield server
