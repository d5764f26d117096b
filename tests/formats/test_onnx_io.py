"""Claims about the inputs and outputs of ONNX graphs: one module says them, for both sides."""

from __future__ import annotations

import json
import re
from pathlib import Path

import onnx
import pytest

import edgekit
from edgekit.dtypes import DType
from edgekit.formats import onnx_io
from edgekit.formats.onnx_io import (
    CACHE_PARTS,
    GRAPH_NAME,
    TYPE_NAMES,
    GraphPorts,
    is_past,
    is_present,
    past_name,
    past_of,
    present_name,
)

PACKAGE = Path(edgekit.__file__).parent
# Names that no other file may spell. ``optimum/check.py`` runs in optimum's environment, which has
# no edgekit; ``formats/mlpackage.py`` says the names of Core ML packages.
SPELT = (
    r'["\'](input_ids|attention_mask|position_ids|logits|logits_start|call_length|model\.onnx)["\']'
)
CACHES = r'["\']f?(past_key_values|present)\.'
OTHERS = {"optimum/check.py", "formats/mlpackage.py", "formats/onnx_io.py"}
# Keys of genai_config.json and of records, and words of messages that sound alike.
ALIKE = {
    "exporters/onnx/genai.py", "exporters/mlx/models.py", "exporters/gguf/graphs.py",
    "report/verification.py", "cli/demo.py",
}  # fmt: skip


def test_the_names_are_these():
    """Spelt out, for they are what other programs look for."""
    ports = GraphPorts(1, 2, 16, 96, has_call_length=True)
    assert [port.name for port in ports.inputs] == [
        "input_ids", "attention_mask", "past_key_values.0.key", "past_key_values.0.value",
    ]  # fmt: skip
    assert [port.name for port in ports.defaults] == ["logits_start", "call_length"]
    assert [port.name for port in ports.outputs] == ["logits", "present.0.key", "present.0.value"]
    traced = GraphPorts(1, 2, 16, 96, is_traced=True, has_positions=True)
    assert traced.inputs[2].name == "position_ids"
    assert traced.defaults == ()
    assert [traced.outputs[0].signature, ports.outputs[0].signature] == [
        ("tensor(float)", (96,)),
        ("tensor(float)", (1, 96)),
    ]
    half = GraphPorts(1, 2, 16, 96, cache=DType.FP16)
    assert half.inputs[-1].signature == ("tensor(float16)", (2, 16))
    assert half.inputs[-1].shape == ("batch_size", 2, "past_sequence_length", 16)


def test_what_a_call_gives_the_next_call_takes():
    for part in CACHE_PARTS:
        assert past_of(present_name(3, part)) == past_name(3, part)
        assert is_past(past_name(3, part))
        assert is_present(present_name("%d", part))
        assert not is_past(present_name(3, part))


def test_a_graph_on_disk_has_exactly_these(tiny_artifacts):
    artifact = tiny_artifacts["onnx-int4"]
    decoder = artifact.manifest.decoder
    names = ("n_layers", "n_kv_heads", "head_width", "vocab_size")
    ports = GraphPorts(*(decoder[name] for name in names))
    graph = onnx.load_model(artifact.path / GRAPH_NAME, load_external_data=False).graph
    wanted = [(*ports.inputs, *ports.defaults), ports.outputs]
    for values, side in zip((graph.input, graph.output), wanted, strict=True):
        assert [value.name for value in values] == [port.name for port in side]
        for value, port in zip(values, side, strict=True):
            kind = value.type.tensor_type
            spelt = {1: DType.FP32, 7: DType.INT64, 10: DType.FP16}[kind.elem_type]
            assert spelt is port.dtype
            shape = tuple(d.dim_param or d.dim_value for d in kind.shape.dim)
            assert shape == port.shape
    said = json.loads((artifact.path / "genai_config.json").read_text(encoding="utf-8"))
    assert said["model"]["decoder"]["inputs"]["past_key_names"] == past_name("%d", "key")
    assert said["model"]["decoder"]["filename"] == GRAPH_NAME


@pytest.mark.parametrize(
    "name",
    ["exporters/onnx/graph.py", "exporters/onnx/attention.py", "exporters/onnx/genai.py",
     "exporters/onnx/recover.py", "runtime/onnxruntime.py", "runtime/onnx_plain.py",
     "runtime/onnx_session.py", "optimum/graph.py", "optimum/route.py"],
)  # fmt: skip
def test_exporter_engines_and_the_route_of_optimum_take_the_names_from_here(name):
    text = (PACKAGE / name).read_text(encoding="utf-8")
    assert f"from {onnx_io.__name__} import" in text


def test_no_other_file_spells_them():
    found = {}
    for path in sorted(PACKAGE.rglob("*.py")):
        name = path.relative_to(PACKAGE).as_posix()
        text = path.read_text(encoding="utf-8")
        pattern = CACHES if name in ALIKE else f"{SPELT}|{CACHES}"
        if name not in OTHERS and (hit := re.search(pattern, text)):
            found[name] = hit[0]
    assert {name for name in found if not name.startswith("quantize/")} == set()


def test_every_type_has_its_name_in_onnxruntime():
    assert set(TYPE_NAMES) == {DType.INT64, DType.FP32, DType.FP16}
