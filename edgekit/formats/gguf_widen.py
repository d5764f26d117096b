"""A copy of a GGUF file whose weights are all float32: the same model for float arithmetic.

llama.cpp multiplies coded weights with activations that it rounds to 8 bits, and has no other way
on a CPU. Over the copy it computes in float32, so that its graph can be compared with another one.
"""

from __future__ import annotations

from pathlib import Path

from edgekit.errors import FormatError
from edgekit.formats.gguf import GgufFile
from edgekit.formats.gguf_blocks import dequantize
from edgekit.formats.gguf_writer import GgufWriter, TensorHeader, Value, block_type, plan_file
from edgekit.tensors import row_blocks


def widen_file(source: Path, target: Path) -> None:
    """Write the copy; a few rows are in memory at a time.

    Raises:
        FormatError: ``source`` is damaged, or has a tensor whose values are no floats.
        OSError: ``target`` cannot be written.
    """
    with GgufFile(source) as file:
        metadata = {key: _value(file, key) for key in file.metadata}
        wide = block_type("F32")
        headers = [TensorHeader(t.name, t.shape, wide) for t in file.tensors.values()]
        with GgufWriter(target, plan_file(metadata, headers)) as writer:
            for name, tensor in file.tensors.items():
                if len(tensor.shape) == 1:
                    writer.put(name, dequantize(tensor.kind, tensor.raw()))
                    continue
                n_inner = tensor.n_rows // tensor.shape[0]  # 1 for a matrix
                for rows in row_blocks(tensor.shape):
                    raw = tensor.raw_rows(rows.start * n_inner, rows.stop * n_inner)
                    writer.put(name, dequantize(tensor.kind, raw), rows.start)


def _value(file: GgufFile, key: str) -> Value:
    value = file.value(key)
    if value is None or (isinstance(value, int) and value < 0):
        raise FormatError(f"{file.path}: {key}", got=value, wanted="0 or more")
    return value
