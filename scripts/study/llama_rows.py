"""Rows of llama.cpp's real files: `llama_model_quantize`, read back as floats, or run there."""

from __future__ import annotations

from collections.abc import Iterator

from study.row import Row


def rows() -> Iterator[Row]:
    """Give the rows of files."""
    return iter(())
