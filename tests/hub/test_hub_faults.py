"""What is said when the Hub refuses, breaks off or sends something else."""

from __future__ import annotations

import gzip
import os

import huggingface_hub
import pytest

from edgekit.hub.download import HubRepo, download
from tests.hub.hub_case import (
    OWNER,
    SHARD,
    TOKEN,
    WANTED,
    blobs,
    error_of,
    with_entry,
)
from tests.hub.hub_server import COMMIT, Answer

# Files that are not what the Hub states


def test_a_wrong_hash_is_found_and_the_file_removed(hub, tmp_path):
    right = (hub.folder / SHARD).read_bytes()
    hub.faults.served[SHARD] = right[:-1] + bytes([right[-1] ^ 1])
    error = error_of()
    assert error.what == (
        f"owner/name: {SHARD}: the hash is not what the Hub states; the file was removed"
    )
    assert error.wanted == hub.digest(SHARD)
    assert len(error.got) == 64 != error.wanted
    assert "Run the command again" in error.do
    assert not list(blobs(tmp_path).glob(f"{hub.digest(SHARD)}*"))
    hub.faults.served.clear()
    assert (download(OWNER) / SHARD).read_bytes() == right


def test_a_small_file_is_checked_too(hub):
    right = (hub.folder / "config.json").read_bytes()
    hub.faults.served["config.json"] = right.replace(b"1", b"2")
    assert error_of().what.startswith("owner/name: config.json: the hash is not")


@pytest.mark.parametrize("change", ["longer", "shorter"])
def test_a_wrong_size_is_found(hub, tmp_path, change):
    right = (hub.folder / SHARD).read_bytes()
    hub.faults.served[SHARD] = right + b"x" if change == "longer" else right[:-1]
    error = error_of()
    if change == "longer":
        assert error.what == f"owner/name: the Hub's answer is not valid ({SHARD})"
        assert error.got == f"more than {len(right)} bytes"
    else:
        assert error.what.startswith(f"owner/name: {SHARD}: the size in bytes is not what the Hub")
        assert (error.got, error.wanted) == (str(len(right) - 1), str(len(right)))
    assert not list(blobs(tmp_path).glob(f"{hub.digest(SHARD)}*"))


def test_a_damaged_blob_of_another_tool_is_found_and_removed(hub, tmp_path):
    cache = tmp_path / "home" / "hub"
    huggingface_hub.snapshot_download(
        "owner/name", cache_dir=cache, endpoint=hub.url, allow_patterns=[*WANTED]
    )
    blob = blobs(tmp_path) / hub.digest(SHARD)
    data = blob.read_bytes()
    blob.write_bytes(bytes([data[0] ^ 1]) + data[1:])
    assert error_of().what.endswith("the hash is not what the Hub states; the file was removed")
    assert not blob.exists()
    assert (download(OWNER) / SHARD).read_bytes() == data


def test_a_file_that_changed_after_the_check_is_checked_again(hub, tmp_path):
    source = HubRepo("owner/name", COMMIT)
    download(source)
    blob = blobs(tmp_path) / hub.digest(SHARD)
    data = bytearray(blob.read_bytes())
    data[-1] ^= 1
    blob.write_bytes(data)
    os.utime(blob, ns=(1, 1))
    assert "the hash is not what the Hub states" in error_of(source).what


# Refusals


@pytest.mark.parametrize(
    ("status", "code", "message", "what", "do"),
    [
        (401, "GatedRepo", "log in", "access is restricted", "Accept the licence"),
        (403, "GatedRepo", "not on the list", "access is restricted", "Accept the licence"),
        (401, "RepoNotFound", "no", "no such repository on the Hub, or it is private", "Check the"),
        (401, "", "", "no such repository on the Hub, or it is private", "Check the spelling"),
        (
            401,
            "",
            "Invalid credentials in Authorization header",
            "the Hub does not accept the access token",
            "Set HF_TOKEN",
        ),
        (403, "", "forbidden", "access is refused", "Set HF_TOKEN to a token"),
        (404, "", "", "no such repository on the Hub, or it is private", "Check the spelling"),
        (404, "EntryNotFound", "", "the Hub lists list of files but does not have it", None),
        (
            429,
            "",
            "",
            "the Hub asks to slow down (list of files)",
            "Run the command again in a few",
        ),
        (500, "", "oops", "the Hub has a fault (list of files)", "Run the command again in a few"),
        (503, "", "", "the Hub has a fault (list of files)", "Run the command again in a few"),
        (418, "", "", "the Hub refuses list of files", "If HF_ENDPOINT is set"),
    ],
)
def test_every_refusal_is_explained(hub, status, code, message, what, do):
    said = {"X-Error-Code": code, "X-Error-Message": message}
    hub.faults.answers = lambda asked: Answer(status, b"<html>", said)
    error = error_of()
    assert error.what == f"owner/name: {what}"
    assert error.got == (f"HTTP {status}: {message}" if message else f"HTTP {status}")
    assert (error.do or "").startswith(do or "")


@pytest.mark.parametrize(
    ("headers", "when"),
    [
        ({"Retry-After": "37"}, "in 37 s"),
        ({"RateLimit": '"api";r=0;t=55'}, "in 55 s"),
        ({"Retry-After": "Wed, 21 Oct 2026 07:28:00 GMT"}, "in a few minutes"),
        ({"Retry-After": "9" * 5000}, "in a few minutes"),
    ],
)
def test_a_hub_that_is_busy_says_when_to_come_back(hub, headers, when):
    hub.faults.answers = lambda asked: Answer(429, b"", headers)
    assert f"Run the command again {when}:" in error_of().do


def test_a_short_wait_during_the_weights_is_waited_for(hub):
    busy = [Answer(429, b"", {"RateLimit": '"api";r=0;t=0'})] * 2
    hub.faults.answers = lambda a: busy.pop() if a.file == SHARD and busy else None
    assert (download(OWNER) / SHARD).is_file()


def test_a_gated_model_lists_its_files_and_refuses_them(hub):
    said = {"X-Error-Code": "GatedRepo", "X-Error-Message": "Access to model is restricted"}
    hub.faults.answers = lambda a: Answer(401, b"", said) if a.file else None
    error = error_of()
    assert (error.what, error.got) == (
        "owner/name: access is restricted",
        "HTTP 401: Access to model is restricted",
    )


def test_text_that_a_proxy_packs_is_unpacked(hub):
    def packed(asked):
        if asked.file not in ("config.json", "tokenizer.json"):
            return None
        body = gzip.compress((hub.folder / asked.file).read_bytes())
        return Answer(200, body, {"Content-Encoding": "gzip"})

    hub.faults.answers = packed
    folder = download(OWNER)
    assert (folder / "tokenizer.json").read_bytes() == (hub.folder / "tokenizer.json").read_bytes()


def test_a_bomb_ends_at_the_size_that_was_stated(hub, tmp_path):
    bomb = gzip.compress(bytes(200_000_000), 9)
    hub.faults.answers = lambda a: (
        Answer(200, bomb, {"Content-Encoding": "gzip"}) if a.file == "config.json" else None
    )
    assert error_of().what == "owner/name: the Hub's answer is not valid (config.json)"
    assert not list(blobs(tmp_path).iterdir())


@pytest.mark.parametrize("packing", ["gzip, gzip", "br", "zstd", "deflate, gzip"])
def test_what_is_packed_twice_or_tighter_is_not_unpacked(hub, packing):
    bomb = gzip.compress(gzip.compress(bytes(10_000_000), 9))
    hub.faults.answers = lambda a: (
        Answer(200, bomb, {"Content-Encoding": packing}) if a.file == "config.json" else None
    )
    error = error_of()
    assert error.what == "owner/name: the Hub's answer is not valid (config.json)"
    assert error.got == f"encoding {packing}"


def test_an_unknown_revision_is_named(hub):
    error = error_of(HubRepo("owner/name", "v9"))
    assert error.what == "owner/name@v9: no such revision"
    assert error.do == "Name a branch, tag or commit of the repository."


def test_a_hub_that_is_down_is_explained(hub, monkeypatch):
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    error = error_of()
    assert error.what == "owner/name: the Hub cannot be reached, or broke off (list of files)"
    assert error.got.startswith("ConnectError")


@pytest.mark.parametrize("address", ["nonsense", "ftp://x", "http://", "http://x:port", "http://["])
def test_an_endpoint_that_is_no_address_is_refused(hub, monkeypatch, address):
    monkeypatch.setenv("HF_ENDPOINT", address)
    assert error_of().what == "HF_ENDPOINT is not an address"


def test_the_token_is_never_shown(hub, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    said = {"X-Error-Message": f"bad token {TOKEN} in request\x07"}
    hub.faults.answers = lambda asked: Answer(403, TOKEN.encode(), said)
    error = error_of()
    assert error.got == "HTTP 403: bad token *** in request"
    assert TOKEN not in repr(error.as_dict())


def test_a_disk_that_is_full_is_found_before_the_download(hub):
    hub.faults.edit_info = with_entry(lfs={"sha256": "0" * 64, "size": 1 << 50})
    error = error_of()
    assert error.what == "owner/name: not enough disk space"
    assert hub.asked(SHARD) == []


def test_a_cache_that_cannot_be_written_is_explained(hub, tmp_path, monkeypatch):
    (tmp_path / "file").write_text("x")
    monkeypatch.setenv("HF_HOME", str(tmp_path / "file"))
    error = error_of()
    assert error.what == "owner/name: the cache cannot be written"
    assert "HF_HOME" in error.do


def test_a_redirect_that_never_ends_is_explained(hub):
    hub.faults.answers = lambda a: Answer(302, b"", {"Location": hub.url + a.path})
    assert "cannot be reached" in error_of().what
