"""A listing comes from a server: what in it is refused before anything is fetched."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from edgekit.errors import CheckpointError, MissingFileError
from edgekit.hub.http import HubClient
from edgekit.hub.listing import fetch_listing
from tests.hub.hub_case import (
    OWNER,
    SHARD,
    blobs,
    error_of,
    with_entry,
)
from tests.hub.hub_server import Answer


def _no_sha(info):
    del info["sha"]
    return info


@pytest.mark.parametrize(
    ("edit", "got"),
    [
        (lambda info: [], "list"),
        (_no_sha, "sha None"),
        (lambda info: {**info, "sha": "../../x"}, "sha '../../x'"),
        (lambda info: {**info, "siblings": None}, "siblings NoneType"),
        (lambda info: {**info, "siblings": [7]}, "file 7"),
        (lambda info: {**info, "siblings": [{"size": 1}]}, "file {'size': 1}"),
        (with_entry(lfs={"size": 5}), f"{SHARD}: hash None"),
        (with_entry(lfs="x"), f"{SHARD}: hash None"),
        (with_entry(lfs={"sha256": "../" * 20, "size": 5}), f"{SHARD}: hash '{'../' * 20}'"),
        (with_entry(lfs={"sha256": "0" * 64, "size": -1}), f"{SHARD}: size -1"),
        (with_entry(lfs={"sha256": "0" * 64, "size": 1 << 80}), f"{SHARD}: size {1 << 80}"),
        (with_entry(lfs={"sha256": "0" * 64, "size": True}), f"{SHARD}: size True"),
        (with_entry(lfs=None, blobId=None), f"{SHARD}: hash None"),
    ],
)
def test_a_listing_that_makes_no_sense_is_refused(hub, edit, got):
    hub.faults.edit_info = edit
    error = error_of()
    assert error.what == "owner/name: the Hub's answer is not valid (list of files)"
    assert error.got == got


_JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text() | st.just("a" * 40) | st.just("../x"),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=5,
)


def _places(value, at=()):
    """Every place in a JSON value, as the keys that lead there."""
    yield at
    if isinstance(value, dict | list):
        for key in value if isinstance(value, dict) else range(len(value)):
            yield from _places(value[key], (*at, key))


@settings(max_examples=80, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_no_listing_escapes_the_folder_or_our_errors(hub, data):
    info = hub.info()
    for _ in range(data.draw(st.integers(1, 3))):
        at = data.draw(st.sampled_from([place for place in _places(info) if place]))
        part = info
        for key in at[:-1]:
            part = part[key]
        part[at[-1]] = data.draw(_JSON)
    hub.faults.edit_info = lambda _: info
    try:
        found = fetch_listing(HubClient(OWNER))
    except CheckpointError:
        return
    assert len(found.commit) == 40
    for file in found.files.values():
        assert Path(file.name).name == file.name
        assert len(file.digest) in (40, 64)
        assert set(file.digest) <= set("0123456789abcdef")
        assert 0 <= file.n_bytes <= 1 << 50


@pytest.mark.parametrize(
    "body", [b"{", b"<html>sign in</html>", b"", b'{"sha": NaN}', b"\xff", b"[" * 99999]
)
def test_an_answer_that_is_not_json_is_refused(hub, body):
    hub.faults.answers = lambda asked: Answer(200, body)
    assert "is not valid" in error_of().what


@pytest.mark.parametrize(
    "name", ["../config.json", "/etc/passwd", "a/../../b", "a\\b", "C:x", "a//b", "./a", "a\nb"]
)
def test_a_name_that_leaves_the_folder_refuses_the_repository(hub, tmp_path, name):
    hub.faults.edit_info = lambda info: {
        **info,
        "siblings": [*info["siblings"], {"rfilename": name, "size": 1, "blobId": "0" * 40}],
    }
    assert error_of().what == "owner/name: a file name in the repository leaves its folder"
    assert not blobs(tmp_path).exists()


def test_an_index_that_names_a_file_elsewhere_is_refused(hub):
    path = hub.folder / "model.safetensors.index.json"
    path.write_text(json.dumps({"weight_map": {"x": "../../evil.safetensors"}}))
    assert error_of().got == "'../../evil.safetensors'"


def test_an_index_that_names_an_absent_file_is_refused(hub):
    (hub.folder / SHARD).unlink()
    error = error_of()
    assert isinstance(error, MissingFileError)
    assert error.got == f"no {SHARD}"


def test_a_repository_of_pickles_is_refused_before_anything_is_fetched(hub):
    for path in hub.folder.glob("model*"):
        path.unlink()
    assert error_of().got == "pytorch_model.bin (pickle files are never read)"
    assert hub.fetched() == set()
