"""The MIL operations in numpy.

An entry of ``OPS`` takes the constant parameters once and gives the function that runs. Floats of
either width are float32 arrays here; the caller rounds to fp16 after each op that ``rounds``. This
module knows nothing about programs, states or files.

Source: the operation reference of coremltools (converters/mil/mil/ops/defs, iOS15 to iOS18).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from math import prod
from types import MappingProxyType
from typing import Any, Final, Protocol, TypeAlias

import numpy as np
from numpy.typing import NDArray

from edgekit.dtypes import F32Array

Array: TypeAlias = NDArray[Any]
Params: TypeAlias = Mapping[str, Any]
Function: TypeAlias = Callable[..., Any]


class Weight(Protocol):
    """A constant matrix that may be kept as codes; (N, M)."""

    def array(self) -> F32Array:
        """The whole matrix."""
        ...

    def rows(self, indices: Array) -> F32Array:
        """Some rows: indices of any shape, the result has M as an added axis."""
        ...


@dataclass(frozen=True, slots=True)
class Op:
    """One operation.

    Attributes:
        tensors: Parameters passed when it runs; all others must be constants.
        make: Constant parameters to the function that runs.
        rounds: False when the result holds only values of its inputs.
        is_view: True when the result may share memory with the first tensor.
    """

    tensors: tuple[str, ...]
    make: Callable[[Params], Function]
    rounds: bool = True
    is_view: bool = False


def _plain(function: Function) -> Callable[[Params], Function]:
    """An operation without constant parameters."""
    return lambda params: function


def _cast(params: Params) -> Function:
    types = {"fp16": np.float32, "fp32": np.float32, "int32": np.int32, "bool": np.bool_}
    target = types[str(params["dtype"])]
    return lambda x: x.astype(target, copy=False)


def _linear(params: Params) -> Function:
    weight: Weight = params["weight"]
    bias = params.get("bias")
    added = None if bias is None or not bias.any() else bias

    def run(x: Array) -> Array:
        matrix = weight.array()
        y = x.reshape(-1, matrix.shape[1]) @ matrix.T
        if added is not None:
            y += added
        return y.reshape(*x.shape[:-1], matrix.shape[0])

    return run


def _gather(params: Params) -> Function:
    weight: Weight = params["x"]
    if int(params["axis"]) != 0:
        raise NotImplementedError(f"gather along axis {params['axis']}")
    return weight.rows


def _attention(query: Array, key: Array, value: Array, attn_mask: Array) -> Array:
    """Softmax attention; scores and weights stay in fp32, as in a fused kernel."""
    scores = (query * np.float32(query.shape[-1] ** -0.5)) @ key.swapaxes(-1, -2)
    scores += attn_mask
    scores -= scores.max(axis=-1, keepdims=True)
    np.exp(scores, out=scores)
    scores /= scores.sum(axis=-1, keepdims=True)
    return scores @ value


def _matmul(params: Params) -> Function:
    flags = (params.get("transpose_x"), params.get("transpose_y"))
    of_x, of_y = (flag is not None and bool(flag) for flag in flags)
    return lambda x, y: (x.swapaxes(-1, -2) if of_x else x) @ (y.swapaxes(-1, -2) if of_y else y)


def _softmax(params: Params) -> Function:
    axis = int(params["axis"])

    def run(x: Array) -> Array:
        shares: Array = np.exp(x - x.max(axis=axis, keepdims=True))
        shares /= shares.sum(axis=axis, keepdims=True)
        return shares

    return run


def _silu(x: Array) -> Array:
    # x * sigmoid(x) through tanh, which cannot overflow.
    half = x * np.float32(0.5)
    result: Array = half * np.tanh(half)
    result += half
    return result


def _gelu(params: Params) -> Function:
    if str(params["mode"]) != "TANH_APPROXIMATION":
        raise NotImplementedError(f"gelu of mode {params['mode']}")

    def run(x: Array) -> Array:
        inner = np.float32(0.044715) * x * x * x
        inner += x
        inner *= np.float32((2 / np.pi) ** 0.5)
        result: Array = np.float32(0.5) * x * (np.float32(1) + np.tanh(inner))
        return result

    return run


def _rsqrt(params: Params) -> Function:
    epsilon = np.float32(params["epsilon"])
    return lambda x: np.float32(1.0) / np.sqrt(x + epsilon)


def _reduce_max(params: Params) -> Function:
    axes, keep = tuple(params["axes"].tolist()), bool(params["keep_dims"])
    return lambda x: np.max(x, axis=axes, keepdims=keep)


def _reduce_mean(params: Params) -> Function:
    axes, keep = tuple(params["axes"].tolist()), bool(params["keep_dims"])

    def run(x: Array) -> Array:
        n_values = prod(x.shape[axis] for axis in axes)
        total: Array = np.sum(x, axis=axes, keepdims=keep)
        return total / np.float32(n_values)

    return run


def _slices(params: Params) -> Callable[[Array, Array, Array], tuple[Any, ...]]:
    """Give the function that finds a part of an array from begin, end and the masks."""
    begin_mask, end_mask, squeeze_mask, stride = (
        None if params.get(name) is None else params[name].tolist()
        for name in ("begin_mask", "end_mask", "squeeze_mask", "stride")
    )

    def part(x: Array, begin: Array, end: Array) -> tuple[Any, ...]:
        index: list[Any] = []
        for axis, (low, high) in enumerate(zip(begin.tolist(), end.tolist(), strict=True)):
            if squeeze_mask and squeeze_mask[axis]:
                index.append(low)
                continue
            first = None if begin_mask and begin_mask[axis] else low
            last = None if end_mask and end_mask[axis] else high
            # Negative bounds count from the end as in numpy; others must be inside.
            if any(bound is not None and abs(bound) > x.shape[axis] for bound in (first, last)):
                raise ValueError(f"slice {first}:{last} of an axis of {x.shape[axis]}")
            index.append(slice(first, last, stride[axis] if stride else None))
        return tuple(index)

    return part


def _slice_by_index(params: Params) -> Function:
    part = _slices(params)
    return lambda x, begin, end: x[part(x, begin, end)]


def _slice_update(params: Params) -> Function:
    """Write a part; ``x`` is changed in place, the caller copies where it is still needed."""
    part = _slices(params)

    def run(x: Array, update: Array, begin: Array, end: Array) -> Array:
        target = x[part(x, begin, end)]
        if target.shape != update.shape:
            raise ValueError(f"update of shape {update.shape} for a slice of {target.shape}")
        target[...] = update
        return x

    return run


def _reshape(params: Params) -> Function:
    shape = tuple(params["shape"].tolist())
    return lambda x: x.reshape(shape)


def _transpose(params: Params) -> Function:
    order = tuple(params["perm"].tolist())
    return lambda x: x.transpose(order)


def _expand_dims(params: Params) -> Function:
    axes = sorted(params["axes"].tolist())
    if axes[0] < 0:
        raise NotImplementedError(f"expand_dims at {axes}")

    def run(x: Array) -> Array:
        shape = list(x.shape)
        for axis in axes:
            shape.insert(axis, 1)
        return x.reshape(shape)

    return run


def _tile(params: Params) -> Function:
    repeats = params["reps"].tolist()

    def run(x: Array) -> Array:
        pairs = list(zip(x.shape, repeats, strict=True))
        if all(n == 1 or r == 1 for n, r in pairs):
            return np.broadcast_to(x, [n * r for n, r in pairs])
        return np.tile(x, repeats)

    return run


def _concat(params: Params) -> Function:
    axis = int(params["axis"])
    return lambda *values: np.concatenate(values, axis=axis)


def _split(params: Params) -> Function:
    axis = int(params["axis"])
    if axis != -1:
        raise NotImplementedError(f"split along axis {axis}")
    if params.get("split_sizes") is not None:
        widths = params["split_sizes"].tolist()
        return lambda x: _parts(x, widths)
    n_splits = int(params["num_splits"])
    return lambda x: _parts(x, [x.shape[-1] // n_splits] * n_splits)


def _parts(x: Array, widths: list[int]) -> tuple[Array, ...]:
    ends = np.cumsum(widths).tolist()
    if min(widths) < 0 or ends[-1] != x.shape[-1]:
        raise ValueError(f"split of {x.shape[-1]} into {widths}")
    return tuple(x[..., end - width : end] for width, end in zip(widths, ends, strict=True))


_BINARY: Final = ("x", "y")
_UNARY: Final = ("x",)
VARIADIC: Final = "values"

OPS: Final[Mapping[str, Op]] = MappingProxyType(
    {
        "abs": Op(_UNARY, _plain(np.abs), rounds=False),
        "add": Op(_BINARY, _plain(np.add)),
        "cast": Op(_UNARY, _cast, is_view=True),
        "concat": Op((VARIADIC,), _concat, rounds=False),
        "expand_dims": Op(_UNARY, _expand_dims, rounds=False, is_view=True),
        "gather": Op(("indices",), _gather, rounds=False),
        "gelu": Op(_UNARY, _gelu),
        "greater": Op(_BINARY, _plain(np.greater), rounds=False),
        "linear": Op(_UNARY, _linear),
        "logical_and": Op(_BINARY, _plain(np.logical_and), rounds=False),
        "logical_not": Op(_UNARY, _plain(np.logical_not), rounds=False),
        "matmul": Op(_BINARY, _matmul),
        "maximum": Op(_BINARY, _plain(np.maximum), rounds=False),
        "mul": Op(_BINARY, _plain(np.multiply)),
        "reduce_max": Op(_UNARY, _reduce_max, rounds=False),
        "reduce_mean": Op(_UNARY, _reduce_mean),
        "relu": Op(_UNARY, _plain(lambda x: np.maximum(x, np.float32(0))), rounds=False),
        "reshape": Op(_UNARY, _reshape, rounds=False, is_view=True),
        "rsqrt": Op(_UNARY, _rsqrt),
        "scaled_dot_product_attention": Op(
            ("query", "key", "value", "attn_mask"), _plain(_attention)
        ),
        "shape": Op(_UNARY, _plain(lambda x: np.array(x.shape, np.int32)), rounds=False),
        "silu": Op(_UNARY, _plain(_silu)),
        "slice_by_index": Op(("x", "begin", "end"), _slice_by_index, rounds=False, is_view=True),
        "slice_update": Op(("x", "update", "begin", "end"), _slice_update, rounds=False),
        "softmax": Op(_UNARY, _softmax),
        "split": Op(_UNARY, _split, rounds=False, is_view=True),
        "square": Op(_UNARY, _plain(np.square)),
        "sub": Op(_BINARY, _plain(np.subtract)),
        "tanh": Op(_UNARY, _plain(np.tanh)),
        "tile": Op(_UNARY, _tile, rounds=False, is_view=True),
        "transpose": Op(_UNARY, _transpose, rounds=False, is_view=True),
    }
)
