"""Claims: importance matrices of both of llama.cpp's forms are read, written, and refused if wrong.

The gguf package reads and writes the current form; the older form is written by hand.
"""

from __future__ import annotations

import struct

import gguf
import numpy as np
import pytest

from edgekit.errors import FormatError
from edgekit.formats.imatrix import Imatrix, ImatrixEntry, gguf_bytes, list_bytes, read_imatrix
from tests.formats.gguf_writer import gguf_bytes as other_gguf_bytes

NAME = "blk.0.attn_q.weight"


def entry(values, *counts):
    return ImatrixEntry(np.array(values, dtype=np.float64), np.array(counts, dtype=np.float64))


TWO = Imatrix(
    {"blk.1.ffn_down.weight": entry([[0.5, 0.0]], 512), NAME: entry([[1.0, 2.0, 4.0]], 512)},
    ("wiki.txt", "chat.txt"),
    n_chunks=2,
    n_chunk_tokens=256,
)


def old_form(*entries, tail=b""):
    """Write (name, chunks, values) one after the other."""
    data = struct.pack("<i", len(entries))
    for name, n_chunks, values in entries:
        data += struct.pack("<i", len(name)) + name.encode()
        data += struct.pack("<ii", n_chunks, len(values)) + struct.pack(f"<{len(values)}f", *values)
    return data + tail


def current_form(sums, counts, *, shape=None, kind="imatrix", name=NAME):
    sums, counts = np.array(sums, "<f4"), np.array(counts, "<f4")
    tensors = {
        f"{name}.in_sum2": ("F32", shape or sums.shape, sums.tobytes()),
        f"{name}.counts": ("F32", counts.shape, counts.tobytes()),
    }
    metadata = {"general.type": kind, "imatrix.datasets": ["a.txt"], "imatrix.chunk_count": 3,
                "imatrix.chunk_size": 512}  # fmt: skip
    return other_gguf_bytes(metadata, tensors)


def read(tmp_path, data):
    (tmp_path / "file").write_bytes(data)
    return read_imatrix(tmp_path / "file")


def same(ours: Imatrix, wanted: Imatrix):
    assert sorted(ours.entries) == sorted(wanted.entries)
    for name, found in ours.entries.items():
        np.testing.assert_array_equal(found.mean_squares, wanted.entries[name].mean_squares)
        np.testing.assert_array_equal(found.counts, wanted.entries[name].counts)
    assert ours.datasets == wanted.datasets
    assert (ours.n_chunks, ours.n_chunk_tokens) == (wanted.n_chunks, wanted.n_chunk_tokens)


def test_the_current_form_is_read_back(tmp_path):
    same(read(tmp_path, gguf_bytes(TWO)), TWO)


def test_the_gguf_package_reads_what_is_written(tmp_path):
    (tmp_path / "a.gguf").write_bytes(gguf_bytes(TWO))
    reader = gguf.GGUFReader(tmp_path / "a.gguf")
    fields = {key: field.contents() for key, field in reader.fields.items()}
    assert fields["general.type"] == "imatrix"
    assert fields["imatrix.datasets"] == ["wiki.txt", "chat.txt"]
    assert (fields["imatrix.chunk_count"], fields["imatrix.chunk_size"]) == (2, 256)
    tensors = {tensor.name: tensor for tensor in reader.tensors}
    assert sorted(tensors) == [
        "blk.0.attn_q.weight.counts",
        "blk.0.attn_q.weight.in_sum2",
        "blk.1.ffn_down.weight.counts",
        "blk.1.ffn_down.weight.in_sum2",
    ]
    # Sums over 512 tokens, not means; sizes of the file, the inner one first.
    sums = tensors["blk.0.attn_q.weight.in_sum2"]
    assert sums.shape.tolist() == [3, 1]
    assert sums.data.reshape(-1).tolist() == [512.0, 1024.0, 2048.0]
    assert tensors["blk.0.attn_q.weight.counts"].data.reshape(-1).tolist() == [512.0]
    assert tensors["blk.0.attn_q.weight.counts"].shape.tolist() == [1, 1]


def test_what_the_gguf_package_writes_is_read(tmp_path):
    writer = gguf.GGUFWriter(tmp_path / "a.gguf", "")
    writer.add_type("imatrix")
    writer.add_array("imatrix.datasets", ["x.txt"])
    writer.add_uint32("imatrix.chunk_count", 7)
    writer.add_uint32("imatrix.chunk_size", 100)
    # Two experts; the second one met no token.
    writer.add_tensor(f"{NAME}.in_sum2", np.array([[8, 4], [0, 0]], dtype=np.float32))
    writer.add_tensor(f"{NAME}.counts", np.array([[4], [0]], dtype=np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    same(
        read_imatrix(tmp_path / "a.gguf"),
        Imatrix({NAME: entry([[2, 1], [0, 0]], 4, 0)}, ("x.txt",), 7, 100),
    )


def test_the_older_form_is_what_llama_cpp_writes(tmp_path):
    # 512 tokens are two chunks of 256, so the sums are twice the mean squares.
    wanted = old_form(
        (NAME, 2, [2.0, 4.0, 8.0]),
        ("blk.1.ffn_down.weight", 2, [1.0, 0.0]),
        tail=struct.pack("<ii", 2, 8) + b"chat.txt",
    )
    assert list_bytes(TWO) == wanted
    found = read(tmp_path, wanted)
    assert found.datasets == ("chat.txt",)
    assert (found.n_chunks, found.n_chunk_tokens) == (2, 0)
    for name, item in TWO.entries.items():
        np.testing.assert_array_equal(found.entries[name].mean_squares, item.mean_squares)
        assert found.entries[name].counts.tolist() == [2.0]


def test_a_part_of_a_chunk_counts_as_one():
    some = Imatrix({NAME: entry([[1.0]], 257)}, (), 2, 256)
    assert list_bytes(some) == old_form((NAME, 2, [2.0]), tail=struct.pack("<ii", 2, 0))


def test_the_oldest_files_end_after_the_entries(tmp_path):
    found = read(tmp_path, old_form((NAME, 4, [4.0, 8.0])))
    same(found, Imatrix({NAME: entry([[1.0, 2.0]], 4)}))


def test_one_written_and_read_again_has_the_same_bytes(tmp_path):
    for write in (gguf_bytes, list_bytes):
        first = write(TWO)
        again = read(tmp_path, gguf_bytes(TWO)) if write is list_bytes else read(tmp_path, first)
        assert write(again) == first


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"", "file ends inside the number of entries"),
        (b"GGU", "file ends inside the number of entries"),
        (struct.pack("<i", 0), "no entry"),
        (struct.pack("<i", -1), "number of entries at offset 0; got -1"),
        (struct.pack("<i", 1 << 30), "number of entries at offset 0; got 1073741824"),
        (struct.pack("<ii", 1, 1 << 20), "length of the name of entry 0"),
        (struct.pack("<ii", 1, 2) + b"\xff\xfe", "UTF-8"),
        (struct.pack("<ii", 1, 1) + b"a" + struct.pack("<ii", 1, -5), "number of values"),
        (struct.pack("<ii", 1, 1) + b"a" + struct.pack("<ii", 1, 1 << 25), "values of a"),
        (struct.pack("<ii", 1, 1) + b"a" + struct.pack("<ii", 1, 0), "number of values; got 0"),
        (struct.pack("<ii", 1, 1) + b"a" + struct.pack("<ii", -1, 1), "chunks"),
        (old_form((NAME, 1, [1.0, float("nan")])), "sums of squares; got nan"),
        (old_form((NAME, 1, [float("inf")])), "sums of squares; got inf"),
        (old_form((NAME, 1, [-1.0])), "sums of squares; got -1.0"),
        (old_form((NAME, 1, [1.0]), (NAME, 1, [1.0])), "entry given twice"),
        (old_form((NAME, 1, [1.0]), tail=struct.pack("<ii", 1, 0) + b"x"), "bytes after the end"),
        (old_form((NAME, 1, [1.0]), tail=struct.pack("<ii", 1, 9) + b"x"), "name of the dataset"),
        (old_form((NAME, 1, [1.0]), tail=b"\1"), "number of chunks"),
        (current_form([[1.0]], [[1.0]], kind="model"), "got 'model'; wanted 'imatrix'"),
        (current_form([[1.0]], [[float("nan")]]), "counts; got nan"),
        (current_form([[1.0]], [[-2.0]]), "counts; got -2.0"),
        (current_form([[float("nan")]], [[1.0]]), "sums of squares; got nan"),
        (current_form([[1.0], [1.0]], [[1.0]]), "sums of 2 matrices, counts of 1"),
        (other_gguf_bytes({"general.type": "imatrix"}, {}), "no entry"),
        (
            other_gguf_bytes(
                {"general.type": "imatrix"}, {"a.in_sum2": ("F32", (1, 1), b"\0\0\0\0")}
            ),
            "its sums without its counts",
        ),
        (
            other_gguf_bytes(
                {"general.type": "imatrix"},
                {"a.in_sum2": ("F16", (1, 2), bytes(4)), "a.counts": ("F32", (1, 1), bytes(4))},
            ),
            "got F16; wanted F32",
        ),
        (
            other_gguf_bytes(
                {"general.type": "imatrix", "imatrix.chunk_count": "many"},
                {"a.in_sum2": ("F32", (1, 2), bytes(8)), "a.counts": ("F32", (1, 1), bytes(4))},
            ),
            "imatrix.chunk_count; got many",
        ),
        (current_form([[1.0, 2.0]], [[1.0]])[:-40], "file"),
    ],
)
def test_files_that_are_wrong_are_refused(tmp_path, data, words):
    with pytest.raises(FormatError, match=r"file") as caught:
        read(tmp_path, data)
    assert words in str(caught.value)


def test_every_beginning_of_a_file_is_read_or_refused(tmp_path):
    for data in (gguf_bytes(TWO), list_bytes(TWO)):
        n_read = 0
        for n_bytes in range(len(data)):
            try:
                read(tmp_path, data[:n_bytes])
                n_read += 1
            except FormatError:
                continue
        # The older form may end after its entries; the current one where only padding is left.
        assert n_read <= 32


@pytest.mark.parametrize(
    ("imatrix", "words"),
    [
        (Imatrix({NAME: entry([[np.nan]], 1)}, (), 1, 1), "mean squares; got nan"),
        (Imatrix({NAME: entry([[1.0]], 0)}, (), 1, 1), "got no token"),
    ],
)
def test_nothing_wrong_is_written(imatrix, words):
    for write in (gguf_bytes, list_bytes):
        with pytest.raises(FormatError, match=words):
            write(imatrix)


def test_the_older_form_needs_the_size_of_a_chunk():
    with pytest.raises(FormatError, match="no chunk size"):
        list_bytes(Imatrix({NAME: entry([[1.0]], 1)}))


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(FormatError, match=r"nothing\.gguf: cannot be read"):
        read_imatrix(tmp_path / "nothing.gguf")
