"""What comes from the Hub, over real HTTP with the real huggingface_hub."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import huggingface_hub
import pytest

from edgekit.checkpoint.reader import open_checkpoint
from edgekit.checkpoint.remote import open_headers
from edgekit.hub.download import HubRepo, download
from tests.builders import write_tiny_checkpoint
from tests.hub.hub_case import (
    DOWNLOAD,
    OWNER,
    SHARD,
    TOKEN,
    WANTED,
    blobs,
    error_of,
)
from tests.hub.hub_server import COMMIT, Answer, HubServer

# What is fetched


def test_only_what_edgekit_reads_is_fetched(hub, tmp_path):
    folder = download(OWNER)
    assert hub.fetched() == WANTED == {path.name for path in folder.iterdir()}
    with open_checkpoint(folder) as got, open_checkpoint(hub.folder) as same:
        assert got.sha256() == same.sha256()


def test_weights_under_other_names_are_fetched_as_a_folder_of_them_is_read(hub, monkeypatch):
    (hub.folder / "model.safetensors.index.json").unlink()
    for path in (download(OWNER), open_headers("owner/name").folder):
        with open_checkpoint(path) as got, open_checkpoint(hub.folder) as same:
            assert got.sha256() == same.sha256()
            assert got.notes == same.notes != []
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    assert download(OWNER)


def test_an_index_of_another_name_is_fetched(hub):
    index = hub.folder / "model.safetensors.index.json"
    index.rename(hub.folder / "weights.safetensors.index.json")
    with open_headers("owner/name") as listed, open_checkpoint(hub.folder) as same:
        assert listed.tensors.keys() == same.tensors.keys()
    with open_checkpoint(download(OWNER)) as got, open_checkpoint(hub.folder) as same:
        assert got.sha256() == same.sha256()


def test_a_mirror_that_leaves_out_the_hashes_is_asked_for_the_tree(hub):
    hub.faults.edit_info = lambda info: {
        **info,
        "siblings": [{"rfilename": sibling["rfilename"]} for sibling in info["siblings"]],
    }
    assert {path.name for path in download(OWNER).iterdir()} == WANTED
    assert hub.log[1].path == f"/api/models/owner/name/tree/{COMMIT}"
    right = (hub.folder / SHARD).read_bytes()
    hub.faults.served[SHARD] = right[:-1] + bytes([right[-1] ^ 1])
    shutil.rmtree(os.environ["HF_HOME"])
    assert "the hash is not what the Hub states" in error_of().what


@pytest.mark.parametrize("body", [b"{", b"7", b"[7]", b'[{"path": 1}]', b"[]", b'[], "files": []'])
def test_a_tree_that_makes_no_sense_is_refused(hub, body):
    hub.faults.edit_info = lambda info: {
        **info,
        "siblings": [{"rfilename": sibling["rfilename"]} for sibling in info["siblings"]],
    }
    hub.faults.answers = lambda a: Answer(200, body) if "/tree/" in a.path else None
    assert error_of().what == "owner/name: the Hub's answer is not valid (list of files)"


def test_one_weight_file_needs_no_index(hub):
    for name in (SHARD, "model-00002-of-00002.safetensors"):
        (hub.folder / name).unlink()
    write_tiny_checkpoint(hub.folder)
    folder = download(OWNER)
    assert "model.safetensors.index.json" in hub.names()
    assert hub.fetched() == {path.name for path in folder.iterdir()}
    assert {n for n in hub.fetched() if "safetensors" in n} == {"model.safetensors"}


def test_huggingface_hub_finds_in_its_cache_what_edgekit_downloaded(hub, tmp_path):
    folder = download(OWNER)
    cache = tmp_path / "home" / "hub"
    theirs = huggingface_hub.snapshot_download("owner/name", cache_dir=cache, local_files_only=True)
    assert Path(theirs) == folder
    for name in WANTED:
        found = huggingface_hub.try_to_load_from_cache("owner/name", name, cache_dir=cache)
        assert Path(found).read_bytes() == (hub.folder / name).read_bytes()
    (scanned,) = huggingface_hub.scan_cache_dir(cache).repos
    assert (scanned.repo_id, scanned.nb_files, [*scanned.refs]) == ("owner/name", 8, ["main"])
    before = len(hub.log)
    huggingface_hub.snapshot_download(
        "owner/name", cache_dir=cache, endpoint=hub.url, allow_patterns=[*WANTED]
    )
    assert not [a for a in hub.log[before:] if a.n_sent and a.file]


def test_edgekit_finds_and_checks_what_huggingface_hub_downloaded(hub, tmp_path):
    cache = tmp_path / "home" / "hub"
    theirs = huggingface_hub.snapshot_download(
        "owner/name", cache_dir=cache, endpoint=hub.url, allow_patterns=[*WANTED]
    )
    before = len(hub.log)
    checked = []
    folder = download(OWNER, lambda what, *_: checked.append(what))
    assert folder == Path(theirs)
    assert [a.path.partition("?")[0] for a in hub.log[before:]] == [
        "/api/models/owner/name/revision/main"
    ]
    assert set(checked) == {f"check {name}" for name in WANTED}


def test_a_second_time_asks_only_which_commit_it_is_and_hashes_nothing(hub):
    download(OWNER)
    before, seen = len(hub.log), []
    download(OWNER, lambda *what: seen.append(what))
    assert len(hub.log) - before == 1
    assert seen == []


def test_a_commit_that_is_here_asks_nobody(hub):
    download(HubRepo("owner/name", COMMIT))
    before = len(hub.log)
    assert download(HubRepo("owner/name", COMMIT)).name == COMMIT
    assert len(hub.log) == before


@pytest.mark.parametrize("revision", ["v1.0", "feature/x"])
def test_a_revision_is_asked_for_and_remembered(hub, tmp_path, revision):
    download(HubRepo("owner/name", revision))
    ref = tmp_path / "home" / "hub" / "models--owner--name" / "refs" / revision
    assert ref.read_text() == COMMIT


def test_progress_names_each_file_and_ends_at_its_size(hub):
    seen = []
    download(OWNER, lambda *what: seen.append(what))
    assert {what.partition(" ")[2] for what, _, _ in seen} == WANTED
    assert all(0 <= done <= total for _, done, total in seen)


# Settings


def test_the_token_goes_to_the_hub_and_not_to_the_file_store(hub, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    download(OWNER)
    at_hub = {a.token for a in hub.log if f"http://{a.host}" == hub.url}
    at_store = {a.token for a in hub.log if f"http://{a.host}" == hub.store_url}
    assert at_hub == {f"Bearer {TOKEN}"}
    assert at_store == {None}


def test_the_cache_is_where_the_environment_says(hub, tmp_path, monkeypatch):
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "elsewhere"))
    assert tmp_path / "elsewhere" in download(OWNER).parents
    assert not (tmp_path / "home").exists()


def test_offline_uses_the_cache_and_asks_nobody(hub, monkeypatch):
    folder = download(OWNER)
    before = len(hub.log)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    assert download(OWNER) == folder
    assert len(hub.log) == before


def test_offline_without_the_model_says_so(hub, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    error = error_of()
    assert (
        error.what == "owner/name: not in the local cache, and offline mode forbids asking the Hub"
    )
    assert error.do.startswith("Unset HF_HUB_OFFLINE")
    assert hub.log == []


@pytest.mark.parametrize("fault", ["down", "busy"])
def test_a_hub_that_is_away_is_no_reason_to_refuse_what_is_here(hub, monkeypatch, fault):
    folder = download(OWNER)
    if fault == "down":
        monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    else:
        hub.faults.answers = lambda asked: Answer(503)
    assert download(OWNER) == folder


def test_half_a_model_in_the_cache_is_not_taken_for_one(hub, monkeypatch):
    hub.faults.answers = lambda a: (
        Answer(403) if a.file.endswith("2-of-00002.safetensors") else None
    )
    error_of()
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    assert error_of().what.startswith("owner/name: not in the local cache")


# Cut connections


def test_a_connection_that_breaks_off_is_continued_where_it_ended(hub):
    hub.faults.cuts[SHARD] = [1000, 500]
    folder = download(OWNER)
    assert [(a.range, a.status) for a in hub.asked(SHARD)] == [
        (None, 200),
        ("bytes=1000-", 206),
        ("bytes=1500-", 206),
    ]
    size = (hub.folder / SHARD).stat().st_size
    assert sum(a.n_sent for a in hub.asked(SHARD)) == size
    assert (folder / SHARD).read_bytes() == (hub.folder / SHARD).read_bytes()


def test_the_second_run_continues_with_a_range_request(hub, tmp_path):
    hub.faults.cuts[SHARD] = [1234, 0, 0, 0, 0, 0]
    error = error_of()
    assert "broke off" in error.what
    assert "what was downloaded is kept" in error.do
    partial = blobs(tmp_path) / f"{hub.digest(SHARD)}.incomplete"
    assert partial.stat().st_size == 1200
    before = len(hub.log)
    folder = download(OWNER)
    again = [a for a in hub.log[before:] if a.status in (200, 206)]
    assert [(a.file, a.range) for a in again if a.file == SHARD] == [(SHARD, "bytes=1200-")]
    assert {a.file for a in again} == {"", SHARD, "model-00002-of-00002.safetensors"}
    assert (folder / SHARD).read_bytes() == (hub.folder / SHARD).read_bytes()
    assert not partial.exists()


def test_huggingface_hub_alone_begins_a_broken_file_again(hub, tmp_path):
    """Why edgekit keeps the unfinished file itself; when this fails, that code can go."""
    hub.faults.cuts[SHARD] = [1234, 0, 0, 0, 0, 0]
    arguments = {"cache_dir": tmp_path / "theirs", "endpoint": hub.url, "revision": COMMIT}
    with pytest.raises(huggingface_hub.errors.HTTPError):
        huggingface_hub.hf_hub_download("owner/name", SHARD, **arguments)
    before = len(hub.log)
    huggingface_hub.hf_hub_download("owner/name", SHARD, **arguments)
    assert [a.range for a in hub.log[before:] if a.file == SHARD and a.n_sent] == [None]


def test_a_process_that_was_killed_is_continued_by_the_next(hub, tmp_path):
    hub.faults.stalls[SHARD] = 150_000
    command = [sys.executable, "-c", DOWNLOAD]
    partial = blobs(tmp_path) / f"{hub.digest(SHARD)}.incomplete"
    with subprocess.Popen(command, stdout=subprocess.DEVNULL) as child:
        assert hub.faults.stalled.wait(60)
        while not (partial.is_file() and partial.stat().st_size > 100_000):
            assert child.poll() is None
            time.sleep(0.01)
        child.kill()
    hub.faults.released.set()
    n_kept = partial.stat().st_size
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert [a.range for a in hub.asked(SHARD)] == [None, f"bytes={n_kept}-"]
    folder = Path(done.stdout.strip())
    assert (folder / SHARD).read_bytes() == (hub.folder / SHARD).read_bytes()


def test_a_server_that_falls_silent_is_asked_again(hub):
    hub.faults.stalls[SHARD] = 1000
    done = subprocess.run(
        [sys.executable, "-c", DOWNLOAD],
        env={**os.environ, "HF_HUB_DOWNLOAD_TIMEOUT": "1"},
        capture_output=True,
        text=True,
        check=True,
    )
    hub.faults.released.set()
    assert [a.range for a in hub.asked(SHARD)] == [None, "bytes=1000-"]
    assert (Path(done.stdout.strip()) / SHARD).is_file()


def test_a_server_without_ranges_sends_the_file_again(hub):
    hub.faults.has_ranges = False
    hub.faults.cuts[SHARD] = [1000]
    folder = download(OWNER)
    assert [a.status for a in hub.asked(SHARD)] == [200, 200]
    assert (folder / SHARD).read_bytes() == (hub.folder / SHARD).read_bytes()


def test_two_downloads_at_once_fetch_every_file_once(hub):
    both = [
        subprocess.Popen([sys.executable, "-c", DOWNLOAD], stdout=subprocess.PIPE, text=True)
        for _ in range(2)
    ]
    folders = {child.communicate()[0].strip() for child in both}
    assert [child.returncode for child in both] == [0, 0]
    assert len(folders) == 1
    assert [len(hub.asked(name)) for name in sorted(WANTED)] == [1] * len(WANTED)


def test_the_server_of_these_tests_is_one_that_huggingface_hub_takes_for_the_hub(hub: HubServer):
    api = huggingface_hub.HfApi(endpoint=hub.url, token=False)
    info = api.model_info("owner/name", files_metadata=True)
    assert info.sha == COMMIT
    stated = {s.rfilename: (s.lfs.sha256 if s.lfs else s.blob_id) for s in info.siblings}
    assert stated == {name: hub.digest(name) for name in hub.names()}
    found = huggingface_hub.get_hf_file_metadata(
        huggingface_hub.hf_hub_url("owner/name", SHARD, endpoint=hub.url)
    )
    assert (found.etag, found.commit_hash) == (hub.digest(SHARD), COMMIT)
