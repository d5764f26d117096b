from __future__ import annotations

import pytest

from edgekit.errors import CheckpointError
from edgekit.families import open_model
from edgekit.families.inspect import inspect_model
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


def test_end_tokens_are_named_with_where_they_come_from(tmp_path):
    folder = write_tiny_checkpoint(tmp_path / "m", "llama")
    (end,) = inspect_model(folder).end_tokens
    assert (end.id, end.text) == (2, "</s>")
    assert end.origins == (
        "generation_config.json eos_token_id",
        "config.json eos_token_id",
        "eos_token of the tokenizer",
        "chat template after an answer",
    )


def test_what_the_text_files_lack_is_told(tmp_path):
    folder = write_tiny_checkpoint(tmp_path / "m", "llama")
    config = folder / "tokenizer_config.json"
    config.write_text(config.read_text().replace('"eos_token": "</s>"', '"eos_token": "<never>"'))
    notes = inspect_model(folder).notes
    assert any("no export" in note and "'<never>'" in note for note in notes)
    for path in (folder / "tokenizer.json", config):
        path.unlink()
    assert any(note.startswith("no tokenizer: ") for note in inspect_model(folder).notes)
