"""Writer of the ``config.json`` with which mlx-lm computes exactly this decoder.

It is written new from the spec, never copied: mlx-lm ignores unknown keys without a message and its
defaults differ from Hugging Face's (``tie_word_embeddings``), so every key that matters is written.
models.py says which model file reads which keys.

Source:
    mlx-lm 0.32 utils.py (load_model), models/rope_utils.py, and the ``ModelArgs`` of the model
    files named below.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from edgekit.dtypes import DType
from edgekit.encoding import Encoding
from edgekit.errors import FormatError, UsageError
from edgekit.families.rope_spec import Llama3Scaling, LongRopeScaling, RopeSpec, YarnScaling
from edgekit.families.spec import DecoderSpec
from edgekit.files import read_inside
from edgekit.strict_json import MAX_OBJECT_BYTES, parse_object

Keys = dict[str, Any]

CONFIG_NAME: Final = "config.json"
_MAX_LOG_LENGTH: Final = 40.0  # a config may state any factor, but no length is e^40

TORCH_DTYPES: Final = {
    "float32": DType.FP32,
    "float16": DType.FP16,
    "bfloat16": DType.BF16,
}
TORCH_NAMES: Final = {dtype: name for name, dtype in TORCH_DTYPES.items()}


def common_keys(spec: DecoderSpec, n_positions: int) -> Keys:
    """Give the keys that all model files read, for an artifact with this many positions."""
    eos = list(spec.eos_token_ids)
    return {
        "attention_bias": spec.has_qkv_bias or spec.has_o_bias,
        "bos_token_id": spec.bos_token_id,
        "eos_token_id": eos[0] if len(eos) == 1 else eos or None,
        "head_dim": spec.head_width,
        "hidden_act": "silu",
        "hidden_size": spec.hidden_width,
        "intermediate_size": spec.ffn_width,
        "max_position_embeddings": n_positions,
        "mlp_bias": spec.has_mlp_bias,
        "num_attention_heads": spec.n_heads,
        "num_hidden_layers": spec.n_layers,
        "num_key_value_heads": spec.n_kv_heads,
        "pad_token_id": spec.pad_token_id,
        "rms_norm_eps": spec.norm_eps,
        "sliding_window": None,
        "tie_word_embeddings": spec.is_tied,
        "vocab_size": spec.vocab_size,
    }


def llama_keys(spec: DecoderSpec, _: int) -> Keys:
    """Give the keys of llama.py: only ``layer_types`` says which layers have a window."""
    keys = _rope_keys(_main_rope(spec))
    windows = [spec.attention(layer).window for layer in range(spec.n_layers)]
    # llama.py looks for the first layer of full attention and raises if there is none.
    if None in windows and any(windows):
        keys["sliding_window"] = spec.sliding_window
        keys["layer_types"] = [
            "full_attention" if window is None else "sliding_attention" for window in windows
        ]
    return keys


def smollm3_keys(spec: DecoderSpec, n_positions: int) -> Keys:
    """Give the keys of smollm3.py: those of llama.py, and 1 for every layer that has rope."""
    flags = [int(layer not in spec.no_rope_layers) for layer in range(spec.n_layers)]
    return {**llama_keys(spec, n_positions), "no_rope_layers": flags}


def ministral3_keys(spec: DecoderSpec, n_positions: int) -> Keys:
    """Give the keys of ministral3.py: rope and attention temperature in one section."""
    keys = llama_keys(spec, n_positions)
    scaling = keys.pop("rope_scaling") or {"rope_type": "default"}
    temperature = spec.query_scaling
    grown = {
        "llama_4_scaling_beta": 0.0 if temperature is None else temperature.beta,
        "original_max_position_embeddings": n_positions
        if temperature is None
        else temperature.original_context_length,
    }
    section = {**grown, **scaling, "rope_theta": keys.pop("rope_theta")}
    return {**keys, "rope_parameters": section}


def gemma3_keys(spec: DecoderSpec, n_positions: int) -> Keys:
    """Give the keys of gemma3_text.py: every n-th layer has full attention and its own rope."""
    pattern = sliding_pattern(spec)
    local = spec.local_rope or spec.rope
    return {
        **_rope_keys(_main_rope(spec)),
        "hidden_activation": "gelu_pytorch_tanh",
        "query_pre_attn_scalar": _query_scalar(spec),
        "rope_local_base_freq": local.theta,
        "sliding_window": spec.sliding_window or n_positions,
        "sliding_window_pattern": pattern,
    }


def gemma2_keys(spec: DecoderSpec, _: int) -> Keys:
    """Give the keys of gemma2.py: the two caps; it reads no rope scaling and no windows."""
    return {
        "attn_logit_softcapping": spec.scores_softcap,
        "final_logit_softcapping": spec.logits_softcap,
        "hidden_activation": "gelu_pytorch_tanh",
        "query_pre_attn_scalar": _query_scalar(spec),
        "rope_theta": _main_rope(spec).theta,
    }


def granite_keys(spec: DecoderSpec, n_positions: int) -> Keys:
    """Give the keys of granite.py: the four multipliers; logits are divided by theirs."""
    return {
        **llama_keys(spec, n_positions),
        "attention_multiplier": spec.score_scale,
        "embedding_multiplier": spec.embed_scale,
        "logits_scaling": 1 / spec.logits_scale,
        "residual_multiplier": spec.residual_scale,
    }


def granitemoehybrid_keys(spec: DecoderSpec, n_positions: int) -> Keys:
    """Give the keys of granitemoehybrid.py: those of granite.py, and that all layers attend."""
    return {
        **granite_keys(spec, n_positions),
        "layer_types": ["attention"] * spec.n_layers,
        "num_local_experts": 0,
        "position_embedding_type": "nope" if spec.no_rope_layers else "rope",
    }


def exaone4_keys(spec: DecoderSpec, n_positions: int) -> Keys:
    """Give the keys of exaone4.py: L for layers with a window and rope, G for the others."""
    is_local = [
        bool(spec.no_rope_layers) and layer not in spec.no_rope_layers
        for layer in range(spec.n_layers)
    ]
    pattern = "".join("L" if local else "G" for local in is_local)
    return {
        **_rope_keys(_main_rope(spec)),
        "sliding_window": (spec.sliding_window or n_positions) if any(is_local) else None,
        "sliding_window_pattern": pattern if any(is_local) else None,
        # Not for mlx-lm: transformers, whose tokenizers open with the config, fails without it.
        "layer_types": ["sliding_attention" if local else "full_attention" for local in is_local],
    }


def hunyuan_keys(spec: DecoderSpec, _: int) -> Keys:
    """Give the keys of hunyuan_v1_dense.py, whose rope is plain once theta is stretched."""
    return {"rope_theta": _main_rope(spec).theta, "rope_scaling": None, "use_qk_norm": True}


def phi3_keys(spec: DecoderSpec, _: int) -> Keys:
    """Give the keys of phi3.py, which reads the original length outside ``rope_scaling``."""
    keys = _rope_keys(_main_rope(spec))
    rope = _main_rope(spec)
    keys["partial_rotary_factor"] = _partial_factor(rope, spec.head_width)
    scaling = keys["rope_scaling"]
    if scaling is not None:
        # phi3.py requires the old spelling, and a long_factor even where it reads none.
        keys["rope_scaling"] = {"type": scaling["rope_type"], "long_factor": [], **scaling}
    if isinstance(rope.scaling, LongRopeScaling):
        keys["original_max_position_embeddings"] = rope.scaling.original_context_length
    return keys


def longrope_length(scaling: LongRopeScaling) -> int:
    """Give the ``max_position_embeddings`` that makes SuScaledRoPE's attention factor right.

    It computes sqrt(ln(max_position_embeddings) / ln(original)), so this is the model's own length
    where the config said no other factor. Nothing else in mlx-lm reads that key.
    """
    log_length = scaling.attention_factor**2 * math.log(scaling.original_context_length)
    return round(math.exp(min(log_length, _MAX_LOG_LENGTH)))


def _main_rope(spec: DecoderSpec) -> RopeSpec:
    """Give the rope of the full-attention layers; if there are none, that of the others."""
    return spec.rope if spec.rope in spec.ropes or not spec.ropes else spec.ropes[0]


def _rope_keys(rope: RopeSpec) -> Keys:
    """Give the keys that initialize_rope turns into the same angles and attention factor."""
    keys: Keys = {"rope_theta": rope.theta, "rope_scaling": None}
    match rope.scaling:
        case Llama3Scaling() as scaling:
            keys["rope_scaling"] = {
                "rope_type": "llama3",
                "factor": scaling.factor,
                "low_freq_factor": scaling.low_freq_factor,
                "high_freq_factor": scaling.high_freq_factor,
                "original_max_position_embeddings": scaling.original_context_length,
            }
        case YarnScaling() as scaling:
            # YarnRoPE uses 0.1 mscale ln(factor) + 1 over the same with mscale_all_dim.
            excess = scaling.attention_factor - 1
            keys["rope_scaling"] = {
                "rope_type": "yarn",
                "factor": scaling.factor,
                "beta_fast": scaling.beta_fast,
                "beta_slow": scaling.beta_slow,
                "original_max_position_embeddings": scaling.original_context_length,
                "mscale": excess / (0.1 * math.log(scaling.factor)) if excess else 0.0,
                "mscale_all_dim": 0.0,
            }
        case LongRopeScaling() as scaling:
            keys["max_position_embeddings"] = longrope_length(scaling)
            keys["rope_scaling"] = {
                "rope_type": "longrope",
                # SuScaledRoPE reads only long_factor; within the original length the short applies.
                "short_factor": list(scaling.short_factors),
                "long_factor": list(scaling.short_factors),
                "original_max_position_embeddings": scaling.original_context_length,
            }
        case None if rope.linear_factor != 1.0:
            keys["rope_scaling"] = {"rope_type": "linear", "factor": float(rope.linear_factor)}
    return keys


def sliding_pattern(spec: DecoderSpec) -> int | None:
    """Give n if exactly every n-th layer has full attention, else None."""
    is_full = [spec.attention(layer).window is None for layer in range(spec.n_layers)]
    if True not in is_full:
        return None
    n = is_full.index(True) + 1
    return n if is_full == [(i + 1) % n == 0 for i in range(spec.n_layers)] else None


def _query_scalar(spec: DecoderSpec) -> float:
    """Give the number s for which 1 / sqrt(s) is the factor of the scores."""
    scalar = spec.score_scale**-2
    return round(scalar) if math.isclose(scalar, round(scalar)) else scalar


def _partial_factor(rope: RopeSpec, head_width: int) -> float:
    """Give the factor for which ``int(head_width * factor)`` is the rotary width."""
    width = rope.rotary_width or head_width
    factor = width / head_width
    # Rounding: 98 * (49 / 98) is 49 again, but some other products are just below the width.
    return factor if int(head_width * factor) == width else math.nextafter(factor, 1)


def read_config(folder: Path) -> dict[str, Any]:
    """Read ``config.json`` of an artifact.

    Raises:
        FormatError: The file is absent or not a JSON object.
    """
    path = folder / CONFIG_NAME
    try:
        return parse_object(read_inside(path, MAX_OBJECT_BYTES), str(path))
    except OSError as error:
        raise FormatError(f"{path}: cannot be read", got=str(error)) from error


def write_config(folder: Path, config: Mapping[str, Any]) -> None:
    """Write ``config.json``, deterministic."""
    text = json.dumps(config, indent=2, sort_keys=True) + "\n"
    (folder / CONFIG_NAME).write_text(text, encoding="utf-8")


def quantization_of(config: Mapping[str, Any], module: str) -> Encoding | None:
    """Give bits and block in which mlx-lm reads a module, as symmetric codes.

    That is its own entry, else the common one; whether there are zero points only the arrays say.

    Raises:
        FormatError: The config states what edgekit does not write.
    """
    common = config.get("quantization")
    if not isinstance(common, dict):
        return None
    own = common.get(module, common)
    try:
        if own.get("mode", "affine") != "affine":
            raise FormatError(f"{CONFIG_NAME}: {module}: mode", got=own["mode"], wanted="affine")
        return Encoding(f"int{own['bits']}", own["group_size"])
    except (KeyError, AttributeError, TypeError, UsageError) as error:
        raise FormatError(f"{CONFIG_NAME}: quantization of {module}", got=own) from error


def quantization_keys(encodings: Mapping[str, Encoding]) -> Keys:
    """Give the most frequent quantization, and an entry for each module that has another one."""
    keys = {module: _grid_keys(encoding) for module, encoding in encodings.items()}
    grids = list(keys.values())
    common = max(grids, key=grids.count)
    return {**common, **{module: own for module, own in keys.items() if own != common}}


def _grid_keys(encoding: Encoding) -> Keys:
    return {"group_size": encoding.block, "bits": encoding.bits, "mode": "affine"}
