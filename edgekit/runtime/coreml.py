"""The Core ML engine: runs a Core ML package on a Mac, through ``coremltools``.

It uses coremltools' prediction API (macOS 15 or later). It is written from the documentation and
source and has not run on Apple hardware in this project, where only the interpreter of ``mil.py``
executes packages. Tests use a stand-in for ``MLModel``.
"""

from __future__ import annotations

import platform
import warnings
from collections.abc import Mapping
from typing import Any, Final, Self

import numpy as np
from numpy.typing import NDArray

from edgekit.artifact import Artifact, Format
from edgekit.dtypes import F32Array
from edgekit.errors import EngineCrashError, EngineLoadError, UsageError
from edgekit.formats.mlpackage import (
    CAUSAL_MASK,
    INPUT_IDS,
    LOGITS,
    PACKAGE_NAME,
    require_coremltools,
)
from edgekit.records import EngineInfo
from edgekit.runtime.mlpackage import PackageDecoder, Step, long_rope_switches
from edgekit.runtime.opening import (
    check_format,
    chosen_length,
    chosen_options,
    refuse_threads,
)

COMPUTE_UNITS: Final = ("CPU_AND_GPU", "CPU_ONLY", "CPU_AND_NE", "ALL")
_FIRST_MACOS: Final = 15


class CoremlDecoder(PackageDecoder):
    """A Core ML package run by Core ML itself; made by ``open``."""

    @classmethod
    def open(
        cls,
        artifact: Artifact,
        *,
        n_threads: int | None = None,
        context_length: int | None = None,
        options: Mapping[str, Any] | None = None,
    ) -> Self:
        """Compile and load the package of a Core ML artifact.

        Args:
            artifact: The folder that the exporter wrote.
            n_threads: Must be None; Core ML chooses its own number.
            context_length: Most positions to use; None takes the artifact's own.
            options: ``compute_units``: one of ``COMPUTE_UNITS``; the GPU is the default, because
                int4 blocks and ranged shapes with state are made for it.

        Raises:
            UsageError: Another format, an unknown option, or one out of range.
            MissingExtraError: coremltools is not installed.
            EngineLoadError: Not macOS 15 or later, or Core ML refuses the package.
        """
        check_format(artifact, "coreml", Format.COREML, "Core ML")
        refuse_threads("coreml", n_threads)
        length = chosen_length(artifact, context_length)
        chosen = chosen_options("coreml", options, {"compute_units": COMPUTE_UNITS[0]})
        units = chosen["compute_units"]
        if units not in COMPUTE_UNITS:
            raise UsageError("coreml: compute_units", got=units, wanted=", ".join(COMPUTE_UNITS))
        _require_macos()
        switches = long_rope_switches(artifact)
        ct = require_coremltools()
        if require_coremltools("coremltools.models.model")._MLModelProxy is None:
            raise EngineLoadError(
                "coremltools cannot use Core ML",
                got="a build without its native part",
                do="Reinstall coremltools for this Python, or use --engine mil.",
            )
        try:
            with warnings.catch_warnings():
                # coremltools only warns when Core ML refuses a model.
                warnings.simplefilter("error", RuntimeWarning)
                model = ct.models.MLModel(
                    str(artifact.path / PACKAGE_NAME), compute_units=ct.ComputeUnit[units]
                )
            step = stateful_step(model)
        except (RuntimeError, RuntimeWarning, ValueError, TypeError, OSError) as error:
            raise EngineLoadError(
                f"Core ML refuses {artifact.path}",
                got=error,
                do="Check the files with: edgekit verify, or use --engine mil.",
            ) from error
        info = EngineInfo(
            engine="coreml",
            version=f"macOS {platform.mac_ver()[0]}, coremltools {ct.__version__}",
            model=artifact.name,
            settings={"compute_units": units},
        )
        n_vocab = int(artifact.manifest.decoder["vocab_size"])
        return cls(step, info, n_vocab, length, switches)


def stateful_step(model: Any) -> Step:
    """Give the function that predicts with one state of a loaded ``MLModel``."""
    state = model.make_state()

    def step(ids: NDArray[np.int32], mask: F32Array) -> F32Array:
        feeds = {INPUT_IDS: ids, CAUSAL_MASK: mask.astype(np.float16)}
        try:
            logits = model.predict(feeds, state=state)[LOGITS]
        except (RuntimeError, ValueError, TypeError) as error:
            raise EngineCrashError("Core ML prediction failed", got=error) from error
        rows: F32Array = np.asarray(logits, dtype=np.float32)[0]
        return rows

    return step


def _require_macos() -> None:
    release = platform.mac_ver()[0]
    if platform.system() == "Darwin" and int(release.partition(".")[0] or 0) >= _FIRST_MACOS:
        return
    found = f"macOS {release}" if release else f"{platform.system()} {platform.release()}"
    raise EngineLoadError(
        "Core ML needs macOS 15 or later to run a package with state",
        got=found,
        do="Use --engine mil: it executes the same package on any system.",
    )
