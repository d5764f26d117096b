"""Device profiles: what is known about a device, and where each number comes from.

A profile is a TOML file in ``device_profiles/``. Every number has its kind and its source; a number
that nobody has measured is recorded as unknown, with the reason. Units are bytes, seconds and
rates. This module does not look at the host: ``host.py`` makes the profile of this machine.
"""

from __future__ import annotations

import difflib
import enum
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Generic, TypeVar

from edgekit.artifact import Format
from edgekit.errors import ProfileError
from edgekit.files import open_plain, read_capped
from edgekit.paths import device_profiles_dir
from edgekit.typed_values import Problem, WrongValuesError, from_plain

HOST_ID: Final = "host"
OPTIONAL_ENGINES: Final[Mapping[str, str]] = {"llama_cpp": "pip install 'edgekit[llama]'"}
"""Engines that edgekit does without, and what installs them."""
MAX_PROFILE_BYTES: Final = 1 << 20

Number = TypeVar("Number", int, float)


class ValueKind(enum.Enum):
    """How a number was obtained."""

    PUBLISHED = "published"  # by the maker, or in a specification sheet
    MEASURED = "measured"  # somebody measured it on the device
    FITTED = "fitted"  # fitted to published runs on this device
    COMPUTED = "computed"  # calculated from other numbers, such as memory type x bus width
    ANALOGY = "analogy"  # taken from a similar device or runtime
    ASSUMED = "assumed"  # a working value that nobody has confirmed
    PROBED = "probed"  # read from this machine
    UNKNOWN = "unknown"  # searched for and not found; no value


@dataclass(frozen=True, slots=True)
class SourcedValue(Generic[Number]):
    """A number with its origin; ``value`` is None exactly when ``kind`` is unknown."""

    kind: ValueKind
    source: str
    value: Number | None = None
    verified: bool = False

    def __post_init__(self) -> None:
        if (self.value is None) != (self.kind is ValueKind.UNKNOWN):
            raise ValueError("a value, or kind = 'unknown' without one")
        if not self.source.strip():
            raise ValueError("a source that is not empty")
        if self.value is not None and not 0 <= self.value < float("inf"):
            raise ValueError("a finite number of at least 0")


@dataclass(frozen=True, slots=True)
class Cpu:
    """Cores and the thread count to use; ``features`` in Linux' spelling."""

    n_big_cores: SourcedValue[int]
    n_little_cores: SourcedValue[int]
    n_threads: SourcedValue[int]
    features: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Memory:
    """Memory of the device and what one app may use of it.

    ``app_limit_raised_bytes`` is the limit with an entitlement or a setting, if there is one.
    """

    type: str
    total_bytes: SourcedValue[int]
    app_limit_bytes: SourcedValue[int]
    app_limit_raised_bytes: SourcedValue[int]
    bandwidth_bytes_per_s: SourcedValue[float]


@dataclass(frozen=True, slots=True)
class Storage:
    """Where model files are stored."""

    type: str
    read_bytes_per_s: SourcedValue[float]


@dataclass(frozen=True, slots=True)
class Gpu:
    """Graphics processor."""

    name: str
    fp16_flops_per_s: SourcedValue[float]


@dataclass(frozen=True, slots=True)
class Npu:
    """Neural processor; its own bandwidth, which may be below the chip's.

    ``tops`` is marketing (sparse or dense, 4 or 8 bit) and is never used to compute a speed.
    """

    name: str
    tops: SourcedValue[float]
    bandwidth_bytes_per_s: SourcedValue[float]


@dataclass(frozen=True, slots=True)
class EngineSupport:
    """An engine that this device runs; profiles list them in order of preference.

    Attributes:
        id: edgekit's engine name.
        formats: Formats it runs here.
        min_version: Oldest package version; empty when any will do.
        compute_units: What may compute, such as cpu, gpu, ane.
        is_emulated: True when it only proves correctness here; its speed is not the device's.
        chooses_threads: True when it takes no thread count.
        overhead_bytes: Memory besides weights and cache that the system cannot take back.
        weights_factor: Memory that the system cannot take back, per byte of weights.
        max_copy_bytes: Above this size the engine makes no copy, and the factor is 1.
        sustained_factor: Speed after ten minutes over burst speed, 0..1.
        note: What a user should know.
    """

    id: str
    formats: tuple[Format, ...]
    compute_units: tuple[str, ...]
    overhead_bytes: SourcedValue[int]
    weights_factor: SourcedValue[float]
    sustained_factor: SourcedValue[float]
    min_version: str = ""
    is_emulated: bool = False
    chooses_threads: bool = False
    max_copy_bytes: int | None = None
    note: str = ""


@dataclass(frozen=True, slots=True)
class Projection:
    """Parameters of ``t_token = t0 + streamed_bytes / (eta * bandwidth)`` for one engine.

    Attributes:
        engine: edgekit's engine name.
        fitted_on: Runtime and device of the published runs behind the figures.
        eta: Fraction of the bandwidth that decode reaches, 0..1.
        t0_s: Time per token that does not depend on the weights.
        prefill_flops_per_s: Effective rate of prefill.
        range_factor: The projection is given as ``value / factor .. value * factor``, > 1.
        range_source: Where ``range_factor`` comes from.
    """

    engine: str
    fitted_on: str
    eta: SourcedValue[float]
    t0_s: SourcedValue[float]
    prefill_flops_per_s: SourcedValue[float]
    range_factor: float
    range_source: str

    def __post_init__(self) -> None:
        if not 1 < self.range_factor < 10:
            raise ValueError("range_factor between 1 and 10")
        if self.eta.value is not None and not 0 < self.eta.value <= 1:
            raise ValueError("eta above 0 and at most 1; more than the bandwidth is a mistake")


@dataclass(frozen=True, slots=True)
class DeviceProfile:
    """Everything known of one device."""

    id: str
    name: str
    year: int
    os: str
    os_min_version: str
    arch: str
    soc: str
    power_source: str
    cpu: Cpu
    memory: Memory
    storage: Storage
    engines: tuple[EngineSupport, ...]
    gpu: Gpu | None = None
    npu: Npu | None = None
    projections: tuple[Projection, ...] = ()
    notes: tuple[str, ...] = ()

    def engine(self, engine_id: str) -> EngineSupport | None:
        """Find an engine by its id."""
        return next((e for e in self.engines if e.id == engine_id), None)

    def projection(self, engine_id: str) -> Projection | None:
        """Find the projection parameters of an engine."""
        return next((p for p in self.projections if p.engine == engine_id), None)


def list_profiles(folder: Path | None = None) -> tuple[str, ...]:
    """Give the ids of the bundled profiles, sorted; ``host`` is not a file and not listed."""
    found = (folder or device_profiles_dir()).glob("*.toml")
    return tuple(sorted(path.stem for path in found))


def load_profile(name_or_path: str | Path) -> DeviceProfile:
    """Load a bundled profile by id, or any profile by the path of its TOML file.

    Raises:
        ProfileError: No such profile, or the file is not a profile; all wrong keys are named.
    """
    path = Path(name_or_path)
    if path.suffix != ".toml":
        names = list_profiles()
        if str(name_or_path) not in names:
            near = difflib.get_close_matches(str(name_or_path), names, n=1)
            raise ProfileError(
                "no such device profile",
                got=repr(str(name_or_path)),
                wanted=f"{', '.join(names)}, or the path of a .toml file",
                do=f"Did you mean {near[0]}?" if near else None,
            )
        path = device_profiles_dir() / f"{name_or_path}.toml"
    try:
        with open_plain(path) as stream:
            data = read_capped(stream, MAX_PROFILE_BYTES)
        text = data.decode("utf-8").replace("\r\n", "\n")
    except (OSError, UnicodeDecodeError) as error:
        raise ProfileError(
            f"cannot read device profile {path}",
            got=str(error),
            wanted="a TOML file in UTF-8",
            do="See device_profiles/raspberry-pi-5.toml for the form.",
        ) from error
    return parse_profile(text, where=str(path))


def parse_profile(text: str, *, where: str) -> DeviceProfile:
    """Read a profile from TOML text; ``where`` names the file in errors.

    Raises:
        ProfileError: Not TOML, or keys unknown, absent or of the wrong type; all are named.
    """
    try:
        data = tomllib.loads(text)
    except (ValueError, RecursionError) as error:
        raise ProfileError(
            f"{where} is not TOML",
            got=str(error) or "nested too deep",
            wanted="a device profile in TOML",
            do="See device_profiles/raspberry-pi-5.toml for the form.",
        ) from error
    try:
        profile = from_plain(DeviceProfile, data, is_for_terminal=True)
        problems = _contradictions(profile)
        if problems:
            raise WrongValuesError(problems)
    except WrongValuesError as error:
        raise ProfileError(
            f"{where} is not a device profile",
            got=error,
            do="See device_profiles/raspberry-pi-5.toml for the form.",
        ) from error
    return profile


def _contradictions(profile: DeviceProfile) -> list[Problem]:
    """Find keys that are valid alone but contradict each other."""
    problems = []
    ids = [e.id for e in profile.engines]
    if len(set(ids)) < len(ids):
        problems.append(Problem("engines", f"ids {', '.join(ids)}", "each id once"))
    problems += [
        Problem(f"projections[{i}].engine", repr(p.engine), f"one of {', '.join(ids)}")
        for i, p in enumerate(profile.projections)
        if p.engine not in ids
    ]
    if profile.memory.total_bytes.value is None:
        problems.append(Problem("memory.total_bytes", "unknown", "a number"))
    return problems
