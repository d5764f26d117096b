"""Claims: channel scales move where they can, and the decoder computes the same function."""

from __future__ import annotations

from dataclasses import replace

import ml_dtypes
import numpy as np
import pytest

from edgekit.families import open_model
from edgekit.families.spec import DecoderSpec, NormPlacement
from edgekit.quantize.calibration import calibration_ids, measure_inputs
from edgekit.quantize.encoded_model import find_scales, quantize_model
from edgekit.quantize.fold import (
    EXPONENTS,
    LARGEST_SCALE,
    ChannelScales,
    Site,
    choose_scales,
    find_sites,
    float_names,
)
from edgekit.quantize.plan import plan_tensors
from edgekit.quantize.prequantized import plan_source
from edgekit.runtime.reference import ReferenceDecoder
from edgekit.scheme import Scheme
from tests.builders import write_tiny_checkpoint
from tests.checkpoint.prequantized.folders import Grid, write_compressed
from tests.tiny_families import TINY_CONFIGS

INT8 = Scheme.parse("int8-g32")
IDS = [(37 * i + 5) % 384 for i in range(48)]


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    folder = tmp_path_factory.mktemp("checkpoint") / "tiny"
    write_tiny_checkpoint(folder, "qwen2", tie_word_embeddings=False)
    model = open_model(folder)
    yield model
    model.close()


def scales_of(source, scheme=INT8):
    return find_scales(source, plan_source(source, scheme))


def logits(spec: DecoderSpec, read) -> np.ndarray:
    decoder = ReferenceDecoder(spec, read, dtype=np.float64)
    return decoder.forward(IDS, n_past=0, n_logits=len(IDS))


def names_of(sites):
    return {site.writer: site.readers for site in sites}


@pytest.mark.parametrize("family", sorted(TINY_CONFIGS))
def test_the_float_function_of_every_family_stays(tmp_path, family):
    source = open_model(write_tiny_checkpoint(tmp_path / "m", family, seed=3))
    moved = scales_of(source)
    assert moved.sites
    spec = source.spec
    before = logits(spec, lambda name: source.tensor(name).read())
    after = logits(spec, lambda name: moved.apply(name, source.tensor(name)).read())
    # The scaled weights are rounded to float32 once: 2**-24 of each, through a few layers.
    assert np.abs(after - before).max() <= 2e-5 * before.std()
    changed = {
        name
        for name in spec.weight_shapes()
        if not np.array_equal(
            moved.apply(name, source.tensor(name)).read(), source.tensor(name).read()
        )
    }
    # q, k and gate have no scales where no norm stands before them.
    parts = {"v", "o", "up", "down"}
    if spec.norm_placement is not NormPlacement.AFTER:
        parts |= {"q", "k", "gate", "attn_norm", "ffn_norm"}
    assert changed >= {f"layers.0.{part}" for part in parts}
    assert ("lm_head" in changed) is (not spec.is_tied)
    assert "embed" not in changed
    source.close()


def test_sites_are_norms_values_and_the_feed_forward(source):
    sites = find_sites(source.spec, plan_tensors(source.spec, INT8))
    assert names_of(sites) == {
        **{f"layers.{i}.attn_norm": tuple(f"layers.{i}.{x}" for x in "qkv") for i in (0, 1)},
        **{f"layers.{i}.ffn_norm": (f"layers.{i}.gate", f"layers.{i}.up") for i in (0, 1)},
        **{f"layers.{i}.v": (f"layers.{i}.o",) for i in (0, 1)},
        **{f"layers.{i}.up": (f"layers.{i}.down",) for i in (0, 1)},
        "final_norm": ("lm_head",),
    }
    assert {site.n_sharing for site in sites if site.writer.endswith(".v")} == {
        source.spec.n_heads // source.spec.n_kv_heads
    }


def test_a_norm_after_the_block_and_a_tied_head_are_left_out(source):
    after = replace(source.spec, norm_placement=NormPlacement.AFTER, is_tied=True)
    sites = names_of(find_sites(after, plan_tensors(after, INT8)))
    assert sorted(sites) == ["layers.0.up", "layers.0.v", "layers.1.up", "layers.1.v"]


@pytest.mark.parametrize("scheme", ["fp16", "fp32"])
def test_floats_are_left_alone(source, scheme):
    moved = scales_of(source, Scheme.parse(scheme))
    assert moved.sites == ()
    assert moved.describe() == {}
    assert moved.apply("layers.0.q", source.tensor("layers.0.q")) is source.tensor("layers.0.q")


def test_bits_decide_the_exponent(source):
    bits = {
        site.writer: site.bits
        for site in find_sites(source.spec, plan_tensors(source.spec, Scheme.parse("int4-g32")))
    }
    assert bits["layers.0.attn_norm"] == bits["layers.0.up"] == 4
    assert bits["final_norm"] == 8


def test_scales_by_hand(source):
    sizes = np.array([16.0, 1.0, 1 / 16, 1.0])
    site = Site("layers.0.ffn_norm", ("layers.0.gate", "layers.0.up"), bits=8)
    norm = np.array([1.0, 2.0, 3.0, 0.0], dtype=np.float32)
    moved = choose_scales(source.spec, [site], {"layers.0.gate": sizes}, {site.writer: norm})
    # A quarter power gives 2, 1, 1/2, 1; what these divide has few bits, and a zero stays zero.
    assert moved.floats[site.writer].tolist() == [0.5, 2.0, 6.0, 0.0]
    assert moved.columns["layers.0.gate"].tolist() == [2.0, 1.0, 0.5, 1.0]
    assert moved.columns["layers.0.up"].tolist() == [2.0, 1.0, 0.5, 1.0]
    assert moved.rows == {}


def test_a_norm_is_rounded_to_eight_bits_and_the_scale_follows_it(source):
    site = Site("final_norm", ("lm_head",), bits=8)
    rng = np.random.default_rng(0)
    norm = rng.standard_normal(4096).astype(np.float32) * 3
    sizes = np.exp2(rng.normal(0, 6, 4096))
    for offset in (0.0, 1.0):
        spec = replace(source.spec, norm_offset=offset)
        moved = choose_scales(spec, [site], {"lm_head": sizes}, {"final_norm": norm})
        new, scales = moved.floats["final_norm"], moved.columns["lm_head"]
        held = new != norm
        assert held.mean() > 0.97
        used, new_used = norm.astype(np.float64) + offset, new.astype(np.float64) + offset
        np.testing.assert_array_equal(scales, (used / new_used).astype(np.float32))
        for kind in (ml_dtypes.bfloat16, np.float16):
            np.testing.assert_array_equal(new[held].astype(kind).astype(np.float32), new[held])
        with_offset = new_used[held].astype(np.float32)
        np.testing.assert_array_equal(
            with_offset.astype(ml_dtypes.bfloat16).astype(np.float32), with_offset
        )
        assert (scales[~held] == 1).all()
        assert np.abs(np.log2(scales)).max() <= np.log2(LARGEST_SCALE) + 1


def test_a_silent_channel_is_limited_and_a_silent_site_stays(source):
    site = Site("layers.0.up", ("layers.0.down",), bits=8)
    sizes = np.array([1.0, 1.0, 1.0, 0.0, 1e30])
    moved = choose_scales(source.spec, [site], {"layers.0.down": sizes}, {})
    scales = moved.rows["layers.0.up"]
    assert (scales[3], scales[4]) == (1 / LARGEST_SCALE, LARGEST_SCALE)
    np.testing.assert_array_equal(scales, moved.columns["layers.0.down"])
    moved = choose_scales(source.spec, [site], {"layers.0.down": np.zeros(5)}, {})
    assert moved.rows["layers.0.up"].tolist() == [1.0] * 5


def test_query_heads_that_share_a_value_row_share_its_scale(source):
    spec = replace(source.spec, n_heads=6, n_kv_heads=2, head_width=2)
    site = Site("layers.0.v", ("layers.0.o",), bits=8, n_sharing=3)
    # Three query heads for each of two heads; their means are 16, 1 and 1/16, 1.
    sizes = np.array([1.0, 1, 1, 1, 46, 1, 0, 2, 0, 0, 3 / 16, 1])
    moved = choose_scales(spec, [site], {"layers.0.o": sizes}, {})
    assert moved.rows["layers.0.v"].tolist() == [2.0, 1.0, 0.5, 1.0]
    assert moved.columns["layers.0.o"].tolist() == [2.0, 1.0] * 3 + [0.5, 1.0] * 3


def test_a_bias_takes_the_scale_and_has_eight_bits(source):
    moved = scales_of(source)
    assert {name for name in moved.floats if name.endswith("bias")} == {
        "layers.0.v.bias",
        "layers.1.v.bias",
    }
    for name in ("layers.0.v.bias", "layers.1.v.bias"):
        new, old = moved.floats[name], source.tensor(name).read()
        np.testing.assert_array_equal(new.astype(ml_dtypes.bfloat16).astype(np.float32), new)
        scales = moved.rows[name.removesuffix(".bias")]
        np.testing.assert_allclose(new * scales.astype(np.float64), old, rtol=2.0**-24)


def test_rows_and_columns_of_one_matrix_by_hand(source):
    tensor = source.tensor("layers.0.up")
    n_out, n_in = tensor.info.shape
    columns = np.full(n_in, 2, dtype=np.float32)
    rows = np.arange(1, n_out + 1, dtype=np.float32)
    moved = ChannelScales({"layers.0.up": columns}, {"layers.0.up": rows})
    scaled = moved.apply("layers.0.up", tensor)
    assert scaled.info == tensor.info
    wanted = tensor.read() * np.float32(2) / rows[:, None]
    np.testing.assert_array_equal(scaled.read(), wanted)
    np.testing.assert_array_equal(scaled.read_rows(3, 9), wanted[3:9])


def test_inputs_are_those_of_a_forward_that_keeps_everything(source):
    seen: dict[str, np.ndarray] = {}

    decoder = ReferenceDecoder.from_source(source, np.float64)
    forward = decoder._forward
    product = forward._matmul

    def note(inner, name):
        seen[name] = inner
        return product(inner, name)

    forward._matmul = note
    decoder.forward(IDS, n_past=0)
    names = [("layers.1.gate", "layers.1.up"), ("layers.0.o",), ("lm_head",)]
    found = measure_inputs(source, names, IDS)
    assert sorted(found) == sorted(group[0] for group in names)
    for group in names[:2]:
        inner = seen[group[0]]
        shares = (inner**2 / (inner**2).mean(axis=1, keepdims=True)).mean(axis=0)
        squares = sum((source.tensor(name).read().astype(float) ** 2).sum(axis=0) for name in group)
        measured = found[group[0]]
        np.testing.assert_allclose(measured.mean_squares, shares, rtol=1e-10)
        np.testing.assert_allclose(measured.ratio, shares * squares.mean() / squares, rtol=1e-10)


def test_each_token_counts_alike(source):
    # A channel that is large on one loud token weighs no more than its share of that token.
    found = measure_inputs(source, [("layers.0.q",)], IDS)["layers.0.q"]
    assert found.mean_squares.mean() == pytest.approx(1)


def test_reasons_say_what_moved(source, tmp_path):
    model = quantize_model(source, INT8, tmp_path)
    reasons = {entry.name: entry.reason for entry in model.entries}
    assert reasons["layers.0.attn_norm"] == "norm stays float; takes the input scales of q, k, v"
    assert reasons["layers.0.q"] == "as asked; its input scales are in attn_norm"
    assert reasons["layers.0.v"] == (
        "as asked; its input scales are in attn_norm; takes the input scales of o"
    )
    assert reasons["layers.0.v.bias"] == "bias stays float; takes the input scales of o"
    assert reasons["layers.0.q.bias"] == "bias stays float"
    assert reasons["layers.0.o"] == "as asked; its input scales are in the rows of v"
    assert reasons["layers.0.down"] == "as asked; its input scales are in the rows of up"
    assert reasons["embed"] == "as asked"
    assert reasons["lm_head"] == "as asked; its input scales are in final_norm"
    assert model.source.channel_scales == {
        "n_sites": 9,
        "exponents": {"int4": EXPONENTS[4], "int8": EXPONENTS[8]},
        "largest": LARGEST_SCALE,
        "measured_on": calibration_ids(source.text, 384)[1],
    }


def test_without_it_every_weight_is_as_in_the_source(source, tmp_path):
    model = quantize_model(source, INT8, tmp_path, fold=False)
    assert model.source.channel_scales == {}
    for name in ("layers.0.attn_norm", "layers.0.v.bias"):
        np.testing.assert_array_equal(model.get(name).values, source.tensor(name).read())


def test_a_loud_channel_is_divided_more_than_its_neighbours(source):
    site = Site("layers.0.attn_norm", ("layers.0.q",), bits=8)
    norm = np.ones(128, dtype=np.float32)
    norm[40] = 100
    moved = choose_scales(source.spec, [site], {"layers.0.q": norm**2}, {site.writer: norm})
    new = moved.floats[site.writer]
    assert new[40] / new[41] == pytest.approx(10, rel=2.0**-7)


@pytest.mark.parametrize("bits", [4, 8])
def test_codes_of_a_source_are_never_touched(tmp_path, bits):
    folder, made = write_compressed(tmp_path / "m", Grid(bits, 32))
    source = open_model(folder)
    with_fold = quantize_model(source, Scheme.parse(f"int{bits}-g32"), tmp_path / "a")
    without = quantize_model(source, Scheme.parse(f"int{bits}-g32"), tmp_path / "b", fold=False)
    assert with_fold.source.channel_scales == {}
    assert [entry.sha256 for entry in with_fold.entries] == [e.sha256 for e in without.entries]
    kept = {entry.name for entry in with_fold.entries if entry.keeps_codes}
    assert len(kept) == 7 * source.spec.n_layers
    codes = with_fold.get("layers.0.q").codes()
    np.testing.assert_array_equal(codes, made["model.layers.0.self_attn.q_proj.weight"].codes)


def test_one_kept_matrix_leaves_its_sites_alone(tmp_path):
    folder, _ = write_compressed(
        tmp_path / "m", Grid(8, 32), is_coded=lambda name: "layers.0.self_attn.v_proj" in name
    )
    source = open_model(folder)
    sites = find_sites(source.spec, plan_source(source, INT8))
    assert {"layers.0.attn_norm", "layers.0.v"}.isdisjoint(names_of(sites))
    assert {"layers.1.attn_norm", "layers.1.v", "layers.0.ffn_norm"} <= set(names_of(sites))
    assert set(float_names(source.spec, sites)) == {site.writer for site in sites if site.is_norm}


def test_the_conversation_is_told_in_the_models_own_form(source):
    ids, form = calibration_ids(source.text, source.spec.vocab_size)
    assert 1 <= len(ids) <= 128
    assert max(ids) < source.spec.vocab_size
    assert form.startswith(f"{len(ids)} tokens: a conversation")
    bare = replace(source.text, tokenizer=None)
    assert calibration_ids(bare, 100)[0][:3] == (13, 32, 51)
    assert calibration_ids(bare, 100)[1] == "128 tokens: ids evenly spread"
