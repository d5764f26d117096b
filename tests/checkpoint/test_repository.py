from __future__ import annotations

import hashlib
import http.server
import json
import os
import subprocess
import sys
import threading
from contextlib import contextmanager
from pathlib import Path

import pytest

from edgekit.checkpoint import repository
from edgekit.checkpoint.reader import open_checkpoint
from edgekit.checkpoint.repository import model_name, resolve_model
from edgekit.errors import CheckpointError
from tests.builders import write_tiny_checkpoint


@pytest.fixture
def bundled(tmp_path, monkeypatch):
    for name in ("pocket", "marble"):
        write_tiny_checkpoint(tmp_path / "models" / name)
    (tmp_path / "models" / "notes").mkdir()
    monkeypatch.setattr(repository, "models_dir", lambda: tmp_path / "models")
    return tmp_path / "models"


def test_a_folder_is_taken_as_it_is(tmp_path):
    assert resolve_model(tmp_path) == tmp_path
    assert resolve_model(str(tmp_path)) == tmp_path


def test_a_bundled_name_is_found(bundled):
    assert resolve_model("pocket") == bundled / "pocket"
    with open_checkpoint("pocket") as checkpoint:
        assert (checkpoint.name, checkpoint.origin) == ("pocket", "pocket")


def test_an_unknown_name_lists_the_bundled_ones_and_guesses(bundled):
    with pytest.raises(CheckpointError) as caught:
        resolve_model("poket")
    assert caught.value.do == "Did you mean 'pocket'? Bundled models: marble, pocket."


@pytest.mark.parametrize(
    "model", ["./nothing", "a/b/c", "../x", "/no/such/folder", "-a/b", "a/b@c d"]
)
def test_what_is_neither_folder_nor_hub_id_is_refused(bundled, model):
    with pytest.raises(CheckpointError, match="no model folder"):
        resolve_model(model)


def test_a_path_is_never_taken_for_a_hub_id(bundled):
    with pytest.raises(CheckpointError, match="no model folder"):
        resolve_model(Path("owner/name"))


def test_a_weight_file_is_refused_with_the_folder_to_use(tmp_path):
    folder = write_tiny_checkpoint(tmp_path / "m")
    with pytest.raises(CheckpointError) as caught:
        resolve_model(folder / "model.safetensors")
    assert caught.value.do == f"Use {folder}."


@pytest.mark.parametrize(
    ("model", "folder", "name"),
    [
        ("owner/model-1.5B", "cache/snapshots/0123", "model-1.5B"),
        ("owner/model@v1.0", "cache/snapshots/0123", "model"),
        ("some/where/model", "some/where/model", "model"),
    ],
)
def test_the_name_for_tables_is_short(model, folder, name):
    assert model_name(model, Path(folder)) == name


_RESOLVE = """
import sys
from edgekit.checkpoint.repository import resolve_model
from edgekit.errors import CheckpointError
try:
    print(resolve_model(sys.argv[1]))
except CheckpointError as error:
    print(f"{error.what} | {error.do}")
"""


def resolve_in_child(model, home, **environment):
    """Resolve in a fresh process: huggingface_hub reads its settings when it is imported."""
    done = subprocess.run(
        [sys.executable, "-c", _RESOLVE, model],
        env={**os.environ, "HF_HOME": str(home), "HF_HUB_DISABLE_TELEMETRY": "1", **environment},
        capture_output=True,
        text=True,
        check=False,
    )
    assert "Traceback" not in done.stderr
    return done.stdout.strip()


def test_offline_mode_is_honoured(tmp_path):
    text = resolve_in_child("owner/name@v1", tmp_path, HF_HUB_OFFLINE="1")
    assert text.startswith("owner/name@v1: not in the local cache, and the Hub cannot be reached")


@contextmanager
def hub(answer):
    """Serve the Hub's API on a loopback port; ``answer(path)`` gives (status, headers, body)."""
    asked = []

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            asked.append(f"{self.command} {self.path}")
            status, headers, body = answer(self.path)
            self.send_response(status)
            for key, value in {**headers, "Content-Length": str(len(body))}.items():
                self.send_header(key, value)
            self.end_headers()
            if self.command == "GET":
                self.wfile.write(body)

        do_HEAD = do_GET  # noqa: N815 - the name that http.server looks for

        def log_message(self, *args):
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}", asked
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


@pytest.mark.parametrize(
    ("status", "code", "words"),
    [
        (401, "RepoNotFound", "no such repository on the Hub, or it is private"),
        (403, "GatedRepo", "access is restricted"),
        (404, "RevisionNotFound", "no such revision"),
    ],
)
def test_a_refusal_of_the_hub_becomes_a_checkpoint_error(tmp_path, status, code, words):
    with hub(lambda path: (status, {"X-Error-Code": code, "X-Error-Message": "no"}, b"no")) as (
        url,
        _,
    ):
        text = resolve_in_child("owner/name@v1", tmp_path, HF_ENDPOINT=url)
    assert text.startswith(f"owner/name@v1: {words}")


def test_a_hub_that_answers_nonsense_becomes_a_checkpoint_error(tmp_path):
    with hub(lambda path: (200, {"Content-Type": "application/json"}, b"{")) as (url, _):
        text = resolve_in_child("owner/name", tmp_path, HF_ENDPOINT=url)
    assert text == (
        "owner/name: download failed | Run the command again: what was downloaded is kept."
    )


def test_a_download_brings_weights_and_text_but_no_pickle_and_no_code(tmp_path):
    source = write_tiny_checkpoint(tmp_path / "source", shards=2)
    for name in ("pytorch_model.bin", "modeling_x.py", "consolidated.safetensors"):
        (source / name).write_bytes(b"must not be fetched")
    (source / "onnx").mkdir()
    (source / "onnx" / "model.safetensors").write_bytes(b"must not be fetched")
    names = sorted(p.relative_to(source).as_posix() for p in source.rglob("*") if p.is_file())
    commit = "0123456789abcdef0123456789abcdef01234567"

    def answer(path):
        file_name = path.partition("?")[0].partition(f"/resolve/{commit}/")[2]
        if file_name in names:
            data = (source / file_name).read_bytes()
            etag = hashlib.sha256(data).hexdigest()
            return 200, {"ETag": f'"{etag}"', "X-Repo-Commit": commit}, data
        entries = [
            {"type": "file", "path": n, "size": (source / n).stat().st_size, "oid": "0" * 40}
            for n in names
        ]
        model = {"id": "owner/name", "sha": commit, "siblings": [{"rfilename": n} for n in names]}
        body = json.dumps(entries if "/tree/" in path else model).encode()
        return 200, {"Content-Type": "application/json"}, body

    with hub(answer) as (url, asked):
        folder = Path(resolve_in_child("owner/name", tmp_path / "home", HF_ENDPOINT=url))
    fetched = {line.rpartition(f"/resolve/{commit}/")[2] for line in asked if "/resolve/" in line}
    wanted = {p.name for p in write_tiny_checkpoint(tmp_path / "same", shards=2).iterdir()}
    assert fetched == wanted == {p.name for p in folder.iterdir()}
    with open_checkpoint(folder) as got, open_checkpoint(tmp_path / "same") as same:
        assert got.sha256() == same.sha256()


def test_a_hub_that_is_down_becomes_a_checkpoint_error(tmp_path):
    text = resolve_in_child("owner/name", tmp_path, HF_ENDPOINT="http://127.0.0.1:9")
    assert text.startswith("owner/name: not in the local cache, and the Hub cannot be reached")
