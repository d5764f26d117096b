"""Answer one question: which ``config.json`` makes mlx-lm compute exactly this decoder?

It is written anew from the spec, never copied: mlx-lm drops keys it does not know without a word
and its defaults differ from Hugging Face's (``tie_word_embeddings``). What only some of its model
files read stands in mlx_keys.

Source:
    mlx-lm 0.32 models/llama.py (ModelArgs), utils.py (load_model).
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from edgekit.artifact import TensorEntry
from edgekit.dtypes import DType
from edgekit.errors import FormatError, UsageError
from edgekit.export.mlx_models import Choice
from edgekit.families.spec import DecoderSpec
from edgekit.files import read_inside
from edgekit.scheme import Scheme
from edgekit.strict_json import MAX_OBJECT_BYTES, parse_object

CONFIG_NAME: Final = "config.json"

TORCH_DTYPES: Final = {
    "float32": DType.FP32,
    "float16": DType.FP16,
    "bfloat16": DType.BF16,
}
TORCH_NAMES: Final = {dtype: name for name, dtype in TORCH_DTYPES.items()}


def make_config(
    choice: Choice,
    spec: DecoderSpec,
    scheme: Scheme,
    entries: tuple[TensorEntry, ...],
    dtype: DType,
) -> dict[str, Any]:
    """Give the ``config.json`` of an artifact, every key of mlx-lm's model spelled out."""
    file = choice.file
    eos = list(spec.eos_token_ids)
    config: dict[str, Any] = {
        "architectures": [file.architecture],
        "model_type": file.model_type,
        "attention_bias": spec.has_qkv_bias or spec.has_o_bias,
        "bos_token_id": spec.bos_token_id,
        "eos_token_id": eos[0] if len(eos) == 1 else eos or None,
        "head_dim": spec.head_width,
        "hidden_act": "silu",
        "hidden_size": spec.hidden_width,
        "intermediate_size": spec.ffn_width,
        "max_position_embeddings": choice.n_positions,
        "mlp_bias": spec.has_mlp_bias,
        "num_attention_heads": spec.n_heads,
        "num_hidden_layers": spec.n_layers,
        "num_key_value_heads": spec.n_kv_heads,
        "pad_token_id": spec.pad_token_id,
        "rms_norm_eps": spec.norm_eps,
        "sliding_window": None,
        "tie_word_embeddings": spec.is_tied,
        "torch_dtype": TORCH_NAMES[dtype],
        "vocab_size": spec.vocab_size,
        **file.keys(spec, choice.n_positions),
    }
    if scheme.is_quantized:
        overrides = {
            file.module_of(entry.name): _quantization(Scheme.parse(entry.scheme))
            for entry in entries
            if entry.sha256 is not None and Scheme.parse(entry.scheme) != scheme
        }
        config["quantization"] = {**_quantization(scheme), **overrides}
    return config


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


def quantization_of(config: Mapping[str, Any], module: str) -> Scheme | None:
    """Say as which scheme mlx-lm reads a module: its own entry, else the common one.

    Raises:
        FormatError: The config says no scheme of ours.
    """
    common = config.get("quantization")
    if not isinstance(common, dict):
        return None
    own = common.get(module, common)
    try:
        if own.get("mode", "affine") != "affine":
            raise FormatError(f"{CONFIG_NAME}: {module}: mode", got=own["mode"], wanted="affine")
        return Scheme(f"int{own['bits']}", own["group_size"])
    except (KeyError, AttributeError, TypeError, UsageError) as error:
        raise FormatError(f"{CONFIG_NAME}: quantization of {module}", got=own) from error


def _quantization(scheme: Scheme) -> dict[str, Any]:
    return {"group_size": scheme.group, "bits": scheme.bits, "mode": "affine"}
