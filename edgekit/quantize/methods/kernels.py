"""Which code rounds and searches: machine code for large models, numpy for small ones.

Both give the same codes. numba, which makes the machine code, takes a fifth of a second to import,
and some seconds the first time. So the first ``N_BY_NUMPY`` weights of a process are numpy's: a
small model is done by then. Where numba is not installed, numpy does it all.
"""

from __future__ import annotations

import functools
import importlib
from collections.abc import Callable
from types import ModuleType
from typing import Final, TypeAlias

from edgekit.dtypes import F32Array
from edgekit.encoding import Encoding
from edgekit.errors import MissingExtraError
from edgekit.quantize.methods import rtn, search
from edgekit.quantize.methods.blocks import BlockScales, RowCodes

N_BY_NUMPY: Final = 1 << 24

ScaleSearch: TypeAlias = Callable[[F32Array, Encoding, F32Array | None], BlockScales]


def nearest_rows(rows: F32Array, encoding: Encoding) -> RowCodes:
    """Quantize rows to the nearest codes; see rtn.py."""
    compiled = _compiled(rows.size)
    if compiled is None:
        return rtn.nearest_rows(rows, encoding)
    made: RowCodes = compiled.encode_rows(rows, encoding, is_searched=False)
    return made


def search_rows(rows: F32Array, encoding: Encoding, importance: F32Array | None = None) -> RowCodes:
    """Quantize rows with the smallest squared error in each block; see search.py."""
    compiled = _compiled(rows.size)
    if compiled is None:
        return search.search_rows(rows, encoding, importance)
    made: RowCodes = compiled.encode_rows(rows, encoding, is_searched=True, importance=importance)
    return made


def scale_search(n_weights: int) -> ScaleSearch:
    """Give what chooses the scales of blocks, for a matrix of so many weights; see search.py."""
    compiled = _compiled(n_weights)
    return search.search_scales if compiled is None else compiled.search_scales


class _Done:
    """The weights that numpy did in this process; about, where threads count at the same time."""

    n_weights = 0


def _compiled(n_weights: int) -> ModuleType | None:
    if _Done.n_weights >= N_BY_NUMPY:
        return _load()
    _Done.n_weights += n_weights
    return None


@functools.cache
def _load() -> ModuleType | None:
    try:
        return importlib.import_module("edgekit.quantize.methods.compiled")
    except MissingExtraError:
        return None
