"""Weight files of published models without their weights: names, types and shapes, then a hole.

Names and shapes are not edgekit's own. TENSORS.json holds what transformers would save for each
config (scripts/corpus_tensors.py writes it); models whose code is not part of transformers are
written down here after that code, and so is what each quantizer writes in place of a matrix. A file
is a safetensors header and a hole of the right size (a sparse file); only scales, and what tells
which row belongs to which group, hold numbers, because readers check them before any weight is
read.
"""

from __future__ import annotations

import itertools
import json
import math
import struct
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any, Final

import numpy as np

_BYTES: Final = {
    "F64": 8, "F32": 4, "F16": 2, "BF16": 2, "F8_E4M3": 1, "I64": 8, "I32": 4, "U32": 4, "U8": 1,
    "BOOL": 1,
}  # fmt: skip
_TYPES: Final = {"float32": "F32", "float16": "F16", "bfloat16": "BF16"}
_DATA: Final = json.loads((Path(__file__).parent / "TENSORS.json").read_text(encoding="utf-8"))
_EMBEDDINGS: Final = ("embed_tokens.weight", "embed_tokens.scales", "transformer.wte.weight")
_NOT_TEXT: Final = ("vision", "visual", "audio")
_ADAPTER: Final = "adapter_model.safetensors"
Shapes = dict[str, tuple[int, ...]]


@dataclass(frozen=True)
class Stored:
    """One tensor of a weight file; a hole from where ``values`` end."""

    dtype: str
    shape: tuple[int, ...]
    values: bytes = b""

    @property
    def n_bytes(self) -> int:
        return _BYTES[self.dtype] * math.prod(self.shape)


def write_weights(folder: Path, config: Mapping[str, Any], name: str) -> Path:
    """Write ``model.safetensors`` of a published config into a folder.

    Args:
        folder: Of the config.
        config: The config.
        name: Of the model.
    """
    return _write(folder / "model.safetensors", published_tensors(config, name))


def write_adapter(folder: Path, name: str) -> Path:
    """Write ``adapter_model.safetensors`` of a published adapter into its folder."""
    return _write(folder / _ADAPTER, _of_transformers(name))


def _write(path: Path, tensors: Mapping[str, Stored]) -> Path:
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    at = 0
    for key, tensor in tensors.items():
        header[key] = {
            "dtype": tensor.dtype,
            "shape": list(tensor.shape),
            "data_offsets": [at, at + tensor.n_bytes],
        }
        at += tensor.n_bytes
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with path.open("wb") as stream:
        stream.write(struct.pack("<Q", len(text)) + text)
        start = stream.tell()
        for key, tensor in tensors.items():
            if tensor.values:
                stream.seek(start + header[key]["data_offsets"][0])
                stream.write(tensor.values)
        stream.truncate(start + at)
    return path


def published_tensors(config: Mapping[str, Any], name: str) -> dict[str, Stored]:
    """Give every tensor of a published model by name."""
    if name in _DATA["models"]:
        plain = _of_transformers(name)
    else:
        dtype = _dtype_of(config)
        shapes = _CODES[config["model_type"]].shapes(config)
        plain = {key: Stored(dtype, shape) for key, shape in shapes.items()}
    made = dict(_quantized(plain, config, name))
    # Two holes would be equal, and a head that equals the embedding is stored once.
    made = {
        k: replace(t, values=b"\x80\x3f") if k.endswith(_EMBEDDINGS) else t for k, t in made.items()
    }
    return _as_written(made, config, name)


def source_of(config: Mapping[str, Any] | None, name: str) -> str:
    """Say where the tensors of a model are taken from.

    Args:
        config: None for an adapter.
        name: Of the model.
    """
    if name in _DATA["models"]:
        model = _DATA["models"][name]
        base = f"transformers, {model['class']}"
        if config is None:
            base = f"peft over transformers, {model['class']}"
    else:
        base = _CODES[(config or {})["model_type"]].source
    method = None if config is None else _method_of(config, name)[1]
    return base if method not in _LAYOUTS else f"{base}; {_LAYOUTS[method].source}"


def versions() -> str:
    """Say which packages gave the tensors."""
    return str(_DATA["source"])


def _of_transformers(name: str) -> dict[str, Stored]:
    made: dict[str, Stored] = {}
    for pattern, dtype, shape, *places in _DATA["models"][name]["tensors"]:
        for numbers in itertools.product(*map(_numbers, places)):
            made[pattern.format(*numbers)] = Stored(dtype, tuple(shape))
    return made


def _numbers(text: str) -> list[int]:
    """Read ``0-3,7`` as 0, 1, 2, 3 and 7."""
    made: list[int] = []
    for part in text.split(","):
        first, _, last = part.partition("-")
        made += range(int(first), int(last or first) + 1)
    return made


def _dtype_of(config: Mapping[str, Any]) -> str:
    text = config.get("text_config") or config.get("llm_config") or config
    found = [c[k] for c in (text, config) for k in ("torch_dtype", "dtype") if c.get(k)]
    return _TYPES[str(found[0])] if found else "BF16"


def _as_written(
    tensors: Mapping[str, Stored], config: Mapping[str, Any], name: str
) -> dict[str, Stored]:
    """Put in what the writer of a checkpoint does otherwise than today's transformers."""
    made = dict(tensors)
    version = [int(part) for part in str(config.get("transformers_version", "9.9")).split(".")[:2]]
    if config["model_type"] in ("llama", "xverse") and version < [4, 32]:
        # transformers saved the rotary buffers until 4.31.
        width = config["hidden_size"] // config["num_attention_heads"]
        made |= {
            f"model.layers.{i}.self_attn.rotary_emb.inv_freq": Stored("F32", (width // 2,))
            for i in range(config["num_hidden_layers"])
        }
    if name == "qwen3-embedding-8b":
        # Saved by the model without a head.
        made = {k.removeprefix("model."): t for k, t in made.items() if k != "lm_head.weight"}
    return made


@dataclass(frozen=True)
class _Code:
    """A model whose code lies beside its checkpoint.

    Attributes:
        shapes: From its config to name and shape of every tensor.
        source: The file that says so.
    """

    shapes: Callable[[Mapping[str, Any]], Shapes]
    source: str


def _llama_like(config: Mapping[str, Any], *, has_bias: bool = False) -> Shapes:
    width, ffn, vocab = (config[k] for k in ("hidden_size", "intermediate_size", "vocab_size"))
    head = width // config["num_attention_heads"]
    n_kv = config.get("num_key_value_heads") or config["num_attention_heads"]
    made: Shapes = {"model.embed_tokens.weight": (vocab, width)}
    for i in range(config["num_hidden_layers"]):
        at = f"model.layers.{i}."
        outs = {"q": width, "k": n_kv * head, "v": n_kv * head}
        made |= {f"{at}self_attn.{part}_proj.weight": (n, width) for part, n in outs.items()}
        if has_bias:
            made |= {f"{at}self_attn.{part}_proj.bias": (n,) for part, n in outs.items()}
        made |= {
            f"{at}self_attn.o_proj.weight": (width, width),
            f"{at}mlp.gate_proj.weight": (ffn, width),
            f"{at}mlp.up_proj.weight": (ffn, width),
            f"{at}mlp.down_proj.weight": (width, ffn),
            f"{at}input_layernorm.weight": (width,),
            f"{at}post_attention_layernorm.weight": (width,),
        }
    return made | {"model.norm.weight": (width,), "lm_head.weight": (vocab, width)}


def _mimo(config: Mapping[str, Any]) -> Shapes:
    """Give Qwen2's tensors and the layer that guesses a second token."""
    decoder = _llama_like(config, has_bias=True)
    at, width = "model.mtp_layers.0.", config["hidden_size"]
    layer = {k: shape for k, shape in decoder.items() if k.startswith("model.layers.0.")}
    norms = ("token_layernorm", "hidden_layernorm", "final_layernorm")
    return {
        **decoder,
        **{k.replace("model.layers.0.", at): shape for k, shape in layer.items()},
        **{f"{at}{norm}.weight": (width,) for norm in norms},
        f"{at}input_proj.weight": (width, 2 * width),
    }


def _exaone(config: Mapping[str, Any]) -> Shapes:
    width, ffn = config["hidden_size"], config["intermediate_size"]
    head = width // config["num_attention_heads"]
    kv = config["num_key_value_heads"] * head
    made: Shapes = {"transformer.wte.weight": (config["vocab_size"], width)}
    for i in range(config["num_layers"]):
        at = f"transformer.h.{i}."
        made |= {
            f"{at}ln_1.weight": (width,),
            f"{at}attn.attention.q_proj.weight": (width, width),
            f"{at}attn.attention.k_proj.weight": (kv, width),
            f"{at}attn.attention.v_proj.weight": (kv, width),
            f"{at}attn.attention.out_proj.weight": (width, width),
            f"{at}ln_2.weight": (width,),
            f"{at}mlp.c_fc_0.weight": (ffn, width),
            f"{at}mlp.c_fc_1.weight": (ffn, width),
            f"{at}mlp.c_proj.weight": (width, ffn),
        }
    made["transformer.ln_f.weight"] = (width,)
    if not config["tie_word_embeddings"]:
        made["lm_head.weight"] = (config["vocab_size"], width)
    return made


def _chatglm(config: Mapping[str, Any]) -> Shapes:
    width, ffn = config["hidden_size"], config["ffn_hidden_size"]
    head, vocab = config["kv_channels"], config["padded_vocab_size"]
    q = config["num_attention_heads"] * head
    qkv = q + 2 * config["multi_query_group_num"] * head
    made: Shapes = {
        "transformer.embedding.word_embeddings.weight": (vocab, width),
        "transformer.rotary_pos_emb.inv_freq": (head // 4,),
    }
    for i in range(config["num_layers"]):
        at = f"transformer.encoder.layers.{i}."
        made |= {
            f"{at}input_layernorm.weight": (width,),
            f"{at}self_attention.query_key_value.weight": (qkv, width),
            f"{at}self_attention.query_key_value.bias": (qkv,),
            f"{at}self_attention.dense.weight": (width, q),
            f"{at}post_attention_layernorm.weight": (width,),
            f"{at}mlp.dense_h_to_4h.weight": (2 * ffn, width),
            f"{at}mlp.dense_4h_to_h.weight": (width, ffn),
        }
    return made | {
        "transformer.encoder.final_layernorm.weight": (width,),
        "transformer.output_layer.weight": (vocab, width),
    }


def _internlm2(config: Mapping[str, Any]) -> Shapes:
    width, ffn, vocab = (config[k] for k in ("hidden_size", "intermediate_size", "vocab_size"))
    head = width // config["num_attention_heads"]
    qkv = width + 2 * config["num_key_value_heads"] * head
    made: Shapes = {"model.tok_embeddings.weight": (vocab, width)}
    for i in range(config["num_hidden_layers"]):
        at = f"model.layers.{i}."
        made |= {
            f"{at}attention.wqkv.weight": (qkv, width),
            f"{at}attention.wo.weight": (width, width),
            f"{at}feed_forward.w1.weight": (ffn, width),
            f"{at}feed_forward.w3.weight": (ffn, width),
            f"{at}feed_forward.w2.weight": (width, ffn),
            f"{at}attention_norm.weight": (width,),
            f"{at}ffn_norm.weight": (width,),
        }
    return made | {"model.norm.weight": (width,), "output.weight": (vocab, width)}


def _internvl(config: Mapping[str, Any]) -> Shapes:
    text, vision = config["llm_config"], config["vision_config"]
    width, ffn, patch = (vision[k] for k in ("hidden_size", "intermediate_size", "patch_size"))
    n_patches = (vision["image_size"] // patch) ** 2
    made: Shapes = {f"language_model.{k}": shape for k, shape in _internlm2(text).items()}
    made |= {
        "vision_model.embeddings.class_embedding": (1, 1, width),
        "vision_model.embeddings.patch_embedding.weight": (width, 3, patch, patch),
        "vision_model.embeddings.patch_embedding.bias": (width,),
        "vision_model.embeddings.position_embedding": (1, n_patches + 1, width),
    }
    linears = {"attn.qkv": (3 * width, width), "attn.proj": (width, width),
               "mlp.fc1": (ffn, width), "mlp.fc2": (width, ffn)}  # fmt: skip
    for i in range(vision["num_hidden_layers"]):
        at = f"vision_model.encoder.layers.{i}."
        made |= {f"{at}{part}.weight": shape for part, shape in linears.items()}
        made |= {f"{at}{part}.bias": shape[:1] for part, shape in linears.items()}
        made |= {
            f"{at}{norm}.{p}": (width,) for norm in ("norm1", "norm2") for p in ("weight", "bias")
        }
        made |= {f"{at}ls1": (width,), f"{at}ls2": (width,)}
    n_in, n_out = width * round(1 / config["downsample_ratio"]) ** 2, text["hidden_size"]
    return made | {
        "mlp1.0.weight": (n_in,), "mlp1.0.bias": (n_in,), "mlp1.1.weight": (n_out, n_in),
        "mlp1.1.bias": (n_out,), "mlp1.3.weight": (n_out, n_out), "mlp1.3.bias": (n_out,),
    }  # fmt: skip


_CODES: Final[Mapping[str, _Code]] = {
    "chatglm": _Code(_chatglm, "modeling_chatglm.py of zai-org/chatglm3-6b"),
    "exaone": _Code(_exaone, "modeling_exaone.py of LGAI-EXAONE/EXAONE-3.0-7.8B-Instruct"),
    "fm9g7b": _Code(_llama_like, "its model_type: FM9G's code has Llama's names"),
    "internlm2": _Code(_internlm2, "modeling_internlm2.py of internlm/internlm2-7b"),
    "internvl_chat": _Code(_internvl, "modeling_internvl_chat.py of OpenGVLab/InternVL2-2B"),
    "mimo": _Code(_mimo, "modeling_mimo.py of XiaomiMiMo/MiMo-7B-Base"),
    "xverse": _Code(_llama_like, "modeling_xverse.py of xverse/XVERSE-7B"),
}


def _method_of(config: Mapping[str, Any], name: str) -> tuple[Mapping[str, Any], str | None]:
    """Give the section of a config that tells how weights are quantized, and the quantizer."""
    if config.get("quantization"):
        return config["quantization"], "mlx"
    if name == "llama3.1-70b-nvidia-fp8":
        return {}, "modelopt"  # told in hf_quant_config.json alone
    section = config.get("quantization_config") or (config.get("text_config") or {}).get(
        "quantization_config"
    )
    if section is None:
        return {}, None
    method = section.get("quant_method", "modelopt")
    weights = section.get("config_groups", {}).get("group_0", {}).get("weights", {})
    return section, "nvfp4" if method == "modelopt" and weights.get("num_bits") == 4 else method


def _quantized(
    plain: Mapping[str, Stored], config: Mapping[str, Any], name: str
) -> Iterator[tuple[str, Stored]]:
    """Put what the quantizer of a config wrote in place of the matrices that it quantized."""
    section, method = _method_of(config, name)
    for key, tensor in plain.items():
        is_layer = ".layers." in key and not any(part in key for part in _NOT_TEXT)
        is_matrix = key.endswith(".weight") and len(tensor.shape) == 2
        if method == "mlx":
            is_wanted = is_matrix
        elif method == "mxfp4":
            is_wanted = is_layer and len(tensor.shape) == 3
        else:
            is_wanted = is_layer and is_matrix and not _is_left(key, section)
        if method in _LAYOUTS and is_wanted:
            yield from _LAYOUTS[method].write(key, tensor, section)
        else:
            yield key, tensor


def _is_left(key: str, section: Mapping[str, Any]) -> bool:
    left = section.get("modules_to_not_convert") or section.get("ignore") or ()
    module = key.removesuffix(".weight")
    return any(fnmatchcase(module, pattern) for pattern in left)


def _fp8(key: str, tensor: Stored, section: Mapping[str, Any]) -> Iterator[tuple[str, Stored]]:
    yield key, Stored("F8_E4M3", tensor.shape)
    block = section.get("weight_block_size")
    sizes = () if block is None else zip(tensor.shape, block, strict=True)
    shape = tuple(-(-n // step) for n, step in sizes)
    yield f"{key}_scale_inv", _ones("BF16", shape)
    if section["activation_scheme"] == "static":
        yield key.removesuffix("weight") + "activation_scale", _ones("BF16", ())


def _modelopt(key: str, tensor: Stored, section: Mapping[str, Any]) -> Iterator[tuple[str, Stored]]:
    at = key.removesuffix("weight")
    yield key, Stored("F8_E4M3", tensor.shape)
    yield f"{key}_scale", _ones("F32", ())
    yield f"{at}input_scale", _ones("F32", ())
    for part in "kv":
        if at.endswith(f"self_attn.{part}_proj."):
            yield f"{at}{part}_scale", _ones("F32", ())


def _nvfp4(key: str, tensor: Stored, section: Mapping[str, Any]) -> Iterator[tuple[str, Stored]]:
    n_out, n_in = tensor.shape
    group = section["config_groups"]["group_0"]["weights"]["group_size"]
    yield key, Stored("U8", (n_out, n_in // 2))
    yield f"{key}_scale", Stored("F8_E4M3", (n_out, n_in // group))
    yield f"{key}_scale_2", _ones("F32", ())
    yield key.removesuffix("weight") + "input_scale", _ones("F32", ())


def _mxfp4(key: str, tensor: Stored, section: Mapping[str, Any]) -> Iterator[tuple[str, Stored]]:
    n_experts, n_in, n_out = tensor.shape
    yield f"{key}_blocks", Stored("U8", (n_experts, n_out, n_in // 32, 16))
    yield f"{key}_scales", Stored("U8", (n_experts, n_out, n_in // 32))


def _fbgemm(key: str, tensor: Stored, section: Mapping[str, Any]) -> Iterator[tuple[str, Stored]]:
    yield key, Stored("F8_E4M3", tensor.shape)
    yield f"{key}_scale", _ones("F32", (tensor.shape[0], 1))
    yield key.removesuffix("weight") + "input_scale_ub", _ones("F32", (1,))


def _bitsandbytes(
    key: str, tensor: Stored, section: Mapping[str, Any]
) -> Iterator[tuple[str, Stored]]:
    n_blocks = -(-math.prod(tensor.shape) // 64)
    state = {
        "quant_type": "nf4", "blocksize": 64, "dtype": "bfloat16", "shape": list(tensor.shape),
        "nested_blocksize": 256, "nested_dtype": "float32", "nested_offset": 0.05,
    }  # fmt: skip
    text = json.dumps(state).encode()
    yield key, Stored("U8", (math.prod(tensor.shape) // 2, 1))
    yield f"{key}.absmax", Stored("U8", (n_blocks,))
    yield f"{key}.nested_absmax", _ones("F32", (-(-n_blocks // 256),))
    yield f"{key}.nested_quant_map", _ramp(256)
    yield f"{key}.quant_map", _ramp(16)
    yield f"{key}.quant_state.bitsandbytes__nf4", Stored("U8", (len(text),), text)


def _gptq(key: str, tensor: Stored, section: Mapping[str, Any]) -> Iterator[tuple[str, Stored]]:
    n_out, n_in = tensor.shape
    at, group = key.removesuffix("weight"), section["group_size"]
    rows = np.arange(n_in, dtype="<i4") // group
    yield f"{at}g_idx", Stored("I32", (n_in,), rows.tobytes())
    yield from _codes(at, n_in // 8, n_out, n_in // group, n_out)


def _awq(key: str, tensor: Stored, section: Mapping[str, Any]) -> Iterator[tuple[str, Stored]]:
    n_out, n_in = tensor.shape
    at, group = key.removesuffix("weight"), section["group_size"]
    yield from _codes(at, n_in, n_out // 8, n_in // group, n_out)


def _codes(
    at: str, n_rows: int, n_columns: int, n_groups: int, n_out: int
) -> Iterator[tuple[str, Stored]]:
    yield f"{at}qweight", Stored("I32", (n_rows, n_columns))
    zeros = b"\x77" * (n_groups * n_out // 2)  # 7 stands for 8, the middle of 4 bits
    yield f"{at}qzeros", Stored("I32", (n_groups, n_out // 8), zeros)
    yield f"{at}scales", Stored("F16", (n_groups, n_out))


def _mlx(key: str, tensor: Stored, section: Mapping[str, Any]) -> Iterator[tuple[str, Stored]]:
    n_out, n_in = tensor.shape
    at = key.removesuffix("weight")
    yield key, Stored("U32", (n_out, n_in * section["bits"] // 32))
    yield f"{at}scales", Stored(tensor.dtype, (n_out, n_in // section["group_size"]))
    yield f"{at}biases", Stored(tensor.dtype, (n_out, n_in // section["group_size"]))


@dataclass(frozen=True)
class _Layout:
    """What a quantizer writes in place of a matrix.

    Attributes:
        write: From name, matrix and section of the config to what is stored.
        source: The library that writes it.
    """

    write: Callable[[str, Stored, Mapping[str, Any]], Iterator[tuple[str, Stored]]]
    source: str


_LAYOUTS: Final[Mapping[str | None, _Layout]] = {
    "awq": _Layout(_awq, "AutoAWQ's gemm layout"),
    "bitsandbytes": _Layout(_bitsandbytes, "bitsandbytes' nf4 layout"),
    "fbgemm_fp8": _Layout(_fbgemm, "transformers' fbgemm_fp8 layout"),
    "fp8": _Layout(_fp8, "transformers' fp8 layout"),
    "gptq": _Layout(_gptq, "GPTQModel's layout"),
    "mlx": _Layout(_mlx, "MLX's affine layout"),
    "modelopt": _Layout(_modelopt, "ModelOpt's FP8 layout"),
    "mxfp4": _Layout(_mxfp4, "gpt-oss's MXFP4 layout"),
    "nvfp4": _Layout(_nvfp4, "ModelOpt's NVFP4 layout"),
}


def _ones(dtype: str, shape: tuple[int, ...]) -> Stored:
    one = {"F32": b"\x00\x00\x80\x3f", "BF16": b"\x80\x3f"}[dtype]
    return Stored(dtype, shape, one * math.prod(shape))


def _ramp(n: int) -> Stored:
    return Stored("F32", (n,), np.linspace(-1, 1, n, dtype="<f4").tobytes())
