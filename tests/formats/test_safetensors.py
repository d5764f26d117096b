from __future__ import annotations

import json
import struct

import ml_dtypes
import numpy as np
import pytest
import safetensors
import safetensors.numpy
from hypothesis import given
from hypothesis import strategies as st

from edgekit.dtypes import DTYPES, DType
from edgekit.errors import FormatError
from edgekit.formats.safetensors import MAX_HEADER_BYTES, SafetensorsFile, SafetensorsWriter
from edgekit.tensors import TensorInfo

_LIBRARY_DTYPES = {
    DType.FP64: np.float64,
    DType.FP32: np.float32,
    DType.FP16: np.float16,
    DType.BF16: ml_dtypes.bfloat16,
    DType.UINT64: np.uint64,
    DType.INT64: np.int64,
    DType.INT32: np.int32,
    DType.INT16: np.int16,
    DType.INT8: np.int8,
    DType.UINT32: np.uint32,
    DType.UINT16: np.uint16,
    DType.UINT8: np.uint8,
    DType.BOOL: np.bool_,
}


def write_raw(path, header, data=b"", n_header=None):
    """Write a file from a header that may be wrong in any way."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text) if n_header is None else n_header) + text + data)
    return path


def entry(dtype="F32", shape=(2,), offsets=(0, 8)):
    return {"dtype": dtype, "shape": list(shape), "data_offsets": list(offsets)}


def error_of(path):
    with pytest.raises(FormatError) as caught:
        SafetensorsFile(path)
    assert str(path) in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize("dtype", list(_LIBRARY_DTYPES))
def test_the_library_reads_what_we_write_and_we_read_what_it_writes(tmp_path, dtype):
    values = (np.arange(24).reshape(2, 3, 4) % 7).astype(_LIBRARY_DTYPES[dtype])
    arrays = {"a": values, "scalar": values[1, 2, 3], "empty": values[:, :0]}
    infos = [TensorInfo(name, np.shape(array), dtype) for name, array in arrays.items()]
    with SafetensorsWriter(tmp_path / "ours", infos, metadata={"format": "pt"}) as writer:
        for name, array in arrays.items():
            writer.write(name, np.asarray(array).tobytes())
    theirs = safetensors.numpy.load_file(tmp_path / "ours")
    safetensors.numpy.save_file(
        {name: np.asarray(a) for name, a in arrays.items()}, tmp_path / "theirs", {"format": "pt"}
    )
    for path in (tmp_path / "ours", tmp_path / "theirs"):
        with SafetensorsFile(path) as file:
            assert dict(file.metadata) == {"format": "pt"}
            assert {t.info.name: t.info for t in file.tensors.values()} == {
                i.name: i for i in infos
            }
            for name, array in arrays.items():
                assert file.tensors[name].raw().tobytes() == np.asarray(array).tobytes()
                assert theirs[name].tobytes() == np.asarray(array).tobytes()
                assert theirs[name].shape == np.shape(array)


@pytest.mark.parametrize("alignment", [64, 4096])
def test_data_begin_at_a_multiple_of_the_alignment(tmp_path, alignment):
    path = tmp_path / "x"
    with SafetensorsWriter(
        path, [TensorInfo("a", (1,), DType.FP32)], alignment=alignment
    ) as writer:
        writer.write("a", np.float32([1.5]))
    (n_header,) = struct.unpack("<Q", path.read_bytes()[:8])
    assert (8 + n_header) % alignment == 0
    assert path.read_bytes()[8 + n_header :] == struct.pack("<f", 1.5)
    assert safetensors.numpy.load_file(path)["a"].tolist() == [1.5]


@given(
    st.lists(
        st.tuples(
            st.sampled_from([d for d in DTYPES if d is not DType.OTHER]),
            st.lists(st.integers(0, 4), max_size=3),
        ),
        max_size=5,
    ),
    st.integers(0, 2**32 - 1),
)
def test_write_and_read_give_the_same_bytes(tmp_path_factory, declared, seed):
    rng = np.random.default_rng(seed)
    infos = [TensorInfo(f"t{i}", tuple(s), d) for i, (d, s) in enumerate(declared)]
    payloads = {info.name: rng.integers(0, 2, info.n_bytes, dtype=np.uint8) for info in infos}
    path = tmp_path_factory.mktemp("st") / "x.safetensors"
    with SafetensorsWriter(path, infos) as writer:
        for info in infos:
            writer.write(info.name, payloads[info.name])
    with SafetensorsFile(path) as file:
        assert [t.info for t in file.tensors.values()] == infos
        for name, payload in payloads.items():
            assert file.tensors[name].raw().tobytes() == payload.tobytes()


def test_rows_are_the_rows_of_the_whole(tmp_path):
    values = np.arange(15, dtype=np.float32).reshape(5, 3).astype(ml_dtypes.bfloat16)
    safetensors.numpy.save_file({"a": values, "b": np.float32(1)[None]}, tmp_path / "x")
    with SafetensorsFile(tmp_path / "x") as file:
        tensor = file.tensors["a"]
        for start in range(6):
            for stop in range(start, 6):
                np.testing.assert_array_equal(
                    tensor.read_rows(start, stop), tensor.read()[start:stop]
                )
        for start, stop in [(-1, 2), (3, 2), (0, 6)]:
            with pytest.raises(FormatError, match=f"rows {start}:{stop}"):
                tensor.read_rows(start, stop)


def test_what_was_read_outlives_the_file(tmp_path):
    safetensors.numpy.save_file({"a": np.float32([1, 2])}, tmp_path / "x")
    file = SafetensorsFile(tmp_path / "x")
    tensor = file.tensors["a"]
    bits, values = tensor.raw(), tensor.read()
    file.close()
    file.close()
    assert values.tolist() == bits.tolist() == [1, 2]
    with pytest.raises(FormatError, match="after the file was closed"):
        tensor.read()


def test_reading_integers_as_floats_is_refused(tmp_path):
    safetensors.numpy.save_file({"a": np.int32([1])}, tmp_path / "x")
    with (
        SafetensorsFile(tmp_path / "x") as file,
        pytest.raises(FormatError, match="holds no floats"),
    ):
        file.tensors["a"].read()


@pytest.mark.parametrize(
    ("header", "data", "words"),
    [
        ({"a": entry()}, b"1234567", "data is cut off; got 7 bytes; wanted 8"),
        ({"a": entry()}, b"123456789", "has extra bytes at its end; got 9 bytes; wanted 8"),
        ({"a": entry(), "b": entry(offsets=(4, 12))}, b"x" * 12, "tensor b overlaps"),
        ({"a": entry(), "b": entry(offsets=(0, 8))}, b"x" * 8, "overlaps"),
        (
            {"a": entry(), "b": entry(offsets=(12, 20))},
            b"x" * 20,
            "tensor b leaves a gap before it",
        ),
        ({"a": entry(offsets=(4, 12))}, b"x" * 12, "tensor a leaves a gap before it"),
        ({"a": entry(shape=(3,))}, b"x" * 8, "got 8 bytes; wanted 12 for shape [3]"),
        ({"a": entry(offsets=(8, 0))}, b"x" * 8, "data_offsets; got [8, 0]"),
        ({"a": entry(offsets=(-8, 0))}, b"x" * 8, "data_offsets"),
        ({"a": entry(offsets=(0, 8, 8))}, b"x" * 8, "data_offsets"),
        ({"a": entry(offsets=(0, 8.0))}, b"x" * 8, "data_offsets"),
        ({"a": entry(offsets=(False, 8))}, b"x" * 8, "data_offsets"),
        ({"a": entry(shape=(2.0,))}, b"x" * 8, "shape"),
        ({"a": entry(shape=(-2,))}, b"x" * 8, "shape"),
        ({"a": entry(shape=(True, 2))}, b"x" * 8, "shape"),
        ({"a": entry(shape=(1,) * 33)}, b"x" * 8, "shape"),
        ({"a": entry(shape=(1 << 62, 4))}, b"x" * 8, "shape"),
        ({"a": entry(shape=(0, 1 << 62), offsets=(0, 0))}, b"", "shape"),
        ({"a": {**entry(), "shape": 2}}, b"x" * 8, "shape"),
        ({"a": entry(dtype="F8_E5M2")}, b"x" * 8, "got 8 bytes; wanted 2 for shape [2] of F8_E5M2"),
        ({"a": entry(dtype="F4", offsets=(0, 1))}, b"x" * 8, "has extra bytes at its end"),
        ({"a": entry(dtype="F\n4")}, b"x" * 8, "dtype"),
        ({"a": entry(dtype=["F32"])}, b"x" * 8, "dtype"),
        ({"a": {"dtype": "F32", "shape": [2]}}, b"x" * 8, "header entry"),
        ({"a": [1, 2]}, b"x" * 8, "header entry"),
        ({"__metadata__": {"n": 1}, "a": entry()}, b"x" * 8, "__metadata__"),
        ({"__metadata__": []}, b"", "__metadata__"),
        (b"[]", b"", "outermost value; got list"),
        (b'{"a": 1, "a": 2}', b"", "key given twice"),
        (b'{"a":' * 100_000, b"", "nesting too deep"),
        (b"\xff\xfe", b"", "not valid JSON"),
    ],
)
def test_a_header_that_lies_is_refused(tmp_path, header, data, words):
    assert words in error_of(write_raw(tmp_path / "bad", header, data))


def test_a_header_longer_than_the_file_is_refused(tmp_path):
    assert "file ends inside the header" in error_of(write_raw(tmp_path / "x", b"{}", n_header=3))


@pytest.mark.parametrize("n_header", [MAX_HEADER_BYTES + 1, 2**64 - 1])
def test_a_header_beyond_the_cap_is_refused_before_it_is_read(tmp_path, n_header):
    assert "header length at offset 0" in error_of(
        write_raw(tmp_path / "x", b"{}", n_header=n_header)
    )


@pytest.mark.parametrize("n_bytes", [0, 7])
def test_a_file_without_a_length_is_refused(tmp_path, n_bytes):
    (tmp_path / "x").write_bytes(b"\0" * n_bytes)
    assert f"size; got {n_bytes}" in error_of(tmp_path / "x")


def test_a_file_that_cannot_be_opened_is_a_format_error(tmp_path):
    assert "cannot be read" in error_of(tmp_path / "absent")
    assert "cannot be read" in error_of(tmp_path)


@given(st.data())
def test_a_damaged_file_is_read_or_refused_and_never_anything_else(tmp_path_factory, data):
    good = safetensors.numpy.save({"a": np.float32([1, 2]), "b": np.int8([[1], [2]])})
    damaged = bytearray(good)
    for _ in range(data.draw(st.integers(1, 3))):
        damaged[data.draw(st.integers(0, len(damaged) - 1))] = data.draw(st.integers(0, 255))
    damaged = damaged[: data.draw(st.integers(0, len(damaged)))]
    path = tmp_path_factory.mktemp("st") / "x.safetensors"
    path.write_bytes(bytes(damaged))
    try:
        with SafetensorsFile(path) as file:
            for tensor in file.tensors.values():
                assert tensor.raw().nbytes == tensor.info.n_bytes
    except FormatError as error:
        assert str(path) in str(error)


_TWO = [TensorInfo("a", (2,), DType.FP32), TensorInfo("b", (1,), DType.INT8)]


def test_a_file_with_a_tensor_missing_is_refused_and_removed(tmp_path):
    with (
        pytest.raises(FormatError, match="1 tensors not written, or written twice; wanted b"),
        SafetensorsWriter(tmp_path / "x", _TWO) as writer,
    ):
        writer.write("a", np.zeros(2, np.float32))
    assert list(tmp_path.iterdir()) == []


def test_an_error_while_writing_leaves_nothing_behind(tmp_path):
    with pytest.raises(ZeroDivisionError), SafetensorsWriter(tmp_path / "x", _TWO):
        raise ZeroDivisionError
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("name", "data", "words"),
    [
        ("c", b"\0", "bytes; got 1 from 0 on; wanted a tensor of the file"),
        ("a", b"\0" * 7, "incomplete; got 2 tensors not written, or written twice; wanted a, b"),
        ("a", np.zeros(2, np.float64), "bytes; got 16 from 0 on; wanted no more than its 8"),
    ],
)
def test_the_writer_refuses_what_was_not_declared(tmp_path, name, data, words):
    with pytest.raises(FormatError, match=words), SafetensorsWriter(tmp_path / "x", _TWO) as writer:
        writer.write(name, data)


def test_bytes_come_in_any_order_and_in_pieces(tmp_path):
    values = np.arange(2, dtype=np.float32)
    with SafetensorsWriter(tmp_path / "x", _TWO) as writer:
        writer.write("b", b"\x07")
        writer.write("a", values[1:], first_byte=4)
        writer.write("a", values[:1])
        assert writer.offset("b") == writer.offset("a") + 8
    found = safetensors.numpy.load_file(tmp_path / "x")
    np.testing.assert_array_equal(found["a"], values)
    assert found["b"] == 7


def test_bytes_given_twice_are_refused(tmp_path):
    with (
        pytest.raises(FormatError, match="not written, or written twice; wanted b"),
        SafetensorsWriter(tmp_path / "x", _TWO) as writer,
    ):
        writer.write("a", np.zeros(2, np.float32))
        writer.write("b", b"\1")
        writer.write("b", b"\1")


@pytest.mark.parametrize("names", [("a", "a"), ("__metadata__",)])
def test_the_writer_refuses_names_twice_or_reserved(tmp_path, names):
    with pytest.raises(FormatError, match="twice or reserved"):
        SafetensorsWriter(tmp_path / "x", [TensorInfo(n, (1,), DType.INT8) for n in names])


def test_the_writer_takes_arrays_in_memory_order_of_their_axes(tmp_path):
    values = np.arange(6, dtype=np.float32).reshape(2, 3)
    with SafetensorsWriter(tmp_path / "x", [TensorInfo("a", (3, 2), DType.FP32)]) as writer:
        writer.write("a", values.T)
    np.testing.assert_array_equal(safetensors.numpy.load_file(tmp_path / "x")["a"], values.T)
