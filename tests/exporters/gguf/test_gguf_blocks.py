"""Claims about blocks: worked by hand, as the gguf package reads them, and back bit by bit."""

from __future__ import annotations

import struct

import gguf
import numpy as np
import pytest

from edgekit.encoding import FP16, FP32, Encoding
from edgekit.errors import ExportError, FormatError
from edgekit.exporters.gguf.blocks import decode, encode, type_of
from edgekit.quantize.model import EncodedTensor, FloatTensor
from tests.exporters.memory_model import memory_model, tiny_spec
from tests.formats.gguf_writer import q4_0_bytes, q8_0_bytes

SCHEMES = ["int4", "int4-g64", "int4-g128", "int8", "int8-g64", "int8-g128"]
ZEROS = ["uint4", "uint4-g64", "uint4-g128"]
KINDS = {
    "int4": gguf.GGMLQuantizationType.Q4_0,
    "uint4": gguf.GGMLQuantizationType.Q4_1,
    "int8": gguf.GGMLQuantizationType.Q8_0,
}
INT4, INT8, UINT4 = (Encoding.parse(text) for text in ("int4", "int8", "uint4"))


def tensor_of(scheme: str) -> EncodedTensor:
    spec = tiny_spec(hidden_width=128)
    return memory_model(spec, scheme).tensors["layers.0.gate"]


def test_a_block_of_q4_0_by_hand():
    codes = np.arange(32, dtype=np.uint8)[None] % 16
    tensor = EncodedTensor.of_codes("x", INT4, codes, np.array([[-0.5]], np.float32))
    # fp16 -0.5; then code i in the low half of byte i, code 16 + i in the high half.
    wanted = struct.pack("<e", -0.5) + bytes(i + 16 * i for i in range(16))
    assert encode(tensor).tobytes() == wanted


def test_a_block_of_q8_0_by_hand():
    codes = np.array([[0, 1, 127, 128, 129, 255, *[128] * 26]], np.uint8)
    tensor = EncodedTensor.of_codes("x", INT8, codes, np.array([[0.25]], np.float32))
    wanted = struct.pack("<e32b", 0.25, -128, -127, -1, 0, 1, 127, *[0] * 26)
    assert encode(tensor).tobytes() == wanted


@pytest.mark.parametrize("scheme", SCHEMES)
def test_blocks_are_those_of_a_second_writer_with_scales_repeated(scheme):
    tensor = tensor_of(scheme)
    second = q4_0_bytes if tensor.encoding.bits == 4 else q8_0_bytes
    scales = np.repeat(tensor.scales, tensor.encoding.block // 32, axis=1)
    assert encode(tensor).tobytes() == second(tensor.codes(), scales)


def test_a_block_of_q4_1_by_hand():
    codes = np.arange(32, dtype=np.uint8)[None] % 16
    scale, zero = np.array([[0.5]], np.float32), np.array([[3]], np.uint8)
    tensor = EncodedTensor.of_codes("x", UINT4, codes, scale, zero)
    wanted = struct.pack("<2e", 0.5, -1.5) + bytes(i + 16 * i for i in range(16))
    assert encode(tensor).tobytes() == wanted


@pytest.mark.parametrize("scheme", [*SCHEMES, *ZEROS])
def test_codes_scales_and_weights_come_back(scheme):
    tensor = tensor_of(scheme)
    blocks = encode(tensor)
    theirs = gguf.quants.dequantize(blocks, KINDS[tensor.encoding.kind])
    np.testing.assert_array_equal(theirs, tensor.dequantize())
    again = decode(blocks, tensor.name, tensor.encoding, "file")
    assert again.sha256() == tensor.sha256()


def test_blocks_that_share_a_scale_must_have_one():
    tensor = tensor_of("int4")
    assert not (tensor.scales[:, ::2] == tensor.scales[:, 1::2]).all()
    with pytest.raises(FormatError, match=r"scales; wanted one for every 64 values"):
        decode(encode(tensor), "x", Encoding.parse("int4-g64"), "file")


def test_a_minimum_that_no_zero_point_gives_is_refused():
    blocks = encode(tensor_of("uint4")).copy()
    blocks[0, 2] ^= 1
    with pytest.raises(FormatError, match=r"minima; wanted a whole number of scales"):
        decode(blocks, "x", UINT4, "file")


def test_there_are_no_blocks_of_8_bits_with_zero_points():
    tensor = tensor_of("uint8")
    assert type_of(tensor.encoding, tensor.shape) is None
    with pytest.raises(ExportError, match="GGUF has no blocks for uint8-g32"):
        encode(tensor)


@pytest.mark.parametrize("scale", [1 / 3, 1e6])
def test_a_scale_that_fp16_does_not_hold_is_refused(scale):
    codes = np.zeros((1, 32), np.uint8)
    tensor = EncodedTensor.of_codes("layers.0.q", INT4, codes, np.array([[scale]], np.float32))
    with pytest.raises(ExportError, match=r"layers\.0\.q: a scale is not exact in fp16"):
        encode(tensor)


def test_types_of_tensors():
    assert type_of(FP32, (4,)).name == "F32"
    assert type_of(FP16, (4,)).name == "F32"  # llama.cpp adds and multiplies vectors in float32
    assert type_of(FP16, (4, 32)).name == "F16"
    assert type_of(FP32, (4, 32)).name == "F32"
    assert type_of(Encoding.parse("int4-g128"), (4, 128)).name == "Q4_0"
    assert type_of(Encoding.parse("int8"), (4, 32)).name == "Q8_0"
    half = encode(FloatTensor("x", FP16, np.array([[1.5]], np.float32)))
    assert (half.dtype, half.tobytes()) == (np.dtype("<f2"), struct.pack("<e", 1.5))
