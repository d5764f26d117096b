"""Adapters merged while the weights are read, against PEFT, mlx-lm and the formulas."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Final

import numpy as np
import pytest
import safetensors.numpy

from edgekit.checkpoint.adapter import Adapter
from edgekit.errors import CheckpointError, FormatError, MissingFileError
from edgekit.families import open_model
from edgekit.formats.safetensors import SafetensorsFile
from edgekit.pipeline.export import export
from edgekit.runtime.reference import ReferenceDecoder
from tests.builders import write_tiny_checkpoint
from tests.checkpoint.gguf.test_gguf import write_gguf
from tests.golden.tokens import golden_ids
from tests.tiny_adapters import ADAPTERS, PREFIX, write_tiny_adapter

GOLDEN: Final = Path(__file__).parent.parent / "golden" / "adapters"
# Both sides sum in float32 in another order; 3e-5 was the largest difference seen.
FLOAT32_SUMS: Final = 2e-4
ROWS: Final = (0, 1, 17, 40, 63)
N_TOKENS: Final = 64
# PEFT's merge changes both of two tied matrices, although one was trained (docs/adapters.md).
PEFT_MERGES_BOTH: Final = {"head_tied", "embedding_tied", "embedding_kept_tied"}


def logits_of(source):
    ids = golden_ids()[:N_TOKENS]
    return ReferenceDecoder.from_source(source).forward(ids, n_past=0, n_logits=N_TOKENS)


@pytest.mark.parametrize("name", ADAPTERS)
def test_merged_logits_are_those_of_peft(tmp_path, name):
    base, adapter = write_tiny_adapter(tmp_path, name)
    golden = np.load(GOLDEN / f"{name}.npz")
    got = logits_of(open_model(base, adapter=adapter))[list(ROWS)]
    for kind in ("applied", "merged"):
        wanted = golden[kind][:, : got.shape[1]]
        error = np.abs(got - wanted).max() / golden["std"]
        if kind == "merged" and name in PEFT_MERGES_BOTH:
            assert error > 0.1
        else:
            assert error <= FLOAT32_SUMS
    without = logits_of(open_model(base))[list(ROWS)]
    assert np.abs(got - without).max() > 0.01 * golden["std"], "the adapter changes nothing"


def test_the_golden_set_covers_every_adapter_and_nothing_else():
    assert {path.stem for path in GOLDEN.glob("*.npz")} == set(ADAPTERS)


def stored(base, adapter):
    return (
        safetensors.numpy.load_file(base / "model.safetensors"),
        safetensors.numpy.load_file(adapter / "adapter_model.safetensors"),
    )


def edit(adapter, change=lambda tensors: None, **config):
    path = adapter / "adapter_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **config}))
    path = adapter / "adapter_model.safetensors"
    tensors = safetensors.numpy.load_file(path)
    change(tensors)
    safetensors.numpy.save_file(tensors, path)


Q: Final = "model.layers.0.self_attn.q_proj"


def test_the_formula_of_lora_and_of_dora_by_hand(tmp_path):
    base, adapter = write_tiny_adapter(tmp_path, "dora")
    weights, parts = stored(base, adapter)
    a, b = (parts[f"{PREFIX}{Q}.lora_{x}.weight"].astype(np.float64) for x in "AB")
    wanted = weights[f"{Q}.weight"].astype(np.float64) + 10 / 4 * b @ a
    lengths = parts[f"{PREFIX}{Q}.lora_magnitude_vector"]
    dora = wanted * (lengths / np.linalg.norm(wanted, axis=1))[:, None]
    got = open_model(base, adapter=adapter).tensor("layers.0.q").read()
    np.testing.assert_allclose(got, dora, rtol=1e-5, atol=1e-6)
    edit(adapter, lambda t: [t.pop(n) for n in list(t) if "magnitude" in n], use_dora=False)
    got = open_model(base, adapter=adapter).tensor("layers.0.q").read()
    np.testing.assert_allclose(got, wanted, rtol=1e-5, atol=1e-6)


def test_rows_are_the_rows_of_the_whole(tmp_path):
    for name in ("dora", "embedding_dora", "fused", "tokens"):
        base, adapter = write_tiny_adapter(tmp_path / name, name)
        source = open_model(base, adapter=adapter)
        for tensor in source.tensors.values():
            whole = tensor.read()
            n = len(whole)
            parts = [tensor.read_rows(i, min(i + 50, n)) for i in range(0, n, 50)]
            np.testing.assert_allclose(np.concatenate(parts), whole, rtol=2e-6, atol=1e-6)


def test_no_weight_and_no_thin_matrix_is_read_before_it_is_asked_for(tmp_path, monkeypatch):
    base, adapter = write_tiny_adapter(tmp_path, "lora_untied")
    read = []

    def read_bits(self, info, begin, shape):
        read.append(info.name)
        return original(self, info, begin, shape)

    original = SafetensorsFile.read_bits
    monkeypatch.setattr(SafetensorsFile, "read_bits", read_bits)
    source = open_model(base, adapter=adapter)
    read.clear()  # embedding and head were compared
    for first in range(0, 128, 32):
        source.tensor("layers.0.q").read_rows(first, first + 32)
    parts = [f"{PREFIX}{Q}.lora_B.weight", f"{PREFIX}{Q}.lora_A.weight"]
    assert read == [f"{Q}.weight", *parts, *[f"{Q}.weight"] * 3]


RENAMED = {
    "with the adapter's name": lambda n: (
        n.replace("lora_A.weight", "lora_A.default.weight")
        .replace("lora_B.weight", "lora_B.default.weight")
        .replace("lora_magnitude_vector", "lora_magnitude_vector.default.weight")
    ),
    "without PEFT's prefix": lambda n: n.removeprefix(PREFIX),
    "of the base model": lambda n: n.replace("model.model.", "model."),
    "of a wrapper": lambda n: n.replace("model.model.", "model.model.language_model."),
    "of a published wrapper": lambda n: n.replace("model.model.", "model.language_model.model."),
}


@pytest.mark.parametrize("kind", RENAMED)
def test_names_as_other_programs_write_them_are_found(tmp_path, kind):
    base, adapter = write_tiny_adapter(tmp_path, "dora")
    wanted = open_model(base, adapter=adapter).tensor("layers.1.up").read()
    rename = RENAMED[kind]

    def change(tensors):
        for name in list(tensors):
            tensors[rename(name)] = tensors.pop(name)

    edit(adapter, change)
    np.testing.assert_array_equal(
        open_model(base, adapter=adapter).tensor("layers.1.up").read(), wanted
    )


def test_an_adapter_saved_with_its_model_is_merged(tmp_path):
    base, adapter = write_tiny_adapter(tmp_path, "saved")
    wanted = logits_of(open_model(base, adapter=adapter))
    weights, parts = stored(base, adapter)
    adapted = {n.rpartition(".lora_")[0] for n in parts if ".lora_" in n}
    both = {}
    for name, values in weights.items():
        module = PREFIX + name.removesuffix(".weight")
        if module in adapted:
            both[f"{module}.base_layer.weight"] = values
        elif PREFIX + name in parts:
            both[f"{module}.original_module.weight"] = values
            both[f"{module}.modules_to_save.default.weight"] = parts[PREFIX + name]
        else:
            both[PREFIX + name] = values
    for name, values in parts.items():
        if ".lora_" in name:
            both[name.replace(".weight", ".default.weight")] = values
    safetensors.numpy.save_file(both, base / "model.safetensors")
    with pytest.raises(CheckpointError, match="hold a LoRA adapter that is not merged") as caught:
        open_model(base)
    assert "adapter_config.json" in caught.value.got
    shutil.copy(adapter / "adapter_config.json", base)
    source = open_model(base)
    np.testing.assert_array_equal(logits_of(source), wanted)
    assert any("merged with the adapter" in note for note in source.checkpoint.notes)


def test_a_base_that_is_quantized_is_read_as_floats_where_it_is_changed(tmp_path):
    base, adapter = write_tiny_adapter(tmp_path, "lora_untied")
    (made,) = export(base, "mlx", "int8", tmp_path / "out")
    plain, merged = open_model(made.path), open_model(made.path, adapter=adapter)
    parts = safetensors.numpy.load_file(adapter / "adapter_model.safetensors")
    a, b = (parts[f"{PREFIX}{Q}.lora_{x}.weight"] for x in "AB")
    assert plain.tensor("layers.0.q").prequantized is not None
    assert merged.tensor("layers.0.q").prequantized is None
    assert merged.tensor("layers.0.up").prequantized is not None
    wanted = plain.tensor("layers.0.q").read() + np.float32(2.5) * (b @ a)
    np.testing.assert_allclose(merged.tensor("layers.0.q").read(), wanted, rtol=1e-5, atol=1e-6)


def test_a_gguf_file_takes_an_adapter_of_its_original(tmp_path):
    path, _, _ = write_gguf(tmp_path / "m")
    _, adapter = write_tiny_adapter(tmp_path, "lora")
    plain, merged = open_model(path), open_model(path, adapter=adapter)
    parts = safetensors.numpy.load_file(adapter / "adapter_model.safetensors")
    for name, module in {"layers.0.q": Q, "layers.1.down": "model.layers.1.mlp.down_proj"}.items():
        a, b = (parts[f"{PREFIX}{module}.lora_{x}.weight"] for x in "AB")
        wanted = plain.tensor(name).read() + np.float32(2.5) * (b @ a)
        np.testing.assert_allclose(merged.tensor(name).read(), wanted, rtol=1e-5, atol=1e-6)
    assert merged.checkpoint.sha256() != plain.checkpoint.sha256()


def test_the_artifact_says_which_adapter(tmp_path):
    base, adapter = write_tiny_adapter(tmp_path, "lora")
    (plain,) = export(base, "onnx", "int8", tmp_path / "out")
    (made,) = export(base, "onnx", "int8", tmp_path / "out", adapter=adapter)
    assert made.path.name == "base-adapter-onnx-int8-g32"
    manifest = made.manifest
    assert (manifest.adapter, len(manifest.adapter_sha256)) == (str(adapter), 64)
    assert manifest.source_sha256 != plain.manifest.source_sha256
    assert manifest.weights_sha256 != plain.manifest.weights_sha256
    said = f"merged with the adapter adapter (sha256 {manifest.adapter_sha256[:12]}): 14 modules"
    assert said in manifest.notes
    edit(adapter, lambda tensors: next(iter(tensors.values())).__imul__(2))
    (other,) = export(base, "onnx", "int8", tmp_path / "other", adapter=adapter)
    assert other.manifest.source_sha256 != manifest.source_sha256


def test_the_command_merges_and_says_so(edgekit_cli, tmp_path):
    base, adapter = write_tiny_adapter(tmp_path, "lora")
    said = edgekit_cli("inspect", "--no-measure", str(base), "--adapter", str(adapter))
    assert said.code == 0 and "merged with the adapter adapter" in said.err
    options = ("--format", "onnx", "--out", str(tmp_path / "out"))
    said = edgekit_cli("export", str(base), "--adapter", str(adapter), *options)
    assert said.code == 0 and "merged with the adapter adapter" in said.err
    said = edgekit_cli("export", str(adapter), *options)
    assert said.code == 1 and f"edgekit export owner/base --adapter {adapter}" in said.err
    said = edgekit_cli("export", str(base), "--adapter", str(adapter), "--via", "optimum")
    assert said.code == 2


def test_tokens_that_were_added_come_with_the_adapters_tokenizer(tmp_path):
    base, adapter = write_tiny_adapter(tmp_path, "resized")
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(base / name, adapter)
    tokenizer = json.loads((adapter / "tokenizer.json").read_text())
    n_before = len(tokenizer["model"]["vocab"])
    flags = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
    tokenizer["added_tokens"] += [
        {"id": i, "content": f"<t{i}>", "special": True, **flags} for i in range(n_before, 390)
    ]
    (adapter / "tokenizer.json").write_text(json.dumps(tokenizer))
    source = open_model(base, adapter=adapter)
    assert source.spec.vocab_size == 390
    parts = safetensors.numpy.load_file(adapter / "adapter_model.safetensors")
    wanted = parts[f"{PREFIX}model.embed_tokens.weight"]
    np.testing.assert_array_equal(source.tensor("embed").read(), wanted)
    files = source.checkpoint.text_files
    assert files.read_object("tokenizer.json")["added_tokens"][-1]["content"] == "<t389>"


@pytest.mark.parametrize("has_own", [True, False])
def test_the_chat_template_is_the_adapters_if_it_has_one(tmp_path, has_own):
    base, adapter = write_tiny_adapter(tmp_path, "lora")
    shutil.copy(base / "tokenizer.json", adapter)
    own = {"chat_template": "{{ 'own' }}"} if has_own else {}
    (adapter / "tokenizer_config.json").write_text(json.dumps({"eos_token": "</s>", **own}))
    (base / "chat_template.jinja").write_text("{{ 'of the base' }}")
    files = open_model(base, adapter=adapter).checkpoint.text_files
    assert files.has("chat_template.jinja") is not has_own
    config = files.read_object("tokenizer_config.json")
    assert config == {"eos_token": "</s>", **own}
    (base / "chat_template.jinja").unlink()
    config = open_model(base, adapter=adapter).checkpoint.text_files.read_object(
        "tokenizer_config.json"
    )
    of_base = json.loads((base / "tokenizer_config.json").read_text())["chat_template"]
    assert config["chat_template"] == (own["chat_template"] if has_own else of_base)


@pytest.mark.parametrize(
    ("config", "words"),
    [
        ({"peft_type": "IA3"}, "peft_type 'IA3'"),
        ({"peft_type": "PREFIX_TUNING"}, "peft_type 'PREFIX_TUNING'"),
        ({"peft_type": "ADALORA"}, "peft_type 'ADALORA'"),
        ({"init_lora_weights": "pissa_niter_4"}, "init_lora_weights 'pissa_niter_4'"),
        ({"init_lora_weights": "olora"}, "init_lora_weights 'olora'"),
        ({"init_lora_weights": "loftq"}, "init_lora_weights 'loftq'"),
        ({"alora_invocation_tokens": [1, 2]}, "alora_invocation_tokens [1, 2]"),
        ({"layer_replication": [[0, 2]]}, "layer_replication"),
        ({"target_parameters": ["experts"]}, "target_parameters"),
        ({"use_qalora": True}, "use_qalora true"),
        ({"a_key_of_the_future": 3}, "a_key_of_the_future 3"),
        ({"lora_alpha": "x"}, "lora_alpha x"),
        ({"lora_alpha": 1e999}, "JSON"),
        ({"alpha_pattern": {"(a+)+$": 3}}, "alpha_pattern '(a+)+$'"),
        ({"alpha_pattern": {"[": 3}}, "alpha_pattern '['"),
    ],
)
def test_what_is_more_than_lora_is_refused_by_name(tmp_path, config, words):
    base, adapter = write_tiny_adapter(tmp_path, "lora")
    edit(adapter, **config)
    with pytest.raises(CheckpointError) as caught:
        open_model(base, adapter=adapter)
    assert words in str(caught.value)


def drop(part):
    return lambda tensors: [tensors.pop(n) for n in list(tensors) if part in n]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (drop("0.self_attn.q_proj.lora_A"), f"{Q} has only one of its two LoRA matrices"),
        (lambda t: t.update(strange=np.ones(3, np.float32)), "tensor strange (F32)"),
        (
            lambda t: t.update({f"{PREFIX}{Q}.lora_C.weight": np.ones(3, np.float32)}),
            f"{Q}.lora_C (the model has no such weight)",
        ),
        (
            lambda t: t.update({f"{PREFIX}{Q}.lora_A.weight": np.ones((4, 128), np.int8)}),
            "lora_A.weight (I8)",
        ),
        (
            lambda t: t.update({f"{PREFIX}{Q}.lora_A.weight": np.ones((4, 64), np.float32)}),
            f"{Q} changes a matrix of [128, 64] (the model's: [128, 128])",
        ),
        (
            lambda t: t.update({f"{PREFIX}{Q}.lora_A.weight": np.ones((8, 128), np.float32)}),
            f"{Q} has LoRA matrices of shape [8, 128] and [128, 4]",
        ),
        (
            lambda t: t.update({f"{PREFIX}{Q}.lora_A.weight": np.ones(0, np.float32)}),
            "a save of one part of a model that was split",
        ),
        (
            lambda t: t.update(
                {
                    f"{PREFIX}model.layers.7.mlp.up_proj.lora_A.weight": np.ones(
                        (4, 8), np.float32
                    ),
                    f"{PREFIX}model.layers.7.mlp.up_proj.lora_B.weight": np.ones(
                        (8, 4), np.float32
                    ),
                }
            ),
            "model.layers.7.mlp.up_proj (the model has no such weight)",
        ),
        (
            lambda t: t.update({f"{PREFIX}{Q}.lora_B.bias": np.ones(128, np.float32)}),
            f"{Q} adds to a bias (the model has none there)",
        ),
        (
            lambda t: t.update({f"{PREFIX}model.norm.bias": np.ones(128, np.float32)}),
            "model.norm.bias (the model has none)",
        ),
        (
            lambda t: t.update({f"{PREFIX}{Q}.lora_A.other.weight": np.ones((4, 128), np.float32)}),
            None,
        ),
    ],
)
def test_every_part_of_an_adapter_is_used_or_named(tmp_path, change, words):
    base, adapter = write_tiny_adapter(tmp_path, "lora")
    edit(adapter, change)
    if words is None:
        edit(
            adapter,
            lambda t: t.update({f"{PREFIX}{Q}.lora_B.more.weight": np.ones((128, 4), "f4")}),
        )
        words = "several adapters in one file: , more, other"
    with pytest.raises(CheckpointError) as caught:
        open_model(base, adapter=adapter)
    assert words in str(caught.value)


def test_parts_for_a_vision_tower_are_left_out_aloud(tmp_path):
    base, adapter = write_tiny_adapter(tmp_path, "lora")
    module = f"{PREFIX}model.vision_tower.encoder.layers.0.self_attn.q_proj"
    edit(
        adapter,
        lambda t: t.update(
            {f"{module}.lora_{x}.weight": np.ones((4, 4), np.float32) for x in "AB"}
        ),
    )
    notes = open_model(base, adapter=adapter).checkpoint.notes
    assert any(n.startswith("left out of the adapter: model.vision_tower.encoder") for n in notes)


def test_what_is_no_adapter_is_named_for_what_it_is(tmp_path):
    base, adapter = write_tiny_adapter(tmp_path, "lora")
    for folder, words in ((tmp_path / "x", "no such folder"), (base, "is not an adapter")):
        with pytest.raises(MissingFileError, match=words):
            open_model(base, adapter=folder)
    with pytest.raises(MissingFileError, match=f"Name the folder that holds it: {adapter}"):
        open_model(base, adapter=tmp_path)
    Adapter.open(adapter / "adapter_model.safetensors").close()
    (adapter / "adapter_model.safetensors").write_bytes(b"x" * 20)
    with pytest.raises(FormatError):
        open_model(base, adapter=adapter)
    (adapter / "adapter_model.safetensors").rename(adapter / "adapter_model.bin")
    with pytest.raises(MissingFileError, match=r"adapter_model.bin \(pickle files are never read"):
        open_model(base, adapter=adapter)


# mlx-lm


def write_mlx_adapter(folder, base, kind, *, keys=None):
    """Let mlx-lm make an adapter of a tiny model, with random numbers; give its merged weights."""
    mx = pytest.importorskip("mlx.core")
    from mlx.utils import tree_flatten, tree_unflatten
    from mlx_lm.tuner.utils import linear_to_lora_layers
    from mlx_lm.utils import load

    model, _ = load(str(base))
    rng = np.random.default_rng(3)
    parameters = {"rank": 4, "scale": 7.0, "dropout": 0.0, **({"keys": keys} if keys else {})}
    folder.mkdir()
    if kind == "full":
        trained = dict(tree_flatten(model.layers[1].parameters()))
        tensors = {f"model.layers.1.{n}": v + 0.1 for n, v in trained.items()}
        model.update(tree_unflatten(list(tensors.items())))
    else:
        model.freeze()
        linear_to_lora_layers(model, 1, parameters, use_dora=kind == "dora")
        trained = dict(tree_flatten(model.trainable_parameters()))
        names = [n for n in trained if n.rpartition(".")[2] in ("lora_a", "lora_b", "m")]
        tensors = {
            n: mx.array((0.1 * rng.standard_normal(trained[n].shape)).astype(np.float32))
            for n in names
        }
        model.update(tree_unflatten(list(tensors.items())))
        fused = [(n, m.fuse()) for n, m in model.named_modules() if hasattr(m, "fuse")]
        model.update_modules(tree_unflatten(fused))
    mx.save_safetensors(str(folder / "adapters.safetensors"), tensors)
    config = {"fine_tune_type": kind, "num_layers": 1, "lora_parameters": parameters, "model": "b"}
    (folder / "adapter_config.json").write_text(json.dumps(config))
    return {n: np.array(v) for n, v in tree_flatten(model.parameters())}


@pytest.mark.parametrize(
    ("kind", "keys"),
    [
        ("lora", None),
        ("dora", ["self_attn.q_proj", "mlp.down_proj"]),
        ("full", None),
        ("lora", ["model.embed_tokens"]),
    ],
)
def test_adapters_of_mlx_lm_are_merged_as_it_fuses_them(tmp_path, kind, keys):
    base = write_tiny_checkpoint(tmp_path / "base", "llama", dtype="fp32")
    wanted = write_mlx_adapter(tmp_path / "adapter", base, kind, keys=keys)
    source = open_model(base, adapter=tmp_path / "adapter")
    assert source.spec.is_tied
    plain = open_model(base)
    for name, theirs in {
        "embed": "model.embed_tokens.weight",
        "layers.0.q": "model.layers.0.self_attn.q_proj.weight",
        "layers.1.q": "model.layers.1.self_attn.q_proj.weight",
        "layers.1.down": "model.layers.1.mlp.down_proj.weight",
        "layers.1.attn_norm": "model.layers.1.input_layernorm.weight",
    }.items():
        np.testing.assert_allclose(source.tensor(name).read(), wanted[theirs], rtol=1e-4, atol=1e-5)
    changed = [
        n for n in source.tensors if (source.tensor(n).read() != plain.tensor(n).read()).any()
    ]
    assert changed and ("embed" in changed) == (keys == ["model.embed_tokens"])


def test_settings_of_mlx_lm_that_are_missing_are_named(tmp_path):
    base = write_tiny_checkpoint(tmp_path / "base", "llama", dtype="fp32")
    write_mlx_adapter(tmp_path / "adapter", base, "lora")
    path = tmp_path / "adapter" / "adapter_config.json"
    for config, words in (
        ({"fine_tune_type": "lora", "lora_parameters": {"alpha": 8}}, "lora_parameters.scale None"),
        ({"fine_tune_type": "other"}, "fine_tune_type 'other'"),
    ):
        path.write_text(json.dumps(config))
        with pytest.raises(CheckpointError, match=words):
            open_model(base, adapter=tmp_path / "adapter")
