"""Claims: a GGUF file of a llama model is the checkpoint it was made from, q and k turned back."""

from __future__ import annotations

import json
import shutil

import mlx.core as mx
import numpy as np
import pytest
import safetensors.numpy

from edgekit.checkpoint.gguf.file import GgufCheckpoint
from edgekit.checkpoint.gguf.weights import rope_order
from edgekit.errors import CheckpointError, FormatError, UnsupportedArchError
from edgekit.families import open_model
from edgekit.families.inspect import inspect_model
from edgekit.pipeline.export import export
from edgekit.quantize.grid import round_scales
from edgekit.quantize.store import quantize_model
from edgekit.scheme import Scheme
from tests.builders import write_tiny_checkpoint
from tests.checkpoint.prequantized.folders import Grid, make_prequantized
from tests.formats.gguf_writer import gguf_bytes, q4_0_bytes, q8_0_bytes

NAMES = {
    "model.embed_tokens": "token_embd",
    "model.norm": "output_norm",
    "lm_head": "output",
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}
N_HEADS = {"attn_q": 4, "attn_k": 2}
METADATA = {
    "general.architecture": "llama",
    "general.file_type": 2,
    "llama.block_count": 2,
    "llama.context_length": 256,
    "llama.embedding_length": 128,
    "llama.feed_forward_length": 256,
    "llama.attention.head_count": 4,
    "llama.attention.head_count_kv": 2,
    "llama.attention.layer_norm_rms_epsilon": float(np.float32(1e-5)),
    "llama.rope.dimension_count": 32,
    "llama.rope.freq_base": 10000.0,
    "llama.vocab_size": 384,
    "tokenizer.ggml.bos_token_id": 1,
    "tokenizer.ggml.eos_token_id": 2,
    "tokenizer.ggml.padding_token_id": 3,
    "tokenizer.ggml.tokens": ["a", "b"],
}


def gguf_name(name):
    module, _, kind = name.rpartition(".")
    if module.startswith("model.layers."):
        _, _, layer, part = module.split(".", 3)
        return f"blk.{layer}.{NAMES[part]}.{kind}"
    return f"{NAMES[module]}.{kind}"


def turn(values, n_heads):
    """Do to the rows of q or k what llama.cpp's converter does to them."""
    halves = values.reshape(n_heads, 2, values.shape[0] // n_heads // 2, *values.shape[1:])
    return halves.swapaxes(1, 2).reshape(values.shape)


def write_gguf(folder, kind="Q4_0", *, is_exact=True, metadata=None, change=None, **overrides):
    """Write a file beside its tokenizer; give it, the codes and the floats by HF names."""
    write_tiny_checkpoint(folder, "llama", dtype="fp16", **overrides)
    weights = safetensors.numpy.load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    rng, made, floats, tensors = np.random.default_rng(5), {}, {}, {}
    grid = Grid(8 if kind == "Q8_0" else 4, 32, is_exact=is_exact)
    for name, values in weights.items():
        ours = gguf_name(name)
        n_heads = N_HEADS.get(ours.split(".")[-2])
        turned = (lambda v, n=n_heads: v) if n_heads is None else (lambda v, n=n_heads: turn(v, n))
        if kind in ("Q4_0", "Q8_0") and "_proj.weight" in name:
            coded = made[name] = make_prequantized(values.shape, grid, rng)
            floats[name] = coded.values
            pack = q4_0_bytes if kind == "Q4_0" else q8_0_bytes
            tensors[ours] = (kind, values.shape, pack(turned(coded.codes), turned(coded.scales)))
        else:
            floats[name] = values.astype(np.float32)
            stored = "F32" if values.ndim == 1 else "F16"
            data = turned(values).astype("<f4" if values.ndim == 1 else "<f2").tobytes()
            tensors[ours] = (stored, values.shape, data)
    if change is not None:
        change(tensors)
    path = folder / f"tiny.{kind}.gguf"
    path.write_bytes(gguf_bytes({**METADATA, **(metadata or {})}, tensors))
    return path, made, floats


THEIRS = {
    "embed": "model.embed_tokens.weight",
    "layers.0.q": "model.layers.0.self_attn.q_proj.weight",
    "layers.1.k": "model.layers.1.self_attn.k_proj.weight",
    "layers.1.v": "model.layers.1.self_attn.v_proj.weight",
    "layers.0.down": "model.layers.0.mlp.down_proj.weight",
    "layers.1.ffn_norm": "model.layers.1.post_attention_layernorm.weight",
}


@pytest.mark.parametrize("kind", ["F16", "Q4_0", "Q8_0"])
def test_weights_read_as_those_of_the_checkpoint(tmp_path, kind):
    path, _, floats = write_gguf(tmp_path / "m", kind)
    source = open_model(path)
    for name, theirs in THEIRS.items():
        np.testing.assert_array_equal(source.tensor(name).read(), floats[theirs])
    rows = source.tensor("layers.0.q").read_rows(30, 70)
    np.testing.assert_array_equal(rows, floats[THEIRS["layers.0.q"]][30:70])
    assert source.checkpoint.name == f"tiny.{kind}"


@pytest.mark.parametrize(("kind", "bits"), [("Q4_0", 4), ("Q8_0", 8)])
def test_codes_go_in_as_they_are(tmp_path, kind, bits):
    path, made, _ = write_gguf(tmp_path / "m", kind)
    model = quantize_model(open_model(path), Scheme(f"int{bits}", 32), tmp_path / "q")
    entries = {entry.name: entry for entry in model.entries}
    for name in ("layers.0.q", "layers.1.k", "layers.1.v", "layers.0.down"):
        assert entries[name].imported == f"gguf {kind} int{bits}-g32"
        np.testing.assert_array_equal(model.get(name).codes, made[THEIRS[name]].codes)
        np.testing.assert_array_equal(model.get(name).scales, made[THEIRS[name]].scales)


def test_scales_of_eleven_bits_are_rounded_and_said_so(tmp_path):
    path, made, _ = write_gguf(tmp_path / "m", is_exact=False)
    model = quantize_model(open_model(path), Scheme("int4", 32), tmp_path / "q")
    entries = {entry.name: entry for entry in model.entries}
    wanted = made[THEIRS["layers.1.k"]]
    assert entries["layers.1.k"].reason.startswith("requantized: ")
    np.testing.assert_array_equal(model.get("layers.1.k").codes, wanted.codes)
    np.testing.assert_array_equal(model.get("layers.1.k").scales, round_scales(wanted.scales, 4))


@pytest.mark.parametrize(("kind", "bits"), [("Q4_0", 4), ("Q8_0", 8)])
def test_mlx_reads_the_same_floats_from_the_file(tmp_path, kind, bits):
    path, _, _ = write_gguf(tmp_path / "m", kind)
    arrays, tensor = mx.load(str(path)), open_model(path).tensor("layers.0.down")
    parts = [arrays[f"blk.0.ffn_down.{part}"] for part in ("weight", "scales", "biases")]
    scales, biases = (part.astype(mx.float32) for part in parts[1:])
    wanted = np.array(mx.dequantize(parts[0], scales, biases, 32, bits))
    np.testing.assert_array_equal(tensor.read(), wanted)


def test_six_bit_heads_read_as_the_formula_says(tmp_path):
    rng = np.random.default_rng(2)
    head = rng.integers(0, 256, (256, 1, 210)).astype(np.uint8)
    head[..., 208:] = np.frombuffer(np.float16(0.01).tobytes(), np.uint8)

    def change(tensors):
        tensors["output.weight"] = ("Q6_K", (256, 256), head.tobytes())

    metadata = {"llama.embedding_length": 256, "llama.rope.dimension_count": 64}
    path, _, _ = write_gguf(
        tmp_path / "m", "F16", metadata=metadata | {"llama.vocab_size": 256}, change=change,
        hidden_size=256, head_dim=64, vocab_size=256, tie_word_embeddings=False,
    )  # fmt: skip
    values = open_model(path).tensor("lm_head").read()
    scale = np.float32(np.float16(0.01))
    for row, i in [(0, 0), (3, 31), (3, 32), (7, 64), (7, 100), (9, 128), (255, 255), (12, 200)]:
        block, half, within = head[row, 0], i // 128, i % 128
        low = block[64 * half + within % 64]
        low = low & 15 if within < 64 else low >> 4
        high = block[128 + 32 * half + within % 32] >> (2 * (within // 32)) & 3
        inner = block[192 + i // 16].astype(np.int8)
        wanted = np.float32(scale * np.float32(inner)) * np.float32(int(low) + 16 * int(high) - 32)
        assert values[row, i] == np.float32(wanted)


def test_order_is_worked_by_hand():
    # Two heads of width 4: stored pairs (0, 2), (1, 3) of each head.
    assert turn(np.arange(8), 2).tolist() == [0, 2, 1, 3, 4, 6, 5, 7]
    assert rope_order(2, 4).tolist() == [0, 2, 1, 3, 4, 6, 5, 7]
    assert turn(np.arange(8), 1)[rope_order(1, 8)].tolist() == list(range(8))


def test_the_decoder_is_that_of_the_checkpoint(tmp_path):
    path, _, _ = write_gguf(tmp_path / "m", "F16")
    written = write_tiny_checkpoint(tmp_path / "hf", "llama", dtype="fp16")
    wanted, found = open_model(written).spec.as_dict(), open_model(path).spec.as_dict()
    assert found.pop("norm_eps") == pytest.approx(wanted.pop("norm_eps"), rel=1e-6)
    assert found == wanted


def test_a_file_exports_with_the_tokenizer_beside_it(tmp_path):
    path, made, _ = write_gguf(tmp_path / "m")
    for artifact in export(path, "all", "int4", tmp_path / "out"):
        assert (artifact.path / "tokenizer.json").is_file()
        entries = {entry.name: entry for entry in artifact.manifest.tensors}
        assert entries["layers.0.q"].imported == "gguf Q4_0 int4-g32"
    assert inspect_model(path).prequantized == {"gguf Q4_0 int4-g32": 14}
    assert len(made) == 14


def test_the_hash_is_of_the_file(tmp_path):
    path, _, _ = write_gguf(tmp_path / "m")
    again = tmp_path / "again.gguf"
    shutil.copyfile(path, again)
    first, second = GgufCheckpoint(path), GgufCheckpoint(again)
    assert first.sha256() == second.sha256()
    content = bytearray(again.read_bytes())
    content[-40] ^= 1
    again.write_bytes(content)
    assert GgufCheckpoint(again).sha256() != first.sha256()
    assert first.weights_bytes < path.stat().st_size


@pytest.mark.parametrize(
    ("metadata", "words"),
    [
        ({"llama.rope.scaling.type": "yarn"}, "rope.scaling.type is 'yarn'"),
        ({"llama.rope.dimension_count": 16}, "rope.dimension_count is 16"),
        ({"llama.expert_count": 8}, "expert_count is 8"),
        ({"llama.surprise": 1}, "llama.surprise"),
        ({"llama.block_count": "2"}, "block_count is '2'"),
        ({"llama.attention.head_count": 0}, "rope.dimension_count is 32"),
        ({"llama.attention.head_count_kv": 0}, "two halves for each of 0 heads"),
        ({"llama.attention.head_count_kv": 3}, "two halves for each of 3 heads"),
        ({"llama.attention.head_count": [4, 4]}, "head_count is"),
        ({"llama.block_count": 3}, r"model.layers.2.*is missing"),
        ({"llama.embedding_length": 160, "llama.rope.dimension_count": 40}, "has shape"),
    ],
)
def test_metadata_that_are_not_supported_are_named(tmp_path, metadata, words):
    path, _, _ = write_gguf(tmp_path / "m", metadata=metadata)
    with pytest.raises(CheckpointError, match=words):
        open_model(path)


def test_tensors_that_are_not_known_are_named(tmp_path):
    def change(tensors):
        tensors["blk.1.other.weight"] = ("F32", (16,), b"\0" * 64)

    path, _, _ = write_gguf(tmp_path / "m", change=change)
    with pytest.raises(CheckpointError, match=r"blk\.1\.other\.weight is unexpected"):
        open_model(path)


def llama3_table(factor):
    """Compute the table one frequency at a time, as llama.cpp's converter does, in float32."""
    table = []
    for lane in range(0, 32, 2):
        length = 2 * np.pi * 10000.0 ** (lane / 32)
        smooth = (8192 / length - 1) / (4 - 1)
        if length < 8192 / 4:
            table.append(1.0)
        elif length > 8192 / 1:
            table.append(factor)
        else:
            table.append(1 / ((1 - smooth) / factor + smooth))
    return np.array(table, np.float32)


def with_table(table):
    data = np.asarray(table, np.float32)
    return lambda tensors: tensors.update(
        {"rope_freqs.weight": ("F32", data.shape, data.tobytes())}
    )


@pytest.mark.parametrize("factor", [8.0, 32.0])
def test_a_table_of_rope_factors_is_the_scaling_of_llama_3(tmp_path, factor):
    table = llama3_table(factor)
    assert len(set(table.tolist())) > 2
    path, _, _ = write_gguf(tmp_path / "m", "F16", change=with_table(table))
    scaling = {
        "rope_type": "llama3", "factor": factor, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
        "original_max_position_embeddings": 8192,
    }  # fmt: skip
    folder = write_tiny_checkpoint(tmp_path / "hf", "llama", rope_scaling=scaling)
    assert open_model(path).spec.rope == open_model(folder).spec.rope


@pytest.mark.parametrize(
    ("table", "words"),
    [
        (llama3_table(8.0)[:8], "rope_freqs.weight: shape"),
        (llama3_table(8.0) * np.float32(1.001), "rope_freqs.weight: number"),
        (np.full(16, np.nan), "largest number"),
        (np.zeros(16), "largest number"),
        (np.linspace(1, 8, 16), "rope_freqs.weight: number"),
    ],
)
def test_another_table_of_rope_factors_is_refused(tmp_path, table, words):
    path, _, _ = write_gguf(tmp_path / "m", "F16", change=with_table(table))
    with pytest.raises(CheckpointError, match=words):
        open_model(path)


ODD = [float("nan"), float("inf"), -1.0, 1e30, 0, 1, 2**32 - 1, True, "x", [1]]


@pytest.mark.parametrize("key", [key for key in METADATA if key.startswith("llama.")])
def test_odd_metadata_read_or_are_refused(tmp_path, key):
    _, _, floats = write_gguf(tmp_path / "m", "F16")
    n_refused = 0
    for value in ODD:
        path, _, _ = write_gguf(
            tmp_path / "m", "F16", metadata={key: value}, change=with_table(llama3_table(8.0))
        )
        try:
            source = open_model(path)
        except CheckpointError as error:
            n_refused += 1
            assert str(error)
        else:
            shape = source.tensor("layers.0.q").read().shape
            assert shape == floats[THEIRS["layers.0.q"]].shape
    assert n_refused >= 5


def test_two_tensors_for_one_weight_are_refused(tmp_path):
    def change(tensors):
        tensors["model.norm.weight"] = tensors["output_norm.weight"]

    path, _, _ = write_gguf(tmp_path / "m", change=change)
    with pytest.raises(CheckpointError, match=r"two tensors are model.norm.weight"):
        open_model(path)


def test_another_architecture_is_refused(tmp_path):
    path, _, _ = write_gguf(tmp_path / "m", metadata={"general.architecture": "gemma3"})
    with pytest.raises(UnsupportedArchError, match="gemma3"):
        open_model(path)


def test_scales_that_are_no_numbers_are_refused(tmp_path):
    def change(tensors):
        kind, shape, data = tensors["blk.0.attn_v.weight"]
        tensors["blk.0.attn_v.weight"] = (kind, shape, b"\0\x7e" + data[2:])

    path, _, _ = write_gguf(tmp_path / "m", change=change)
    with pytest.raises(CheckpointError, match="1 of 256 are NaN or infinite"):
        quantize_model(open_model(path), Scheme("int4", 32), tmp_path / "q")


def test_a_file_that_is_none_is_a_format_error(tmp_path):
    path = tmp_path / "m.gguf"
    path.write_text(json.dumps({"not": "gguf"}))
    with pytest.raises(FormatError, match="first bytes"):
        open_model(path)
