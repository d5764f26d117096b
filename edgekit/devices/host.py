"""The device profile of this machine, made from the probe's facts.

It does not look at the host again. What a probe cannot know (bandwidth, storage speed) is unknown
in it, so nothing is projected for the host: it is measured.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Final

from edgekit.artifact import Format
from edgekit.devices.profile import (
    HOST_ID,
    OPTIONAL_ENGINES,
    Cpu,
    DeviceProfile,
    EngineSupport,
    Memory,
    SourcedValue,
    Storage,
    ValueKind,
)
from edgekit.records import HostFacts
from edgekit.units import MIB


def host_profile(facts: HostFacts) -> DeviceProfile:
    """Give the profile of the machine that the probe saw, with the engines installed on it."""
    is_mac = facts.os == "macos"
    ranked = _MAC_ENGINES if is_mac else _ENGINES
    limit = facts.memory_limit_bytes or facts.memory_bytes
    return DeviceProfile(
        id=HOST_ID,
        name="this machine",
        year=0,
        os=facts.os,
        os_min_version=facts.os_version,
        arch=facts.arch,
        soc=facts.cpu,
        power_source="not measured",
        cpu=Cpu(
            n_big_cores=_probed(facts.n_cores, "usable cores: affinity and cgroup quota"),
            n_little_cores=_probed(0, "the probe does not tell core types apart"),
            n_threads=_probed(
                facts.n_physical_cores or facts.n_cores, "physical cores, at most the usable ones"
            ),
            features=facts.cpu_features,
        ),
        memory=Memory(
            type="",
            total_bytes=_probed(facts.memory_bytes, "physical memory"),
            app_limit_bytes=_probed(limit, "cgroup limit, else physical memory"),
            app_limit_raised_bytes=SourcedValue(ValueKind.UNKNOWN, "there is one limit"),
            bandwidth_bytes_per_s=_UNPROBED,
        ),
        storage=Storage(type="", read_bytes_per_s=_UNPROBED),
        engines=tuple(
            engine
            for engine in ranked
            if engine.id in facts.engines or engine.id in OPTIONAL_ENGINES
        ),
    )


def _probed(value: int, source: str) -> SourcedValue[int]:
    return SourcedValue(ValueKind.PROBED, source, value, verified=True)


_UNPROBED: Final[SourcedValue[float]] = SourcedValue(
    ValueKind.UNKNOWN, "the probe does not measure it"
)
_MEASURED: Final = "largest of 5 M and 55 M parameter models, x86-64 Linux (docs/method.md)"
_ASSUMED: Final = "every weight is resident once; not measured for this package layout"


def _engine(
    engine_id: str, fmt: Format, units: tuple[str, ...], overhead_mib: int, factor: float
) -> EngineSupport:
    return EngineSupport(
        id=engine_id,
        formats=(fmt,),
        compute_units=units,
        overhead_bytes=SourcedValue(ValueKind.MEASURED, _MEASURED, overhead_mib * MIB),
        weights_factor=SourcedValue(ValueKind.MEASURED, _MEASURED, factor),
        sustained_factor=_UNPROBED,
    )


_ONNXRUNTIME: Final = replace(
    _engine("onnxruntime", Format.ONNX, ("cpu",), 40, 1.2), min_version="1.24"
)
_MIL: Final = replace(
    _engine("mil", Format.COREML, ("cpu",), 120, 7.2),
    is_emulated=True,
    max_copy_bytes=2 << 30,  # edgekit/runtime/mil.py keeps float32 weights up to here
    chooses_threads=True,
    note="the numpy interpreter proves that a Core ML package is right, not how fast it is",
)
_MLX_ON_CPU: Final = replace(
    _engine("mlx", Format.MLX, ("cpu",), 80, 1.3),
    min_version="0.30",
    chooses_threads=True,
    note="mlx on a CPU proves correctness; its speed is not that of an Apple device",
)
_MLX: Final = replace(
    _MLX_ON_CPU,
    compute_units=("gpu",),
    overhead_bytes=SourcedValue(ValueKind.ASSUMED, _ASSUMED, 200 * MIB),
    weights_factor=SourcedValue(ValueKind.ASSUMED, _ASSUMED, 1.0),
    note="",
)
_COREML: Final = replace(
    _MLX, id="coreml", formats=(Format.COREML,), compute_units=("cpu", "gpu", "ane"),
    min_version="9.0",
)  # fmt: skip
_LLAMA_CPP: Final = replace(
    _ONNXRUNTIME, id="llama_cpp", formats=(Format.GGUF,),
    overhead_bytes=SourcedValue(ValueKind.ASSUMED, _ASSUMED, 80 * MIB),
    weights_factor=SourcedValue(ValueKind.ASSUMED, _ASSUMED, 2.0),
    min_version="0.3",
)  # fmt: skip
_ENGINES: Final = (_ONNXRUNTIME, _MLX_ON_CPU, _MIL, _LLAMA_CPP)
_MAC_ENGINES: Final = (_MLX, _COREML, _ONNXRUNTIME, _MIL, _LLAMA_CPP)
