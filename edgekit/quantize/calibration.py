"""Calibration: how large each input channel of a matrix is while the model reads a text.

The model runs once over a short conversation that is part of edgekit, in plain numpy
(edgekit/reference), a layer at a time and a block of rows at a time, so that no matrix is in
memory whole. Float64 throughout: what is measured must not depend on the order in which a
processor adds.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from edgekit.dtypes import F64Array
from edgekit.errors import CheckpointError
from edgekit.families.base import SourceModel
from edgekit.progress import Progress, ignore_progress
from edgekit.quantize.threads import one_thread_a_product
from edgekit.reference.forward import FloatArray, Forward
from edgekit.tensors import row_blocks
from edgekit.text.tokenizer import spread_ids
from edgekit.text.view import TextView

MAX_TOKENS: Final = 128
_BLOCK_ELEMENTS: Final = 1 << 19  # 4 MiB of float64: larger ones cost more page faults (measured)
# Questions, numbers, a list, code and a language other than English, so that few channels stay
# silent that speak in use.
_CONVERSATION: Final = (
    (
        "user",
        "Who wrote the play about the two lovers of Verona, and when?",
    ),
    (
        "assistant",
        "Romeo and Juliet was written by William Shakespeare, probably between 1591 and 1595. It "
        "tells of two young people whose families are enemies.",
    ),
    (
        "user",
        "Thanks! What is 17 times 6? Then give me a function in Python that multiplies.",
    ),
    (
        "assistant",
        "17 times 6 is 10 * 6 + 7 * 6 = 60 + 42 = 102.\n\n```python\ndef multiply(a, b):\n"
        '    """Return the product of a and b."""\n    return a * b\n```',
    ),
    (
        "user",
        "Plan a simple dinner for four, as a list, and say good evening in French.",
    ),
    (
        "assistant",
        "1. Tomato soup with bread\n2. Roast chicken with potatoes, carrots and onions\n"
        "3. Apples baked with cinnamon\n\nIn French you would say: Bonsoir à tous, le dîner est "
        'prêt! As JSON: {"guests": 4, "courses": ["soup", "chicken", "apples"]}',
    ),
    (
        "user",
        "Why do the leaves of trees change their colour in autumn?",
    ),
    (
        "assistant",
        "In autumn a tree stops making chlorophyll, the green pigment of its leaves. Yellow and "
        "orange pigments, which were there all summer, become visible, and some trees make red "
        "ones as well. Then the stalk closes, and the leaf falls with the next wind.",
    ),
)


def calibration_ids(view: TextView, n_rows: int) -> tuple[tuple[int, ...], str]:
    """Give the token ids that a model is calibrated on, and say in words what they are.

    The conversation in the model's own chat form; as plain text where it has no template or the
    template refuses it; without a tokenizer, ids spread over the vocabulary.

    Args:
        view: The model's text files.
        n_rows: Rows of the embedding.

    Returns:
        1 to ``MAX_TOKENS`` ids, each with a row.
    """
    ids, form = _conversation_ids(view)
    read = tuple(i for i in ids if i < n_rows)[:MAX_TOKENS]
    if not read:
        read, form = tuple(spread_ids(MAX_TOKENS, n_rows)), "ids evenly spread"
    return read, f"{len(read)} tokens: {form}"


def _conversation_ids(view: TextView) -> tuple[list[int], str]:
    if view.tokenizer is None:
        return [], ""
    messages = [{"role": role, "content": content} for role, content in _CONVERSATION]
    try:
        ids = view.template.encode(messages, view.tokenizer, add_generation_prompt=False)
    except CheckpointError:
        text = "\n\n".join(content for _, content in _CONVERSATION)
        return view.tokenizer.encode(text, allow_special=False), "a conversation, as plain text"
    return ids, "a conversation, in the model's chat form"


@dataclass(frozen=True, slots=True, eq=False)
class MeasuredInput:
    """What some matrices read, beside what they read it with; M channels.

    Each token counts alike, however loud it is: some models are a thousand times louder on the
    first token than on all others.

    Attributes:
        mean_squares: Mean square of each channel, float64 (M,), in shares of the mean square of the
            token's whole input.
        columns: Summed squares of the columns of all matrices, float64 (M,).
    """

    mean_squares: F64Array
    columns: F64Array

    @property
    def ratio(self) -> F64Array:
        """Mean squares over those of the columns, in shares of that of all columns, (M,).

        A channel that meets only zeros counts as silent.
        """
        columns = self.columns
        is_met = columns > 0
        shares = np.divide(columns.mean(), columns, out=np.zeros_like(columns), where=is_met)
        ratio: F64Array = self.mean_squares * shares
        return ratio


def measure_inputs(
    source: SourceModel,
    readers: Iterable[tuple[str, ...]],
    ids: Sequence[int],
    *,
    progress: Progress = ignore_progress,
) -> Mapping[str, MeasuredInput]:
    """Measure the inputs of matrices, and their columns, while a model reads tokens.

    Args:
        source: The model.
        readers: Canonical names of matrices; those that read the same input stand together.
        ids: What the model reads, at least one; those beyond its context are left out.
        progress: Called as ``progress("calibrate", n_done, n_total)`` after each layer.

    Returns:
        First name of each tuple to what was measured.
    """
    spec = source.spec
    forward = _Measuring(source, readers)
    read = np.asarray(ids[: spec.context_length], dtype=np.int64)
    is_long = forward.is_long(len(read))
    forward.reserve(len(read))
    with contextlib.closing(forward), one_thread_a_product():
        residual = forward.embed(read)
        for layer in range(spec.n_layers):
            cache = forward.empty_cache(len(read))
            residual = forward.run_layer(layer, residual, cache, 0, is_long=is_long)
            progress("calibrate", layer + 1, spec.n_layers)
        if "lm_head" in forward.inputs:
            forward.measure_head(forward.finish(residual))
    return {
        name: MeasuredInput(squares, forward.columns[name])
        for name, squares in forward.inputs.items()
    }


class _Measuring(Forward):
    """A forward that reads matrices in blocks of rows and measures some of them on the way.

    Each thread reads, measures and multiplies a block.

    Attributes:
        inputs: First name of each tuple to the mean squares of its input channels.
        columns: The same to the summed squares of the columns of all its matrices.
    """

    def __init__(self, source: SourceModel, readers: Iterable[tuple[str, ...]]) -> None:
        super().__init__(source.spec, lambda name: source.tensor(name).read(), np.float64)
        self._source = source
        self._first = {name: names[0] for names in readers for name in names}
        self.inputs: dict[str, F64Array] = dict.fromkeys(self._first.values(), np.zeros(0))
        self.columns: dict[str, F64Array] = {}
        self._pool = ThreadPoolExecutor(os.cpu_count())

    def close(self) -> None:
        """End the threads."""
        self._pool.shutdown()

    def measure_head(self, finished: FloatArray) -> None:
        """Measure the output matrix without computing logits."""
        self._note_inputs("lm_head", finished)
        self._for_blocks("lm_head", lambda _rows, _block: None)

    def _matmul(self, inner: FloatArray, name: str) -> FloatArray:
        if self._first.get(name) == name:
            self._note_inputs(name, inner)
        product: FloatArray = np.empty((len(inner), self._shapes[name][0]))

        def multiply(rows: slice, block: F64Array) -> None:
            product[:, rows] = inner @ block.T

        self._for_blocks(name, multiply)
        return product

    def _for_blocks(self, name: str, use: Callable[[slice, F64Array], None]) -> None:
        """Read a matrix in blocks of rows, in several threads, and measure it if that is wanted."""
        tensor, first = self._source.tensor(name), self._first.get(name)

        def read(rows: slice) -> F64Array | None:
            block = tensor.read_rows(rows.start, rows.stop).astype(np.float64)
            use(rows, block)
            return None if first is None else np.einsum("nm,nm->m", block, block)

        for squares in self._pool.map(read, row_blocks(tensor.info.shape, _BLOCK_ELEMENTS)):
            if first is not None and squares is not None:
                self.columns[first] = self.columns.get(first, 0) + squares

    def _note_inputs(self, name: str, inner: FloatArray) -> None:
        square: F64Array = np.square(inner, dtype=np.float64)
        whole = square.mean(axis=1, keepdims=True)
        shares = np.divide(square, whole, out=np.zeros_like(square), where=whole > 0)
        self.inputs[name] = shares.mean(axis=0)

    def _embedding_rows(self, ids: NDArray[np.int64]) -> FloatArray:
        embed = self._source.tensor("embed")
        distinct, places = np.unique(ids, return_inverse=True)
        rows = np.concatenate([embed.read_rows(int(i), int(i) + 1) for i in distinct])
        found: FloatArray = rows.astype(np.float64)[places]
        return found
