"""Claims about reading optimum's graphs: sizes are the graph's own, and odd graphs are refused."""

from __future__ import annotations

from pathlib import Path

import onnx
import pytest
from onnx import TensorProto, helper

from edgekit.artifact import TensorEntry
from edgekit.errors import ExportError
from edgekit.optimum.graph import read_facts

VOCAB, WIDTH, HEADS, LANES = 11, 6, 2, 3
FLOAT, HALF, INT64 = TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.INT64


def write_graph(
    folder: Path,
    *,
    is_tied: bool = False,
    cache: int = FLOAT,
    given: int | None = None,
    past_shape: tuple = ("batch", HEADS, "past", LANES),
    more_inputs: tuple[str, ...] = (),
    ids: str = "input_ids",
    logits_width: int | str = VOCAB,
) -> Path:
    """Write a graph with one layer of keys and values that it only passes on."""
    value = helper.make_tensor_value_info
    inputs = [value("input_ids", INT64, ("batch", "tokens"))]
    inputs += [value(name, FLOAT, (1,)) for name in more_inputs]
    outputs = [value("logits", FLOAT, ("batch", "tokens", logits_width))]
    nodes = [
        helper.make_node("Reshape", [ids, "shape"], ["flat"]),
        helper.make_node("Gather", ["table", "flat"], ["stream"]),
        helper.make_node("Transpose", ["table"], ["turned"]),
        helper.make_node("MatMul", ["stream", "turned" if is_tied else "head"], ["logits"]),
    ]
    if not is_tied:
        del nodes[2]
    for part in ("key", "value"):
        inputs.append(value(f"past_key_values.0.{part}", cache, past_shape))
        outputs.append(value(f"present.0.{part}", given or cache, past_shape))
        nodes.append(helper.make_node("Identity", [inputs[-1].name], [outputs[-1].name]))
    floats = [
        helper.make_tensor("table", FLOAT, (VOCAB, WIDTH), [0.0] * VOCAB * WIDTH),
        helper.make_tensor("head", FLOAT, (WIDTH, VOCAB), [0.0] * VOCAB * WIDTH),
        helper.make_tensor("scale", FLOAT, (), [1.0]),
        helper.make_tensor("shape", INT64, (2,), [1, -1]),
    ]
    if is_tied:
        del floats[1]
    graph = helper.make_graph(nodes, "g", inputs, outputs, floats)
    path = folder / "model.onnx"
    opset = [helper.make_opsetid("", 18)]
    onnx.save_model(helper.make_model(graph, opset_imports=opset), path)
    return path


def test_sizes_come_from_shapes_and_the_embedding_from_its_use(tmp_path):
    facts = read_facts(write_graph(tmp_path))
    assert facts.sizes == {
        "vocab_size": VOCAB,
        "n_layers": 1,
        "n_kv_heads": HEADS,
        "head_width": LANES,
        "is_tied": False,
    }
    assert (facts.cache_type, facts.opset) == ("fp32", 18)
    # Whole numbers and single floats are no weights.
    assert facts.tensors == (
        TensorEntry("embed", (VOCAB, WIDTH), "fp32", "as optimum wrote it", None),
        TensorEntry("head", (WIDTH, VOCAB), "fp32", "as optimum wrote it", None),
    )


def test_an_embedding_that_is_read_twice_is_tied(tmp_path):
    facts = read_facts(write_graph(tmp_path, is_tied=True))
    assert facts.is_tied
    assert [entry.name for entry in facts.tensors] == ["embed"]


def test_a_cache_of_half_precision_is_told(tmp_path):
    assert read_facts(write_graph(tmp_path, cache=HALF)).cache_type == "fp16"


@pytest.mark.parametrize(
    ("odd", "what", "got"),
    [
        ({"more_inputs": ("pixel_values",)}, "other inputs", "pixel_values"),
        ({"past_shape": ("batch", "past", LANES)}, "other inputs", "keys and values of shapes"),
        ({"past_shape": ("b", "heads", "past", LANES)}, "other inputs", "None, None, 3"),
        ({"cache": HALF, "given": FLOAT}, "another type than it takes", "present.0.key"),
        ({"cache": TensorProto.DOUBLE}, "another type than it takes", "2 outputs for 2 inputs"),
        ({"logits_width": "many"}, "no logits of a fixed width", ""),
        ({"ids": "somewhere else"}, "no input embedding", ""),
    ],
)
def test_a_graph_that_the_engine_cannot_feed_is_refused(tmp_path, odd, what, got):
    with pytest.raises(ExportError, match=what) as caught:
        read_facts(write_graph(tmp_path, **odd))
    assert got in (caught.value.got or "")
