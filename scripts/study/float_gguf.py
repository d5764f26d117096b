"""A GGUF file of a model of the llama form, unquantized or as llama.cpp quantized it.

What is written has no vocabulary: llama.cpp quantizes it and runs it on token ids. The `gguf`
package of llama.cpp's own converter writes and reads it.

Source: https://github.com/ggml-org/llama.cpp, convert_hf_to_gguf.py (keys, names, and the order of
rows in q and k, which llama.cpp rotates in neighbouring pairs instead of halves).
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Final

import gguf
import numpy as np

from edgekit.dtypes import F32Array
from edgekit.families.base import SourceModel
from edgekit.families.spec import DecoderSpec
from edgekit.formats.floats import to_bf16

MODEL_TYPES: Final = ("llama", "mistral")
_TOP: Final = {"embed": "token_embd", "final_norm": "output_norm", "lm_head": "output"}
_LAYER: Final = {
    "attn_norm": "attn_norm", "q": "attn_q", "k": "attn_k", "v": "attn_v", "o": "attn_output",
    "ffn_norm": "ffn_norm", "gate": "ffn_gate", "up": "ffn_up", "down": "ffn_down",
}  # fmt: skip


def gguf_name(name: str) -> str:
    """Give the name in a GGUF file of a canonical one."""
    if name in _TOP:
        return f"{_TOP[name]}.weight"
    _, layer, part = name.split(".")
    return f"blk.{layer}.{_LAYER[part]}.weight"


def pair_rows(matrix: F32Array, n_heads: int) -> F32Array:
    """Put the rows that are rotated together side by side: halves to pairs, (N, M) to (N, M)."""
    n_rows, n_cols = matrix.shape
    heads = matrix.reshape(n_heads, 2, n_rows // n_heads // 2, n_cols)
    return heads.swapaxes(1, 2).reshape(n_rows, n_cols)


def halve_rows(matrix: F32Array, n_heads: int) -> F32Array:
    """Undo ``pair_rows``."""
    n_rows, n_cols = matrix.shape
    heads = matrix.reshape(n_heads, n_rows // n_heads // 2, 2, n_cols)
    return heads.swapaxes(1, 2).reshape(n_rows, n_cols)


def _n_heads_of(spec: DecoderSpec, name: str) -> int:
    """Give the heads whose rows have another order in GGUF; 0 where none have."""
    part = name.rpartition(".")[2]
    return {"q": spec.n_heads, "k": spec.n_kv_heads}.get(part, 0)


def write_gguf(source: SourceModel, path: Path) -> None:
    """Write a model in bfloat16, norms in float32; whole or not at all."""
    spec = source.spec
    config = source.checkpoint.config
    partial = path.with_suffix(".partial")
    writer = gguf.GGUFWriter(partial, "llama")
    writer.add_context_length(spec.context_length)
    writer.add_embedding_length(spec.hidden_width)
    writer.add_block_count(spec.n_layers)
    writer.add_feed_forward_length(spec.ffn_width)
    writer.add_head_count(spec.n_heads)
    writer.add_head_count_kv(spec.n_kv_heads)
    writer.add_key_length(spec.head_width)
    writer.add_value_length(spec.head_width)
    writer.add_rope_dimension_count(spec.head_width)
    writer.add_rope_freq_base(float(config["rope_theta"]))
    writer.add_layer_norm_rms_eps(spec.norm_eps)
    writer.add_vocab_size(spec.vocab_size)
    writer.add_tokenizer_model("no_vocab")
    writer.add_file_type(gguf.LlamaFileType.MOSTLY_BF16)
    for name, shape in spec.weight_shapes().items():
        values = source.tensor(name).read()
        n_heads = _n_heads_of(spec, name)
        if n_heads:
            values = pair_rows(values, n_heads)
        if len(shape) == 1:
            writer.add_tensor(gguf_name(name), values.astype(np.float32))
        else:
            stored = np.ascontiguousarray(to_bf16(values)).view(np.uint8)
            kind = gguf.GGMLQuantizationType.BF16
            writer.add_tensor(gguf_name(name), stored, raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    partial.replace(path)


def read_gguf(spec: DecoderSpec, path: Path) -> Iterator[tuple[str, F32Array, int]]:
    """Give canonical name, values in the model's own order of rows, and bytes of every tensor."""
    stored = {tensor.name: tensor for tensor in gguf.GGUFReader(path).tensors}
    for name, shape in spec.weight_shapes().items():
        tensor = stored[gguf_name(name)]
        values: F32Array = gguf.quants.dequantize(tensor.data, tensor.tensor_type)
        values = values.reshape(shape)
        n_heads = _n_heads_of(spec, name)
        yield name, halve_rows(values, n_heads) if n_heads else values, int(tensor.n_bytes)
