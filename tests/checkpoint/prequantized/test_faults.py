"""Claims: any matrix comes back from every layout; whatever is wrong is a CheckpointError."""

from __future__ import annotations

import json

import numpy as np
import pytest
import safetensors.numpy
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from edgekit.checkpoint.prequantized.method import join_parts
from edgekit.errors import CheckpointError, FormatError
from edgekit.families import open_model
from edgekit.formats.safetensors import SafetensorsFile
from tests.checkpoint.prequantized.folders import (
    BF16,
    Grid,
    auto_round_config,
    awq_config,
    awq_parts,
    compressed_config,
    compressed_parts,
    gptq_config,
    gptq_parts,
    make_prequantized,
    mlx_config,
    mlx_parts,
    write_coded,
)

LAYOUTS = {
    "compressed-tensors": (compressed_parts, compressed_config),
    "gptq": (gptq_parts, gptq_config),
    "auto-round": (gptq_parts, auto_round_config),
    "mlx": (mlx_parts, mlx_config),
    "awq": (awq_parts, awq_config),
}


@settings(max_examples=80, deadline=None)
@given(
    layout=st.sampled_from(sorted(LAYOUTS)),
    bits=st.sampled_from([4, 8]),
    group=st.sampled_from([32, 64, 96, 128, 256]),
    dtype=st.sampled_from([np.float16, np.float32, BF16]),
    n_octets=st.integers(1, 3),
    n_groups=st.integers(1, 3),
    seed=st.integers(0, 2**32 - 1),
)
def test_any_matrix_comes_back(
    tmp_path_factory, layout, bits, group, dtype, n_octets, n_groups, seed
):
    parts, config = LAYOUTS[layout]
    assume(bits == 4 or layout != "awq")
    grid = Grid(bits, group, dtype)
    shape = (8 * n_octets, group * n_groups)
    made = make_prequantized(shape, grid, np.random.default_rng(seed))
    path = tmp_path_factory.getbasetemp() / "one.safetensors"
    other = {"other.weight": np.ones(3, np.float32)}
    safetensors.numpy.save_file(parts("m.x", made, grid) | other, path)
    with SafetensorsFile(path) as file:
        joined = join_parts(file.tensors, config(grid))
        assert set(joined) == {"m.x.weight", "other.weight"}
        coded = joined["m.x.weight"]
        assert (coded.info.shape, coded.bits, coded.source_group) == (shape, bits, group)
        np.testing.assert_array_equal(coded.codes(0, shape[0]), made.codes)
        times = group // coded.group
        wanted = made.scales.repeat(times, axis=1)
        np.testing.assert_array_equal(coded.scales(0, shape[0]), wanted)
        np.testing.assert_array_equal(coded.read(), made.values)
        start = seed % shape[0]
        np.testing.assert_array_equal(coded.read_rows(start, shape[0]), made.values[start:])


@pytest.fixture(scope="module", params=sorted(LAYOUTS))
def folder(request, tmp_path_factory):
    parts, config = LAYOUTS[request.param]
    folder = tmp_path_factory.mktemp(request.param) / "m"
    write_coded(
        folder, Grid(), parts, config(Grid()), is_coded=lambda name: "q_proj" in name,
        num_hidden_layers=1,
    )  # fmt: skip
    open_model(folder).close()
    return folder


JSON = st.recursive(
    st.one_of(
        st.none(), st.booleans(), st.integers(-(2**70), 2**70), st.floats(-9, 9), st.text("ab")
    ),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.text("ab"), inner, max_size=2),
    max_leaves=4,
)  # fmt: skip


def paths_in(value, at=()):
    """Give the place of every value inside an object."""
    if isinstance(value, dict):
        for key, inner in value.items():
            yield (*at, key)
            yield from paths_in(inner, (*at, key))


def opens_or_is_refused(folder):
    try:
        source = open_model(folder)
    except (CheckpointError, FormatError) as error:
        assert str(error)
        return
    with source.checkpoint:
        coded = source.tensor("layers.0.q")
        try:
            assert coded.read().shape == coded.info.shape
        except CheckpointError as error:
            assert "NaN or infinite" in str(error)


@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_any_change_of_the_config_reads_or_is_refused(folder, data):
    path = folder / "config.json"
    good = path.read_text()
    config = json.loads(good)
    key = "quantization" if "quantization" in config else "quantization_config"
    *above, last = data.draw(st.sampled_from(list(paths_in(config[key], (key,)))))
    section = config
    for step in above:
        section = section[step]
    section[last] = data.draw(JSON)
    if key == "quantization":
        config["quantization_config"] = config[key]
    path.write_text(json.dumps(config))
    try:
        opens_or_is_refused(folder)
    finally:
        path.write_text(good)


ARRAYS = st.tuples(
    st.sampled_from([np.int32, np.uint32, np.int64, np.float16, np.float32, np.uint8]),
    st.lists(st.sampled_from([0, 1, 2, 4, 16, 32, 64, 128, 129]), max_size=3),
    st.integers(-3, 130),
)


@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_any_other_part_reads_or_is_refused(folder, data):
    path = folder / "model.safetensors"
    good = path.read_bytes()
    tensors = safetensors.numpy.load_file(path)
    name = data.draw(st.sampled_from(sorted(name for name in tensors if "q_proj" in name)))
    dtype, shape, value = data.draw(ARRAYS)
    tensors[name] = np.full(shape, np.int64(value)).astype(dtype)
    safetensors.numpy.save_file(tensors, path)
    try:
        opens_or_is_refused(folder)
    finally:
        path.write_bytes(good)
