"""Claims about the GGUF writer: the bytes of the format, in any order, and never half a file."""

from __future__ import annotations

import gguf
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgekit.errors import FormatError
from edgekit.formats.gguf import GgufFile
from edgekit.formats.gguf_writer import GgufWriter, TensorHeader, block_type, plan_file
from tests.formats.gguf_writer import gguf_bytes, q4_0_bytes

METADATA = {
    "general.architecture": "llama",
    "llama.block_count": 2,
    "llama.eps": 1e-5,
    "flag": True,
    "texts": ["", "ä", "\N{LOWER ONE EIGHTH BLOCK}x"],
    "floats": [0.5, -1.0],
    "flags": [True, False, True],
}
RNG = np.random.default_rng(0)
CODES = RNG.integers(0, 16, (3, 64), dtype=np.uint8)
SCALES = np.array([[0.5, -0.25], [1.0, 2.0], [3.0, 0.125]], np.float32)
BLOCKS = np.frombuffer(q4_0_bytes(CODES, SCALES), np.uint8).reshape(3, 36)
VECTOR = np.array([1.0, -2.5, 3.0], np.float32)
HALVES = np.array([[1.5], [0.25]], np.float16)
TENSORS = (
    TensorHeader("vector", (3,), block_type("F32")),
    TensorHeader("codes", (3, 64), block_type("Q4_0")),
    TensorHeader("halves", (2, 1), block_type("F16")),
)
DATA = {"vector": VECTOR, "codes": BLOCKS, "halves": HALVES}
WANTED = gguf_bytes(
    METADATA,
    {
        "vector": ("F32", (3,), VECTOR.tobytes()),
        "codes": ("Q4_0", (3, 64), BLOCKS.tobytes()),
        "halves": ("F16", (2, 1), HALVES.tobytes()),
    },
)


def write(path, order, *, rows=False):
    layout = plan_file(METADATA, TENSORS)
    with GgufWriter(path, layout) as writer:
        for name in order:
            if rows and name == "codes":
                for row in (2, 0, 1):
                    writer.put(name, BLOCKS[row : row + 1], row)
            else:
                writer.put(name, DATA[name])
    return layout


@pytest.mark.parametrize("order", [("vector", "codes", "halves"), ("halves", "vector", "codes")])
@pytest.mark.parametrize("rows", [False, True])
def test_the_bytes_are_those_of_the_format_in_whatever_order_they_come(tmp_path, order, rows):
    layout = write(tmp_path / "m.gguf", order, rows=rows)
    assert (tmp_path / "m.gguf").read_bytes() == WANTED
    assert layout.n_bytes == len(WANTED)


def test_the_gguf_package_reads_the_same(tmp_path):
    write(tmp_path / "m.gguf", DATA)
    reader = gguf.GGUFReader(tmp_path / "m.gguf")
    for key, wanted in METADATA.items():
        got = reader.fields[key].contents()
        assert got == (pytest.approx(wanted) if isinstance(wanted, float) else wanted), key
    found = {tensor.name: tensor for tensor in reader.tensors}
    assert found["codes"].tensor_type.name == "Q4_0"
    np.testing.assert_array_equal(found["codes"].data, BLOCKS)
    np.testing.assert_array_equal(found["halves"].data, HALVES)
    np.testing.assert_array_equal(found["vector"].data, VECTOR)


@settings(max_examples=40, deadline=None)
@given(
    metadata=st.dictionaries(
        st.text(min_size=1, max_size=20),
        st.one_of(
            st.booleans(),
            st.integers(0, 2**32 - 1),
            st.floats(width=32, allow_nan=False),
            st.text(max_size=30),
            st.lists(st.text(max_size=9), min_size=1, max_size=5),
            st.lists(st.integers(-(2**31), 2**31 - 1), min_size=1, max_size=5),
            st.lists(st.booleans(), min_size=1, max_size=5),
            st.lists(st.floats(width=32, allow_nan=False), min_size=1, max_size=5),
        ),
        max_size=6,
    )
)
def test_every_value_comes_back(tmp_path_factory, metadata):
    metadata.pop("general.alignment", None)
    path = tmp_path_factory.mktemp("values") / "m.gguf"
    with GgufWriter(path, plan_file(metadata, [])):
        pass
    with GgufFile(path) as file:
        assert {key: file.value(key) for key in file.metadata} == metadata


@pytest.mark.parametrize(
    ("metadata", "match"),
    [
        ({"key": -1}, "got -1"),
        ({"key": 1 << 32}, "wanted a number"),
        ({"key": []}, "an empty list"),
        ({"key": [1, "a"]}, "several types"),
    ],
)
def test_a_value_that_the_format_has_no_type_for_is_refused(metadata, match):
    with pytest.raises(FormatError, match=match):
        plan_file(metadata, [])


def test_rows_that_are_no_whole_blocks_and_names_given_twice_are_refused():
    with pytest.raises(FormatError, match=r"row length; got 48; wanted a multiple of 32"):
        plan_file({}, [TensorHeader("x", (2, 48), block_type("Q8_0"))])
    with pytest.raises(FormatError, match="two tensors have one name; got codes"):
        plan_file({}, [TENSORS[1], TENSORS[1]])


def test_a_file_that_lacks_a_tensor_is_removed(tmp_path):
    with (
        pytest.raises(FormatError, match=r"not written whole, once; got halves; wanted all 3"),
        GgufWriter(tmp_path / "m.gguf", plan_file(METADATA, TENSORS)) as writer,
    ):
        writer.put("vector", VECTOR)
        writer.put("codes", BLOCKS)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("name", "data", "row", "match"),
    [
        ("odd", VECTOR, 0, "no tensor 'odd'"),
        ("codes", BLOCKS[:, :20], 0, "wanted whole rows of 36 bytes"),
        ("codes", BLOCKS, 1, "from row 1 on"),
        ("codes", BLOCKS[:1], -1, "from row -1 on"),
    ],
)
def test_bytes_that_do_not_belong_there_are_refused(tmp_path, name, data, row, match):
    with (
        pytest.raises(FormatError, match=match),
        GgufWriter(tmp_path / "m.gguf", plan_file(METADATA, TENSORS)) as writer,
    ):
        writer.put(name, data, row)
    assert list(tmp_path.iterdir()) == []
