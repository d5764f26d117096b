"""Write small quantized matrices, and the floats that their own libraries make of them.

    PYTHONPATH=. python scripts/golden_prequantized.py

Needs torch, compressed-tensors, bitsandbytes, hqq, torchao and optimum-quanto beside the
development packages. Each file of tests/golden/prequantized/ holds the tensors that a library
stores for the matrix ``m.weight``, what the library reads them as (``wanted``, float32), and the
quantization_config in its metadata.
"""

import json
from pathlib import Path
from typing import Any

import bitsandbytes
import compressed_tensors
import torch
import torchao.quantization
from compressed_tensors.compressors import BaseCompressor
from compressed_tensors.quantization import QuantizationArgs, QuantizationScheme
from hqq.core.quantize import BaseQuantizeConfig, HQQLinear
from optimum import quanto
from safetensors.torch import save_file
from torchao.prototype.safetensors.safetensors_support import flatten_tensor_state_dict

OUT = Path(__file__).resolve().parent.parent / "tests" / "golden" / "prequantized"
SHAPE = (24, 96)
GROUP = 32


def main() -> None:
    """Write every file."""
    torch.manual_seed(0)
    torch.set_num_threads(1)
    OUT.mkdir(exist_ok=True)
    for name, (layout, weights) in SCHEMES.items():
        write_compressed(name, layout, weights)
    for kind in ("nf4", "fp4"):
        for is_nested in (False, True):
            write_four_bits(kind, is_nested)
    write_eight_bits()
    for bits, axis in ((1, 1), (2, 1), (3, 1), (3, 0), (4, 1), (4, 0), (8, 1)):
        write_hqq(bits, axis)
    write_torchao()
    write_quanto()


def _integers(bits: int, **more: Any) -> dict[str, Any]:
    return {"num_bits": bits, "type": "int", "strategy": "group", "group_size": GROUP, **more}


def _floats(bits: int, strategy: str, **more: Any) -> dict[str, Any]:
    return {"num_bits": bits, "type": "float", "strategy": strategy, **more}


SCHEMES: dict[str, tuple[str, dict[str, Any]]] = {
    "packed-int4": ("pack-quantized", _integers(4)),
    "packed-int4-asymmetric": ("pack-quantized", _integers(4, symmetric=False)),
    "packed-int8-channel": ("pack-quantized", _integers(8, strategy="channel", group_size=None)),
    "packed-int8-channel-asymmetric": (
        "pack-quantized",
        _integers(8, strategy="channel", group_size=None, symmetric=False),
    ),
    "packed-int3": ("pack-quantized", _integers(3)),
    "packed-int3-asymmetric": ("pack-quantized", _integers(3, symmetric=False)),
    "packed-int2": ("pack-quantized", _integers(2)),
    "packed-int6": ("pack-quantized", _integers(6)),
    "int8-channel": ("int-quantized", _integers(8, strategy="channel", group_size=None)),
    "int8-tensor": ("int-quantized", _integers(8, strategy="tensor", group_size=None)),
    "int8-group": ("naive-quantized", _integers(8)),
    "int8-channel-asymmetric": (
        "int-quantized",
        _integers(8, strategy="channel", group_size=None, symmetric=False),
    ),
    "fp8-tensor": ("float-quantized", _floats(8, "tensor")),
    "fp8-channel": ("float-quantized", _floats(8, "channel")),
    "fp8-group": ("float-quantized", _floats(8, "group", group_size=GROUP)),
    "fp8-block": ("float-quantized", _floats(8, "block", block_structure=[16, 36])),
    "nvfp4": ("nvfp4-pack-quantized", _floats(4, "tensor_group", group_size=16)),
    "mxfp4": ("mxfp4-pack-quantized", _floats(4, "group", group_size=32)),
    "mxfp6": ("mxfp6-pack-quantized", _floats(6, "group", group_size=32)),
    "mxfp8": (
        "mxfp8-quantized",
        _floats(8, "group", group_size=32, scale_dtype="torch.uint8"),
    ),
}


def write_compressed(name: str, layout: str, weights: dict[str, Any]) -> None:
    """Quantize a matrix by a scheme of compressed-tensors, with scales from its extremes."""
    args = QuantizationArgs(**weights)
    activations = QuantizationArgs(num_bits=8, strategy="token", dynamic=True)
    has_activations = layout in ("int-quantized", "float-quantized")
    scheme = QuantizationScheme(
        targets=["Linear"],
        weights=args,
        input_activations=activations if has_activations else None,
        format=layout,
    )
    weight = torch.randn(SHAPE) * 0.05
    state = {"weight": weight, **_find_scales(weight, args)}
    compressor = BaseCompressor.get_value_from_registry(layout)
    stored = compressor.compress(state, scheme)
    read = dict(stored)
    # Computed in float32: the library computes in the type of the scales.
    if read["weight_scale"].dtype in (torch.bfloat16, torch.float16):
        read["weight_scale"] = read["weight_scale"].float()
    wanted = compressor.decompress(read, scheme)["weight"].float()
    config = {
        "quant_method": "compressed-tensors",
        "format": layout,
        "config_groups": {"group_0": scheme.model_dump(mode="json")},
        "ignore": ["lm_head"],
        "kv_cache_scheme": None,
        "quantization_status": "compressed",
        "global_compression_ratio": None,
        "moe_sparsity_config": None,
        "version": compressed_tensors.__version__,
    }
    save(f"compressed-tensors-{name}", {f"m.{k}": v for k, v in stored.items()}, wanted, config)


def _find_scales(weight: torch.Tensor, args: QuantizationArgs) -> dict[str, torch.Tensor]:
    """Give scales and zero points in the shapes that the strategy has."""
    n_rows, n_cols = weight.shape
    if args.strategy == "block":
        rows, cols = args.block_structure or (1, 1)
        padded = torch.zeros(-(-n_rows // rows) * rows, -(-n_cols // cols) * cols)
        padded[:n_rows, :n_cols] = weight
        parts = padded.reshape(-(-n_rows // rows), rows, -(-n_cols // cols), cols)
        low, high = parts.amin((1, 3)), parts.amax((1, 3))
    elif args.strategy == "tensor":
        low, high = weight.min().reshape(1), weight.max().reshape(1)
    else:
        group = n_cols if args.strategy == "channel" else int(args.group_size or n_cols)
        parts = weight.reshape(n_rows, n_cols // group, group)
        low, high = parts.amin(2), parts.amax(2)
    largest = torch.maximum(low.abs(), high.abs())
    if args.type == "float":
        limit = {4: 6.0, 6: 7.5, 8: 448.0}[args.num_bits]
        if args.strategy == "tensor_group":
            whole = (448.0 * 6.0 / weight.abs().max()).reshape(1)
            scales = (largest / limit * whole).to(torch.float8_e4m3fn).float()
            return {"weight_scale": scales, "weight_global_scale": whole}
        scales = largest / limit
        if args.num_bits < 8 or args.scale_dtype is not None:
            scales = torch.exp2(torch.ceil(torch.log2(scales)))
        return {"weight_scale": scales}
    steps = 2.0**args.num_bits - 1
    if args.symmetric:
        return {"weight_scale": (largest * 2 / steps).bfloat16().float()}
    scales = (torch.clamp(high, min=0) - torch.clamp(low, max=0)) / steps
    first = -(2 ** (args.num_bits - 1))
    zeros = first - torch.round(torch.clamp(low, max=0) / scales)
    return {"weight_scale": scales, "weight_zero_point": zeros.to(torch.int8)}


def write_four_bits(kind: str, is_nested: bool) -> None:
    """Quantize a matrix to nf4 or fp4; 3 rows and a bit of it fill a block of scales."""
    weight = torch.randn(20, 136) * 0.05
    functional = bitsandbytes.functional
    packed, state = functional.quantize_4bit(
        weight, blocksize=64, compress_statistics=is_nested, quant_type=kind
    )
    wanted = functional.dequantize_4bit(packed, state)
    stored = {"m.weight": packed}
    stored |= {f"m.weight.{key}": value for key, value in state.as_dict(packed=True).items()}
    config = {
        "quant_method": "bitsandbytes",
        "load_in_4bit": True,
        "load_in_8bit": False,
        "_load_in_4bit": True,
        "bnb_4bit_quant_type": kind,
        "bnb_4bit_use_double_quant": is_nested,
        "bnb_4bit_compute_dtype": "bfloat16",
        "llm_int8_skip_modules": None,
    }
    save(f"bitsandbytes-{kind}{'-nested' if is_nested else ''}", stored, wanted, config)


def write_eight_bits() -> None:
    """Quantize a matrix to int8 by its rows."""
    weight = torch.randn(SHAPE) * 0.05
    codes, largest, _ = bitsandbytes.functional.int8_vectorwise_quant(weight.half())
    wanted = bitsandbytes.functional.int8_vectorwise_dequant(codes, largest)
    stored = {
        "m.weight": codes,
        "m.SCB": largest,
        "m.weight_format": torch.tensor(0, dtype=torch.uint8),
    }
    config = {"quant_method": "bitsandbytes", "load_in_8bit": True, "llm_int8_threshold": 6.0}
    save("bitsandbytes-int8", stored, wanted, config)


def write_hqq(bits: int, axis: int) -> None:
    """Quantize a matrix by HQQ, with groups along its rows (axis 1) or across them (axis 0)."""
    linear = torch.nn.Linear(SHAPE[1], SHAPE[0], bias=False)
    how = BaseQuantizeConfig(nbits=bits, group_size=GROUP, axis=axis)
    layer = HQQLinear(linear, how, compute_dtype=torch.float32, device="cpu")
    stored = {f"m.{key}": value.detach().clone() for key, value in layer.state_dict().items()}
    config = {"quant_method": "hqq", "quant_config": how, "skip_modules": ["lm_head"]}
    save(f"hqq-int{bits}-axis{axis}", stored, layer.dequantize(), config)


def write_torchao() -> None:
    """Quantize a matrix by torchao's schemes that run without a GPU."""
    schemes = {
        "int8": torchao.quantization.Int8WeightOnlyConfig(version=2),
        "int4-unpacked": torchao.quantization.IntxWeightOnlyConfig(
            weight_dtype=torch.int4, granularity=torchao.quantization.PerGroup(GROUP)
        ),
        "fp8": torchao.quantization.Float8WeightOnlyConfig(),
    }
    for name, scheme in schemes.items():
        module = torch.nn.Linear(SHAPE[1], SHAPE[0], bias=False)
        torchao.quantization.quantize_(module, scheme)
        stored, _ = flatten_tensor_state_dict({"m.weight": module.weight})
        config = {"quant_method": "torchao", "quant_type": {"default": {"_type": name}}}
        save(f"torchao-{name}", stored, module.weight.dequantize(), config)


def write_quanto() -> None:
    """Quantize a matrix by quanto to 8 bits."""
    for kind in (quanto.qint8, quanto.qfloat8):
        model = torch.nn.Sequential()
        model.add_module("m", torch.nn.Linear(SHAPE[1], SHAPE[0], bias=False))
        quanto.quantize(model, weights=kind)
        quanto.freeze(model)
        config = {"quant_method": "quanto", "weights": kind.name, "activations": None}
        name = "int8" if kind is quanto.qint8 else "fp8"
        save(f"quanto-{name}", model.state_dict(), model.m.weight.dequantize(), config)


def save(
    name: str, stored: dict[str, torch.Tensor], wanted: torch.Tensor, config: dict[str, Any]
) -> None:
    """Write one file."""
    tensors = {key: value.detach().contiguous() for key, value in stored.items()}
    tensors["wanted"] = wanted.detach().float().contiguous()
    save_file(tensors, OUT / f"{name}.safetensors", metadata={"config": json.dumps(config)})


if __name__ == "__main__":
    main()
