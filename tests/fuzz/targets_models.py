"""Fuzz targets: configs, indexes and pre-quantized weights."""

from __future__ import annotations

import json
import math
from dataclasses import asdict
from pathlib import Path
from random import Random
from typing import Any

import ml_dtypes
import numpy as np
import safetensors
import safetensors.numpy

from edgekit.checkpoint.config import RawConfig
from edgekit.checkpoint.prequantized.method import account_for_quantization, join_parts
from edgekit.errors import CheckpointError, FormatError, UnsupportedArchError
from edgekit.families import FAMILIES
from edgekit.families.rope import attention_temperatures, rope_tables
from edgekit.families.spec import DecoderSpec
from edgekit.formats.safetensors import SafetensorsFile
from edgekit.lazy import load_object
from edgekit.model_files import read_weight_map
from edgekit.strict_json import parse_object, read_object
from tests.builders import tiny_config
from tests.checkpoint.prequantized.folders import (
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
)
from tests.fuzz.contract import Target, mutate_part, promise, split_parts
from tests.fuzz.contract import join_parts as glue
from tests.fuzz.mutate import mutate_json
from tests.fuzz.targets_formats import mutate_safetensors
from tests.tiny_families import TINY_CONFIGS

_GOLDEN = Path(__file__).parents[1] / "golden" / "prequantized"
_COUNTS = ("n_layers", "hidden_width", "n_heads", "n_kv_heads", "head_width", "ffn_width",
           "vocab_size", "context_length")  # fmt: skip


def run_json(data: bytes, folder: Path) -> None:
    """What we accept, the json module accepts with the same value, and it can be written again."""
    value = parse_object(data, "x.json")
    promise(value == json.loads(data), "another value than the json module")
    json.dumps(value, allow_nan=False, ensure_ascii=False).encode("utf-8")


def run_config(data: bytes, folder: Path) -> None:
    """A config gives a decoder whose numbers all make sense, or is refused."""
    path = folder / "config.json"
    path.write_bytes(data)
    config = RawConfig.open(path)
    model_type = config.get("model_type")
    reference = FAMILIES.get(model_type) if isinstance(model_type, str) else None
    if reference is None:
        raise UnsupportedArchError("model_type")
    spec: DecoderSpec = load_object(reference).read_spec(config)
    check_spec(spec)
    text = json.dumps(spec.as_dict(), allow_nan=False)
    try:
        again = DecoderSpec.from_dict(json.loads(text))
    except ValueError as error:
        promise(False, f"a spec that its manifest would refuse: {error}")
    else:
        promise(again == spec, "a spec that JSON does not keep")


def check_spec(spec: DecoderSpec) -> None:
    """Hold a spec against what its class says of it."""
    for name in _COUNTS:
        value = getattr(spec, name)
        promise(type(value) is int and value >= 1, f"{name} is {value!r:.40}")
    promise(spec.n_layers <= 1024, "more layers than the cap")
    promise(spec.n_heads % spec.n_kv_heads == 0, "heads that do not divide")
    _check_numbers(asdict(spec), "spec")
    for name in ("embed_scale", "residual_scale", "logits_scale", "score_scale", "norm_eps"):
        promise(0 < getattr(spec, name) < 3e38, f"{name} is {getattr(spec, name)}")
    layers = range(spec.n_layers)
    for name in ("sliding_layers", "no_rope_layers"):
        promise(set(getattr(spec, name) or ()) <= set(layers), f"{name} outside the layers")
    promise(spec.sliding_window is None or spec.sliding_window >= 1, "an empty window")
    promise(len(spec.weight_shapes()) <= 40 * spec.n_layers + 8, "too many weights")
    for rope in spec.ropes:
        width = rope.rotary_width or spec.head_width
        promise(0 < width <= spec.head_width and width % 2 == 0, f"rotates {width} channels")
        for is_long in (False, True):
            with np.errstate(all="raise"):
                for table in rope_tables(rope, spec.head_width, 8, is_long=is_long):
                    promise(np.isfinite(table).all(), "rope that is not finite")
    if spec.query_scaling is not None:
        factors = attention_temperatures(spec.query_scaling, 64)
        promise(np.isfinite(factors).all(), "query factors that are not finite")


def _check_numbers(value: Any, where: str) -> None:
    if isinstance(value, dict):
        for key, item in value.items():
            _check_numbers(item, f"{where}.{key}")
    elif isinstance(value, list | tuple):
        for item in value:
            _check_numbers(item, where)
    elif isinstance(value, float):
        promise(math.isfinite(value), f"{where} is {value}")


def seeds_config() -> list[bytes]:
    found = [tiny_config(name) for name in TINY_CONFIGS]
    section = gptq_config(Grid())
    found += [
        tiny_config("llama") | section,
        tiny_config("llama") | compressed_config(Grid()),
        tiny_config("llama") | mlx_config(Grid()),
        tiny_config("llama") | {"quantization_config": {"quant_method": "fp8", "fmt": "e4m3"}},
    ]
    return [json.dumps(config).encode() for config in found]


def run_index(data: bytes, folder: Path) -> None:
    """Every file that an index names is a plain name beside it."""
    path = folder / "model.safetensors.index.json"
    path.write_bytes(data)
    for name, file_name in read_weight_map(path).items():
        promise(isinstance(name, str) and isinstance(file_name, str), "names that are no text")
        target = folder / file_name
        promise(target.parent == folder and file_name not in ("", ".", ".."), "leaves the folder")
        promise(target.resolve().parent == folder.resolve(), "leads outside the folder")
        promise(file_name.isprintable(), "a name that cannot be shown")
        name.encode("utf-8")


def seeds_index() -> list[bytes]:
    names = {f"model.layers.{i}.w": f"model-0000{i}-of-00003.safetensors" for i in (1, 2, 3)}
    return [json.dumps({"metadata": {"total_size": 12}, "weight_map": names}).encode()]


def run_codes(data: bytes, folder: Path) -> None:
    """Config and pre-quantized tensors give weights that read as finite floats, or are refused."""
    config_data, tensor_data = split_parts(data, 2)
    (folder / "config.json").write_bytes(config_data)
    (folder / "x.safetensors").write_bytes(tensor_data)
    config = RawConfig(read_object(folder / "config.json"), "config.json")
    account_for_quantization(config)
    config.ignore(key for key in config if not key.startswith("quantization"))
    config.finish()
    with SafetensorsFile(folder / "x.safetensors") as file:
        for name, weight in join_parts(file.tensors, config).items():
            promise(isinstance(name, str), "a weight without a name")
            try:
                values = weight.read()
            except (CheckpointError, FormatError):
                continue  # integers, or scales that are not finite
            promise(values.dtype == np.float32, "read() is not float32")
            promise(values.shape == weight.info.shape, "read() has another shape")
            if values.ndim and values.shape[0] > 1:
                rows = weight.read_rows(1, 2)
                promise(np.array_equal(rows, values[1:2], equal_nan=True), "rows differ from all")


def seeds_codes() -> list[bytes]:
    shape, rng = (32, 64), np.random.default_rng(0)
    found = []
    for parts, config in (
        (compressed_parts, compressed_config),
        (gptq_parts, gptq_config),
        (gptq_parts, auto_round_config),
        (mlx_parts, mlx_config),
    ):
        for grid in (Grid(), Grid(bits=8, group=64)):
            tensors = parts("m.q_proj", make_prequantized(shape, grid, rng), grid)
            found.append((config(grid), tensors))
    eight = np.ones((8, 8), ml_dtypes.float8_e4m3fn)
    for block, scales in ((None, np.array(0.5, np.float32)), ([4, 4], np.ones((2, 2), np.float32))):
        section = {"quant_method": "fp8", "weight_block_size": block, "fmt": "e4m3"}
        tensors = {"m.weight": eight, "m.weight_scale_inv": scales}
        found.append(({"quantization_config": section}, tensors))
    grid = Grid()
    made = make_prequantized(shape, grid, rng)
    found.append((awq_config(grid), awq_parts("m.q_proj", made, grid)))
    moved = gptq_parts("m.q_proj", made, grid)
    moved["m.q_proj.g_idx"] = moved["m.q_proj.g_idx"][::-1].copy()
    moved["m.q_proj.qzeros"] = moved["m.q_proj.qzeros"] ^ 1
    found.append((gptq_config(grid, sym=False, desc_act=True), moved))
    seeds = [glue(json.dumps(c).encode(), safetensors.numpy.save(t)) for c, t in found]
    for path in sorted(_GOLDEN.glob("*.safetensors")):
        # What libraries wrote themselves; the values that they stand for pass through.
        with safetensors.safe_open(path, "np") as file:
            section = json.loads(file.metadata()["config"])
        config = json.dumps({"quantization_config": section}).encode()
        seeds.append(glue(config, path.read_bytes()))
    return seeds


def mutate_codes(data: bytes, rng: Random) -> bytes:
    return mutate_part(data, rng, [mutate_json, mutate_safetensors])


TARGETS = (
    Target("json", run_json, seeds_config, mutate_json),
    Target("config", run_config, seeds_config, mutate_json),
    Target("index", run_index, seeds_index, mutate_json),
    Target("codes", run_codes, seeds_codes, mutate_codes),
)
