"""A Hugging Face folder written as a GGUF file, as llama.cpp's converter writes it.

Names of keys and tensors come from the ``gguf`` package, which edgekit's tables do not use; what is
done to each architecture is written down here from conversion/*.py of llama.cpp.
"""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import safetensors.numpy

ARCHITECTURES = {
    "exaone": gguf.MODEL_ARCH.EXAONE,
    "exaone4": gguf.MODEL_ARCH.EXAONE4,
    "gemma": gguf.MODEL_ARCH.GEMMA,
    "gemma2": gguf.MODEL_ARCH.GEMMA2,
    "gemma3_text": gguf.MODEL_ARCH.GEMMA3,
    "granite": gguf.MODEL_ARCH.GRANITE,
    "granitemoehybrid": gguf.MODEL_ARCH.GRANITE,
    "hunyuan_v1_dense": gguf.MODEL_ARCH.HUNYUAN_DENSE,
    "llama": gguf.MODEL_ARCH.LLAMA,
    "ministral3": gguf.MODEL_ARCH.MISTRAL3,
    "minicpm": gguf.MODEL_ARCH.MINICPM,
    "mistral": gguf.MODEL_ARCH.LLAMA,
    "mistral3": gguf.MODEL_ARCH.MISTRAL3,
    "olmo2": gguf.MODEL_ARCH.OLMO2,
    "olmo3": gguf.MODEL_ARCH.OLMO2,
    "phi3": gguf.MODEL_ARCH.PHI3,
    "qwen2": gguf.MODEL_ARCH.QWEN2,
    "qwen2_5_vl": gguf.MODEL_ARCH.QWEN2VL,
    "qwen2_vl": gguf.MODEL_ARCH.QWEN2VL,
    "qwen3": gguf.MODEL_ARCH.QWEN3,
    "qwen3_vl": gguf.MODEL_ARCH.QWEN3VL,
    "smollm3": gguf.MODEL_ARCH.SMOLLM3,
    "xverse": gguf.MODEL_ARCH.XVERSE,
}
_MOVES_ROWS = (
    "granite", "granitemoehybrid", "llama", "minicpm", "ministral3", "mistral", "mistral3",
    "smollm3", "xverse",
)  # fmt: skip
_OTHER_KEYS = {"num_layers": "num_hidden_layers", "layer_norm_epsilon": "rms_norm_eps"}
_ADDS_ONE = ("gemma", "gemma2", "gemma3_text")
_TYPES = gguf.GGMLQuantizationType


def convert(
    folder: Path,
    path: Path,
    *,
    kind: str = "F16",
    llama3_length: int = 8192,
    architecture: gguf.MODEL_ARCH | None = None,
    config_name: str = "config.json",
    **extra: Any,
) -> Path:
    """Write the model of ``folder`` to ``path``; matrices as ``kind``, ``extra`` keys on top."""
    outer = json.loads((folder / config_name).read_text())
    config = dict(outer.get("text_config", outer))
    config |= {ours: config[key] for key, ours in _OTHER_KEYS.items() if key in config}
    if outer["model_type"] == "granitemoehybrid":
        config["intermediate_size"] = config["shared_intermediate_size"]
    model_type = outer["model_type"]
    arch = architecture or ARCHITECTURES[model_type]
    writer = gguf.GGUFWriter(str(path), gguf.MODEL_ARCH_NAMES[arch])
    rope = _rope_of(config)
    _write_parameters(writer, config, model_type, rope)
    for key, value in extra.items():
        add = writer.add_array if isinstance(value, list) else writer.add_string
        if isinstance(value, bool):
            add = writer.add_bool
        elif isinstance(value, int):
            add = writer.add_uint32
        elif isinstance(value, float):
            add = writer.add_float32
        add(key.replace("{arch}", writer.arch), value)
    names = gguf.get_tensor_name_map(arch, config["num_hidden_layers"])
    weights = safetensors.numpy.load_file(folder / "model.safetensors")
    for name, values in _decoder_tensors(weights).items():
        ours = name.replace("language_model.", "")
        if ours == "lm_head.weight" and config["tie_word_embeddings"]:
            continue
        stored = values.astype(np.float32)
        if model_type in _MOVES_ROWS:
            stored = _move_rows(stored, ours, config)
        if model_type in _ADDS_ONE and ours.endswith("norm.weight"):
            stored = stored + np.float32(1)
        theirs = names.get_name(ours, try_suffixes=(".weight", ".bias"))
        assert theirs is not None, ours
        as_kind = kind if stored.ndim == 2 and stored.shape[1] % _block(kind) == 0 else "F32"
        _add(writer, theirs, stored, as_kind)
    for name, table in _rope_tables(config, rope, llama3_length).items():
        _add(writer, name, table, "F32")
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def _decoder_tensors(weights: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Leave out what sees pictures; Granite's shared block is two matrices, one below the other."""
    made = {}
    for name, values in weights.items():
        if any(part in name for part in ("vision_tower", "multi_modal_projector", "visual.")):
            continue
        before = name.partition("shared_mlp.")[0]
        if name.endswith("shared_mlp.input_linear.weight"):
            gate, up = np.split(values, 2)
            made |= {f"{before}mlp.gate_proj.weight": gate, f"{before}mlp.up_proj.weight": up}
        elif name.endswith("shared_mlp.output_linear.weight"):
            made[f"{before}mlp.down_proj.weight"] = values
        else:
            made[name] = values
    return made


def _block(kind: str) -> int:
    return gguf.GGML_QUANT_SIZES[_TYPES[kind]][0]


def _add(writer: gguf.GGUFWriter, name: str, values: np.ndarray, kind: str) -> None:
    data = gguf.quants.quantize(values, _TYPES[kind])
    writer.add_tensor(name, data, raw_dtype=_TYPES[kind])


def _head_width(config: dict[str, Any]) -> int:
    return config.get("head_dim") or config["hidden_size"] // config["num_attention_heads"]


def _move_rows(values: np.ndarray, name: str, config: dict[str, Any]) -> np.ndarray:
    heads = {"q_proj": "num_attention_heads", "k_proj": "num_key_value_heads"}
    for part, key in heads.items():
        if f"{part}." in name:
            n = config[key]
            halves = values.reshape(n, 2, values.shape[0] // n // 2, *values.shape[1:])
            return halves.swapaxes(1, 2).reshape(values.shape)
    return values


def _rope_of(config: dict[str, Any]) -> dict[str, Any]:
    """Give one rope section, as the converter's ``rope_parameters`` has it."""
    section = dict(config.get("rope_scaling") or config.get("rope_parameters") or {})
    section.setdefault("rope_type", section.get("type"))
    section.setdefault("rope_theta", config.get("rope_theta"))
    for key in ("partial_rotary_factor", "original_max_position_embeddings"):
        if config.get(key) is not None:
            section.setdefault(key, config[key])
    return section


def _write_parameters(
    writer: gguf.GGUFWriter, config: dict[str, Any], model_type: str, rope: dict[str, Any]
) -> None:
    writer.add_type(gguf.GGUFType.MODEL)
    writer.add_file_type(1)
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_embedding_length(config["hidden_size"])
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_head_count(config["num_attention_heads"])
    writer.add_head_count_kv(config["num_key_value_heads"])
    writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
    if config.get("head_dim") and model_type not in ("granite", "phi3"):
        writer.add_key_length(config["head_dim"])
        writer.add_value_length(config["head_dim"])
    if rope["rope_type"] == "dynamic":  # Hunyuan's: another base, and that is all
        width = config["head_dim"]
        writer.add_rope_freq_base(rope["rope_theta"] * rope["alpha"] ** (width / (width - 2)))
        writer.add_rope_scaling_type(gguf.RopeScalingType.NONE)
        writer.add_rope_scaling_factor(1)
        writer.add_rope_scaling_orig_ctx_len(256 * 1024)
    elif model_type not in ("gemma", "gemma2") and rope["rope_theta"] is not None:
        writer.add_rope_freq_base(rope["rope_theta"])
    if model_type in _MOVES_ROWS:
        writer.add_vocab_size(config["vocab_size"])
        writer.add_rope_dimension_count(_head_width(config))
    if rope["rope_type"] == "linear":
        writer.add_rope_scaling_type(gguf.RopeScalingType.LINEAR)
        writer.add_rope_scaling_factor(rope["factor"])
    if rope["rope_type"] == "yarn":
        writer.add_rope_scaling_type(gguf.RopeScalingType.YARN)
        writer.add_rope_scaling_factor(rope["factor"])
        writer.add_rope_scaling_orig_ctx_len(rope["original_max_position_embeddings"])
        if "attention_factor" in rope:
            writer.add_rope_scaling_yarn_attn_factor(rope["attention_factor"])
        writer.add_rope_scaling_yarn_beta_fast(rope["beta_fast"])
        writer.add_rope_scaling_yarn_beta_slow(rope["beta_slow"])
    _write_more(writer, config, model_type, rope)
    writer.add_bos_token_id(config["bos_token_id"])
    writer.add_eos_token_id(config["eos_token_id"])
    writer.add_pad_token_id(config["pad_token_id"])


def _write_more(
    writer: gguf.GGUFWriter, config: dict[str, Any], model_type: str, rope: dict[str, Any]
) -> None:
    """Write what one model class of the converter writes beside the rest."""
    window = config.get("sliding_window")
    match model_type:
        case "gemma2":
            writer.add_attn_logit_softcapping(config["attn_logit_softcapping"])
            writer.add_final_logit_softcapping(config["final_logit_softcapping"])
            writer.add_sliding_window(window)
        case "gemma3_text":
            if config.get("sliding_window_pattern") != 1:
                writer.add_sliding_window(window)
        case "minicpm":
            n_layers = config["num_hidden_layers"]
            writer.add_embedding_scale(float(config["scale_emb"]))
            writer.add_residual_scale(config["scale_depth"] / n_layers**0.5)
            writer.add_logit_scale(config["hidden_size"] / config["dim_model_base"])
        case "qwen2_vl" | "qwen2_5_vl" | "qwen3_vl":
            sections = [*rope["mrope_section"], 0]
            writer.add_rope_dimension_sections(sections)
        case "granite" | "granitemoehybrid":
            if model_type == "granitemoehybrid":
                writer.add_rope_scaling_finetuned(config["position_embedding_type"] == "rope")
            writer.add_attention_scale(config["attention_multiplier"])
            writer.add_embedding_scale(config["embedding_multiplier"])
            writer.add_residual_scale(config["residual_multiplier"])
            writer.add_logit_scale(config["logits_scaling"])
        case "ministral3" | "mistral3":
            if "llama_4_scaling_beta" in rope:
                writer.add_rope_scaling_yarn_log_mul(rope["mscale_all_dim"])
                writer.add_attn_temperature_scale(rope["llama_4_scaling_beta"])
        case "phi3":
            writer.add_rope_scaling_orig_ctx_len(rope["original_max_position_embeddings"])
            part = rope.get("partial_rotary_factor", 1.0)
            writer.add_rope_dimension_count(
                int(part * config["hidden_size"]) // config["num_attention_heads"]
            )
            writer.add_sliding_window(window or 0)
            if "long_factor" in rope:
                ratio = config["max_position_embeddings"] / rope["original_max_position_embeddings"]
                over = math.log(ratio) / math.log(rope["original_max_position_embeddings"])
                writer.add_rope_scaling_attn_factors(math.sqrt(1 + over) if ratio > 1 else 1.0)
        case "olmo3" | "exaone4":
            if window is not None:
                writer.add_sliding_window(window)
                slides = [kind == "sliding_attention" for kind in config["layer_types"]]
                writer.add_sliding_window_pattern(slides)


def _rope_tables(
    config: dict[str, Any], rope: dict[str, Any], llama3_length: int
) -> dict[str, np.ndarray]:
    if "long_factor" in rope:
        return {
            f"rope_factors_{name}.weight": np.array(rope[f"{name}_factor"], np.float32)
            for name in ("long", "short")
        }
    if rope["rope_type"] != "llama3":
        return {}
    width, table = _head_width(config), []
    for channel in range(0, width, 2):
        length = 2 * math.pi * rope["rope_theta"] ** (channel / width)
        low, high = rope["low_freq_factor"], rope["high_freq_factor"]
        smooth = (llama3_length / length - low) / (high - low)
        if length < llama3_length / high:
            table.append(1.0)
        elif length > llama3_length / low:
            table.append(rope["factor"])
        else:
            table.append(1 / ((1 - smooth) / rope["factor"] + smooth))
    return {"rope_freqs.weight": np.array(table, np.float32)}
