"""Small quantized checkpoints that tests use in place of a real one.

Codes are packed here by hand, one shift at a time, without edgekit.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import safetensors.numpy

from tests.builders import write_tiny_checkpoint


@dataclass(frozen=True)
class Coded:
    """What one weight holds: codes (N, M), scales (N, groups), and the floats they stand for."""

    codes: np.ndarray
    scales: np.ndarray
    values: np.ndarray


@dataclass(frozen=True)
class Grid:
    """How the weights of a folder are coded."""

    bits: int = 4
    group: int = 32
    dtype: Any = np.float16
    is_exact: bool = True

    @property
    def middle(self) -> int:
        return 2 ** (self.bits - 1)


def make_prequantized(shape: tuple[int, int], grid: Grid, rng: np.random.Generator) -> Coded:
    """Draw codes and scales; exact scales have 8 significant bits, others 11."""
    codes = rng.integers(0, 2**grid.bits, shape).astype(np.uint8)
    n_groups = shape[1] // grid.group
    digits = (128, 256) if grid.is_exact else (1024, 2048)
    mantissa = rng.integers(*digits, (shape[0], n_groups)).astype(np.float32)
    if not grid.is_exact:
        mantissa[0, 0] = 1025
    scales = np.ldexp(mantissa, (-12 if grid.is_exact else -15) - (grid.bits - 4)).astype(
        np.float32
    )
    assert np.array_equal(scales.astype(grid.dtype).astype(np.float32), scales)
    values = np.empty(shape, np.float32)
    for column in range(shape[1]):
        signed = codes[:, column].astype(np.float32) - grid.middle
        values[:, column] = signed * scales[:, column // grid.group]
    return Coded(codes, scales, values)


def pack_rows(codes: np.ndarray, bits: int) -> np.ndarray:
    """Put codes of a row into uint32 words, the first in the lowest bits."""
    per_word = 32 // bits
    words = np.zeros((codes.shape[0], codes.shape[1] // per_word), np.uint32)
    for place in range(per_word):
        words |= codes[:, place::per_word].astype(np.uint32) << np.uint32(bits * place)
    return words


def pack_bits(codes: np.ndarray, bits: int) -> np.ndarray:
    """Put codes of a row into int32 words one after the other, across words, low bits first."""
    places = np.arange(bits, dtype=np.uint8)
    stream = (codes[..., None].astype(np.uint8) >> places) & 1
    packed = np.packbits(stream.reshape(codes.shape[0], -1), axis=1, bitorder="little")
    n_missing = -packed.shape[1] % 4
    return np.pad(packed, ((0, 0), (0, n_missing))).view(np.int32)


def write_coded(
    folder: Path,
    grid: Grid,
    parts: Callable[[str, Coded, Grid], dict[str, np.ndarray]],
    config: dict[str, Any],
    *,
    model_type: str = "llama",
    is_coded: Callable[[str], bool] = lambda name: "_proj" in name,
    change: Callable[[dict[str, np.ndarray]], object] | None = None,
    seed: int = 0,
    **overrides: Any,
) -> tuple[Path, dict[str, Coded]]:
    """Write a tiny checkpoint whose projections are codes.

    Args:
        parts: Gives the tensors that stand for one weight, from its name without ``.weight``.
        config: Goes into config.json.
        change: May change the tensors before they are written.
    """
    write_tiny_checkpoint(folder, model_type, **overrides)
    path, rng = folder / "model.safetensors", np.random.default_rng(seed)
    stored, made = {}, {}
    for name, values in safetensors.numpy.load_file(path).items():
        if is_coded(name) and values.ndim == 2:
            made[name] = make_prequantized(values.shape, grid, rng)
            stored |= parts(name.removesuffix(".weight"), made[name], grid)
        else:
            stored[name] = values
    if change is not None:
        change(stored)
    # The library writes the memory of an array, whatever its order.
    stored = {name: np.ascontiguousarray(values) for name, values in stored.items()}
    safetensors.numpy.save_file(stored, path)
    edit_config(folder, lambda c: c.update(config))
    return folder, made


def edit_config(folder: Path, change: Callable[[dict[str, Any]], object]) -> None:
    content = json.loads((folder / "config.json").read_text())
    change(content)
    (folder / "config.json").write_text(json.dumps(content))


BF16 = ml_dtypes.bfloat16


def compressed_parts(name: str, coded: Coded, grid: Grid) -> dict[str, np.ndarray]:
    return {
        f"{name}.weight_packed": pack_rows(coded.codes, grid.bits).view(np.int32),
        f"{name}.weight_scale": coded.scales.astype(grid.dtype),
        f"{name}.weight_shape": np.array(coded.codes.shape, np.int64),
    }


def compressed_config(grid: Grid, **weights: Any) -> dict[str, Any]:
    group = {
        "input_activations": None,
        "output_activations": None,
        "targets": ["Linear"],
        "weights": {
            "actorder": None,
            "block_structure": None,
            "dynamic": False,
            "group_size": grid.group,
            "num_bits": grid.bits,
            "observer": "minmax",
            "observer_kwargs": {},
            "strategy": "group",
            "symmetric": True,
            "type": "int",
            **weights,
        },
    }
    return {
        "quantization_config": {
            "config_groups": {"group_0": group},
            "format": "pack-quantized",
            "global_compression_ratio": 1.9,
            "ignore": ["lm_head"],
            "kv_cache_scheme": None,
            "quant_method": "compressed-tensors",
            "quantization_status": "compressed",
            "sparsity_config": {},
            "transform_config": {},
            "version": "0.10.2",
        }
    }


def write_compressed(folder: Path, grid: Grid, weights: Any = None, **more: Any) -> Any:
    """Write a compressed-tensors folder; ``weights`` changes keys of the weights' section."""
    return write_coded(
        folder, grid, compressed_parts, compressed_config(grid, **(weights or {})), **more
    )


def gptq_parts(name: str, coded: Coded, grid: Grid, offset: int = 1) -> dict[str, np.ndarray]:
    n_rows, n_cols = coded.codes.shape
    zeros = np.full((n_cols // grid.group, n_rows), grid.middle - offset, np.uint8)
    return {
        f"{name}.qweight": np.ascontiguousarray(pack_rows(coded.codes, grid.bits).T).view(np.int32),
        f"{name}.qzeros": pack_rows(zeros, grid.bits).view(np.int32),
        f"{name}.scales": np.ascontiguousarray(coded.scales.T.astype(grid.dtype)),
        f"{name}.g_idx": np.array([i // grid.group for i in range(n_cols)], np.int32),
    }


def gptq_config(grid: Grid, **keys: Any) -> dict[str, Any]:
    return {
        "quantization_config": {
            "bits": grid.bits,
            "checkpoint_format": "gptq",
            "damp_percent": 0.01,
            "desc_act": False,
            "group_size": grid.group,
            "lm_head": False,
            "meta": {"quantizer": ["gptqmodel:2.0.0"]},
            "quant_method": "gptq",
            "sym": True,
            "true_sequential": True,
            **keys,
        }
    }


def auto_round_config(grid: Grid, **keys: Any) -> dict[str, Any]:
    return {
        "quantization_config": {
            "autoround_version": "0.5.1",
            "bits": grid.bits,
            "data_type": "int",
            "group_size": grid.group,
            "packing_format": "auto_round:auto_gptq",
            "quant_method": "auto-round",
            "sym": True,
            **keys,
        }
    }


def mlx_parts(name: str, coded: Coded, grid: Grid) -> dict[str, np.ndarray]:
    return {
        f"{name}.weight": pack_rows(coded.codes, grid.bits),
        f"{name}.scales": coded.scales.astype(grid.dtype),
        f"{name}.biases": (-grid.middle * coded.scales).astype(grid.dtype),
    }


def mlx_config(grid: Grid, **keys: Any) -> dict[str, Any]:
    section = {"group_size": grid.group, "bits": grid.bits, "mode": "affine", **keys}
    return {"quantization": section, "quantization_config": section}


def is_matrix(name: str) -> bool:
    """MLX quantizes the embedding and the head as well."""
    return "_proj" in name or "embed" in name or "lm_head" in name


def awq_gemm_words(codes: np.ndarray) -> np.ndarray:
    """Pack 4-bit codes along the last axis in AWQ's order: 0, 2, 4, 6, 1, 3, 5, 7 of eight."""
    words = np.zeros((codes.shape[0], codes.shape[1] // 8), np.uint32)
    for place, column in enumerate((0, 2, 4, 6, 1, 3, 5, 7)):
        words |= codes[:, column::8].astype(np.uint32) << np.uint32(4 * place)
    return words.view(np.int32)


def awq_parts(name: str, coded: Coded, grid: Grid) -> dict[str, np.ndarray]:
    zeros = np.full(coded.scales.T.shape, grid.middle, np.uint8)
    return {
        f"{name}.qweight": awq_gemm_words(np.ascontiguousarray(coded.codes.T)),
        f"{name}.qzeros": awq_gemm_words(zeros),
        f"{name}.scales": np.ascontiguousarray(coded.scales.T.astype(grid.dtype)),
    }


def awq_config(grid: Grid, **keys: Any) -> dict[str, Any]:
    return {
        "quantization_config": {
            "bits": grid.bits,
            "group_size": grid.group,
            "modules_to_not_convert": None,
            "quant_method": "awq",
            "version": "gemm",
            "zero_point": True,
            **keys,
        }
    }
