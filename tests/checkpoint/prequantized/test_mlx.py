"""Claims: MLX affine folders read as mx.dequantize gives them; edgekit's own come back whole."""

from __future__ import annotations

import mlx.core as mx
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgekit.checkpoint.prequantized.tensor import unpack_words
from edgekit.errors import CheckpointError, UnknownKeyError
from edgekit.families import open_model
from edgekit.pipeline.export import export
from edgekit.quantize.encoded_model import quantize_model
from edgekit.quantize.model import EncodedTensor
from edgekit.scheme import Scheme
from tests.builders import write_tiny_checkpoint
from tests.checkpoint.prequantized.folders import (
    BF16,
    Coded,
    Grid,
    edit_config,
    is_matrix,
    mlx_config,
    mlx_parts,
    pack_rows,
    write_coded,
)

UP = "model.layers.0.mlp.up_proj"


def write_mlx(folder, grid=None, *, config=None, parts=mlx_parts, **more):
    grid = grid or Grid()
    more = {"is_coded": is_matrix, **more}
    return write_coded(folder, grid, parts, config or mlx_config(grid), **more)


def mlx_floats(folder, module, grid):
    """Give what MLX itself makes of a weight."""
    arrays = mx.load(str(folder / "model.safetensors"))
    parts = [arrays[f"{module}.{part}"] for part in ("weight", "scales", "biases")]
    scales, biases = (part.astype(mx.float32) for part in parts[1:])
    return np.array(mx.dequantize(parts[0], scales, biases, grid.group, grid.bits))


GRIDS = [
    Grid(4, 32),
    Grid(4, 64, BF16),
    Grid(4, 128, np.float32),
    Grid(8, 64, BF16),
    Grid(8, 32),
    Grid(4, 64, is_exact=False),
]


@pytest.mark.parametrize("grid", GRIDS)
def test_weights_read_as_mlx_dequantizes_them(tmp_path, grid):
    folder, made = write_mlx(tmp_path / "m", grid)
    source = open_model(folder)
    for name, module in {"layers.0.up": UP, "embed": "model.embed_tokens"}.items():
        tensor = source.tensor(name)
        np.testing.assert_array_equal(tensor.read(), mlx_floats(folder, module, grid))
        np.testing.assert_array_equal(tensor.read(), made[f"{module}.weight"].values)
        np.testing.assert_array_equal(
            tensor.prequantized.codes(1, 9), made[f"{module}.weight"].codes[1:9]
        )


@pytest.mark.parametrize("grid", GRIDS[:5])
def test_symmetric_codes_on_the_grid_go_in_as_they_are(tmp_path, grid):
    folder, made = write_mlx(tmp_path / "m", grid)
    source = open_model(folder)
    model = quantize_model(source, Scheme.parse(f"int{grid.bits}-g32"), tmp_path / "q")
    label = f"mlx int{grid.bits}-g{grid.group}"
    assert {e.imported for e in model.entries if len(e.shape) == 2} == {label}
    np.testing.assert_array_equal(
        model.get("layers.0.up").dequantize(), mlx_floats(folder, UP, grid)
    )
    wanted = made["model.embed_tokens.weight"]
    np.testing.assert_array_equal(model.get("embed").codes(), wanted.codes)


def asymmetric_parts(name, coded, grid):
    parts = mlx_parts(name, coded, grid)
    if name == UP:
        parts[f"{name}.biases"][2, 1] += parts[f"{name}.scales"][2, 1]
    return parts


def test_a_zero_point_elsewhere_is_said_and_read_as_floats(tmp_path):
    folder, _ = write_mlx(tmp_path / "m", parts=asymmetric_parts)
    source = open_model(folder)
    np.testing.assert_array_equal(
        source.tensor("layers.0.up").read(), mlx_floats(folder, UP, Grid())
    )
    model = quantize_model(source, Scheme.parse("int4-g32"), tmp_path / "q")
    entries = {entry.name: entry for entry in model.entries}
    assert entries["layers.0.up"].imported is None
    assert entries["layers.0.up"].reason == (
        "requantized: 1 of 1024 groups have their zero point elsewhere (mlx int4-g32)"
    )
    assert entries["layers.1.up"].imported == "mlx int4-g32"


def test_what_mlx_quantizes_itself_reads_as_mlx_dequantizes_it(tmp_path):
    rng = np.random.default_rng(3)

    def parts(name, coded, grid):
        weights = mx.array(rng.normal(size=coded.codes.shape).astype(np.float32) * 0.02)
        packed = mx.quantize(weights, grid.group, grid.bits)
        return {
            f"{name}.{part}": np.array(values)
            for part, values in zip(("weight", "scales", "biases"), packed, strict=True)
        }

    folder, _ = write_mlx(tmp_path / "m", Grid(4, 64), parts=parts)
    source = open_model(folder)
    wanted = mlx_floats(folder, UP, Grid(4, 64))
    np.testing.assert_allclose(source.tensor("layers.0.up").read(), wanted, rtol=0, atol=1e-8)
    model = quantize_model(source, Scheme.parse("int4-g64"), tmp_path / "q")
    reasons = {e.name: e.reason for e in model.entries if len(e.shape) == 2}
    assert all("have their zero point elsewhere" in reason for reason in reasons.values())


def test_single_modules_may_be_packed_otherwise(tmp_path):
    eight = Grid(8, 64)

    def parts(name, coded, grid):
        if name == UP:
            # Codes of 4 bits are codes of 8 bits as well, moved to the other middle.
            codes = coded.codes + np.uint8(120)
            scales = coded.scales[:, ::2].repeat(2, axis=1)[:, ::2]
            return mlx_parts(name, Coded(codes, scales, coded.values), eight)
        return mlx_parts(name, coded, grid)

    config = mlx_config(Grid(), **{UP: {"bits": 8, "group_size": 64}, "lm_head": False})
    config["quantization"].pop("lm_head")
    config["quantization"]["model.norm"] = False
    folder, _ = write_mlx(tmp_path / "m", parts=parts, config=config)
    source = open_model(folder)
    assert source.tensor("layers.0.up").prequantized.label == "mlx int8-g64"
    assert source.tensor("layers.1.up").prequantized.label == "mlx int4-g32"
    np.testing.assert_array_equal(
        source.tensor("layers.0.up").read(), mlx_floats(folder, UP, eight)
    )


@pytest.mark.parametrize("scheme", ["int4", "int8-g64", "int4-g128"])
def test_a_folder_that_edgekit_exported_comes_back_with_the_same_codes(tmp_path, scheme):
    folder = write_tiny_checkpoint(tmp_path / "tiny", "llama", tie_word_embeddings=False)
    (artifact,) = export(folder, "mlx", scheme, tmp_path / "out", method="rtn")
    # The exporter spells out that there is no window, which no llama config does.
    edit_config(artifact.path, lambda config: config.pop("sliding_window"))
    model = quantize_model(open_model(artifact.path), Scheme.parse(scheme), tmp_path / "q")
    wanted = {e.name: e.sha256 for e in artifact.manifest.tensors}
    found = {plan.name: model.get(plan.name) for plan in model.plans}
    hashes = {n: t.sha256() if isinstance(t, EncodedTensor) else None for n, t in found.items()}
    assert hashes == wanted
    assert all(plan.imported for plan in model.plans if plan.encoding.is_quantized)


def put(part, values):
    return lambda tensors: tensors.update({f"{UP}.{part}": values})


FAULTS = {
    "no scales": (lambda t: t.pop(f"{UP}.scales"), "scales"),
    "no biases": (lambda t: t.pop(f"{UP}.biases"), "biases"),
    "no codes": (lambda t: t.pop(f"{UP}.weight"), "weight"),
    "floats with scales": (put("weight", np.ones((256, 128), np.float16)), "weight"),
    "biases of another shape": (put("biases", np.ones((256, 5), np.float16)), "biases"),
    "group does not divide": (put("scales", np.ones((256, 3), np.float16)), "biases"),
    "codes are cut": (put("weight", np.ones((256, 15), np.uint32)), "group size"),
    "codes are twice as many": (put("weight", np.ones((256, 32), np.uint32)), "groups are not"),
    "codes have three axes": (put("weight", np.ones((256, 16, 1), np.uint32)), "weight"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_parts_that_do_not_fit_are_named(tmp_path, fault):
    change, words = FAULTS[fault]
    folder, _ = write_mlx(tmp_path / "m", change=change)
    with pytest.raises(CheckpointError, match=words) as caught:
        open_model(folder)
    assert UP in caught.value.what
    assert caught.value.got
    assert caught.value.wanted


def test_biases_that_are_no_numbers_are_refused(tmp_path):
    def change(tensors):
        tensors[f"{UP}.biases"][3, 1] = np.inf

    folder, _ = write_mlx(tmp_path / "m", change=change)
    with pytest.raises(CheckpointError, match=r"up_proj.weight: biases; got 1 of 1024"):
        quantize_model(open_model(folder), Scheme.parse("int4-g32"), tmp_path / "q")


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"mode": "mxfp5"}, "mode is 'mxfp5'"),
        ({"mode": "mxfp4", "bits": 5}, "bits is 5"),
        ({"mode": "nvfp4", "group_size": 32}, "group_size is 32"),
        ({"bits": 7}, "bits is 7"),
        ({"bits": None}, "bits is missing"),
        ({"group_size": 0}, "group_size is 0"),
        ({UP: {"bits": 9}}, "up_proj.bits is 9"),
    ],
)
def test_config_keys_that_are_not_supported_are_named(tmp_path, change, words):
    folder, _ = write_mlx(tmp_path / "m", config=mlx_config(Grid(), **change))
    with pytest.raises(CheckpointError, match=words):
        open_model(folder)


def test_unknown_keys_are_named(tmp_path):
    config = mlx_config(Grid(), surprise=1, **{UP: {"bits": 4, "other": 2}})
    folder, _ = write_mlx(tmp_path / "m", config=config)
    with pytest.raises(UnknownKeyError, match=r"quantization.surprise = 1, .*up_proj.other"):
        open_model(folder)


def test_two_sections_that_differ_are_refused(tmp_path):
    folder, _ = write_mlx(tmp_path / "m")
    edit_config(folder, lambda config: config["quantization_config"].update(bits=8))
    with pytest.raises(CheckpointError, match="quantization_config is"):
        open_model(folder)


@settings(max_examples=60, deadline=None)
@given(st.sampled_from([4, 8]), st.integers(1, 5), st.integers(1, 9), st.integers(0, 2**32 - 1))
def test_words_unpack_to_what_was_packed(bits, n_rows, n_words, seed):
    rng = np.random.default_rng(seed)
    codes = rng.integers(0, 2**bits, (n_rows, n_words * 32 // bits)).astype(np.uint8)
    np.testing.assert_array_equal(unpack_words(pack_rows(codes, bits), bits), codes)
    turned = np.asfortranarray(pack_rows(codes, bits))
    np.testing.assert_array_equal(unpack_words(turned, bits), codes)


def mlx_quantized(mode, group, bits, wanted, dtype=mx.float32, scale=None):
    """Give parts that MLX quantizes itself, and keep what it makes of them in ``wanted``."""

    def parts(name, coded, grid):
        rng = np.random.default_rng(len(wanted))
        values = rng.normal(size=coded.codes.shape).astype(np.float32) * 0.02
        weights = mx.array(values).astype(dtype)
        whole = None if scale is None else mx.array(np.float32(np.abs(values).max()))
        packed = mx.quantize(weights, group, bits, mode, global_scale=whole)
        scales = packed[1] if mode != "affine" else packed[1].astype(mx.float32)
        biases = [packed[2].astype(mx.float32)] if mode == "affine" else [None]
        wanted[f"{name}.weight"] = np.array(
            mx.dequantize(
                packed[0], scales, *biases, group, bits, mode, global_scale=whole, dtype=mx.float32
            )
        )
        names = ("weight", "scales", "biases")
        made = {f"{name}.{part}": to_numpy(a) for part, a in zip(names, packed, strict=False)}
        if whole is not None:
            made[f"{name}.global_scale"] = np.array(whole)
        return made

    return parts


def to_numpy(values):
    if values.dtype == mx.bfloat16:
        return np.array(values.view(mx.uint16)).view(BF16)
    return np.array(values)


def check_decoded(folder, wanted, label, reason):
    source = open_model(folder)
    for ours, theirs in {"layers.1.down": "model.layers.1.mlp.down_proj", **EDGES}.items():
        tensor, values = source.tensor(ours), wanted[f"{theirs}.weight"]
        np.testing.assert_allclose(tensor.read(), values, rtol=2**-22, atol=1e-9)
        np.testing.assert_array_equal(tensor.read_rows(5, 29), tensor.read()[5:29])
        assert (tensor.decoded.label, tensor.decoded.reason) == (label, reason)
    return source


EDGES = {"embed": "model.embed_tokens", "lm_head": "lm_head"}
UNTIED = {"tie_word_embeddings": False}


@pytest.mark.parametrize("group", [32, 64, 128])
@pytest.mark.parametrize("bits", [1, 2, 3, 5, 6])
def test_other_bits_read_as_mlx_dequantizes_them(tmp_path, bits, group):
    wanted = {}
    parts = mlx_quantized("affine", group, bits, wanted, mx.bfloat16)
    config = mlx_config(Grid(bits, group))
    folder, _ = write_mlx(tmp_path / "m", Grid(4, 32), config=config, parts=parts, **UNTIED)
    check_decoded(folder, wanted, f"mlx int{bits}-g{group}", f"{bits} bits")


@pytest.mark.parametrize(
    ("mode", "group", "bits"), [("mxfp4", 32, 4), ("mxfp8", 32, 8), ("nvfp4", 16, 4)]
)
def test_modes_of_floats_read_as_mlx_dequantizes_them(tmp_path, mode, group, bits):
    wanted = {}
    config = mlx_config(Grid(bits, group), mode=mode)
    parts = mlx_quantized(mode, group, bits, wanted)
    folder, _ = write_mlx(tmp_path / "m", config=config, parts=parts, **UNTIED)
    source = check_decoded(folder, wanted, f"mlx {mode}", f"{bits}-bit floats")
    (note,) = source.checkpoint.notes
    assert note.startswith(f"16 matrices are stored as mlx {mode} and read as floats, such as ")


def test_nvfp4_may_have_a_scale_for_the_tensor(tmp_path):
    wanted = {}
    parts = mlx_quantized("nvfp4", 16, 4, wanted, scale=True)
    config = mlx_config(Grid(4, 16), mode="nvfp4")
    folder, _ = write_mlx(tmp_path / "m", config=config, parts=parts, **UNTIED)
    check_decoded(folder, wanted, "mlx nvfp4", "4-bit floats")


def test_modules_may_have_modes_of_their_own(tmp_path):
    wanted = {}
    six = mlx_quantized("affine", 64, 6, wanted)
    four = mlx_quantized("mxfp4", 32, 4, wanted)

    def parts(name, coded, grid):
        return six(name, coded, grid) if name in ("lm_head", UP) else four(name, coded, grid)

    single = {name: {"bits": 6, "group_size": 64, "mode": "affine"} for name in ("lm_head", UP)}
    config = mlx_config(Grid(4, 32), mode="mxfp4", **single)
    folder, _ = write_mlx(tmp_path / "m", config=config, parts=parts, **UNTIED)
    source = open_model(folder)
    for ours, theirs in {"layers.0.up": UP, "layers.1.up": UP.replace("0", "1"), **EDGES}.items():
        np.testing.assert_allclose(
            source.tensor(ours).read(), wanted[f"{theirs}.weight"], rtol=2**-22, atol=1e-9
        )
    assert len(source.checkpoint.notes) == 2


def test_the_section_may_have_the_hubs_name_alone(tmp_path):
    folder, made = write_mlx(tmp_path / "m")
    edit_config(folder, lambda config: config.pop("quantization"))
    np.testing.assert_array_equal(
        open_model(folder).tensor("layers.0.up").read(), made[f"{UP}.weight"].values
    )
