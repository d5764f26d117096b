"""A quantized model in memory, for exporter tests.

Codes are random, scales are on the common grid (8 significant bits, normal in fp16), norms lie
around 1. ``memory_model`` is quick: no quantizer runs.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import save_file

from edgekit.artifact import TensorEntry
from edgekit.dtypes import F32Array
from edgekit.encoding import BF16, FP16, FP32, Encoding
from edgekit.errors import QuantError
from edgekit.families.llama_form import NAMES
from edgekit.families.rope_spec import RopeSpec
from edgekit.families.spec import DecoderSpec
from edgekit.quantize.methods import round_floats
from edgekit.quantize.model import EncodedTensor, FloatTensor, ModelTensor, Source
from edgekit.scheme import Scheme

TINY_SPEC = DecoderSpec(
    model_type="mistral",
    n_layers=2,
    hidden_width=64,
    n_heads=4,
    n_kv_heads=2,
    head_width=16,
    ffn_width=128,
    vocab_size=96,
    context_length=64,
    norm_eps=1e-5,
    rope=RopeSpec(theta=10000.0),
    is_tied=True,
    bos_token_id=1,
    eos_token_ids=(2,),
    pad_token_id=0,
)


def tiny_spec(**overrides: Any) -> DecoderSpec:
    """Give a two-layer decoder of width 64, with some fields replaced."""
    return replace(TINY_SPEC, **overrides)


@dataclass(frozen=True)
class MemoryModel:
    """A ``QuantizedModel`` whose tensors are already there; ``reads`` records every ``get``."""

    spec: DecoderSpec
    scheme: Scheme
    tensors: Mapping[str, ModelTensor]
    assets: Mapping[str, Path] = field(default_factory=dict)
    reads: list[str] = field(default_factory=list)

    @property
    def config(self) -> Mapping[str, Any]:
        path = self.assets.get("config.json")
        return {} if path is None else json.loads(path.read_text())

    @property
    def source(self) -> Source:
        return Source("tiny", "memory")

    @property
    def source_sha256(self) -> str:
        return "0" * 64

    @property
    def entries(self) -> tuple[TensorEntry, ...]:
        return tuple(entry_of(tensor) for tensor in self.tensors.values())

    def get(self, name: str) -> ModelTensor:
        self.reads.append(name)
        if name not in self.tensors:
            raise QuantError(f"no tensor {name}")
        return self.tensors[name]

    def row_blocks(self, name: str) -> list[slice]:
        return [slice(0, self.tensors[name].shape[0] if name in self.tensors else 1)]

    def rows(self, name: str, part: slice) -> ModelTensor:
        tensor = self.get(name)
        if isinstance(tensor, EncodedTensor):
            return tensor.rows(part)
        return replace(tensor, values=tensor.values[part])

    def refuse_changed(self) -> None:
        """Nothing can change."""


def stored_as(spec: DecoderSpec, encoding: Encoding | str) -> dict[str, Encoding]:
    """Give the encodings of a decoder whose matrices are all stored alike."""
    own = Encoding.parse(str(encoding))
    return {n: own if len(shape) == 2 else FP32 for n, shape in spec.weight_shapes().items()}


def entry_of(tensor: ModelTensor) -> TensorEntry:
    """Give the manifest line of a tensor."""
    sha256 = tensor.sha256() if isinstance(tensor, EncodedTensor) else None
    return TensorEntry(tensor.name, tensor.shape, str(tensor.encoding), "test", sha256)


def memory_model(
    spec: DecoderSpec = TINY_SPEC,
    scheme: Encoding | str = "int4",
    seed: int = 0,
    *,
    schemes: Mapping[str, Encoding | str] | None = None,
    assets: Mapping[str, Path] | None = None,
) -> MemoryModel:
    """Make a model with random weights.

    Args:
        spec: The decoder.
        scheme: Encoding of every matrix; a block that does not divide M is halved until it does.
        seed: Of the random numbers.
        schemes: Other encodings for single matrices, by canonical name.
        assets: Files to carry along.
    """
    rng = np.random.default_rng(seed)
    wanted = Encoding.parse(str(scheme))
    tensors: dict[str, ModelTensor] = {}
    for name, shape in spec.weight_shapes().items():
        if len(shape) == 1:
            centre = 0.0 if name.endswith(".bias") else 1.0
            values = (centre + 0.1 * rng.standard_normal(shape)).astype(np.float16)
            own = FP32 if wanted == FP32 else FP16
            kept = values.astype(np.float32)
            if wanted == BF16:  # MLX keeps all floats in the type of the matrices
                own, kept = FP32, round_floats(kept, BF16, name=name)
            tensors[name] = FloatTensor(name, own, kept)
        else:
            own = Encoding.parse(str((schemes or {}).get(name, wanted)))
            tensors[name] = _matrix(name, (shape[0], shape[1]), own, rng)
    return MemoryModel(spec, Scheme(str(wanted), wanted), tensors, assets or {})


def float_weights(model: MemoryModel) -> dict[str, F32Array]:
    """Give every tensor of a model as float32."""
    return {
        name: tensor.dequantize() if isinstance(tensor, EncodedTensor) else tensor.values
        for name, tensor in model.tensors.items()
    }


def write_float_checkpoint(folder: Path, model: MemoryModel) -> Path:
    """Write a Mistral-like model as transformers would save it, dequantized."""
    spec = model.spec
    config = {
        "model_type": spec.model_type,
        "hidden_size": spec.hidden_width,
        "intermediate_size": spec.ffn_width,
        "num_hidden_layers": spec.n_layers,
        "num_attention_heads": spec.n_heads,
        "num_key_value_heads": spec.n_kv_heads,
        "head_dim": spec.head_width,
        "vocab_size": spec.vocab_size,
        "max_position_embeddings": spec.context_length,
        "rms_norm_eps": spec.norm_eps,
        "rope_theta": spec.rope.theta,
        "sliding_window": spec.sliding_window,
        "tie_word_embeddings": spec.is_tied,
        "eos_token_id": spec.eos_token_ids[0],
        "bos_token_id": spec.bos_token_id,
        "torch_dtype": "float32",
    }
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
    for name, path in model.assets.items():
        shutil.copyfile(path, folder / name)
    weights = {NAMES.to_checkpoint(name): v for name, v in float_weights(model).items()}
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


def _matrix(
    name: str, shape: tuple[int, int], encoding: Encoding, rng: np.random.Generator
) -> ModelTensor:
    n_out, n_in = shape
    spread = n_in**-0.5
    if encoding.block is None:
        values = (spread * rng.standard_normal(shape)).astype(np.float32)
        return FloatTensor(name, encoding, round_floats(values, encoding, name=name))
    block, bits = encoding.block, encoding.code_bits
    if encoding.has_palette:
        codes = rng.integers(0, 1 << bits, shape, dtype=np.uint8)
        palettes = spread * rng.standard_normal(encoding.scales_shape(*shape))
        sorted_values = np.sort(palettes.astype(np.float16).astype(np.float32), axis=1)
        return EncodedTensor.of_codes(name, encoding, codes, sorted_values)
    while n_in % block:
        block //= 2
    codes = rng.integers(0, 1 << bits, shape, dtype=np.uint8)
    # 128..255 times a power of two: eight significant bits, either sign as RTN gives them.
    exponent = np.floor(np.log2(spread / (1 << (bits - 1)))) - 7
    significand = rng.integers(128, 256, (n_out, n_in // block)).astype(np.float32)
    sign = np.where(rng.random(significand.shape) < 0.5, -1.0, 1.0)
    scales = (sign * significand * 2.0**exponent).astype(np.float32)
    zeros = None
    if encoding.has_zero_points:
        zeros = rng.integers(0, 1 << bits, scales.shape, dtype=np.uint8)
        # With an odd zero point of k bits, 8 - k bits of the scale keep their product exact.
        odd = np.where(zeros == 0, 1, zeros // np.maximum(zeros & -zeros.astype(np.int16), 1))
        scales = np.floor(np.abs(scales) / 2.0**exponent / 128 * (255 // odd))
        scales = (np.maximum(scales, 1) * 2.0**exponent).astype(np.float32)
    return EncodedTensor.of_codes(name, Encoding(encoding.kind, block), codes, scales, zeros)
