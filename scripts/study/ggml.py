"""ggml's own quantizer, called on matrices in memory, and llama.cpp's choice of types.

The library is the one inside llama-cpp-python or xllamacpp, whichever is installed; neither is a
dependency of edgekit. What it wrote is turned back into floats by the `gguf` package.

In a file, llama.cpp can use super-blocks of 256 only where 256 divides the rows; other matrices get
types of 32 with more bits. Here rows can be padded with zero columns instead, so that a small model
shows what the super-blocks themselves are worth.

Source: https://github.com/ggml-org/llama.cpp, src/llama-quant.cpp (types), ggml/include/ggml.h.
"""

from __future__ import annotations

import ctypes
from dataclasses import dataclass
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Final

import gguf
import numpy as np

from edgekit.dtypes import F32Array
from study.weights import pad_columns

SUPER_BLOCK: Final = 256
_PACKAGES: Final = {
    "llama_cpp": ("llama-cpp-python", "lib/libggml-base.so"),
    "xllamacpp": ("xllamacpp", "xllamacpp.abi3.so"),
}


class GgmlMissingError(ImportError):
    """No package with ggml's library is installed."""


@dataclass(frozen=True, slots=True)
class Quantized:
    """A matrix that ggml quantized, as floats, and its bits for each weight that was asked for."""

    matrix: F32Array
    n_bytes: float


class Ggml:
    """ggml's quantizer.

    Raises:
        GgmlMissingError: Neither llama-cpp-python nor xllamacpp is installed.
    """

    def __init__(self) -> None:
        self.version, path = _find_library()
        self._library = ctypes.CDLL(str(path))
        self._chunk = self._library.ggml_quantize_chunk
        self._chunk.restype = ctypes.c_size_t
        self._chunk.argtypes = [
            ctypes.c_int, ctypes.c_void_p, ctypes.c_void_p,
            ctypes.c_int64, ctypes.c_int64, ctypes.c_int64, ctypes.c_void_p,
        ]  # fmt: skip

    def quantize(
        self, matrix: F32Array, kind: str, importance: F32Array | None = None, *, pads: bool = False
    ) -> Quantized:
        """Quantize a matrix and turn it back into floats.

        Args:
            matrix: (N, M).
            kind: A type of GGUF such as ``Q4_K``.
            importance: Mean square of each input channel, (M,); None without.
            pads: Add zero columns where the type's block does not divide M. They are not counted.
        """
        number = gguf.GGMLQuantizationType[kind]
        n_block, n_block_bytes = gguf.GGML_QUANT_SIZES[number]
        n_rows, n_cols = matrix.shape
        if pads:
            matrix = pad_columns(matrix, n_block)
            if importance is not None:
                importance = pad_columns(importance[None], n_block)[0]
        if matrix.shape[1] % n_block:
            raise ValueError(f"{kind}: rows of {n_cols} are no multiple of {n_block}")
        values = np.ascontiguousarray(matrix, dtype=np.float32)
        weights = None if importance is None else np.ascontiguousarray(importance, np.float32)
        stored = np.empty((n_rows, values.shape[1] // n_block * n_block_bytes), np.uint8)
        n_written = self._chunk(
            int(number), values.ctypes.data, stored.ctypes.data,
            0, n_rows, values.shape[1], None if weights is None else weights.ctypes.data,
        )  # fmt: skip
        if n_written != stored.nbytes:
            raise RuntimeError(f"ggml wrote {n_written} bytes of {stored.nbytes} as {kind}")
        floats: F32Array = gguf.quants.dequantize(stored, number)[:, :n_cols]
        return Quantized(floats, n_rows * n_cols * n_block_bytes / n_block)


def _find_library() -> tuple[str, Path]:
    for module, (package, place) in _PACKAGES.items():
        found = find_spec(module)
        if found is not None and found.submodule_search_locations:
            for folder in found.submodule_search_locations:
                if (Path(folder) / place).is_file():
                    return f"{package} {import_module(module).__version__}", Path(folder) / place
    raise GgmlMissingError("ggml: neither llama-cpp-python nor xllamacpp is installed")


def uses_more_bits(layer: int, n_layers: int) -> bool:
    """Tell whether llama.cpp gives a layer's v and down more bits: ends, and every third."""
    return layer < n_layers // 8 or layer >= 7 * n_layers // 8 or (layer - n_layers // 8) % 3 == 2


def kind_of(recipe: str, name: str, n_layers: int) -> str:
    """Give the type that llama.cpp has for a matrix of a dense llama model, before fallbacks.

    Args:
        recipe: ``Q4_K_S``, ``Q4_K_M`` or ``Q5_K_M``.
        name: Canonical name of a matrix of a layer.
        n_layers: Layers of the model.
    """
    _, number, part = name.split(".")
    layer = int(number)
    base = recipe.rpartition("_")[0]
    if recipe in ("Q4_K_M", "Q5_K_M"):
        return "Q6_K" if part in ("v", "down") and uses_more_bits(layer, n_layers) else base
    if recipe == "Q4_K_S":
        n_first = {"v": 4, "down": n_layers // 8}.get(part, 0)
        return "Q5_K" if layer < n_first else base
    raise ValueError(f"no rule is known for {recipe}")
