"""What a model on the Hub holds, before its weights are downloaded; and the command line."""

from __future__ import annotations

import json
import math
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
import safetensors.numpy

from edgekit.checkpoint.remote import open_headers
from edgekit.errors import CheckpointError, FormatError
from edgekit.hub.download import download
from edgekit.pipeline.inspect import inspect
from tests.builders import write_tiny_checkpoint
from tests.hub.hub_case import (
    OWNER,
    SHARD,
    TOKEN,
    WANTED,
    run_cli,
)
from tests.hub.hub_server import Answer


def test_inspect_reads_headers_and_not_one_byte_of_weights(hub):
    found = inspect("owner/name")
    local = inspect(hub.folder)
    assert found.summary.parameters_by_group == local.summary.parameters_by_group
    assert found.summary.file_bytes == local.summary.file_bytes
    assert found.summary.license == "apache-2.0"
    assert found.support == local.support
    for name in (SHARD, "model-00002-of-00002.safetensors"):
        n_header = int.from_bytes((hub.folder / name).read_bytes()[:8], "little")
        assert [(a.range, a.status, a.n_sent) for a in hub.asked(name)] == [
            ("bytes=0-7", 206, 8),
            (f"bytes=8-{7 + n_header}", 206, n_header),
        ]
    assert "tokenizer.json" not in hub.fetched()


def test_a_tensor_that_was_not_downloaded_says_so(hub):
    with open_headers("owner/name") as checkpoint:
        tensor = next(iter(checkpoint.tensors.values()))
        for read in (tensor.read, lambda: tensor.read_rows(0, 1), checkpoint.sha256):
            with pytest.raises(CheckpointError, match="were not downloaded"):
                read()


def test_what_inspect_fetched_is_not_fetched_again(hub):
    inspect("owner/name")
    before = len(hub.log)
    folder = download(OWNER)
    assert {a.file for a in hub.log[before:] if a.n_sent} == {
        "", "tokenizer.json", "tokenizer_config.json", SHARD, "model-00002-of-00002.safetensors",
    }  # fmt: skip
    before = len(hub.log)
    assert inspect("owner/name").summary.n_parameters == inspect(folder).summary.n_parameters
    assert len(hub.log) == before


def test_a_header_that_claims_too_much_is_not_fetched(hub):
    hub.faults.served[SHARD] = (1 << 40).to_bytes(8, "little") + b"{}" * 50
    with pytest.raises(FormatError) as caught:
        inspect("owner/name")
    assert caught.value.what == f"owner/name/{SHARD}: header length at offset 0"
    assert [a.n_sent for a in hub.asked(SHARD)] == [8]


def test_a_header_longer_than_its_file_is_not_fetched(hub):
    hub.faults.served[SHARD] = (9_000_000).to_bytes(8, "little") + b"{}" * 50
    with pytest.raises(FormatError, match="file ends inside the header"):
        inspect("owner/name")
    assert [a.n_sent for a in hub.asked(SHARD)] == [8]


def test_a_server_without_ranges_cannot_be_inspected_and_sends_little(hub):
    hub.faults.has_ranges = False
    with pytest.raises(CheckpointError) as caught:
        inspect("owner/name")
    assert caught.value.got == "the whole file"


def test_a_model_of_7_billion_is_inspected_for_less_than_a_megabyte(hub):
    for path in hub.folder.glob("model*.safetensors*"):
        path.unlink()
    write_7b(hub.folder)
    hub.stated = {name: "0" * 64 for name in hub.names() if name.startswith("model-")}
    found = inspect("owner/name")
    assert found.summary.n_parameters == 7_248_023_552
    assert found.summary.file_bytes == 2 * 7_248_023_552
    assert sum((hub.folder / name).stat().st_size for name in hub.stated) > 14_000_000_000
    assert sum(asked.n_sent for asked in hub.log) < 300_000


def write_7b(folder: Path) -> None:
    """Write a model in the shape of Mistral 7B v0.3: true headers, and holes for weights."""
    config = json.loads((folder / "config.json").read_text())
    config |= {
        "hidden_size": 4096, "intermediate_size": 14336, "num_hidden_layers": 32,
        "num_attention_heads": 32, "num_key_value_heads": 8, "head_dim": 128, "vocab_size": 32768,
        "tie_word_embeddings": False,
    }  # fmt: skip
    (folder / "config.json").write_text(json.dumps(config))
    shapes = {"model.embed_tokens": (32768, 4096), "model.norm": (4096,), "lm_head": (32768, 4096)}
    for i in range(32):
        layer = f"model.layers.{i}"
        for name, n_rows, n_cols in (
            ("self_attn.q_proj", 4096, 4096), ("self_attn.k_proj", 1024, 4096),
            ("self_attn.v_proj", 1024, 4096), ("self_attn.o_proj", 4096, 4096),
            ("mlp.gate_proj", 14336, 4096), ("mlp.up_proj", 14336, 4096),
            ("mlp.down_proj", 4096, 14336),
        ):  # fmt: skip
            shapes[f"{layer}.{name}"] = (n_rows, n_cols)
        shapes[f"{layer}.input_layernorm"] = shapes[f"{layer}.post_attention_layernorm"] = (4096,)
    weight_map = {}
    names = list(shapes)
    for number in range(3):
        file_name, header, end = f"model-{number + 1:05}-of-00003.safetensors", {}, 0
        for name in names[number::3]:
            size = 2 * math.prod(shapes[name])
            offsets = [end, end := end + size]
            header[f"{name}.weight"] = {
                "dtype": "BF16", "shape": shapes[name], "data_offsets": offsets,
            }  # fmt: skip
            weight_map[f"{name}.weight"] = file_name
        text = json.dumps(header).encode()
        with (folder / file_name).open("wb") as stream:
            stream.write(len(text).to_bytes(8, "little") + text)
            stream.truncate(8 + len(text) + end)
    index = {"metadata": {}, "weight_map": weight_map}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))


def test_an_fp8_model_is_inspected_by_its_headers(hub):
    for path in hub.folder.glob("model*"):
        path.unlink()
    (hub.folder / "config.json").unlink()
    write_tiny_checkpoint(hub.folder, "ministral3")
    path = hub.folder / "model.safetensors"
    tensors = safetensors.numpy.load_file(path)
    for name in [name for name in tensors if "_proj" in name]:
        tensors[name] = tensors[name].astype(ml_dtypes.float8_e4m3fn)
        tensors[f"{name}_scale_inv"] = np.ones((), np.float32)
    safetensors.numpy.save_file(tensors, path)
    config = json.loads((hub.folder / "config.json").read_text())
    config["quantization_config"] = {"quant_method": "fp8", "activation_scheme": "static"}
    (hub.folder / "config.json").write_text(json.dumps(config))
    found = inspect("owner/name").summary
    assert found.dtypes == inspect(hub.folder).summary.dtypes == ("fp8 e4m3", "bf16")
    n_header = int.from_bytes(path.read_bytes()[:8], "little")
    assert [a.n_sent for a in hub.asked("model.safetensors")] == [8, n_header]


def test_the_command_gives_one_json_document_and_says_nothing_else(hub):
    said = run_cli("inspect", "owner/name", "--no-measure", "--json")
    assert (said.returncode, said.stderr) == (0, "")
    assert json.loads(said.stdout)["origin"] == "owner/name"
    assert max(a.n_sent for a in hub.asked(SHARD)) < (hub.folder / SHARD).stat().st_size / 10


def test_an_export_from_the_hub_gives_one_json_document(hub, tmp_path):
    out = tmp_path / "out"
    said = run_cli(
        *(
            "export",
            "owner/name",
            "--format",
            "mlx",
            "--scheme",
            "int4",
            "--out",
            str(out),
            "--json",
        )
    )
    assert (said.returncode, said.stderr) == (0, "")
    json.loads(said.stdout)
    assert hub.fetched() == WANTED


def test_the_command_explains_a_refusal_without_a_traceback(hub):
    hub.faults.answers = lambda a: Answer(403, b"", {"X-Error-Code": "GatedRepo"})
    said = run_cli("inspect", "owner/name", "--no-measure", HF_TOKEN=TOKEN)
    assert said.returncode == CheckpointError.exit_code
    assert said.stdout == ""
    assert said.stderr.splitlines() == [
        "error: owner/name: access is restricted",
        "  got:    HTTP 403",
        "  do:     Accept the licence on the model's page, then set HF_TOKEN.",
    ]


def test_the_environment_of_a_process_is_honoured(hub):
    said = run_cli("inspect", "owner/name", "--no-measure", HF_HUB_OFFLINE="1")
    assert said.stderr.startswith("error: owner/name: not in the local cache")
    assert hub.log == []


def test_the_token_of_a_login_is_used(hub, tmp_path):
    (tmp_path / "home").mkdir()
    (tmp_path / "home" / "token").write_text(TOKEN)
    assert run_cli("inspect", "owner/name", "--no-measure", "--json").returncode == 0
    assert {a.token for a in hub.log if f"http://{a.host}" == hub.url} == {f"Bearer {TOKEN}"}
