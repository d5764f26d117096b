"""Architectures of GGUF files: llama.cpp's names of models, settings and tensors, translated.

An ``Architecture`` is data: its ``model_type``, its names of tensors, and which metadata key is
which key of config.json. A few architectures also need a function, for facts that no table can
express. Every key of the architecture is used, found to change nothing, or refused by name.

Source: https://github.com/ggml-org/llama.cpp, conversion/*.py (what the converter writes),
gguf-py/gguf/constants.py and tensor_mapping.py (names), src/models/*.cpp (defaults, and which
layers have a sliding window), src/llama-model.cpp (``llama_model_rope_type``).
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from edgekit.checkpoint.config import RawConfig
from edgekit.checkpoint.gguf.rope import read_rope
from edgekit.checkpoint.gguf.weights import Undo
from edgekit.errors import UnsupportedArchError
from edgekit.formats.gguf import GgufArray, GgufFile, GgufTensor

EMBEDDING: Final = "token_embd.weight"
HEAD: Final = "output.weight"
TOP_NAMES: Final[Mapping[str, str]] = {
    EMBEDDING: "model.embed_tokens.weight",
    "output_norm.weight": "model.norm.weight",
    HEAD: "lm_head.weight",
}
LAYER_NAME: Final = re.compile(
    r"blk\.(0|[1-9][0-9]{0,5})\.([a-z_]+)\.(weight|bias|scale|input_scale)"
)
_LAYER: Final[Mapping[str, str]] = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
_QK_NORMS: Final[Mapping[str, str]] = {
    "attn_q_norm": "self_attn.q_norm",
    "attn_k_norm": "self_attn.k_norm",
}
_POST_NORMS: Final[Mapping[str, str]] = {
    "post_attention_norm": "post_attention_layernorm",
    "post_ffw_norm": "post_feedforward_layernorm",
}
_NORMS_AFTER: Final[Mapping[str, str]] = {
    **{name: theirs for name, theirs in _LAYER.items() if not name.endswith("_norm")},
    **_POST_NORMS,
    **_QK_NORMS,
}
_FOUR_NORMS: Final[Mapping[str, str]] = {
    **_LAYER,
    **_POST_NORMS,
    "ffn_norm": "pre_feedforward_layernorm",
}
# Metadata key (after the architecture) -> key of config.json; all of one type.
_COUNTS: Final[Mapping[str, str]] = {
    "block_count": "num_hidden_layers",
    "context_length": "max_position_embeddings",
    "embedding_length": "hidden_size",
    "feed_forward_length": "intermediate_size",
    "attention.head_count": "num_attention_heads",
    "attention.head_count_kv": "num_key_value_heads",
    "attention.key_length": "head_dim",
}
_EPS: Final = "attention.layer_norm_rms_epsilon"
_OTHER_EPS: Final = "attention.layer_norm_epsilon"
# Keys of token ids (after "tokenizer.ggml.") -> key of config.json, where several are a list.
_TOKENS: Final[Mapping[str, str]] = {
    "bos_token_id": "bos_token_id",
    "eos_token_id": "eos_token_id",
    "eot_token_id": "eos_token_id",
    "eom_token_id": "eos_token_id",
    "padding_token_id": "pad_token_id",
}
# Keys of an architecture that its decoder does not read.
_NOT_READ: Final = (
    "vocab_size",  # the rows of the embedding say it
    "tensor_data_layout",  # left over from the time before GGUF had versions
    "rope.dimension_sections",  # positions in a picture; those of a text are all the same
    "n_deepstack_layers",  # where a picture comes in
)
_NEUTRAL: Final = (False, 0, "", "none", "NONE")
_MAX_LAYER_ARRAY: Final = 1 << 12
_GLOBAL: Final = "full_attention"
_SLIDING: Final = "sliding_attention"


@dataclass(frozen=True, slots=True)
class Header:
    """What an ``Architecture`` reads from: the keys and the tensors of a file.

    Attributes:
        found: The metadata, each key waiting to be taken.
        prefix: The architecture's name and a dot.
        tensors: All tensors by llama.cpp's names.
    """

    found: RawConfig
    prefix: str
    tensors: Mapping[str, GgufTensor]

    def take(self, key: str, kind: type[Any], default: Any = None) -> Any:
        """Take a key of the architecture; as ``RawConfig.take``."""
        return self.found.take(self.prefix + key, kind, default)

    def sliding_types(self, n_layers: int, period: int) -> list[str]:
        """Give ``layer_types``: from the pattern in the file, or one global layer in ``period``."""
        pattern = self.found.get(f"{self.prefix}attention.sliding_window_pattern")
        self.found.ignore([f"{self.prefix}attention.sliding_window_pattern"])
        if isinstance(pattern, list):
            if len(pattern) < n_layers:
                self.found.report(
                    f"{self.prefix}attention.sliding_window_pattern has {len(pattern)} items "
                    f"(wanted {n_layers})"
                )
            return [_SLIDING if slides else _GLOBAL for slides in pattern[:n_layers]]
        if isinstance(pattern, int) and not isinstance(pattern, bool) and pattern >= 0:
            period = pattern
        return [
            _GLOBAL if period and (layer + 1) % period == 0 else _SLIDING
            for layer in range(n_layers)
        ]


@dataclass(frozen=True, slots=True)
class Architecture:
    """What one name in ``general.architecture`` means.

    Attributes:
        model_type: The family that reads the result.
        layer: Tensor names inside a layer, llama.cpp's to Hugging Face's.
        config: Keys of config.json that the name alone says.
        keys: Further keys of the metadata that are numbers, to keys of config.json.
        interleaves_heads: The converter moved the rows of q and k (see ``Undo.head_width``).
        norm_shift: The converter added this to every norm.
        finish: Takes what is left and adds to the config, or None.
    """

    model_type: str
    layer: Mapping[str, str] = field(default_factory=lambda: _LAYER)
    config: Mapping[str, Any] = field(default_factory=dict)
    keys: Mapping[str, str] = field(default_factory=dict)
    interleaves_heads: bool = False
    norm_shift: float = 0.0
    finish: Callable[[Header, dict[str, Any]], None] | None = None

    def undo(self, part: str, head_width: int, factor: float) -> Undo:
        """Give what the converter did to a tensor of a layer, by its name there."""
        is_moved = self.interleaves_heads and part in ("attn_q", "attn_k")
        return Undo(
            head_width or None if is_moved else None,  # the family says what is wrong with 0
            self.norm_shift if part.endswith("norm") else 0.0,
            factor,
        )


def read_config(
    file: GgufFile,
    tensors: Mapping[str, GgufTensor],
    ignore_keys: Iterable[str] = (),
    notes: list[str] | None = None,
) -> tuple[Architecture, dict[str, Any]]:
    """Turn the metadata of a file into the keys of a config.json.

    Args:
        file: The file, or the first part of a split one.
        tensors: All tensors, those of other parts included.
        ignore_keys: Keys that pass whatever their value is.
        notes: Gets the notes about keys that were ignored.

    Raises:
        UnsupportedArchError: No family computes that architecture.
        CheckpointError: Metadata are missing or wrong; all such keys are named.
        UnknownKeyError: Keys of the architecture that could change the result and are not known.
        UsageError: A key to ignore is not there, or the result depends on it.
    """
    metadata = file.metadata
    kind = metadata.get("general.type", "model")
    name = metadata.get("general.architecture", "")
    architecture = ARCHITECTURES.get(name) if isinstance(name, str) else None
    if architecture is None or kind != "model":
        raise UnsupportedArchError(
            f"{file.path}: general.architecture",
            got=repr(name)[:80] + ("" if kind == "model" else f", a file of type {kind!r:.40}"),
            wanted=", ".join(sorted(ARCHITECTURES)),
            do="Use the original checkpoint of this model instead of the GGUF file.",
        )
    prefix = f"{name}."
    found = RawConfig(_values(file, prefix), str(file.path))
    found.ignore_as_asked(ignore_keys)
    header = Header(found, prefix, tensors)
    config = _read_common(header, architecture)
    if architecture.finish is not None:
        architecture.finish(header, config)
    # The other keys say who made the file and how, and hold the vocabulary.
    found.ignore(key for key in found if not key.startswith(prefix))
    found.ignore(prefix + key for key in _NOT_READ)
    # A count, a flag or a factor that means "none", such as expert_count 0, changes nothing.
    found.ignore(key for key, value in found.items() if value in _NEUTRAL)
    found.expect(f"{prefix}attention.causal", wanted=True, default=True)
    found.finish()
    if notes is not None:
        notes += found.notes
    return architecture, config  # null is a value of its own: no window, not the usual one


def _values(file: GgufFile, prefix: str) -> dict[str, Any]:
    """Give the metadata with the arrays of the architecture as lists; one number if all agree."""
    values: dict[str, Any] = dict(file.metadata)
    for key, value in file.metadata.items():
        if not isinstance(value, GgufArray):
            continue
        if not key.startswith(prefix):
            del values[key]
        elif value.n_items <= _MAX_LAYER_ARRAY and not value.holds_texts:
            numbers = [int(n) if n == int(n) else n for n in file.numbers(key).tolist()]
            is_one = len(set(numbers)) == 1 and not key.endswith("pattern")
            values[key] = numbers[0] if is_one else numbers
    return values


def _read_common(header: Header, architecture: Architecture) -> dict[str, Any]:
    """Take what all architectures share."""
    found, prefix, tensors = header.found, header.prefix, header.tensors
    config: dict[str, Any] = {
        "model_type": architecture.model_type,
        "hidden_act": "silu",
        "tie_word_embeddings": HEAD not in tensors,
        "attention_bias": "blk.0.attn_q.bias" in tensors,
        "mlp_bias": "blk.0.ffn_gate.bias" in tensors,
        **architecture.config,
    }
    for key, ours in _COUNTS.items():
        value = header.take(key, int)
        if value is not None:
            config[ours] = value
    config.setdefault("num_key_value_heads", config.get("num_attention_heads"))
    # Some converters write the one norm of these models under the name of the other kind.
    names = {_OTHER_EPS: "rms_norm_eps", _EPS: "rms_norm_eps", **architecture.keys}
    for key, ours in names.items():
        value = header.take(key, float)
        if value is not None:
            config[ours] = value
            if not 0 < value < math.inf:
                found.report(f"{prefix}{key} is {value} (wanted a positive number)")
    if EMBEDDING in tensors:
        config["vocab_size"] = tensors[EMBEDDING].shape[0]
    for key, ours in _TOKENS.items():
        value = found.take(f"tokenizer.ggml.{key}", int, None)
        # Some converters write -1 or the largest number for none.
        if value is not None and 0 <= value < config.get("vocab_size", 0):
            before = config.get(ours)
            config[ours] = value if before is None else [*_as_list(before), value]
    head_width = head_width_of(config)
    found.expect(f"{prefix}attention.value_length", head_width, head_width)
    if head_width:
        context_length = config.get("max_position_embeddings") or 1
        config |= read_rope(
            found, prefix, tensors, head_width=head_width, context_length=context_length
        )
        config["head_dim"] = head_width
    else:  # the family says what is missing
        found.ignore(key for key in found if key.startswith(f"{prefix}rope."))
    return config


def _as_list(ids: int | list[int]) -> list[int]:
    return ids if isinstance(ids, list) else [ids]


def head_width_of(config: Mapping[str, Any]) -> int:
    """Give the width of a head; 0 if the config does not say it."""
    n_heads, width = config.get("num_attention_heads"), config.get("hidden_size")
    derived = width // n_heads if n_heads and width and n_heads > 0 else 0
    return int(config.get("head_dim") or derived)


def _finish_gemma2(header: Header, config: dict[str, Any]) -> None:
    config["sliding_window"] = header.take("attention.sliding_window", int, 4096)
    config["layer_types"] = header.sliding_types(config.get("num_hidden_layers", 0), 2)
    config["query_pre_attn_scalar"] = _gemma_scalar(config, n_layers_of_27b=46)


def _finish_gemma3(header: Header, config: dict[str, Any]) -> None:
    window = header.take("attention.sliding_window", int, 0)
    n_layers = config.get("num_hidden_layers", 0)
    types = header.sliding_types(n_layers, 6)
    config["sliding_window"] = window or None
    config["layer_types"] = types if window else [_GLOBAL] * n_layers
    config["rope_local_base_freq"] = header.take("rope.freq_base_swa", float, 10000.0)
    config["query_pre_attn_scalar"] = _gemma_scalar(config, n_layers_of_27b=62)


def _gemma_scalar(config: Mapping[str, Any], *, n_layers_of_27b: int) -> float:
    """Give ``query_pre_attn_scalar``, which the file does not say.

    It is the head width, except in the 27B model, which llama.cpp knows by its number of layers.
    """
    if config.get("num_hidden_layers") == n_layers_of_27b and config.get("num_attention_heads"):
        return float(config.get("hidden_size", 0) // config["num_attention_heads"])
    return float(head_width_of(config))


def _finish_mistral3(header: Header, config: dict[str, Any]) -> None:
    beta = header.take("attention.temperature_scale", float)
    config["sliding_window"] = None
    if beta is None:
        config["model_type"] = "mistral"
    elif "rope_scaling" in config:
        config["rope_scaling"]["llama_4_scaling_beta"] = beta
    else:
        header.found.report(f"{header.prefix}attention.temperature_scale without rope.scaling")


def _finish_olmo2(header: Header, config: dict[str, Any]) -> None:
    window = header.take("attention.sliding_window", int, 0)
    types = header.sliding_types(config.get("num_hidden_layers", 0), 4)
    if window:
        config |= {"model_type": "olmo3", "sliding_window": window, "layer_types": types}


def _finish_exaone4(header: Header, config: dict[str, Any]) -> None:
    window = header.take("attention.sliding_window", int, 0)
    n_layers = config.get("num_hidden_layers", 0)
    types = header.sliding_types(n_layers, 4)
    config["sliding_window"] = window or None
    config["layer_types"] = types if window else [_GLOBAL] * n_layers


def _finish_phi3(header: Header, config: dict[str, Any]) -> None:
    config["sliding_window"] = header.take("attention.sliding_window", int, 0) or None
    original = config.get("rope_scaling", {}).get("original_max_position_embeddings")
    config["original_max_position_embeddings"] = original  # the family reads it outside the section


def _finish_granite(header: Header, config: dict[str, Any]) -> None:
    # Here the flag says whether positions are encoded at all.
    header.found.expect(f"{header.prefix}rope.scaling.finetuned", wanted=True, default=True)


def _finish_minicpm(header: Header, config: dict[str, Any]) -> None:
    """Fill in what files from before these keys leave out: MiniCPM 1 and 2 have one of each."""
    n_layers, width = config.get("num_hidden_layers") or 1, config.get("hidden_size") or 256
    config.setdefault("embedding_multiplier", 12.0)
    config.setdefault("residual_multiplier", 1.4 / math.sqrt(n_layers))
    config.setdefault("logits_scaling", width / 256)
    config["attention_multiplier"] = (head_width_of(config) or 1) ** -0.5


_GRANITE_KEYS: Final[Mapping[str, str]] = {
    "attention.scale": "attention_multiplier",
    "embedding_scale": "embedding_multiplier",
    "residual_scale": "residual_multiplier",
    "logit_scale": "logits_scaling",
}
_GELU: Final[Mapping[str, Any]] = {"hidden_act": None, "hidden_activation": "gelu_pytorch_tanh"}
# The family expects these biases without a config key.
_QWEN2: Final[Mapping[str, Any]] = {"attention_bias": False}

ARCHITECTURES: Final[Mapping[str, Architecture]] = {
    # A Llama whose rows of q and k are in Hugging Face's order.
    "exaone": Architecture("llama"),
    "exaone4": Architecture(
        "exaone4",
        _NORMS_AFTER,
        finish=_finish_exaone4,
    ),
    "gemma": Architecture("gemma", config=_GELU, norm_shift=1.0),
    "gemma2": Architecture(
        "gemma2",
        _FOUR_NORMS,
        _GELU,
        {
            "attn_logit_softcapping": "attn_logit_softcapping",
            "final_logit_softcapping": "final_logit_softcapping",
        },
        norm_shift=1.0,
        finish=_finish_gemma2,
    ),
    "gemma3": Architecture(
        "gemma3_text",
        {**_FOUR_NORMS, **_QK_NORMS},
        _GELU,
        {"final_logit_softcapping": "final_logit_softcapping"},
        norm_shift=1.0,
        finish=_finish_gemma3,
    ),
    "granite": Architecture(
        "granite", keys=_GRANITE_KEYS, interleaves_heads=True, finish=_finish_granite
    ),
    "hunyuan-dense": Architecture(
        "hunyuan_v1_dense",
        {
            **_LAYER,
            "attn_q_norm": "self_attn.query_layernorm",
            "attn_k_norm": "self_attn.key_layernorm",
        },
    ),
    "internlm2": Architecture("llama", interleaves_heads=True),
    "llama": Architecture("llama", interleaves_heads=True),
    # The same decoder as granite's, under other names of its factors.
    "minicpm": Architecture(
        "granite",
        keys={k: v for k, v in _GRANITE_KEYS.items() if k != "attention.scale"},
        interleaves_heads=True,
        finish=_finish_minicpm,
    ),
    "mistral3": Architecture("ministral3", interleaves_heads=True, finish=_finish_mistral3),
    "olmo2": Architecture(
        "olmo2",
        _NORMS_AFTER,
        finish=_finish_olmo2,
    ),
    "phi3": Architecture(
        "phi3",
        {k: v for k, v in _LAYER.items() if k not in ("attn_q", "attn_k", "attn_v", "ffn_gate")}
        | {"attn_qkv": "self_attn.qkv_proj", "ffn_up": "mlp.gate_up_proj"},
        finish=_finish_phi3,
    ),
    "qwen2": Architecture("qwen2", config=_QWEN2),
    "qwen2vl": Architecture("qwen2", config=_QWEN2),
    "qwen3": Architecture("qwen3", {**_LAYER, **_QK_NORMS}),
    "qwen3vl": Architecture("qwen3", {**_LAYER, **_QK_NORMS}),
    "smollm3": Architecture(
        "smollm3",
        config={"no_rope_layer_interval": 4, "use_sliding_window": False},
        interleaves_heads=True,
    ),
    "xverse": Architecture("llama", interleaves_heads=True),
}


def name_weight(architecture: Architecture, name: str) -> tuple[str, str] | None:
    """Give Hugging Face's name of a tensor and its part of a layer; None where it has none."""
    if name in TOP_NAMES:
        return TOP_NAMES[name], name.rpartition(".")[0]
    match = LAYER_NAME.fullmatch(name)
    if match is None or match[2] not in architecture.layer or match[3] not in ("weight", "bias"):
        return None
    return f"model.layers.{match[1]}.{architecture.layer[match[2]]}.{match[3]}", match[2]
