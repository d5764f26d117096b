"""What is stored decides: heads, rows of the vocabulary, names, types, and what is left out."""

from __future__ import annotations

import json
import re

import ml_dtypes
import numpy as np
import pytest

from edgekit.checkpoint.reader import FolderCheckpoint
from edgekit.families import open_model
from edgekit.pipeline.export import export
from tests.builders import write_tiny_checkpoint
from tests.families.test_families import edit_config, edit_weights, refusal

BF16 = ml_dtypes.bfloat16
EMBED, HEAD = "model.embed_tokens.weight", "lm_head.weight"


def made(tmp_path, change=lambda tensors: None, kind="llama", **config):
    """Give a tiny checkpoint with other tensors: its folder, and the tensors as float32."""
    kept = {}

    def change_and_keep(tensors):
        change(tensors)
        kept.update({n: v.astype(np.float32) for n, v in tensors.items() if v.dtype == BF16})

    folder = write_tiny_checkpoint(tmp_path / "m", kind, **config)
    return edit_weights(folder, change_and_keep), kept


def other_head(tensors):
    rng = np.random.default_rng(5)
    tensors[HEAD] = rng.standard_normal(tensors[EMBED].shape).astype(tensors[EMBED].dtype)


def same_head(tensors):
    tensors[HEAD] = tensors[EMBED].copy()


def last_row_differs(tensors):
    same_head(tensors)
    tensors[HEAD][-1, -1] += 1


def wider_type(tensors):
    tensors[HEAD] = tensors[EMBED].astype(np.float32)


def no_head(tensors):
    tensors.pop(HEAD, None)


def only_head(tensors):
    tensors[HEAD] = tensors.pop(EMBED)


@pytest.mark.parametrize(
    ("said", "change", "is_tied", "note"),
    [
        (True, other_head, False, "lm_head.weight differs from the embedding and is used"),
        (True, last_row_differs, False, "lm_head.weight differs from the embedding and is used"),
        (True, same_head, True, None),
        (True, wider_type, True, None),
        (True, no_head, True, None),
        (True, only_head, True, "no model.embed_tokens.weight is stored: lm_head.weight is the"),
        (False, other_head, False, None),
        (False, last_row_differs, False, None),
        (False, same_head, True, "lm_head.weight is identical to the embedding"),
        (False, no_head, True, "no lm_head.weight is stored: the embedding is the output matrix"),
    ],
)
def test_the_head_that_is_stored_decides_and_not_the_flag(tmp_path, said, change, is_tied, note):
    folder, tensors = made(tmp_path, change, tie_word_embeddings=said)
    source = open_model(folder)
    assert source.spec.is_tied is is_tied
    embed = tensors.get(EMBED, tensors.get(HEAD))
    np.testing.assert_array_equal(source.tensor("embed").read(), embed)
    if not is_tied:
        np.testing.assert_array_equal(source.tensor("lm_head").read(), tensors[HEAD])
    else:
        assert "lm_head" not in source.tensors
    assert [n for n in source.checkpoint.notes if note is None or not n.startswith(note)] == []
    assert len(source.checkpoint.notes) == (note is not None)


@pytest.mark.parametrize("said", [True, False])
def test_headers_alone_leave_the_head_to_the_export(tmp_path, monkeypatch, said):
    folder, _ = made(tmp_path, other_head, tie_word_embeddings=said)
    monkeypatch.setattr(FolderCheckpoint, "has_weights", False)
    source = open_model(folder, headers_only=True)
    assert source.spec.is_tied is said
    notes = ["lm_head.weight is stored besides the embedding; an export compares them, and uses it"]
    assert [n.partition(" if it differs")[0] for n in source.checkpoint.notes] == notes[: int(said)]


@pytest.mark.parametrize("change", [other_head, same_head])
def test_a_head_of_codes_is_compared_by_its_values(tmp_path, change):
    made(tmp_path, change, tie_word_embeddings=False)
    (artifact,) = export(tmp_path / "m", "mlx", "int8", tmp_path / "out")
    source = open_model(artifact.path)
    assert source.spec.is_tied is (change is same_head)
    if change is other_head:
        config = json.loads((artifact.path / "config.json").read_text())
        edit_config(artifact.path, tie_word_embeddings=True)
        assert config["tie_word_embeddings"] is False
        source = open_model(artifact.path)
        assert not source.spec.is_tied and source.tensor("lm_head").prequantized is not None


def test_an_untied_model_without_embedding_is_refused(tmp_path):
    folder, _ = made(tmp_path, only_head, tie_word_embeddings=False)
    assert refusal(folder).got == "model.embed_tokens.weight is missing (wanted [384, 128])"


def write_tokens(folder, n_tokens):
    """Give the tokenizer added tokens until it has ``n_tokens``."""
    path = folder / "tokenizer.json"
    tokenizer = json.loads(path.read_text())
    n_now = len(tokenizer["model"]["vocab"])
    flags = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
    tokenizer["added_tokens"] += [
        {"id": i, "content": f"<more{i}>", "special": True, **flags} for i in range(n_now, n_tokens)
    ]
    path.write_text(json.dumps(tokenizer))


def rows(n_embed, n_head=None):
    def change(tensors):
        rng = np.random.default_rng(1)
        tensors[EMBED] = rng.standard_normal((n_embed, 128)).astype(BF16)
        if n_head is not None:
            tensors[HEAD] = rng.standard_normal((n_head, 128)).astype(BF16)

    return change


@pytest.mark.parametrize(
    ("n_embed", "n_head", "n_tokens", "wanted"),
    [
        (386, None, 386, 386),  # tokens were added, and the config is that of before
        (386, 386, 386, 386),
        (448, None, 384, 384),  # rows were added to a round number
        (448, 448, 384, 384),
        (448, 384, 384, 384),  # ... to one of the two
        (384, 448, 384, 384),
        (380, None, None, 380),  # rows were cut
        (380, 380, None, 380),
        (386, None, None, 384),
    ],
)
def test_the_rows_that_are_stored_are_the_vocabulary(tmp_path, n_embed, n_head, n_tokens, wanted):
    is_tied = n_head is None
    folder, tensors = made(tmp_path, rows(n_embed, n_head), tie_word_embeddings=is_tied)
    if n_tokens is not None:
        write_tokens(folder, n_tokens)
    source = open_model(folder)
    assert source.spec.vocab_size == wanted
    names = {"embed": EMBED} if is_tied else {"embed": EMBED, "lm_head": HEAD}
    for name, theirs in names.items():
        tensor = source.tensor(name)
        assert tensor.info.shape == (wanted, 128)
        np.testing.assert_array_equal(tensor.read(), tensors[theirs][:wanted])
        np.testing.assert_array_equal(
            tensor.read_rows(wanted - 3, wanted), tensors[theirs][wanted - 3 : wanted]
        )
    (note,) = source.checkpoint.notes
    assert note.startswith(f"vocabulary of {wanted}: {n_embed} rows in {EMBED}")


def test_rows_without_a_tokenizer_are_all_taken(tmp_path):
    folder, _ = made(tmp_path, rows(386))
    (folder / "tokenizer.json").unlink()
    assert open_model(folder).spec.vocab_size == 386


def test_a_token_that_ends_a_text_has_a_row_and_a_pad_need_not(tmp_path):
    folder, _ = made(tmp_path, rows(380), pad_token_id=383)
    source = open_model(folder)
    assert source.spec.pad_token_id is None
    assert "pad_token_id 383 has no row and is not used" in source.checkpoint.notes
    edit_config(folder, eos_token_id=381)
    (folder / "generation_config.json").unlink()
    assert "token id 381 is outside vocab_size 380" in refusal(folder).what


def test_a_pad_token_that_was_added_with_its_row_is_kept(tmp_path):
    folder, _ = made(tmp_path, rows(385), pad_token_id=384)
    write_tokens(folder, 385)
    assert open_model(folder).spec.pad_token_id == 384


@pytest.mark.parametrize(
    ("prefix", "is_said"),
    [
        ("model.", False),
        ("", True),
        ("transformer.", True),
        ("module.model.", True),
        ("_orig_mod.model.", True),
        ("base_model.model.model.", True),
        ("language_model.model.", False),
        ("model.language_model.", False),
        ("thinker.", True),
    ],
)
@pytest.mark.parametrize("head", ["all", "as usual"])
def test_any_prefix_of_all_names_is_found(tmp_path, prefix, is_said, head):
    plain = open_model(
        write_tiny_checkpoint(tmp_path / "plain", "qwen3", tie_word_embeddings=False)
    )

    def change(tensors):
        before = {"all": re.sub(r"(^|(?<=\.))model\.$", "", prefix), "as usual": ""}[head]
        for name in list(tensors):
            inside = name.startswith("model.")
            tensors[prefix + name[6:] if inside else before + name] = tensors.pop(name)

    folder, _ = made(tmp_path, change, "qwen3", tie_word_embeddings=False)
    source = open_model(folder)
    assert list(source.tensors) == list(plain.tensors)
    for name, tensor in source.tensors.items():
        np.testing.assert_array_equal(tensor.read(), plain.tensor(name).read())
    assert len(source.checkpoint.notes) == is_said
    assert all("tensor names " in note for note in source.checkpoint.notes)


@pytest.mark.parametrize("n_layers", [1, 27])
def test_the_decoder_is_found_among_towers_with_layers_of_their_own(tmp_path, n_layers):
    def change(tensors):
        for name in list(tensors):
            if name.startswith("model.layers.0.self_attn"):
                for i in range(n_layers):
                    inner = name.removeprefix("model.").replace(".0.", f".{i}.")
                    tensors[f"vision_tower.transformer.{inner}"] = tensors[name] * 2
                    tensors[f"audio_tower.{inner}"] = tensors[name] * 3
                    tensors[f"mtp.{inner}"] = tensors[name] * 4

    source = open_model(made(tmp_path, change, "qwen3")[0])
    plain = open_model(write_tiny_checkpoint(tmp_path / "plain", "qwen3"))
    np.testing.assert_array_equal(
        source.tensor("layers.0.q").read(), plain.tensor("layers.0.q").read()
    )
    assert sorted(source.left_out.values()) == [6 * n_layers] * 3


LAYER = "model.layers.0."


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        (f"{LAYER}self_attn.rotary_emb.inv_freq", "rotary tables"),
        ("model.rotary_emb.inv_freq", "rotary tables"),
        ("rotary_emb.inv_freq", "rotary tables"),
        (f"{LAYER}self_attn.rotary_emb.cos_cached", "rotary tables"),
        (f"{LAYER}self_attn.masked_bias", "attention masks"),
        (f"{LAYER}self_attn.bias", "attention masks"),
        (f"{LAYER}self_attn.prob_output_scale", "scales of a quantized KV cache"),
        (f"{LAYER}self_attn.k_zero_point", "zero points of a quantized KV cache"),
        (f"{LAYER}self_attn.q_proj.input_scale_inv", "scales of quantized activations"),
        (f"{LAYER}mlp.up_proj.weight.exp_avg", "an optimizer"),
        ("optimizer.state.0.exp_avg", "an optimizer"),
        ("vision_tower.patch_conv.weight", "the vision tower"),
        ("model.visual.blocks.0.attn.qkv.weight", "the vision tower"),
        ("multi_modal_projector.linear_1.weight", "the vision tower"),
        ("model.audio_tower.layers.0.fc1.weight", "the audio part"),
        ("mtp.fc.weight", "layers that predict more than one token"),
        ("model.mtp_layers.0.input_proj.weight", "layers that predict more than one token"),
        ("v_head.summary.weight", "a head for another task"),
        ("score.weight", "a head for another task"),
        ("medusa_head.0.linear.weight", "a head that drafts tokens"),
        ("model.something_else", "unknown"),
        ("whatever.table", "unknown"),
    ],
)
@pytest.mark.parametrize("dtype", [np.float32, np.int64])
def test_tensors_that_the_decoder_does_not_need_are_left_out_aloud(tmp_path, name, kind, dtype):
    source = open_model(made(tmp_path, lambda t: t.update({name: np.ones((2, 3), dtype)}))[0])
    ((found, count),) = source.left_out.items()
    assert (found.startswith(kind), count) == (True, 1)
    assert source.checkpoint.notes == [f"left out: {name} ({found})"]


@pytest.mark.parametrize("name", ["k_scale", "v_proj.output_scale", "q_proj.input_scale"])
def test_scales_of_engines_are_left_out_aloud(tmp_path, name):
    name = f"{LAYER}self_attn.{name}"
    source = open_model(made(tmp_path, lambda t: t.update({name: np.ones(1, np.float32)}))[0])
    (note,) = source.checkpoint.notes
    assert note.endswith(f"left out, such as {name})")


@pytest.mark.parametrize(
    "name",
    [
        f"{LAYER}self_attn.q_norm.weight",
        f"{LAYER}self_attn.q_proj.bias",
        f"{LAYER}self_attn.sinks",
        f"{LAYER}mlp.gate.weight",
        f"{LAYER}mlp.experts.0.up_proj.weight",
        f"{LAYER}pre_feedforward_layernorm.weight",
        f"{LAYER}cross_attn.q_proj.weight",
        "model.layers.2.mlp.up_proj.weight",
        "model.norm.bias",
        "model.embed_positions.weight",
        "model.embed_tokens_per_layer.weight",
        "lm_head.bias",
    ],
)
def test_a_weight_that_would_change_the_result_is_an_error_by_name(tmp_path, name):
    folder, _ = made(tmp_path, lambda t: t.update({name: np.ones(128, np.float32)}))
    assert refusal(folder).got == f"{name} is unexpected"


def test_one_layer_more_that_predicts_further_tokens_is_left_out(tmp_path):
    def change(tensors):
        for name in [n for n in tensors if n.startswith("model.layers.1.")]:
            tensors[name.replace("layers.1", "layers.2")] = tensors[name].copy()
        tensors["model.layers.2.eh_proj.weight"] = np.ones((128, 256), BF16)

    source = open_model(made(tmp_path, change)[0])
    assert list(source.left_out.values()) == [10]


@pytest.mark.parametrize("is_zero", [True, False])
def test_biases_of_zeros_are_left_out_and_others_are_not(tmp_path, is_zero):
    name = f"{LAYER}mlp.down_proj.bias"
    value = np.zeros(128, np.float16) if is_zero else np.full(128, 0.5, np.float16)
    folder, _ = made(tmp_path, lambda t: t.update({name: value}))
    if is_zero:
        assert dict(open_model(folder).left_out) == {"biases that are all zero": 1}
    else:
        assert refusal(folder).got == f"{name} is unexpected"


UNREAD = [np.float64, np.uint64, np.int8, np.bool_, np.complex64, ml_dtypes.float8_e5m2]


@pytest.mark.parametrize("dtype", UNREAD)
def test_a_tensor_that_is_not_used_never_refuses_a_checkpoint(tmp_path, dtype):
    source = open_model(made(tmp_path, lambda t: t.update({"extra": np.ones(3).astype(dtype)}))[0])
    assert sum(source.left_out.values()) == 1
    assert len(source.checkpoint.sha256()) == 64


def test_float64_is_read_as_float32_and_said(tmp_path):
    third = np.full(128, 1 / 3)
    folder, _ = made(tmp_path, lambda t: t.update({"model.norm.weight": third}))
    source = open_model(folder)
    np.testing.assert_array_equal(source.tensor("final_norm").read(), third.astype(np.float32))
    assert source.checkpoint.notes == ["rounded from F64 to float32: model.norm.weight"]


@pytest.mark.parametrize("dtype", [np.int8, np.uint64, np.bool_, np.complex64])
def test_weights_of_a_type_that_is_no_float_are_named_with_what_to_do(tmp_path, dtype):
    folder, _ = made(
        tmp_path, lambda t: t.update({"model.norm.weight": np.ones(128).astype(dtype)})
    )
    error = refusal(folder)
    assert error.got.startswith("model.norm.weight holds ")
    assert error.do == "Save these tensors as float32 or bfloat16."


def test_a_type_of_the_future_is_passed_over_or_named(tmp_path):
    folder = write_tiny_checkpoint(tmp_path / "m")
    path = folder / "model.safetensors"
    data = path.read_bytes()
    n_header = int.from_bytes(data[:8], "little")
    header, body = json.loads(data[8 : 8 + n_header]), data[8 + n_header :]

    def save(name):
        entry = {"dtype": "F3_X", "shape": [40], "data_offsets": [len(body), len(body) + 15]}
        text = json.dumps(header | {name: entry}).encode()
        path.write_bytes(len(text).to_bytes(8, "little") + text + body + b"x" * 15)

    save("extra")
    assert sum(open_model(folder).left_out.values()) == 1
    header["other"] = header.pop("model.norm.weight")
    save("model.norm.weight")
    assert refusal(folder).got == "model.norm.weight holds F3_X (wanted floats)"
