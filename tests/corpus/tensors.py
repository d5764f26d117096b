"""Weight files of published models without their weights: names, types and shapes, then a hole.

The names and shapes are written down here by hand, after the published checkpoints and what each
quantizer writes beside its codes; edgekit's own tables are not used. A file is a safetensors
header and a hole of the right size (a sparse file); only scales, and what tells which row belongs
to which group, hold numbers, because readers check them before any weight is read.
"""

from __future__ import annotations

import json
import math
import struct
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

import numpy as np

_BYTES: Final = {
    "F64": 8, "F32": 4, "F16": 2, "BF16": 2, "F8_E4M3": 1, "I64": 8, "I32": 4, "U32": 4, "U8": 1,
}  # fmt: skip
_TYPES: Final = {"float32": "F32", "float16": "F16", "bfloat16": "BF16"}
_KINDS: Final = (
    "exaone", "fm9g7b", "gemma2", "gemma3", "gemma3_text", "granite", "llama", "mimo",
    "ministral3", "mistral", "mistral3", "olmo3", "phi3", "qwen2", "qwen2_5_vl", "qwen2_vl",
    "qwen3", "qwen3_vl", "xverse",
)  # fmt: skip
_EMBEDDINGS: Final = (
    "model.embed_tokens.weight",
    "model.embed_tokens.scales",
    "transformer.wte.weight",
)
_GEMMA3_VOCAB: Final = 262208  # its config leaves the default out
_TEXT_PREFIXES: Final = {
    "gemma3": "language_model.",
    "mistral3": "language_model.",
    "qwen3_vl": "model.language_model.",
}
_VISION: Final[Mapping[str, Mapping[str, tuple[int, ...]]]] = {
    "gemma3": {
        "vision_tower.vision_model.embeddings.patch_embedding.weight": (1152, 3, 14, 14),
        "vision_tower.vision_model.encoder.layers.0.mlp.fc1.weight": (4304, 1152),
        "multi_modal_projector.mm_input_projection_weight": (1152, 5376),
        "multi_modal_projector.mm_soft_emb_norm.weight": (1152,),
    },
    "mistral3": {
        "vision_tower.patch_conv.weight": (1024, 3, 14, 14),
        "vision_tower.transformer.layers.0.attention.q_proj.weight": (1024, 1024),
        "multi_modal_projector.linear_1.weight": (5120, 1024),
        "multi_modal_projector.norm.weight": (1024,),
    },
    "qwen2_vl": {
        "visual.patch_embed.proj.weight": (1280, 3, 2, 14, 14),
        "visual.blocks.0.attn.qkv.weight": (3840, 1280),
        "visual.blocks.0.attn.qkv.bias": (3840,),
        "visual.merger.mlp.2.weight": (1536, 5120),
    },
    "qwen2_5_vl": {
        "visual.patch_embed.proj.weight": (1280, 3, 2, 14, 14),
        "visual.blocks.0.mlp.gate_proj.weight": (3420, 1280),
        "visual.merger.ln_q.weight": (1280,),
    },
    "qwen3_vl": {
        "model.visual.patch_embed.proj.weight": (1024, 3, 2, 16, 16),
        "model.visual.blocks.0.attn.qkv.weight": (3072, 1024),
        "model.visual.deepstack_merger_list.0.linear_fc1.weight": (4096, 4096),
    },
}


@dataclass(frozen=True)
class Stored:
    """One tensor of a weight file; a hole from where ``values`` end."""

    dtype: str
    shape: tuple[int, ...]
    values: bytes = b""

    @property
    def n_bytes(self) -> int:
        return _BYTES[self.dtype] * math.prod(self.shape)


def write_weights(folder: Path, config: Mapping[str, Any], name: str = "") -> Path:
    """Write ``model.safetensors`` of a published config into a folder.

    Args:
        folder: Of the config.
        config: The config.
        name: Of the model, where its tensors are not as its config would have them.
    """
    path = folder / "model.safetensors"
    tensors = published_tensors(config, name)
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


def published_tensors(config: Mapping[str, Any], name: str = "") -> dict[str, Stored]:
    """Give every tensor of a published model by name; of a vision tower, a few."""
    kind = config["model_type"]
    text = config.get("text_config") or config
    dtype = _TYPES[str(text.get("torch_dtype") or text.get("dtype") or
                       config.get("torch_dtype") or config.get("dtype") or "bfloat16")]  # fmt: skip
    plain = {
        key: Stored(dtype, shape)
        for key, shape in _decoder(kind, text, is_tied=_is_tied(config)).items()
    }
    made = dict(_quantized(plain, config, dtype, name))
    # Two holes would be equal, and a head that equals the embedding is stored once.
    made = {k: replace(t, values=b"\x80\x3f") if k in _EMBEDDINGS else t for k, t in made.items()}
    if _has_rope_buffers(config):
        width = text["hidden_size"] // text["num_attention_heads"]
        made |= {
            f"model.layers.{i}.self_attn.rotary_emb.inv_freq": Stored("F32", (width // 2,))
            for i in range(text["num_hidden_layers"])
        }
    prefix = _TEXT_PREFIXES.get(kind, "")
    if prefix == "model.language_model.":
        made = {k.replace("model.", prefix, 1): tensor for k, tensor in made.items()}
    elif prefix:
        made = {prefix + k: tensor for k, tensor in made.items()}
    if name == "qwen3-embedding-8b":
        made = {k.removeprefix("model."): t for k, t in made.items() if k != "lm_head.weight"}
    if kind == "mimo":
        made |= {key: Stored(dtype, shape) for key, shape in _mimo_extra(text).items()}
    return made | {key: Stored(dtype, shape) for key, shape in _VISION.get(kind, {}).items()}


def _is_tied(config: Mapping[str, Any]) -> bool:
    kinds = ("gemma", "gemma2", "gemma3", "gemma3_text", "gemma4")
    inner = config.get("text_config") or {}
    default = config["model_type"] in kinds
    return bool(config.get("tie_word_embeddings", inner.get("tie_word_embeddings", default)))


def _has_rope_buffers(config: Mapping[str, Any]) -> bool:
    """Tell whether the writer saved the rotary buffers, as transformers did until 4.31."""
    version = [int(part) for part in str(config.get("transformers_version", "9.9")).split(".")[:2]]
    return config["model_type"] in ("llama", "xverse") and version < [4, 32]


def _decoder(kind: str, config: Mapping[str, Any], *, is_tied: bool) -> dict[str, tuple[int, ...]]:
    """Give name and shape of every weight before quantization; of other kinds, the embedding."""
    if kind not in _KINDS:
        return {"model.embed_tokens.weight": (config.get("vocab_size", 32000), 4096)}
    width, n_heads = config["hidden_size"], config["num_attention_heads"]
    n_layers = config.get("num_hidden_layers") or config["num_layers"]
    head = config.get("head_dim") or (256 if kind.startswith("gemma") else width // n_heads)
    n_kv = config.get("num_key_value_heads") or n_heads
    ffn, vocab = config["intermediate_size"], config.get("vocab_size", _GEMMA3_VOCAB)
    if kind == "exaone":
        return _exaone(config, width, n_heads * head, n_kv * head, ffn)
    has_bias = kind in ("qwen2", "qwen2_vl", "qwen2_5_vl", "mimo")
    made: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (vocab, width)}
    for i in range(n_layers):
        made |= {
            f"model.layers.{i}.{key}": shape
            for key, shape in _layer(kind, width, n_heads * head, n_kv * head, ffn, head).items()
        }
        if has_bias:
            for part, n_out in (("q", n_heads * head), ("k", n_kv * head), ("v", n_kv * head)):
                made[f"model.layers.{i}.self_attn.{part}_proj.bias"] = (n_out,)
    made["model.norm.weight"] = (width,)
    if not is_tied:
        made["lm_head.weight"] = (vocab, width)
    return made


def _layer(
    kind: str, width: int, q: int, kv: int, ffn: int, head: int
) -> dict[str, tuple[int, ...]]:
    norms = ["input_layernorm", "post_attention_layernorm"]
    if kind in ("gemma2", "gemma3", "gemma3_text"):
        norms += ["pre_feedforward_layernorm", "post_feedforward_layernorm"]
    if kind in ("olmo2", "olmo3"):
        norms = ["post_attention_layernorm", "post_feedforward_layernorm"]
    made: dict[str, tuple[int, ...]] = {f"{norm}.weight": (width,) for norm in norms}
    if kind in ("qwen3", "qwen3_vl", "gemma3", "gemma3_text"):
        made |= {f"self_attn.{part}_norm.weight": (head,) for part in "qk"}
    if kind in ("olmo2", "olmo3"):
        made |= {"self_attn.q_norm.weight": (q,), "self_attn.k_norm.weight": (kv,)}
    if kind == "phi3":
        return made | {
            "self_attn.qkv_proj.weight": (q + 2 * kv, width),
            "self_attn.o_proj.weight": (width, q),
            "mlp.gate_up_proj.weight": (2 * ffn, width),
            "mlp.down_proj.weight": (width, ffn),
        }
    return made | {
        "self_attn.q_proj.weight": (q, width),
        "self_attn.k_proj.weight": (kv, width),
        "self_attn.v_proj.weight": (kv, width),
        "self_attn.o_proj.weight": (width, q),
        "mlp.gate_proj.weight": (ffn, width),
        "mlp.up_proj.weight": (ffn, width),
        "mlp.down_proj.weight": (width, ffn),
    }


def _exaone(
    config: Mapping[str, Any], width: int, q: int, kv: int, ffn: int
) -> dict[str, tuple[int, ...]]:
    made: dict[str, tuple[int, ...]] = {"transformer.wte.weight": (config["vocab_size"], width)}
    for i in range(config["num_layers"]):
        at = f"transformer.h.{i}."
        made |= {
            f"{at}ln_1.weight": (width,),
            f"{at}attn.attention.q_proj.weight": (q, width),
            f"{at}attn.attention.k_proj.weight": (kv, width),
            f"{at}attn.attention.v_proj.weight": (kv, width),
            f"{at}attn.attention.out_proj.weight": (width, q),
            f"{at}ln_2.weight": (width,),
            f"{at}mlp.c_fc_0.weight": (ffn, width),
            f"{at}mlp.c_fc_1.weight": (ffn, width),
            f"{at}mlp.c_proj.weight": (width, ffn),
        }
    made["transformer.ln_f.weight"] = (width,)
    if not config["tie_word_embeddings"]:
        made["lm_head.weight"] = (config["vocab_size"], width)
    return made


def _mimo_extra(config: Mapping[str, Any]) -> dict[str, tuple[int, ...]]:
    """Give the tensors of the layer that guesses a second token."""
    width = config["hidden_size"]
    at = "model.mtp_layers.0."
    norms = ("token_layernorm", "hidden_layernorm", "input_layernorm", "final_layernorm")
    return {
        **{f"{at}{norm}.weight": (width,) for norm in norms},
        f"{at}input_proj.weight": (width, 2 * width),
        f"{at}self_attn.q_proj.weight": (width, width),
        f"{at}mlp.down_proj.weight": (width, config["intermediate_size"]),
    }


def _quantized(
    plain: Mapping[str, Stored], config: Mapping[str, Any], dtype: str, name: str
) -> Iterator[tuple[str, Stored]]:
    """Put what the quantizer of a config wrote in place of the matrices that it quantized."""
    section = config.get("quantization_config") or (config.get("text_config") or {}).get(
        "quantization_config"
    )
    method = None if section is None else section.get("quant_method", "modelopt")
    if config.get("quantization"):
        section, method = config["quantization"], "mlx"
    if name == "llama3.1-70b-nvidia-fp8":
        section, method = {}, "modelopt"  # told in hf_quant_config.json alone
    for key, tensor in plain.items():
        is_layer = ".layers." in key and len(tensor.shape) == 2 and key.endswith(".weight")
        if method == "mlx":
            yield from _mlx(key, tensor, section, dtype)
        elif method is None or not is_layer or _is_left(key, section):
            yield key, tensor
        elif method == "fp8":
            yield from _fp8(key, tensor, section)
        elif method in _WRITERS:
            yield from _WRITERS[method](key, tensor, section)
        else:
            yield key, tensor


def _is_left(key: str, section: Mapping[str, Any]) -> bool:
    left = section.get("modules_to_not_convert") or ()
    return any(key.removesuffix(".weight") == module for module in left)


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


def _mlx(
    key: str, tensor: Stored, section: Mapping[str, Any], dtype: str
) -> Iterator[tuple[str, Stored]]:
    if len(tensor.shape) != 2:
        yield key, tensor
        return
    n_out, n_in = tensor.shape
    at = key.removesuffix("weight")
    yield key, Stored("U32", (n_out, n_in * section["bits"] // 32))
    yield f"{at}scales", Stored(dtype, (n_out, n_in // section["group_size"]))
    yield f"{at}biases", Stored(dtype, (n_out, n_in // section["group_size"]))


_WRITERS: Final = {
    "modelopt": _modelopt,
    "fbgemm_fp8": _fbgemm,
    "bitsandbytes": _bitsandbytes,
    "gptq": _gptq,
    "awq": _awq,
}


def _ones(dtype: str, shape: tuple[int, ...]) -> Stored:
    one = {"F32": b"\x00\x00\x80\x3f", "BF16": b"\x80\x3f"}[dtype]
    return Stored(dtype, shape, one * math.prod(shape))


def _ramp(n: int) -> Stored:
    return Stored("F32", (n,), np.linspace(-1, 1, n, dtype="<f4").tobytes())
