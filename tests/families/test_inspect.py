from __future__ import annotations

import pytest

from edgekit.errors import CheckpointError
from edgekit.families import open_model
from edgekit.families.inspect import inspect_model, predict_weight_bytes
from edgekit.quantize.recipe import plan
from edgekit.scheme import Scheme
from tests.builders import write_tiny_checkpoint


def test_a_summary_worked_by_hand(tmp_path):
    summary = inspect_model(write_tiny_checkpoint(tmp_path / "tiny"))
    # Per layer: q 128x128, k and v 64x128, o 128x128; gate, up and down 256x128.
    assert summary.parameters_by_group == {
        "embedding": 384 * 128,
        "attention": 2 * (2 * 128 * 128 + 2 * 64 * 128),
        "ffn": 2 * 3 * 256 * 128,
        "norm": 5 * 128,
    }
    assert summary.n_parameters == 344_704
    assert summary.file_bytes == 2 * 344_704
    assert summary.dtypes == ("bf16",)
    # Key and value, 2 layers, 2 heads of 32.
    assert summary.kv_bytes_per_token == {"fp32": 1024, "fp16": 512}
    assert (summary.name, summary.model_type, summary.context_length) == ("tiny", "mistral", 256)
    assert (summary.n_layers, summary.n_heads, summary.n_kv_heads, summary.head_width) == (
        2,
        4,
        2,
        32,
    )
    n_embed, n_matrix, n_norm = 384 * 128, 344_704 - 384 * 128 - 640, 640
    assert summary.weight_bytes == {
        "fp32": 4 * 344_704,
        "fp16": 2 * (n_embed + n_matrix) + 4 * n_norm,
        "int8-g32": (n_embed + n_matrix) * 34 // 32 + 4 * n_norm,
        "int4-g32": n_embed * 34 // 32 + n_matrix * 18 // 32 + 4 * n_norm,
    }


@pytest.mark.parametrize("scheme", ["fp32", "fp16", "int8", "int4", "int4-g64", "int8-g128"])
@pytest.mark.parametrize(
    "change",
    [
        {},
        {"model_type": "llama", "attention_bias": True, "mlp_bias": True},
        {"tie_word_embeddings": False},
        {"intermediate_size": 224},
    ],
)
def test_the_prediction_is_what_the_recipe_plans(tmp_path, scheme, change):
    spec = open_model(write_tiny_checkpoint(tmp_path / "m", **change)).spec
    planned = sum(
        item.scheme.bytes_of(item.shape[0], item.shape[1] if len(item.shape) > 1 else 1)
        for item in plan(spec, Scheme.parse(scheme))
    )
    assert predict_weight_bytes(spec, Scheme.parse(scheme)) == planned


def test_a_scheme_that_no_group_fits_is_left_out(tmp_path):
    summary = inspect_model(write_tiny_checkpoint(tmp_path / "m", intermediate_size=250))
    assert list(summary.weight_bytes) == ["fp32", "fp16"]


def test_no_weight_is_read(tmp_path):
    folder = write_tiny_checkpoint(tmp_path / "m", dtype="fp32")
    path = folder / "model.safetensors"
    n_header = 8 + int.from_bytes(path.read_bytes()[:8], "little")
    # Every value is NaN now; only someone who reads them would notice.
    path.write_bytes(path.read_bytes()[:n_header] + b"\xff" * (path.stat().st_size - n_header))
    assert inspect_model(folder).n_parameters == 344_704
    with pytest.raises(CheckpointError, match="not finite"):
        open_model(folder).tensor("embed").read()


@pytest.mark.parametrize("dtype", ["bf16", "fp16", "fp32"])
def test_the_stored_type_is_named(tmp_path, dtype):
    summary = inspect_model(write_tiny_checkpoint(tmp_path / "m", dtype=dtype))
    assert summary.dtypes == (dtype,)


@pytest.mark.parametrize(
    ("card", "wanted"),
    [
        ("---\nlicense: apache-2.0\ntags: [x]\n---\n# Model\n", "apache-2.0"),
        ('---\nlicense: "mit"\n---\n', "mit"),
        ("---\nlicense: other\nlicense_name: mrl\n---\n", "mrl"),
        ("# Model\nlicense: mit\n", ""),
        ("---\ntags: [x]\n---\nlicense: mit\n", ""),
        ("", ""),
        (None, ""),
    ],
)
def test_the_license_comes_from_the_front_matter_only(tmp_path, card, wanted):
    folder = write_tiny_checkpoint(tmp_path / "m")
    if card is not None:
        (folder / "README.md").write_text(card)
    assert inspect_model(folder).license == wanted
