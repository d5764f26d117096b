"""Claims: what other libraries store reads as those libraries read it.

The files come from scripts/golden_prequantized.py.
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from edgekit.checkpoint.config import RawConfig
from edgekit.checkpoint.prequantized.method import account_for_quantization, join_parts
from edgekit.checkpoint.prequantized.tensor import DecodedTensor, PrequantizedTensor
from edgekit.formats.safetensors import SafetensorsFile

FOLDER = Path(__file__).parents[2] / "golden" / "prequantized"
# Label, and whether the codes may be kept.
LABELS = {
    "bitsandbytes-fp4": ("bitsandbytes fp4", False),
    "bitsandbytes-fp4-nested": ("bitsandbytes fp4", False),
    "bitsandbytes-int8": ("bitsandbytes int8", False),
    "bitsandbytes-nf4": ("bitsandbytes nf4", False),
    "bitsandbytes-nf4-nested": ("bitsandbytes nf4", False),
    "compressed-tensors-fp8-block": ("fp8 e4m3 by block 16x36", False),
    "compressed-tensors-fp8-channel": ("fp8 e4m3 by row", False),
    "compressed-tensors-fp8-group": ("fp8 e4m3 by block 1x32", False),
    "compressed-tensors-fp8-tensor": ("fp8 e4m3", False),
    "compressed-tensors-int8-channel": ("compressed-tensors int8-g96", True),
    "compressed-tensors-int8-channel-asymmetric": ("compressed-tensors int8-g96", False),
    "compressed-tensors-int8-group": ("compressed-tensors int8-g32", True),
    "compressed-tensors-int8-tensor": ("compressed-tensors int8-g96", True),
    "compressed-tensors-mxfp4": ("compressed-tensors mxfp4", False),
    "compressed-tensors-mxfp6": ("compressed-tensors mxfp6", False),
    "compressed-tensors-mxfp8": ("fp8 e4m3 by block 1x32", False),
    "compressed-tensors-nvfp4": ("compressed-tensors nvfp4", False),
    "compressed-tensors-packed-int2": ("compressed-tensors int2-g32", False),
    "compressed-tensors-packed-int3": ("compressed-tensors int3-g32", False),
    "compressed-tensors-packed-int3-asymmetric": ("compressed-tensors int3-g32", False),
    "compressed-tensors-packed-int4": ("compressed-tensors int4-g32", True),
    "compressed-tensors-packed-int4-asymmetric": ("compressed-tensors int4-g32", False),
    "compressed-tensors-packed-int6": ("compressed-tensors int6-g32", False),
    "compressed-tensors-packed-int8-channel": ("compressed-tensors int8-g96", True),
    "compressed-tensors-packed-int8-channel-asymmetric": ("compressed-tensors int8-g96", False),
    "hqq-int1-axis1": ("hqq int1-g32", False),
    "hqq-int2-axis1": ("hqq int2-g32", False),
    "hqq-int3-axis0": ("hqq int3-g32", False),
    "hqq-int3-axis1": ("hqq int3-g32", False),
    "hqq-int4-axis0": ("hqq int4-g32", False),
    "hqq-int4-axis1": ("hqq int4-g32", False),
    "hqq-int8-axis1": ("hqq int8-g32", False),
    "quanto-fp8": ("fp8 e4m3 by row", False),
    "quanto-int8": ("quanto int8-g96", True),
    "torchao-fp8": ("fp8 e4m3 by row", False),
    "torchao-int4-unpacked": ("torchao int8-g32", True),
    "torchao-int8": ("torchao int8-g96", True),
}


def test_every_golden_is_named():
    assert {path.stem for path in FOLDER.glob("*.safetensors")} == set(LABELS)


def read_golden(name, section):
    """Read the matrix of a file as ``section`` says; give it, what is wanted, and the notes."""
    with SafetensorsFile(FOLDER / f"{name}.safetensors") as file:
        config = RawConfig({"quantization_config": section} if section else {}, "config.json")
        account_for_quantization(config)
        config.finish()
        tensors = {key: tensor for key, tensor in file.tensors.items() if key != "wanted"}
        notes: list[str] = []
        weights = join_parts(tensors, config, notes=notes)
        assert set(weights) == {"m.weight"}
        weight = weights["m.weight"]
        np.testing.assert_array_equal(weight.read_rows(3, 17), weight.read()[3:17])
        # The library computes nvfp4 in bfloat16, and int8 of bitsandbytes as * SCB * (1 / 127).
        tolerance = 2.0**-7 if "nvfp4" in name else 2.0**-22 if "int8" in name else 0
        np.testing.assert_allclose(
            weight.read(), file.tensors["wanted"].read(), rtol=tolerance, atol=0
        )
        return weight, notes


@pytest.mark.parametrize("name", LABELS)
def test_weights_read_as_their_library_reads_them(name):
    with SafetensorsFile(FOLDER / f"{name}.safetensors") as file:
        section = json.loads(file.metadata["config"])
    weight, notes = read_golden(name, section)
    label, is_kept = LABELS[name]
    assert isinstance(weight, PrequantizedTensor if is_kept else DecodedTensor)
    assert weight.label == label
    assert any("read as floats" in note for note in notes) == (not is_kept)


TELL_ALL = [
    name
    for name, (label, _) in LABELS.items()
    if label.startswith(("bitsandbytes", "fp8", "hqq")) and "block 16x36" not in label
]


@pytest.mark.parametrize("name", TELL_ALL)
def test_tensors_that_tell_everything_need_no_config(name):
    weight, _ = read_golden(name, None)
    assert weight.label == LABELS[name][0]
