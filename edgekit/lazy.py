"""Import of packages of other projects at their first use, with their telemetry off.

Some packages tell their makers that they were used: onnxruntime 1.32 writes a device id when it is
imported and sends events while it runs. All such packages are imported through ``require``, which
first sets the variables that turn this off (``TELEMETRY_OFF``), also where edgekit is used as a
library. Children inherit the variables. A variable that the user has set stays unchanged.
"""

from __future__ import annotations

import functools
import importlib
import os
import re
import sys
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType, ModuleType
from typing import Any, Final

from edgekit.errors import MissingExtraError


class UntestedVersionWarning(UserWarning):
    """A package is installed in a version that edgekit's results were not checked with."""


@dataclass(frozen=True, slots=True)
class Range:
    """The versions of a package that edgekit's results were checked with.

    Attributes:
        at_least: First version that works, as numbers.
        below: First version that was not checked.
        why: The internals of the package that edgekit depends on.
    """

    at_least: tuple[int, ...]
    below: tuple[int, ...]
    why: str

    def __str__(self) -> str:
        least, below = (".".join(map(str, v)) for v in (self.at_least, self.below))
        return f">={least},<{below}"


# pyproject.toml has the same bounds, for pip; a test compares the two.
TESTED: Final[Mapping[str, Range]] = MappingProxyType(
    {
        "coremltools": Range((9, 0), (10,), "the streaming writer subclasses its MIL classes"),
        "huggingface-hub": Range((2, 0), (3,), "file_download.http_get is not public"),
        "llama-cpp-python": Range((0, 3, 20), (0, 4), "the layout of llama.cpp's parameters"),
        "mlx": Range((0, 32), (0, 33), "the packing of its affine codes"),
        "mlx-lm": Range((0, 32), (0, 33), "which decoders its model files compute, and how"),
        # 1.24 to 1.29 end the process (SIGSEGV) in GroupQueryAttention on edgekit's graphs.
        "onnxruntime": Range((1, 30), (1, 33), "its contrib operators, which carry no version"),
        "onnxruntime-genai": Range((0, 18), (0, 19), "the keys of genai_config.json"),
        "openai": Range((2, 0), (4,), "the classes of its HTTP client"),
    }
)


@dataclass(frozen=True, slots=True)
class Setting:
    """An environment variable that turns off a package's telemetry.

    Attributes:
        variable: Its name.
        value: The value that turns it off.
        package: The package that reads it.
        why: What the package does without it.
    """

    variable: str
    value: str
    package: str
    why: str


# Measured with strace on Linux: onnxruntime 1.32.0 (only this variable helps; neither DO_NOT_TRACK
# nor ``disable_telemetry_events()`` does). Read: huggingface_hub 2.4 constants.py.
TELEMETRY_OFF: Final = (
    Setting(
        "ORT_DISABLE_TELEMETRY",
        "1",
        "onnxruntime",
        "writes a device id and a database under ~/.cache/Microsoft and a session file in the "
        "temporary folder when it is imported, and sends events to a server of its maker",
    ),
    Setting(
        "HF_HUB_DISABLE_TELEMETRY",
        "1",
        "huggingface_hub, transformers",
        "tells the Hub with every request which torch is installed and which AI agent runs the "
        "program, and lets other packages report uses there",
    ),
    Setting("DO_NOT_TRACK", "1", "any that follows donottrack.sh", "counts uses"),
)


def quiet_variables() -> dict[str, str]:
    """Give the variables of ``TELEMETRY_OFF`` that the environment does not set yet."""
    return {s.variable: s.value for s in TELEMETRY_OFF if not os.environ.get(s.variable)}


def require(module: str, *, package: str | None = None) -> ModuleType:
    """Import a module, or say which package to install.

    Warns with ``UntestedVersionWarning`` when the package is newer than what edgekit was checked
    with.

    Args:
        module: Dotted module name, such as ``mlx.core``.
        package: Distribution name when it differs from the module's first part.

    Raises:
        MissingExtraError: The module, or something it needs, cannot be imported, or is too old.
    """
    os.environ.update(quiet_variables())
    top = module.partition(".")[0]
    name = package or top.replace("_", "-")
    tested = TESTED.get(name)
    try:
        found = importlib.import_module(module)
    except ImportError as error:
        do = None if tested is None else f"Run: pip install '{name}{tested}'"
        raise MissingExtraError(f"cannot import {module}: {error}", package=name, do=do) from error
    if tested is not None:
        # The version is the package's own; a split package states it in the part asked for.
        version = getattr(sys.modules[top], "__version__", getattr(found, "__version__", ""))
        _check_version(name, str(version))
    return found


@functools.cache
def _check_version(package: str, version: str) -> None:
    """Refuse a version that is too old, and warn of one that is newer than what was checked.

    Raises:
        MissingExtraError: It is too old.
    """
    tested, numbers = TESTED[package], re.match(r"\d+(\.\d+)*", version)
    if numbers is None:
        return
    found = tuple(map(int, numbers[0].split(".")))
    if found < tested.at_least:
        raise MissingExtraError(
            f"{package} {version} is too old",
            package=package,
            do=f"Run: pip install '{package}{tested}'",
        )
    if found >= tested.below:
        warnings.warn(
            f"{package} {version} is newer than what edgekit was checked with "
            f"({package}{tested}), and edgekit relies on {tested.why}. Results may be wrong: "
            f"see what `edgekit verify` says, or run: pip install '{package}{tested}'",
            UntestedVersionWarning,
            stacklevel=3,
        )


def load_object(reference: str) -> Any:
    """Load ``"package.module:Name"``, the form every registry uses."""
    module, _, name = reference.partition(":")
    return getattr(importlib.import_module(module), name)
