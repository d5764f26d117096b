"""Claims: a GGUF file reads as it was written; a damaged one is a FormatError, whatever it says."""

from __future__ import annotations

import struct

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgekit.errors import FormatError
from edgekit.formats import gguf as gguf_format
from edgekit.formats.gguf import GgufFile
from tests.formats.gguf_writer import gguf_bytes, q4_0_bytes, text

METADATA = {
    "general.architecture": "llama",
    "llama.block_count": 2,
    "llama.rope.freq_base": 10000.0,
    "is_it": True,
    "tokenizer.ggml.tokens": ["<s>", "é", ""],
    "tokenizer.ggml.scores": [0.5, 1.5, 2.5],
}
CODES = np.arange(4 * 64).reshape(4, 64).astype(np.uint8) % 16
SCALES = np.arange(1, 9, dtype=np.float16).reshape(4, 2)
TENSORS = {
    "norm": ("F32", (5,), np.arange(5, dtype="<f4").tobytes()),
    "matrix": ("Q4_0", (4, 64), q4_0_bytes(CODES, SCALES)),
    "half": ("F16", (2, 3), np.arange(6, dtype="<f2").tobytes()),
}
GOOD = gguf_bytes(METADATA, TENSORS)


def write(tmp_path, content):
    path = tmp_path / "m.gguf"
    path.write_bytes(content)
    return path


@pytest.mark.parametrize("version", [2, 3])
@pytest.mark.parametrize("alignment", [32, 64])
def test_a_file_reads_as_it_was_written(tmp_path, version, alignment):
    metadata = METADATA | ({"general.alignment": alignment} if alignment != 32 else {})
    content = gguf_bytes(metadata, TENSORS, version=version, alignment=alignment)
    with GgufFile(write(tmp_path, content)) as file:
        assert file.metadata["llama.block_count"] == 2
        assert file.metadata["llama.rope.freq_base"] == 10000.0
        assert file.metadata["is_it"] is True
        assert file.metadata["general.architecture"] == "llama"
        assert file.metadata["tokenizer.ggml.tokens"].n_items == 3
        assert file.texts("tokenizer.ggml.tokens") == ["<s>", "é", ""]
        assert file.numbers("tokenizer.ggml.scores").tolist() == [0.5, 1.5, 2.5]
        for read, key in (
            (file.texts, "tokenizer.ggml.scores"),
            (file.texts, "is_it"),
            (file.numbers, "tokenizer.ggml.tokens"),
            (file.numbers, "absent"),
        ):
            with pytest.raises(FormatError, match=key):
                read(key)
        assert list(file.tensors) == list(TENSORS)
        for name, (kind, shape, data) in TENSORS.items():
            tensor = file.tensors[name]
            assert (tensor.kind.name, tensor.shape, tensor.n_bytes) == (kind, shape, len(data))
            assert tensor.raw().tobytes() == data
        tensor = file.tensors["norm"]
    with pytest.raises(FormatError, match="after the file was closed"):
        tensor.raw()


def with_bytes(at, data):
    return GOOD[:at] + data + GOOD[at + len(data) :]


def tensor_file(kind=0, sizes=(4,), offset=0, name="t", n_data=64, axes=None):
    head = b"GGUF" + struct.pack("<IQQ", 3, 1, 0) + text(name)
    head += struct.pack("<I", len(sizes) if axes is None else axes)
    head += b"".join(struct.pack("<Q", size) for size in sizes) + struct.pack("<IQ", kind, offset)
    return head + b"\0" * (-len(head) % 32 + n_data)


def key_file(value, key="k", n_keys=1):
    return b"GGUF" + struct.pack("<IQQ", 3, 0, n_keys) + text(key) + value + b"\0" * 64


HUGE = 2**64 - 1
ONE = struct.pack("<II", 4, 1)
DAMAGED = {
    "empty": b"",
    "other magic": b"GGML" + GOOD[4:],
    "version 1": with_bytes(4, struct.pack("<I", 1)),
    "big-endian": with_bytes(4, struct.pack(">I", 3)),
    "huge number of tensors": with_bytes(8, struct.pack("<Q", HUGE)),
    "more tensors than there are": with_bytes(8, struct.pack("<Q", 60000)),
    "huge number of keys": with_bytes(16, struct.pack("<Q", HUGE)),
    "huge key": with_bytes(24, struct.pack("<Q", HUGE)),
    "key that ends after the file": with_bytes(24, struct.pack("<Q", 1000)),
    "key that is no UTF-8": with_bytes(32, b"\xff\xfe"),
    "only the magic": b"GGUF",
    "cut in the header": GOOD[:100],
    "cut in the data": GOOD[:-40],
    "unknown value type": key_file(struct.pack("<I", 13)),
    "huge string": key_file(struct.pack("<IQ", 8, HUGE)),
    "huge array": key_file(struct.pack("<IIQ", 9, 0, HUGE)),
    "array after the file": key_file(struct.pack("<IIQ", 9, 10, 4_000_000)),
    "array of strings after the file": key_file(struct.pack("<IIQ", 9, 8, 4_000_000)),
    "array of arrays": key_file(struct.pack("<IIQ", 9, 9, 1)),
    "array of unknown items": key_file(struct.pack("<IIQ", 9, 77, 1)),
    "key twice": key_file(
        struct.pack("<II", 4, 1) + text("k") + struct.pack("<II", 4, 1), n_keys=2
    ),
    "alignment 0": gguf_bytes(METADATA | {"general.alignment": 0}, TENSORS),
    "alignment 48": gguf_bytes(METADATA | {"general.alignment": 48}, TENSORS),
    "alignment of 2 GiB": gguf_bytes(METADATA | {"general.alignment": 2**31}, TENSORS),
    "alignment is text": gguf_bytes(METADATA | {"general.alignment": "32"}, TENSORS),
    "alignment is true": gguf_bytes(METADATA | {"general.alignment": True}, TENSORS),
    "unknown tensor type": tensor_file(kind=99),
    "withdrawn tensor type": tensor_file(kind=31),
    "no axes": tensor_file(sizes=()),
    "five axes": tensor_file(sizes=(1, 1, 1, 1, 1)),
    "huge number of axes": tensor_file(axes=2**32 - 1),
    "a size of 0": tensor_file(sizes=(4, 0)),
    "huge size": tensor_file(sizes=(HUGE,)),
    "product that overflows": tensor_file(sizes=(2**32, 2**32)),
    "row that blocks do not divide": tensor_file(kind=2, sizes=(33,)),
    "huge offset": tensor_file(offset=HUGE - 31),
    "offset that is not aligned": tensor_file(offset=16),
    "data after the file": tensor_file(sizes=(17,)),
    "offset after the file": tensor_file(offset=96),
}


@pytest.mark.parametrize("damage", DAMAGED)
def test_damage_is_a_format_error_that_names_the_file(tmp_path, damage):
    with pytest.raises(FormatError) as caught:
        GgufFile(write(tmp_path, DAMAGED[damage]))
    assert "m.gguf" in caught.value.what
    assert caught.value.got is not None


def test_what_damage_starts_from_is_whole(tmp_path):
    for content in (GOOD, tensor_file(), key_file(struct.pack("<II", 4, 1))):
        GgufFile(write(tmp_path, content)).close()


@pytest.mark.parametrize(("number", "said"), [(31, "Q4_0_4_4"), (99, "number 99"), (4, "Q4_2")])
def test_a_type_that_cannot_be_read_is_named(tmp_path, number, said):
    with pytest.raises(FormatError) as caught:
        GgufFile(write(tmp_path, tensor_file(kind=number)))
    assert said in caught.value.got
    assert "Q4_K" in caught.value.wanted


def test_a_big_endian_file_is_called_that(tmp_path):
    with pytest.raises(FormatError, match="big-endian"):
        GgufFile(write(tmp_path, DAMAGED["big-endian"]))


def test_texts_of_an_array_are_bounded_and_utf_8(tmp_path, monkeypatch):
    bad = key_file(struct.pack("<IIQ", 9, 8, 2) + text("fine") + struct.pack("<Q", 2) + b"\xff\xfe")
    with GgufFile(write(tmp_path, bad)) as file, pytest.raises(FormatError, match="item 1 of k"):
        file.texts("k")
    monkeypatch.setattr(gguf_format, "MAX_ARRAY_BYTES", 21)
    with GgufFile(write(tmp_path, bad)) as file, pytest.raises(FormatError, match="22 bytes"):
        file.texts("k")


@pytest.mark.parametrize("name", ["t", "u"])
def test_tensors_that_overlap_or_share_a_name_are_refused(tmp_path, name):
    head = b"GGUF" + struct.pack("<IQQ", 3, 2, 0)
    for which, offset in (("t", 0), (name, 0 if name == "u" else 32)):
        head += text(which) + struct.pack("<IQIQ", 1, 4, 0, offset)
    content = head + b"\0" * (-len(head) % 32 + 96)
    with pytest.raises(FormatError, match="named twice" if name == "t" else "offset"):
        GgufFile(write(tmp_path, content))


def test_a_missing_file_is_a_format_error(tmp_path):
    with pytest.raises(FormatError, match="cannot be read"):
        GgufFile(tmp_path / "absent.gguf")


CHANGES = st.binary(min_size=1, max_size=8) | st.integers(0, HUGE).map(struct.Struct("<Q").pack)


@settings(max_examples=300, deadline=None)
@given(st.data())
def test_any_change_reads_or_is_a_format_error(tmp_path_factory, data):
    content = bytearray(GOOD)
    for _ in range(data.draw(st.integers(1, 4))):
        at = data.draw(st.integers(0, len(content) - 9))
        content[at : at + 8] = data.draw(
            st.one_of(
                st.binary(min_size=1, max_size=8),
                st.integers(0, HUGE).map(struct.Struct("<Q").pack),
            )
        )
    content = content[: data.draw(st.integers(1, len(content)))]
    path = tmp_path_factory.getbasetemp() / "fuzzed.gguf"
    path.write_bytes(bytes(content))
    try:
        with GgufFile(path) as file:
            for tensor in file.tensors.values():
                assert tensor.raw().nbytes == tensor.n_bytes
    except FormatError as error:
        assert "fuzzed.gguf" in error.what
