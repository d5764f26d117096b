"""Claims about remembered hashes: they cost no reading, and never stand for other bytes."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from hashlib import sha256
from pathlib import Path

import pytest

from edgekit import file_hashes
from edgekit.file_hashes import hash_file, hash_files
from edgekit.files import FileState

NAMES = ("a", "sub/b")


@pytest.fixture
def home(tmp_path, monkeypatch) -> Path:
    monkeypatch.setenv("EDGEKIT_HOME", str(tmp_path / "home"))
    return tmp_path / "home" / "hashes"


@pytest.fixture
def folder(tmp_path, monkeypatch) -> Path:
    """A folder of two files, old enough for their hashes to be remembered."""
    place = tmp_path / "m"
    (place / "sub").mkdir(parents=True)
    (place / "a").write_bytes(b"one")
    (place / "sub" / "b").write_bytes(b"two")
    monkeypatch.setattr(file_hashes, "_SETTLED_NS", 50_000_000)
    time.sleep(0.06)
    return place


@pytest.fixture
def read(monkeypatch) -> list[str]:
    """Names of the files that were read to be hashed, in order."""
    seen: list[str] = []
    real = file_hashes._hash

    def spy(path):
        seen.append(path.name)
        return real(path)

    monkeypatch.setattr(file_hashes, "_hash", spy)
    return seen


def wanted(folder: Path) -> dict[str, str]:
    return {name: sha256((folder / name).read_bytes()).hexdigest() for name in NAMES}


def test_a_file_that_stays_as_it_is_is_read_once(home, folder, read):
    for _ in range(3):
        assert hash_files(folder, NAMES) == wanted(folder)
    assert read == ["a", "b"]
    (record,) = home.iterdir()
    data = json.loads(record.read_text())
    assert data["folder"] == str(folder.resolve())
    state = FileState.of(folder / "a")
    assert data["files"]["a"] == [
        state.n_bytes, state.mtime_ns, state.ctime_ns, state.inode, state.device,
        hash_file(folder / "a"),
    ]  # fmt: skip


def test_a_link_to_the_folder_and_another_spelling_are_the_same_folder(home, folder, read):
    (folder.parent / "link").symlink_to(folder)
    for path in (folder, folder.parent / "link", folder / ".." / "m"):
        assert hash_files(path, NAMES) == wanted(folder)
    assert read == ["a", "b"]


def same_size(path: Path) -> None:
    path.write_bytes(b"ONE")


def same_size_and_time(path: Path) -> None:
    status = path.stat()
    path.write_bytes(b"ONE")
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))


def another_in_its_place(path: Path) -> None:
    other = path.with_name("other")
    other.write_bytes(b"ONE")
    shutil.copystat(path, other)
    other.replace(path)


def one_byte_in_place(path: Path) -> None:
    status = path.stat()
    with path.open("r+b") as stream:
        stream.write(b"O")
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))


@pytest.mark.parametrize(
    "change", [same_size, same_size_and_time, another_in_its_place, one_byte_in_place]
)
def test_a_changed_file_is_read_again_and_only_it(home, folder, read, change: Callable):
    before = hash_files(folder, NAMES)
    change(folder / "a")
    after = hash_files(folder, NAMES)
    assert after == wanted(folder) != before
    assert read == ["a", "b", "a"]


def test_a_file_written_just_now_is_not_remembered(home, tmp_path, read):
    """Within one tick of the clock a second writing would leave the same state."""
    (tmp_path / "a").write_bytes(b"one")
    hash_files(tmp_path, ["a"])
    hash_files(tmp_path, ["a"])
    assert read == ["a", "a"]
    assert not home.exists()


def test_a_clock_that_is_behind_the_files_means_hashing_again(home, folder, read, monkeypatch):
    monkeypatch.setattr(file_hashes.time, "time_ns", lambda: 1_000_000_000)
    for _ in range(2):
        assert hash_files(folder, NAMES) == wanted(folder)
    assert read == ["a", "b", "a", "b"]


def test_a_file_that_changes_while_it_is_read_is_not_remembered(home, folder, monkeypatch):
    real = file_hashes.open_plain

    def open_and_write(path):
        stream = real(path)
        if path.name == "a":
            path.write_bytes(b"ONE")
        return stream

    monkeypatch.setattr(file_hashes, "open_plain", open_and_write)
    hash_files(folder, NAMES)
    (record,) = home.iterdir()
    assert json.loads(record.read_text())["files"].keys() == {"sub/b"}


@pytest.mark.parametrize(
    "damage",
    [
        lambda p: p.write_bytes(b""),
        lambda p: p.write_bytes(b"\xff" * 100),
        lambda p: p.write_text("[" * 100_000),
        lambda p: p.write_text("7"),
        lambda p: p.write_text('{"folder": "elsewhere", "files": {}}'),
        lambda p: p.write_text(p.read_text().replace('"a": [', '"a": [1, ')),
        lambda p: p.write_text(p.read_text().replace('"a": [', '"a": 7, "x": [')),
        lambda p: p.write_text(p.read_text().replace('"files": {', '"files": [{')),
        lambda p: p.write_bytes(b" " * (2 << 20)),
        lambda p: (p.unlink(), p.mkdir()),
        lambda p: (p.unlink(), os.mkfifo(p)),
        lambda p: (p.unlink(), p.symlink_to("/dev/zero")),
    ],
)
def test_a_damaged_record_means_hashing_again(home, folder, read, damage):
    hash_files(folder, NAMES)
    (record,) = home.iterdir()
    damage(record)
    assert hash_files(folder, NAMES) == wanted(folder)
    assert read == ["a", "b", "a", "b"]


@pytest.mark.parametrize("place", ["file", "nowhere"])
def test_a_cache_that_cannot_be_written_means_hashing_again(
    place, folder, read, tmp_path, monkeypatch
):
    (tmp_path / "file").write_text("x")
    monkeypatch.setenv(
        "EDGEKIT_HOME", "/proc/nowhere" if place == "nowhere" else f"{tmp_path}/file"
    )
    for _ in range(2):
        assert hash_files(folder, NAMES) == wanted(folder)
    assert read == ["a", "b", "a", "b"]


def test_a_user_without_a_home_means_hashing_again(folder, read, monkeypatch):
    def no_home():
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.setattr(file_hashes, "cache_dir", no_home)
    for _ in range(2):
        assert hash_files(folder, NAMES) == wanted(folder)
    assert read == ["a", "b", "a", "b"]


def test_the_number_of_records_is_bounded(home, folder, monkeypatch, tmp_path):
    monkeypatch.setattr(file_hashes, "_MAX_RECORDS", 3)
    for i in range(6):
        copy = shutil.copytree(folder, tmp_path / f"m{i}")
        time.sleep(0.06)
        hash_files(copy, NAMES)
    assert len(list(home.iterdir())) == 3
    assert str(tmp_path / "m5") in "".join(path.read_text() for path in home.iterdir())


CHILD = """
import sys
from pathlib import Path
from edgekit import file_hashes
file_hashes._SETTLED_NS = 0
for _ in range(200):
    found = file_hashes.hash_files(Path(sys.argv[1]), ["a", "sub/b"])
    Path(sys.argv[1], "a").touch()
print(found["a"], found["sub/b"])
"""


def test_processes_that_write_one_record_at_once_all_get_the_right_hashes(home, folder):
    command = [sys.executable, "-c", CHILD, str(folder)]
    running = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(4)]
    texts = {child.communicate()[0].strip() for child in running}
    assert texts == {" ".join(wanted(folder).values())}
    assert [path.suffix for path in home.iterdir()] == [".json"]


def test_what_is_no_plain_file_is_an_error(home, folder):
    os.mkfifo(folder / "pipe")
    with pytest.raises(OSError, match="not a plain file"):
        hash_files(folder, ["a", "pipe"])
    with pytest.raises(FileNotFoundError):
        hash_files(folder, ["gone"])
