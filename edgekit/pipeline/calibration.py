"""Calibration of an export: what the model reads, which importance matrix, how long it takes."""

from __future__ import annotations

import math
import os
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any, Final

import numpy as np

from edgekit.errors import ExportError, UsageError
from edgekit.families.base import SourceModel
from edgekit.families.spec import DecoderSpec
from edgekit.formats.imatrix import gguf_bytes, list_bytes
from edgekit.progress import Progress, ignore_progress
from edgekit.quantize.calibration_text import (
    DEFAULT_TOKENS,
    SEQUENCE_TOKENS,
    CalibrationText,
    built_in_text,
    text_of_file,
)
from edgekit.quantize.imatrix import InputPower, make_imatrix, measure_power, open_input_power
from edgekit.quantize.methods import Method
from edgekit.quantize.own_answers import sample_answers

_LIST_SUFFIX: Final = ".dat"
_ROUNDING_S: Final[Mapping[Method, float]] = {
    Method.IMPORTANCE: 130e-9,
    Method.GPTQ: 160e-9,
    Method.AUTO: 290e-9,
}
"""Seconds to round one weight on one core (measured on a busy machine of 2024)."""


@dataclass(frozen=True, slots=True)
class Calibration:
    """What a user says about calibration; None takes edgekit's own.

    Attributes:
        file: Text to read in place of the built-in one.
        n_tokens: How many tokens to read.
        imatrix: An importance matrix to weigh errors with, in place of a text.
        write_imatrix: Where to write one.
        answers: Whether the built-in text holds answers that the model samples.
    """

    file: Path | None = None
    n_tokens: int | None = None
    imatrix: Path | None = None
    write_imatrix: Path | None = None
    answers: bool = False

    def check(self, method: Method) -> None:
        """Refuse options that contradict each other, before any work.

        Raises:
            UsageError: They do.
        """
        if self.imatrix is not None and method is not Method.IMPORTANCE:
            raise UsageError(
                "--imatrix says how large inputs are, and nothing of how they go together",
                got=f"method {method.value}",
                wanted=f"--method {Method.IMPORTANCE.value}",
            )
        if self.imatrix is not None and self.file is not None and self.write_imatrix is None:
            raise UsageError(
                "--imatrix takes the place of a calibration text",
                got="--calibration as well",
                wanted="one of them",
            )
        place = self.write_imatrix
        if place is not None and (place.is_dir() or not place.absolute().parent.is_dir()):
            raise UsageError(
                f"--write-imatrix {place}",
                got="a folder" if place.is_dir() else f"no folder {place.absolute().parent}",
                wanted="a file name in a folder that is there",
            )


def read_text(
    source: SourceModel, calibration: Calibration, progress: Progress = ignore_progress
) -> CalibrationText:
    """Give the text that a model is calibrated on.

    Raises:
        UsageError: See ``text_of_file``; the number of tokens is out of range.
    """
    spec = source.spec
    n_tokens = DEFAULT_TOKENS if calibration.n_tokens is None else calibration.n_tokens
    if calibration.file is not None:
        return text_of_file(
            calibration.file,
            source.text,
            n_rows=spec.vocab_size,
            context_length=spec.context_length,
            n_tokens=n_tokens,
        )
    answers = sample_answers(source, progress=progress) if calibration.answers else []
    return built_in_text(
        source.text,
        n_rows=spec.vocab_size,
        context_length=spec.context_length,
        n_tokens=n_tokens,
        answers=answers,
    )


def read_power(
    source: SourceModel, calibration: Calibration, tell: Callable[[str], None]
) -> InputPower | None:
    """Read the importance matrix that the user named; None without one.

    Raises:
        EdgekitError: See ``open_input_power``.
    """
    if calibration.imatrix is None:
        return None
    power = open_input_power(calibration.imatrix, source.spec)
    for note in power.notes:
        tell(note)
    return power


def write_power(
    source: SourceModel,
    text: CalibrationText,
    path: Path,
    *,
    progress: Progress = ignore_progress,
) -> None:
    """Measure a model's inputs on a text, and write an importance matrix file.

    A name that ends in ``.dat`` gets the older form.

    Raises:
        ExportError: The file cannot be written.
    """
    spec = source.spec
    imatrix = make_imatrix(
        measure_power(source, text.sequences, progress=progress),
        spec=spec,
        model_type=str(source.checkpoint.config.get("model_type", "")),
        n_tokens=text.n_tokens,
        n_chunk_tokens=min(SEQUENCE_TOKENS, spec.context_length),
        datasets=(text.file or f"edgekit: {text.content}",),
    )
    data = list_bytes(imatrix) if path.suffix == _LIST_SUFFIX else gguf_bytes(imatrix)
    try:
        with tempfile.NamedTemporaryFile(dir=path.absolute().parent, delete=False) as stream:
            stream.write(data)
        Path(stream.name).replace(path)
    except OSError as error:
        raise ExportError(
            f"cannot write {path}", got=error.strerror or str(error), do="Name another file."
        ) from error


def describe(
    method: Method, text: CalibrationText | None, power: InputPower | None
) -> dict[str, Any]:
    """Give what a manifest says of how codes were chosen; empty where nothing was read."""
    if power is not None:
        return {"method": method.value, "imatrix": power.read}
    if text is not None:
        return {"method": method.value, **text.describe()}
    return {}


def calibrated_s(spec: DecoderSpec, method: Method, n_tokens: int) -> float:
    """Estimate the seconds of a calibrated run from a short measurement on this machine.

    Counted are the products of the layers (the model so far, and the layer in question), the second
    moments of every input, and the rounding.
    """
    shapes = spec.weight_shapes()
    layer = {p: shapes[f"layers.0.{p}"] for p in ("q", "k", "v", "o", "gate", "up", "down")}
    n_weights = sum(map(prod, layer.values()))
    flops = 2.0 * 2 * n_weights * n_tokens
    if method in (Method.GPTQ, Method.AUTO):
        widths = [layer[part][1] for part in ("q", "o", "gate", "down")]
        flops += sum(2.0 * n_tokens * m * m + 2.0 * m**3 for m in widths)
    n_threads = os.cpu_count() or 1
    rounding = n_weights * _ROUNDING_S.get(method, 0.0) / n_threads
    return spec.n_layers * (flops / flops_per_s() + rounding)


def flops_per_s() -> float:
    """Multiply two matrices of a layer's size; give the speed of the best of three times."""
    left, right = np.ones((512, 1024), np.float32), np.ones((1024, 1024), np.float32)
    best = math.inf
    for _ in range(3):
        start = time.perf_counter()
        left @ right
        best = min(best, time.perf_counter() - start)
    return 2.0 * 512 * 1024 * 1024 / best
