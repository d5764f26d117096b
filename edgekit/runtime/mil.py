"""The mil engine: runs a Core ML package in numpy, on machines without Core ML.

``MilDecoder`` executes the saved ``.mlpackage``: the same program and weight bytes that a phone
would load, with every fp16 result rounded to fp16. Its logits show whether the package is right.
Its speed says nothing about any device, so records mark it as emulated.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final, Self

import numpy as np
from numpy.typing import NDArray

from edgekit.artifact import Artifact, Format
from edgekit.dtypes import F32Array
from edgekit.errors import EngineLoadError, FormatError, UsageError
from edgekit.formats.mlpackage import (
    CAUSAL_MASK,
    INPUT_IDS,
    PACKAGE_NAME,
)
from edgekit.records import EngineInfo
from edgekit.runtime.mil_machine import MilMachine
from edgekit.runtime.mil_program import read_program
from edgekit.runtime.mlpackage import PackageDecoder, long_rope_switches
from edgekit.runtime.opening import (
    check_format,
    chosen_length,
    chosen_options,
    refuse_threads,
)

ARITHMETICS: Final = ("fp16", "fp32")
DEFAULT_KEPT_BYTES: Final = 2 << 30


class MilDecoder(PackageDecoder):
    """A Core ML package run by the numpy interpreter; made by ``open``."""

    @classmethod
    def open(
        cls,
        artifact: Artifact,
        *,
        n_threads: int | None = None,
        context_length: int | None = None,
        options: Mapping[str, Any] | None = None,
    ) -> Self:
        """Load the package of a Core ML artifact.

        Args:
            artifact: The folder that the exporter wrote.
            n_threads: Must be None; numpy chooses its own number.
            context_length: Most positions to use; None takes the artifact's own.
            options: ``arithmetic``: ``fp16`` (default) or ``fp32``, which computes without
                rounding activations; ``max_kept_bytes``: weights are kept as float32 when all
                together take no more, else converted again at each use.

        Raises:
            UsageError: Another format, an unknown option, or one out of range.
            MissingExtraError: coremltools, which holds the file schema, is not installed.
            EngineLoadError: The files are damaged or not what edgekit writes.
        """
        check_format(artifact, "mil", Format.COREML, "Core ML")
        refuse_threads("mil", n_threads)
        length = chosen_length(artifact, context_length)
        defaults = {"arithmetic": "fp16", "max_kept_bytes": DEFAULT_KEPT_BYTES}
        chosen = chosen_options("mil", options, defaults)
        arithmetic, max_kept_bytes = chosen["arithmetic"], chosen["max_kept_bytes"]
        if arithmetic not in ARITHMETICS:
            raise UsageError("mil: arithmetic", got=arithmetic, wanted=" or ".join(ARITHMETICS))
        if not isinstance(max_kept_bytes, int) or max_kept_bytes < 0:
            raise UsageError("mil: max_kept_bytes", got=max_kept_bytes, wanted="0 or more")
        switches = long_rope_switches(artifact)
        rounds = arithmetic == "fp16"
        try:
            program = read_program(artifact.path / PACKAGE_NAME, rounds=rounds)
            names = [value.name for value in program.inputs]
            if names != [INPUT_IDS, CAUSAL_MASK]:
                raise FormatError("inputs", got=names, wanted=f"{INPUT_IDS}, {CAUSAL_MASK}")
            machine = MilMachine(program, rounds=rounds, max_kept_bytes=max_kept_bytes)
        except FormatError as error:
            raise EngineLoadError(
                f"{artifact.path}: the package is damaged", got=error, do="Export the model again."
            ) from error

        def step(ids: NDArray[np.int32], mask: F32Array) -> F32Array:
            logits: F32Array = machine.run({INPUT_IDS: ids, CAUSAL_MASK: mask})[0]
            return logits

        settings = {"arithmetic": arithmetic, "weights_kept": machine.is_kept}
        info = EngineInfo(
            "mil", f"numpy {np.__version__}", artifact.name, is_emulated=True, settings=settings
        )
        return cls(step, info, machine.n_output, length, switches)
