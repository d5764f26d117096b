"""Answer one question: what is in a GGUF file, said as a checkpoint says it?

The metadata become the keys of a config.json and the tensors get Hugging Face's names, so that a
family reads them like any other; every key of the architecture is taken or refused by name.
Tokenizer files are those that lie beside the file: the vocabulary inside is not read.

Source: https://github.com/ggml-org/ggml, docs/gguf.md (keys), and
https://github.com/ggml-org/llama.cpp, gguf-py/gguf/constants.py (tensor names).
"""

from __future__ import annotations

import hashlib
import math
import re
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any, Final

from edgekit.checkpoint.config import RawConfig
from edgekit.checkpoint.gguf.rope import read_scaling
from edgekit.checkpoint.gguf.weights import open_weight, rope_order
from edgekit.checkpoint.reader import Checkpoint
from edgekit.dtypes import I64Array
from edgekit.errors import CheckpointError, UnsupportedArchError
from edgekit.formats.gguf import GgufFile
from edgekit.model_files import ASSET_NAMES, CONFIG_NAME
from edgekit.tensors import LazyTensor

SUFFIX: Final = ".gguf"
_ARCHITECTURE: Final = "llama"
_ROPE_TABLE: Final = "rope_freqs.weight"
_DEFAULT_THETA: Final = 10000.0  # as llama.cpp reads an absent rope.freq_base
_TOP: Final[Mapping[str, str]] = {
    "token_embd.weight": "model.embed_tokens.weight",
    "output_norm.weight": "model.norm.weight",
    "output.weight": "lm_head.weight",
}
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
_LAYER_NAME: Final = re.compile(r"blk\.(0|[1-9][0-9]{0,5})\.([a-z_]+)\.(weight|bias)")
# Metadata key (after the architecture) -> key of config.json.
_KEYS: Final[Mapping[str, str]] = {
    "block_count": "num_hidden_layers",
    "context_length": "max_position_embeddings",
    "embedding_length": "hidden_size",
    "feed_forward_length": "intermediate_size",
    "attention.head_count": "num_attention_heads",
    "attention.head_count_kv": "num_key_value_heads",
    "attention.layer_norm_rms_epsilon": "rms_norm_eps",
    "attention.key_length": "head_dim",
    "rope.freq_base": "rope_theta",
    "vocab_size": "vocab_size",
}
_TOKENS: Final[Mapping[str, str]] = {
    "tokenizer.ggml.bos_token_id": "bos_token_id",
    "tokenizer.ggml.eos_token_id": "eos_token_id",
    "tokenizer.ggml.padding_token_id": "pad_token_id",
}
# Who made the file and how, and the vocabulary: nothing that changes what the decoder computes.
_IGNORED_PREFIXES: Final = ("general.", "tokenizer.", "quantize.")


def is_gguf(model: str | Path) -> bool:
    """Say whether the user names a GGUF file."""
    return str(model).endswith(SUFFIX) and Path(model).is_file()


class GgufCheckpoint(Checkpoint):
    """An open GGUF file; ``tensors`` is empty, ``weights`` gives what it holds."""

    def __init__(self, model: str | Path) -> None:
        """Open the file and check its header; no weight is read.

        Raises:
            FormatError: The file is damaged, or holds tensors of other types.
            CheckpointError: Metadata are missing or not supported; all such keys are named.
        """
        path = Path(model)
        self.folder, self.name, self.origin = path.parent, path.stem, str(model)
        self.assets = MappingProxyType(
            {
                name: self.folder / name
                for name in ASSET_NAMES
                if name != CONFIG_NAME and (self.folder / name).is_file()
            }
        )
        self.notes = []
        self._refuse_links_out()
        self.tensors = MappingProxyType({})
        self._file = GgufFile(path)
        try:
            self.config = RawConfig(_read_config(self._file), str(path))
            self._weights = _read_weights(self._file, self.config)
        except BaseException:
            self.close()
            raise

    @property
    def weights_bytes(self) -> int:
        """Bytes of all tensors as stored."""
        return sum(tensor.n_bytes for tensor in self._file.tensors.values())

    def weights(self) -> dict[str, LazyTensor]:
        """Give the weights by Hugging Face's names; nothing is read yet."""
        return dict(self._weights)

    def sha256(self) -> str:
        """Hash the file."""
        digest = hashlib.sha256()
        n_bytes = self._file.path.stat().st_size
        for piece in self._file.read_pieces(0, n_bytes):
            digest.update(piece.data)
        return digest.hexdigest()

    def close(self) -> None:
        """Let go of the file; safe to call twice."""
        self._file.close()


def _read_config(file: GgufFile) -> dict[str, Any]:
    """Turn metadata into the keys of a config.json."""
    found = RawConfig(file.metadata, str(file.path))
    architecture = found.take("general.architecture", str, "")
    if architecture != _ARCHITECTURE:
        raise UnsupportedArchError(
            f"{file.path}: general.architecture",
            got=repr(architecture)[:80],
            wanted=_ARCHITECTURE,
            do="Take the original checkpoint of this model instead of the GGUF file.",
        )
    config: dict[str, Any] = {"model_type": _ARCHITECTURE, "hidden_act": "silu"}
    for key, ours in _KEYS.items():
        kind = float if ours in ("rms_norm_eps", "rope_theta") else int
        value = found.take(f"{architecture}.{key}", kind, None)
        if value is not None:
            config[ours] = value
        if kind is float and value is not None and not 0 < value < math.inf:
            found.report(f"{architecture}.{key} is {value} (wanted a positive number)")
    for key, ours in _TOKENS.items():
        config[ours] = found.take(key, int, None)
    found.ignore([key for key in found if key.startswith(_IGNORED_PREFIXES)])
    _refuse_other_ropes(found, config)
    config["tie_word_embeddings"] = "output.weight" not in file.tensors
    config["attention_bias"] = "blk.0.attn_q.bias" in file.tensors
    if "vocab_size" not in config and "token_embd.weight" in file.tensors:
        config["vocab_size"] = file.tensors["token_embd.weight"].shape[0]
    found.finish()
    if _ROPE_TABLE in file.tensors:
        table = open_weight(file.tensors[_ROPE_TABLE], _ROPE_TABLE)
        theta = config.get("rope_theta", _DEFAULT_THETA)
        config["rope_scaling"] = read_scaling(table, _head_width(config) or 0, theta)
    return config


def _head_width(config: Mapping[str, Any]) -> int | None:
    n_heads, width = config.get("num_attention_heads"), config.get("hidden_size")
    derived = width // n_heads if n_heads and width else None
    head_width: int | None = config.get("head_dim", derived)
    return head_width


def _refuse_other_ropes(found: RawConfig, config: Mapping[str, Any]) -> None:
    """Report keys that say the rope, the heads or the experts are not the plain ones."""
    prefix = f"{_ARCHITECTURE}."
    head_width = _head_width(config)
    for key in ("rope.dimension_count", "attention.value_length"):
        found.expect(prefix + key, head_width, head_width)
    found.expect(f"{prefix}rope.scaling.type", "none", "none")
    found.expect(f"{prefix}expert_count", 0, 0)
    found.expect(f"{prefix}expert_used_count", 0, 0)


def _read_weights(file: GgufFile, config: Mapping[str, Any]) -> dict[str, LazyTensor]:
    weights: dict[str, LazyTensor] = {}
    for name, stored in file.tensors.items():
        if name == _ROPE_TABLE:
            continue
        ours = _name_of(name)
        if ours in weights:
            raise CheckpointError(f"{file.path}: two tensors are {ours}", got=name)
        weights[ours] = open_weight(stored, ours, _order_of(name, stored.shape[0], config))
    return weights


def _name_of(name: str) -> str:
    """Give Hugging Face's name; one that is not known stays, and the family reports it."""
    match = _LAYER_NAME.fullmatch(name)
    if match is None or match[2] not in _LAYER:
        return _TOP.get(name, name)
    return f"model.layers.{match[1]}.{_LAYER[match[2]]}.{match[3]}"


def _order_of(name: str, n_rows: int, config: Mapping[str, Any]) -> I64Array | None:
    match = _LAYER_NAME.fullmatch(name)
    if match is None or match[2] not in ("attn_q", "attn_k"):
        return None
    n_heads = config.get("num_attention_heads") or 0
    if match[2] == "attn_k":
        n_heads = config.get("num_key_value_heads", n_heads)
    if n_heads < 1 or n_rows % (2 * n_heads):
        raise CheckpointError(
            f"{name}: rows",
            got=n_rows,
            wanted=f"two halves for each of {n_heads} heads",
            do="Download the model again.",
        )
    return rope_order(n_heads, n_rows // n_heads)
