"""Rows of llama.cpp's real files: `llama_model_quantize`, read back as floats, or run there.

Read back, a file is measured like every other row: its weights with float activations. llama.cpp
itself rounds activations to 8 bits as well, which the rows that it runs include.
"""

from __future__ import annotations

import ctypes
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from edgekit.dtypes import F32Array
from study.float_gguf import MODEL_TYPES, gguf_name, read_gguf, write_gguf
from study.measure import Logits
from study.row import Made, Model, NotInstalledError, Row
from study.texts import Document
from study.weights import Weights, linear_names

_CONTEXT = 1024


def rows() -> Iterator[Row]:
    """Give the rows of files."""
    for recipe in ("Q4_0", "Q4_K_S", "Q4_K_M", "Q5_K_M"):
        for has_importance in (False, True):
            yield FileRow(recipe, has_importance).row
    yield FileRow("Q8_0").row  # the importance of inputs makes no difference to it
    yield FileRow("Q4_0", runs=True).row
    yield FileRow("Q4_K_M", runs=True).row
    yield FileRow("Q4_K_M", has_importance=True, runs=True).row
    yield FileRow("Q8_0", runs=True).row


@dataclass(frozen=True, slots=True)
class FileRow:
    """A file as llama.cpp's quantizer writes it.

    Attributes:
        recipe: ``Q4_K_M``, ...
        has_importance: Whether the quantizer sees mean squares of the inputs.
        runs: Whether llama.cpp runs it, too.
    """

    recipe: str
    has_importance: bool = False
    runs: bool = False

    @property
    def row(self) -> Row:
        """The row of the table."""
        ending, words = ("-imatrix", " + imatrix") if self.has_importance else ("", "")
        where = "run by llama.cpp" if self.runs else "file"
        return Row(
            f"llama-{'run' if self.runs else 'file'}-{self.recipe.lower()}{ending}",
            f"llama.cpp {self.recipe}{words}, {where}",
            self._make,
            is_calibrated=self.has_importance,
        )

    def _make(self, model: Model) -> Made:
        llama_cpp = _import_llama()
        path = self._file(model, llama_cpp)
        tensors, n_bytes = {}, {}
        for name, values, size in read_gguf(model.source.spec, path):
            tensors[name], n_bytes[name] = values, float(size)
        logits = _run(llama_cpp, path) if self.runs else None
        tool = f"llama-cpp-python {llama_cpp.__version__}"
        return Made(Weights(tensors, n_bytes), tool, logits)

    def _file(self, model: Model, llama_cpp: Any) -> Path:
        """Give the quantized file, written at the first use."""
        original = model.folder / "float.gguf"
        if not original.is_file():
            if (kind := model.source.checkpoint.config["model_type"]) not in MODEL_TYPES:
                raise NotInstalledError(f"the study writes no GGUF file of model_type {kind}")
            write_gguf(model.source, original)
        ending = f"-{model.moments.key}" if self.has_importance else ""
        path = model.folder / f"{self.recipe}{ending}.gguf"
        if not path.is_file():
            importance = (
                {name: model.moments.importance(name) for name in linear_names(model.source.spec)}
                if self.has_importance
                else {}
            )
            partial = path.with_suffix(".partial")
            _quantize(llama_cpp, original, partial, self.recipe, importance)
            partial.replace(path)
        return path


def _import_llama() -> Any:
    try:
        import llama_cpp
    except ImportError as error:
        raise NotInstalledError(f"llama-cpp-python cannot be imported: {error}") from error
    return llama_cpp


def _drop(level: int, text: bytes, data: int) -> None:
    """Take a line of llama.cpp's log."""


_BE_SILENT = ctypes.CFUNCTYPE(None, ctypes.c_int, ctypes.c_char_p, ctypes.c_void_p)(_drop)


def _quantize(
    llama_cpp: Any, original: Path, path: Path, recipe: str, importance: dict[str, F32Array]
) -> None:
    """Call llama.cpp's quantizer.

    Args:
        llama_cpp: The module.
        original: A float GGUF file.
        path: What is written.
        recipe: Such as ``Q4_K_M``.
        importance: Canonical name to mean squares of input channels, (M,); empty for none.
    """
    llama_cpp.llama_log_set(_BE_SILENT, None)
    params = llama_cpp.llama_model_quantize_default_params()
    params.ftype = getattr(llama_cpp, f"LLAMA_FTYPE_MOSTLY_{recipe}")
    params.nthread = 1
    if importance:
        # The list ends with an entry without a name.
        entries = (llama_cpp.llama_model_imatrix_data * (len(importance) + 1))()
        for entry, (name, values) in zip(entries, importance.items(), strict=False):
            entry.name = gguf_name(name).encode()
            entry.data = values.ctypes.data_as(ctypes.POINTER(ctypes.c_float))
            entry.size = len(values)
        params.imatrix = ctypes.cast(entries, ctypes.POINTER(llama_cpp.llama_model_imatrix_data))
    fault = llama_cpp.llama_model_quantize(
        str(original).encode(), str(path).encode(), ctypes.byref(params)
    )
    if fault:
        raise RuntimeError(f"llama_model_quantize {recipe}: error {fault}")


def _run(llama_cpp: Any, path: Path) -> Logits:
    """Give llama.cpp's own logits of a file, on one thread."""
    llama_cpp.llama_log_set(_BE_SILENT, None)
    llama = llama_cpp.Llama(
        str(path), n_ctx=_CONTEXT, n_batch=_CONTEXT, n_threads=1, n_threads_batch=1,
        logits_all=True, verbose=False,
    )  # fmt: skip

    def logits(ids: Document) -> F32Array:
        llama.reset()
        llama.eval(list(ids))
        return np.array(llama.scores[: len(ids)], dtype=np.float32)

    return logits
