"""Write a random checkpoint in the shape of a real model, to measure exports without a download.

    python scripts/random_checkpoint.py ministral-3-3b build/ministral-3-3b

The folder opens like the real one: config, sharded bfloat16 safetensors with an index, a small
byte-level tokenizer. Weights are normal with the usual spread, so quantization works as hard as on
a trained model; the text it generates is noise. 3.4 B parameters take 6.9 GB of disk.
"""

import argparse
import json
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Final

import numpy as np

from edgekit.checkpoint.config import RawConfig
from edgekit.dtypes import DType
from edgekit.families import FAMILIES
from edgekit.families.base import Family
from edgekit.families.spec import DecoderSpec
from edgekit.formats.safetensors import SafetensorsWriter
from edgekit.lazy import load_object
from edgekit.paths import models_dir
from edgekit.tensors import TensorInfo

SHARD_BYTES: Final = 2 << 30
CHUNK_VALUES: Final = 1 << 22
SEED: Final = 7
COMMON: Final[Mapping[str, Any]] = {
    "rms_norm_eps": 1e-5, "torch_dtype": "bfloat16", "bos_token_id": 1, "eos_token_id": 2,
    "pad_token_id": 0,
}  # fmt: skip

ARCHITECTURES: Final[Mapping[str, str]] = {
    "gemma3_text": "Gemma3ForCausalLM",
    "llama": "LlamaForCausalLM",
    "ministral3": "Ministral3ForCausalLM",
    "qwen3": "Qwen3ForCausalLM",
}


def _shape(model_type: str, widths: tuple[int, ...], **more: Any) -> dict[str, Any]:
    keys = (
        "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads",
        "num_key_value_heads", "head_dim", "vocab_size", "max_position_embeddings",
    )  # fmt: skip
    sizes = dict(zip(keys, widths, strict=True))
    names = {"architectures": [ARCHITECTURES[model_type]], "model_type": model_type}
    return {**names, **COMMON, **sizes, **more}


# Sizes as in the config.json of the models that the names say; "llama-100m" is nobody's.
SHAPES: Final[Mapping[str, Mapping[str, Any]]] = {
    "llama-100m": _shape(
        "llama", (768, 2048, 12, 12, 4, 64, 32000, 4096), tie_word_embeddings=True
    ),
    "qwen3-0.6b": _shape(
        "qwen3", (1024, 3072, 28, 16, 8, 128, 151936, 40960),
        tie_word_embeddings=True, rope_theta=1e6,
    ),
    "gemma-3-1b": _shape(
        "gemma3_text", (1152, 6912, 26, 4, 1, 256, 262144, 32768),
        hidden_activation="gelu_pytorch_tanh", query_pre_attn_scalar=256, sliding_window=512,
    ),
    "tinyllama-1.1b": _shape("llama", (2048, 5632, 22, 32, 4, 64, 32000, 2048), rope_theta=10000.0),
    "qwen3-1.7b": _shape(
        "qwen3", (2048, 6144, 28, 16, 8, 128, 151936, 40960),
        tie_word_embeddings=True, rope_theta=1e6,
    ),
    "ministral-3-3b": _shape(
        "ministral3", (3072, 9216, 26, 32, 8, 128, 131072, 262144),
        tie_word_embeddings=True,
        rope_parameters={
            "rope_type": "yarn", "rope_theta": 1e6, "factor": 16.0, "beta_fast": 32.0,
            "beta_slow": 1.0, "mscale": 1.0, "mscale_all_dim": 1.0,
            "original_max_position_embeddings": 16384, "llama_4_scaling_beta": 0.1,
        },
    ),
}  # fmt: skip


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("shape", choices=SHAPES)
    parser.add_argument("folder", type=Path)
    options = parser.parse_args()
    n_parameters = write_checkpoint(options.folder, SHAPES[options.shape])
    print(f"{options.folder}: {n_parameters / 1e9:.2f} B parameters")


def write_checkpoint(folder: Path, config: Mapping[str, Any]) -> int:
    """Write the folder; give the number of parameters."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(dict(config), indent=2) + "\n")
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copyfile(models_dir() / "pocket" / name, folder / name)
    family: Family = load_object(FAMILIES[config["model_type"]])
    spec = family.read_spec(RawConfig(config, "config.json"))
    shards = list(_shards(spec, family))
    weight_map: dict[str, str] = {}
    rng = np.random.default_rng(SEED)
    for number, infos in enumerate(shards, start=1):
        file_name = f"model-{number:05}-of-{len(shards):05}.safetensors"
        with SafetensorsWriter(folder / file_name, infos) as writer:
            for info in infos:
                writer.write(info.name, _draw(info.shape, rng, spec.norm_offset))
                weight_map[info.name] = file_name
    total = sum(info.n_bytes for infos in shards for info in infos)
    index = {"metadata": {"total_size": total}, "weight_map": weight_map}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index, indent=1) + "\n")
    return sum(info.n_elements for infos in shards for info in infos)


def _shards(spec: DecoderSpec, family: Family) -> Iterator[list[TensorInfo]]:
    names = family.name_tables[0]
    shard: list[TensorInfo] = []
    for name, shape in spec.weight_shapes().items():
        shard.append(TensorInfo(names.to_checkpoint(name), shape, DType.BF16))
        if sum(info.n_bytes for info in shard) >= SHARD_BYTES:
            yield shard
            shard = []
    if shard:
        yield shard


def _draw(shape: tuple[int, ...], rng: np.random.Generator, norm_offset: float) -> np.ndarray:
    """Draw a tensor as the bits of bfloat16; a norm is one where its offset does not say so."""
    if len(shape) == 1:
        return _to_bf16(np.full(shape, 1 - norm_offset, np.float32))
    bits = np.empty(shape[0] * shape[1], "<u2")
    spread = np.float32(shape[1] ** -0.5)
    for start in range(0, bits.size, CHUNK_VALUES):
        part = bits[start : start + CHUNK_VALUES]
        part[:] = _to_bf16(rng.standard_normal(part.size, dtype=np.float32) * spread)
    return bits.reshape(shape)


def _to_bf16(values: np.ndarray) -> np.ndarray:
    return (values.view("<u4") >> 16).astype("<u2")


if __name__ == "__main__":
    main()
