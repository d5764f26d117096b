"""Claims about weight.bin: our bytes are coremltools' bytes, and damage is found."""

from __future__ import annotations

import struct
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgekit.errors import FormatError
from edgekit.formats.mil_blob import BlobReader, BlobType, BlobWriter, signed_codes
from edgekit.formats.mlpackage import require_coremltools
from edgekit.formats.packing import pack_codes


def write_sample(path: Path) -> tuple[int, int, int, int]:
    """One blob of each type that an artifact holds."""
    with BlobWriter(path) as blobs:
        return (
            blobs.write_codes(np.array([[0xF0, 0x18]], np.uint8), BlobType.INT4),
            blobs.write_codes(np.array([[0, 255, 128]], np.uint8), BlobType.INT8),
            blobs.write_fp16(np.array([1.0, -2.5], np.float32)),
            blobs.write(np.array([0.1, 3.0], np.float32)),
        )


def test_file_written_by_hand_is_read_back(tmp_path: Path) -> None:
    path = tmp_path / "weight.bin"
    assert write_sample(path) == (64, 192, 320, 448)
    raw = path.read_bytes()
    assert raw[:8] == struct.pack("<II", 4, 2)
    assert raw[8:64] == bytes(56)
    # int4 codes 0, 15, 8, 1 are -8, 7, 0, -7: nibbles 8, 7, 0, 9, low one first.
    assert raw[64:96] == struct.pack("<IIQQQ", 0xDEADBEEF, 8, 2, 128, 0)
    assert raw[128:130] == bytes([0x78, 0x90])
    assert raw[130:192] == bytes(62)
    assert raw[192:224] == struct.pack("<IIQQQ", 0xDEADBEEF, 4, 3, 256, 0)
    assert raw[256:259] == struct.pack("<3b", -128, 127, 0)
    assert raw[320:352] == struct.pack("<IIQQQ", 0xDEADBEEF, 1, 4, 384, 0)
    assert raw[384:388] == bytes([0x00, 0x3C, 0x00, 0xC1])
    assert raw[512:520] == struct.pack("<2f", 0.1, 3.0)
    assert len(raw) == 520


def test_file_equals_that_of_coremltools(tmp_path: Path) -> None:
    ours, theirs = tmp_path / "ours.bin", tmp_path / "theirs.bin"
    rng = np.random.default_rng(0)
    codes4 = rng.integers(0, 16, (6, 30), np.uint8)
    codes8 = rng.integers(0, 256, (5, 33), np.uint8)
    halves = rng.standard_normal(77).astype(np.float16)
    floats = rng.standard_normal((3, 7)).astype(np.float32)
    words = rng.integers(-9, 9, 21, np.int32)
    with BlobWriter(ours) as blobs:
        offsets = [
            blobs.write_codes(pack_codes(codes4, 4), BlobType.INT4),
            blobs.write_codes(codes8, BlobType.INT8),
            blobs.write_codes(pack_codes(codes4, 4), BlobType.UINT4),
            blobs.write_codes(codes8, BlobType.UINT8),
            blobs.write_fp16(halves.astype(np.float32)),
            blobs.write(floats),
            blobs.write(words),
        ]
    types = require_coremltools("coremltools.converters.mil.mil").types
    writer = require_coremltools("coremltools.libmilstoragepython")._BlobStorageWriter(str(theirs))
    int4 = types.nptype_from_builtin(types.int4)
    assert offsets == [
        writer.write_int4_data((codes4.astype(np.int8) - 8).astype(int4).ravel()),
        writer.write_int8_data((codes8.astype(np.int16) - 128).astype(np.int8).ravel()),
        writer.write_uint4_data(codes4.astype(types.nptype_from_builtin(types.uint4)).ravel()),
        writer.write_uint8_data(codes8.ravel()),
        writer.write_fp16_data(halves.view(np.uint16)),
        writer.write_float_data(floats.ravel()),
        writer.write_int32_data(words),
    ]
    del writer
    assert ours.read_bytes() == theirs.read_bytes()


def test_coremltools_reads_our_codes(tmp_path: Path) -> None:
    path = tmp_path / "weight.bin"
    int4_at, int8_at, fp16_at, fp32_at = write_sample(path)
    reader = require_coremltools("coremltools.libmilstoragepython")._BlobStorageReader(str(path))
    np.testing.assert_array_equal(reader.read_int4_data(int4_at), [-8, 7, 0, -7])
    np.testing.assert_array_equal(reader.read_int8_data(int8_at), [-128, 127, 0])
    halves = reader.read_fp16_data(fp16_at).view(np.float16)
    np.testing.assert_array_equal(halves, np.array([1, -2.5], np.float16))
    np.testing.assert_array_equal(reader.read_float_data(fp32_at), np.array([0.1, 3], np.float32))


@given(st.integers(1, 5), st.integers(1, 9), st.sampled_from([4, 8]), st.randoms())
def test_codes_come_back(
    tmp_path_factory: pytest.TempPathFactory, n_rows: int, n_pairs: int, bits: int, random: object
) -> None:
    shape = (n_rows, 2 * n_pairs)
    seed = random.getrandbits(32)  # type: ignore[attr-defined]
    codes = np.random.default_rng(seed).integers(0, 1 << bits, shape, np.uint8)
    path = tmp_path_factory.mktemp("blob") / "weight.bin"
    kind = BlobType.INT4 if bits == 4 else BlobType.INT8
    with BlobWriter(path) as blobs:
        offset = blobs.write_codes(pack_codes(codes, bits), kind)
    signed = BlobReader(path).read(offset, kind, shape)
    np.testing.assert_array_equal(signed.astype(np.int16) + (1 << (bits - 1)), codes)


def test_reserved_blobs_are_filled_in_any_order_and_in_pieces(tmp_path: Path) -> None:
    codes = np.random.default_rng(1).integers(0, 256, (6, 10), np.uint8)
    whole, pieces = tmp_path / "whole.bin", tmp_path / "pieces.bin"
    with BlobWriter(whole) as blobs:
        places = [blobs.write_codes(codes, BlobType.UINT8), blobs.write_codes(codes, BlobType.INT4)]
    with BlobWriter(pieces) as blobs:
        first = blobs.reserve(BlobType.UINT8, codes.nbytes)
        second = blobs.reserve(BlobType.INT4, codes.nbytes)
        for start in (4, 0, 2):
            rows = codes[start : start + 2]
            blobs.fill(second, signed_codes(rows, BlobType.INT4), start * 10)
            blobs.fill(first, rows, start * 10)
    assert [first, second] == places
    assert whole.read_bytes() == pieces.read_bytes()


def test_walk_lists_every_record(tmp_path: Path) -> None:
    path = tmp_path / "weight.bin"
    offsets = write_sample(path)
    records = list(BlobReader(path).walk())
    assert [record.offset for record in records] == list(offsets)
    assert [record.type for record in records] == [
        BlobType.INT4, BlobType.INT8, BlobType.FP16, BlobType.FP32,
    ]  # fmt: skip
    assert [record.n_values for record in records] == [4, 3, 2, 2]


def test_rounded_fp16_is_refused(tmp_path: Path) -> None:
    with BlobWriter(tmp_path / "weight.bin") as blobs:
        for value in (0.1, 70000.0):
            with pytest.raises(FormatError, match="fp16"):
                blobs.write_fp16(np.array([value], np.float32))


@pytest.mark.parametrize(
    ("position", "value", "words"),
    [
        (4, 3, "version"),
        (64, 0, "magic"),
        (68, 99, "type"),
        (72, 1 << 30, "data range"),
        (80, 1 << 40, "data range"),
        (80, 0, "data range"),
        (72, 1, "2 values of INT4"),
    ],
)
def test_damage_is_found(tmp_path: Path, position: int, value: int, words: str) -> None:
    path = tmp_path / "weight.bin"
    write_sample(path)
    raw = bytearray(path.read_bytes())
    struct.pack_into("<I" if position < 72 else "<Q", raw, position, value)
    path.write_bytes(raw)
    with pytest.raises(FormatError, match=words):
        BlobReader(path).read(64, BlobType.INT4, (1, 4))


@pytest.mark.parametrize("n_bytes", [0, 10, 63, 100])
def test_a_cut_file_is_refused(tmp_path: Path, n_bytes: int) -> None:
    path = tmp_path / "weight.bin"
    write_sample(path)
    path.write_bytes(path.read_bytes()[:n_bytes])
    with pytest.raises(FormatError):
        BlobReader(path).read(64, BlobType.INT4, (1, 4))


@pytest.mark.parametrize("offset", [0, 65, 1 << 50, -64])
def test_offsets_outside_are_refused(tmp_path: Path, offset: int) -> None:
    path = tmp_path / "weight.bin"
    write_sample(path)
    with pytest.raises(FormatError, match="outside the file"):
        BlobReader(path).record(offset)


def test_another_type_or_shape_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "weight.bin"
    write_sample(path)
    reader = BlobReader(path)
    with pytest.raises(FormatError, match="4 of INT8"):
        reader.read(64, BlobType.INT8, (1, 4))
    with pytest.raises(FormatError, match="6 of INT4"):
        reader.read(64, BlobType.INT4, (1, 5))
