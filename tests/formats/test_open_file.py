from __future__ import annotations

import os
import subprocess
import sys

import numpy as np
import pytest
import safetensors.numpy

from edgekit.errors import FormatError
from edgekit.formats import open_file
from edgekit.formats.open_file import OpenFile


def test_bytes_come_from_the_place_asked_for_and_outlive_the_file(tmp_path):
    (tmp_path / "x").write_bytes(bytes(range(10)))
    with OpenFile(tmp_path / "x") as file:
        assert file.n_bytes == 10
        part = file.read_at(3, 4)
        assert file.read_at(10, 0).size == 0
    assert part.tolist() == [3, 4, 5, 6]
    with pytest.raises(FormatError, match="read after the file was closed"):
        file.read_at(0, 1)


def test_large_reads_are_split_and_pieces_join_to_the_whole(tmp_path, monkeypatch):
    content = os.urandom(1000)
    (tmp_path / "x").write_bytes(content)
    monkeypatch.setattr(open_file, "_MAX_READ_BYTES", 7)
    monkeypatch.setattr(open_file, "_PIECE_BYTES", 300)
    with OpenFile(tmp_path / "x") as file:
        assert file.read_at(1, 998).tobytes() == content[1:999]
        pieces = [piece.tobytes() for piece in file.read_pieces(5, 900)]
    assert [len(piece) for piece in pieces] == [300, 300, 300]
    assert b"".join(pieces) == content[5:905]


def test_what_was_read_and_let_go_takes_no_memory(tmp_path):
    """200 MiB read row by row in a process of its own; a map would count all of it."""
    safetensors.numpy.save_file({"a": np.ones((100, 1 << 19), np.float32)}, tmp_path / "x")
    code = (
        "import resource, sys; from edgekit.formats.safetensors import SafetensorsFile\n"
        "file = SafetensorsFile(sys.argv[1])\n"
        "before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss\n"
        "assert sum(file.tensors['a'].read_rows(i, i + 1)[0, 0] for i in range(100)) == 100\n"
        "print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)"
    )
    command = [sys.executable, "-c", code, str(tmp_path / "x")]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    unit = 1 if sys.platform == "darwin" else 1024
    assert int(done.stdout) * unit < 40 << 20
