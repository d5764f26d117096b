"""A GGUF file of a llama model is the checkpoint that it was made from."""

from __future__ import annotations

import json
import shutil

import gguf
import mlx.core as mx
import numpy as np
import pytest
import safetensors.numpy

from edgekit.checkpoint.gguf.file import GgufCheckpoint
from edgekit.checkpoint.gguf.weights import CODES, FLOATS, stored_rows
from edgekit.errors import CheckpointError, FormatError
from edgekit.families import open_model
from edgekit.families.inspect import inspect_model
from edgekit.formats.gguf import GgufFile
from edgekit.formats.gguf_blocks import NOT_FLOATS, dequantize
from edgekit.pipeline.export import export
from edgekit.quantize.encoded_model import quantize_model
from edgekit.quantize.grid import round_scales
from edgekit.scheme import Scheme
from tests.builders import write_tiny_checkpoint
from tests.checkpoint.gguf.convert import convert
from tests.checkpoint.prequantized.folders import Grid, make_prequantized
from tests.formats.gguf_writer import gguf_bytes, q4_0_bytes, q8_0_bytes
from tests.formats.test_gguf_blocks import BY_NAME, READABLE, random_rows

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
}


def gguf_name(name):
    module, _, kind = name.rpartition(".")
    if module.startswith("model.layers."):
        _, _, layer, part = module.split(".", 3)
        return f"blk.{layer}.{NAMES[part]}.{kind}"
    return f"{NAMES[module]}.{kind}"


def permute(values, n_heads):
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
        permuted = (
            (lambda v, n=n_heads: v) if n_heads is None else (lambda v, n=n_heads: permute(v, n))
        )
        if kind in ("Q4_0", "Q8_0") and "_proj.weight" in name:
            coded = made[name] = make_prequantized(values.shape, grid, rng)
            floats[name] = coded.values
            pack = q4_0_bytes if kind == "Q4_0" else q8_0_bytes
            tensors[ours] = (
                kind,
                values.shape,
                pack(permuted(coded.codes), permuted(coded.scales)),
            )
        else:
            floats[name] = values.astype(np.float32)
            stored = "F32" if values.ndim == 1 else "F16"
            data = permuted(values).astype("<f4" if values.ndim == 1 else "<f2").tobytes()
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
    model = quantize_model(open_model(path), Scheme.parse(f"int{bits}-g32"), tmp_path / "q")
    entries = {entry.name: entry for entry in model.entries}
    for name in ("layers.0.q", "layers.1.k", "layers.1.v", "layers.0.down"):
        assert entries[name].imported == f"gguf {kind} int{bits}-g32"
        np.testing.assert_array_equal(model.get(name).codes(), made[THEIRS[name]].codes)
        np.testing.assert_array_equal(model.get(name).scales, made[THEIRS[name]].scales)


def test_scales_of_eleven_bits_are_rounded_and_said_so(tmp_path):
    path, made, _ = write_gguf(tmp_path / "m", is_exact=False)
    model = quantize_model(open_model(path), Scheme.parse("int4-g32"), tmp_path / "q")
    entries = {entry.name: entry for entry in model.entries}
    wanted = made[THEIRS["layers.1.k"]]
    assert entries["layers.1.k"].reason.startswith("requantized: ")
    np.testing.assert_array_equal(model.get("layers.1.k").codes(), wanted.codes)
    np.testing.assert_array_equal(model.get("layers.1.k").scales, round_scales(wanted.scales, 4))


@pytest.mark.parametrize(("kind", "bits"), [("Q4_0", 4), ("Q8_0", 8)])
def test_mlx_reads_the_same_floats_from_the_file(tmp_path, kind, bits):
    path, _, _ = write_gguf(tmp_path / "m", kind)
    arrays, tensor = mx.load(str(path)), open_model(path).tensor("layers.0.down")
    parts = [arrays[f"blk.0.ffn_down.{part}"] for part in ("weight", "scales", "biases")]
    scales, biases = (part.astype(mx.float32) for part in parts[1:])
    wanted = np.array(mx.dequantize(parts[0], scales, biases, 32, bits))
    np.testing.assert_array_equal(tensor.read(), wanted)


def test_order_is_worked_by_hand():
    # Two heads of width 4: stored pairs (0, 2), (1, 3) of each head.
    assert permute(np.arange(8), 2).tolist() == [0, 2, 1, 3, 4, 6, 5, 7]
    assert stored_rows(np.arange(8), 4).tolist() == [0, 2, 1, 3, 4, 6, 5, 7]
    assert permute(np.arange(8), 1)[stored_rows(np.arange(8), 8)].tolist() == list(range(8))


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
        ({"llama.rope.scaling.type": "other"}, "rope.scaling.type is 'other'"),
        ({"llama.rope.dimension_count": 64}, "rope.dimension_count is 64"),
        ({"llama.expert_count": 8}, "expert_count"),
        ({"llama.surprise": 1}, "llama.surprise"),
        ({"llama.block_count": "2"}, "block_count is '2'"),
        ({"llama.attention.head_count": 0}, "num_attention_heads is 0"),
        ({"llama.attention.head_count_kv": 0}, "num_key_value_heads is 0"),
        ({"llama.attention.head_count_kv": 3}, "not a multiple of num_key_value_heads 3"),
        ({"llama.attention.head_count": [4, 2]}, "head_count is"),
        ({"llama.block_count": 3}, r"model.layers.2.*is missing"),
        ({"llama.embedding_length": 160, "llama.rope.dimension_count": 40}, "heads of 40"),
    ],
)
def test_metadata_that_are_not_supported_are_named(tmp_path, metadata, words):
    path, _, _ = write_gguf(tmp_path / "m", metadata=metadata)
    with pytest.raises(CheckpointError, match=words):
        open_model(path)


def write_type(path, kind, seed=3):
    """Write a llama whose first q is of a type, its bytes at random, and the rest float32."""
    writer, rng = gguf.GGUFWriter(str(path), "llama"), np.random.default_rng(seed)
    for key, value in METADATA.items():
        if key.startswith("llama.") and isinstance(value, int):
            writer.add_uint32(key, value)
    for key, value in {
        "embedding_length": 256, "feed_forward_length": 256, "rope.dimension_count": 64,
        "block_count": 1,
    }.items():  # fmt: skip
        writer.kv_data[0][f"llama.{key}"].value = value
    writer.add_layer_norm_rms_eps(1e-5)
    shapes = {"token_embd": (384, 256), "output_norm": (256,)}
    for part in NAMES.values():
        if part not in ("token_embd", "output_norm", "output"):
            n_rows = 128 if part in ("attn_k", "attn_v") else 256
            shapes[f"blk.0.{part}"] = (256,) if part.endswith("norm") else (n_rows, 256)
    raw = random_rows(kind, 256, 256 // kind.n_values, seed)
    if kind.n_values == 1:
        raw = rng.standard_normal((256, 256)).astype(
            {"F64": "<f8", "F32": "<f4", "F16": "<f2"}.get(kind.name, "<f4")
        )
        raw = raw.view(np.uint8) if kind.name != "BF16" else raw.view(np.uint8)[:, : 2 * 256].copy()
    for name, shape in shapes.items():
        if name == "blk.0.attn_q":
            number = gguf.GGMLQuantizationType[kind.name]
            writer.add_tensor(f"{name}.weight", np.ascontiguousarray(raw), raw_dtype=number)
        else:
            writer.add_tensor(f"{name}.weight", rng.standard_normal(shape, dtype=np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return raw


@pytest.mark.parametrize("name", [name for name in READABLE if name not in CODES])
def test_a_matrix_of_any_type_reads_as_floats_in_its_own_rows(tmp_path, name):
    kind = BY_NAME[name]
    raw = write_type(tmp_path / "m.gguf", kind)
    source = open_model(tmp_path / "m.gguf")
    tensor = source.checkpoint.weights()["model.layers.0.self_attn.q_proj.weight"]
    values = dequantize(kind, np.ascontiguousarray(raw).view(np.uint8).reshape(256, -1))
    wanted = np.empty_like(values)
    wanted[:] = values[stored_rows(np.arange(256), 64)]
    np.testing.assert_array_equal(permute(wanted, 4), values)
    np.testing.assert_array_equal(tensor.read(), wanted)
    for start, stop in ((0, 256), (30, 70), (63, 65), (255, 256)):
        np.testing.assert_array_equal(tensor.read_rows(start, stop), wanted[start:stop])
    is_plain = name in FLOATS
    assert source.checkpoint.notes == (
        []
        if is_plain
        else [
            f"1 matrix is stored as gguf {name} and read as floats, such as "
            "model.layers.0.self_attn.q_proj.weight: edgekit keeps the codes of Q4_0 and Q8_0"
        ]
    )


@pytest.mark.parametrize("name", NOT_FLOATS)
def test_a_weight_without_floats_is_refused_by_the_name_of_its_type(tmp_path, name):
    write_type(tmp_path / "m.gguf", BY_NAME[name])
    with pytest.raises(CheckpointError, match=f"got {name}"):
        open_model(tmp_path / "m.gguf")


def test_reading_some_rows_reads_little_more_of_the_file(tmp_path, monkeypatch):
    write_type(tmp_path / "m.gguf", BY_NAME["Q4_K"])
    source, read = open_model(tmp_path / "m.gguf"), []
    whole = GgufFile.read_at
    monkeypatch.setattr(
        GgufFile, "read_at", lambda file, at, n: read.append(n) or whole(file, at, n)
    )
    source.tensor("layers.0.q").stored.read_rows(70, 90)
    assert read == [64 * 144]  # one head


def test_a_tensor_of_three_axes_keeps_its_shape(tmp_path):
    values = np.arange(24, dtype="<f4").reshape(2, 3, 4)

    def change(tensors):
        tensors["experts"] = ("F32", values.shape, values.tobytes())

    path, _, _ = write_gguf(tmp_path / "m", "F16", change=change)
    tensor = GgufCheckpoint(path).weights()["experts"]
    np.testing.assert_array_equal(tensor.read(), values)
    np.testing.assert_array_equal(tensor.read_rows(1, 2), values[1:])


@pytest.mark.parametrize("scale", [0.5, float("nan")])
def test_a_second_scale_beside_a_tensor_multiplies_it(tmp_path, scale):
    def change(tensors):
        tensors["blk.0.attn_v.scale"] = ("F32", (1,), np.float32(scale).tobytes())
        tensors["blk.0.attn_v.input_scale"] = ("F32", (1,), np.float32(3).tobytes())

    path, _, floats = write_gguf(tmp_path / "m", "F16", change=change)
    if scale != scale:
        with pytest.raises(CheckpointError, match="one finite number"):
            open_model(path)
        return
    wanted = floats["model.layers.0.self_attn.v_proj.weight"] * np.float32(scale)
    np.testing.assert_array_equal(open_model(path).tensor("layers.0.v").read(), wanted)


def test_what_no_weight_needs_is_left_out_aloud(tmp_path):
    def change(tensors):
        tensors["blk.0.attn_rot_embd.weight"] = ("F32", (16,), b"\0" * 64)
        tensors["counter"] = ("I32", (4,), b"\0" * 16)

    path, _, _ = write_gguf(tmp_path / "m", "F16", change=change)
    assert "left out: blk.0.attn_rot_embd.weight, counter" in open_model(path).checkpoint.notes


@pytest.mark.parametrize("dtype", ["bf16", "fp16", "fp32"])
def test_the_type_that_a_model_was_published_in_is_found_again(tmp_path, dtype):
    for name in ("llama", "gemma"):
        folder = write_tiny_checkpoint(tmp_path / name / dtype, name, dtype=dtype)
        wanted = json.loads((folder / "config.json").read_text()).get("torch_dtype")
        source = open_model(convert(folder, tmp_path / f"{name}.gguf", kind="F32"))
        found = source.checkpoint.config.get("torch_dtype")
        assert found == (None if wanted == "float32" else wanted)
        assert source.spec.embed_scale == open_model(folder).spec.embed_scale


def test_tensors_that_are_not_known_are_named(tmp_path):
    def change(tensors):
        tensors["blk.1.other.weight"] = ("F32", (16,), b"\0" * 64)

    path, _, _ = write_gguf(tmp_path / "m", change=change)
    with pytest.raises(CheckpointError, match=r"blk\.1\.other\.weight is unexpected"):
        open_model(path)


def llama3_table(factor):
    """Compute the table one frequency at a time, as llama.cpp's converter does, in float32."""
    table = []
    for channel in range(0, 32, 2):
        length = 2 * np.pi * 10000.0 ** (channel / 32)
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
        (np.full(16, np.nan), "positive numbers"),
        (np.zeros(16), "positive numbers"),
        (-llama3_table(8.0), "positive numbers"),
    ],
)
def test_a_damaged_table_of_rope_factors_is_refused(tmp_path, table, words):
    path, _, _ = write_gguf(tmp_path / "m", "F16", change=with_table(table))
    with pytest.raises(CheckpointError, match=words):
        open_model(path)


ODD = [float("nan"), float("inf"), -1.0, 1e30, 0, 1, 2**32 - 1, True, "x", [1]]


@pytest.mark.parametrize(
    "key", [key for key in METADATA if key.startswith("llama.") and key != "llama.vocab_size"]
)
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
    with pytest.raises(CheckpointError, match=r"two tensors have the name model.norm.weight"):
        open_model(path)


def test_scales_that_are_no_numbers_are_refused(tmp_path):
    def change(tensors):
        kind, shape, data = tensors["blk.0.attn_v.weight"]
        tensors["blk.0.attn_v.weight"] = (kind, shape, b"\0\x7e" + data[2:])

    path, _, _ = write_gguf(tmp_path / "m", change=change)
    with pytest.raises(CheckpointError, match="1 of 256 are NaN or infinite"):
        quantize_model(open_model(path), Scheme.parse("int4-g32"), tmp_path / "q")


def test_a_file_that_is_none_is_a_format_error(tmp_path):
    path = tmp_path / "m.gguf"
    path.write_text(json.dumps({"not": "gguf"}))
    with pytest.raises(FormatError, match="first bytes"):
        open_model(path)
