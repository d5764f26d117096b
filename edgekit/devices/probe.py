"""Facts about this machine: processor, memory, operating system and installed engines.

The only module that looks at the host. It reads small files and package metadata, imports no engine
and starts no process except ``sysctl`` on macOS. All files are read below ``root``, so that a test
can give a folder that looks like another machine. A fact that cannot be read is None or absent; it
is never guessed.
"""

from __future__ import annotations

import importlib.metadata
import os
import platform
import re
import subprocess
import sys
from collections.abc import Iterable, Mapping
from math import ceil
from pathlib import Path
from typing import Final

from edgekit.lazy import require
from edgekit.records import HostFacts

_OS_NAMES: Final = {"linux": "linux", "darwin": "macos", "win32": "windows"}
_ARCH_NAMES: Final = {"aarch64": "arm64", "amd64": "x86_64", "AMD64": "x86_64"}
_ENGINE_PACKAGES: Final[Mapping[str, tuple[str, ...]]] = {
    "onnxruntime": ("onnxruntime", "onnxruntime-gpu", "onnxruntime-silicon"),
    "mlx": ("mlx-lm",),
    "coreml": ("coremltools",),
    "mil": ("coremltools",),
    "llama_cpp": ("llama-cpp-python",),
}
_ENGINE_OS: Final[Mapping[str, str]] = {"coreml": "macos"}
"""Engines that exist on one system only; their packages can be installed elsewhere too."""

_FEATURES: Final[Mapping[str, str]] = {
    # Spelling of /proc/cpuinfo -> ours; only features that change which kernels an engine picks.
    "asimddp": "dotprod",
    "asimdhp": "fp16",
    "i8mm": "i8mm",
    "bf16": "bf16",
    "sve": "sve",
    "sme": "sme",
    "avx2": "avx2",
    "f16c": "f16c",
    "fma": "fma",
    "avx512f": "avx512f",
    "avx512_vnni": "avx512_vnni",
    "avx512_bf16": "avx512_bf16",
    "avx512_fp16": "avx512_fp16",
    "avx_vnni": "avx_vnni",
    "amx_int8": "amx_int8",
}
_MAC_FEATURES: Final[Mapping[str, str]] = {
    "hw.optional.arm.FEAT_DotProd": "dotprod",
    "hw.optional.arm.FEAT_FP16": "fp16",
    "hw.optional.arm.FEAT_I8MM": "i8mm",
    "hw.optional.arm.FEAT_BF16": "bf16",
    "hw.optional.arm.FEAT_SME": "sme",
    "hw.optional.avx2_0": "avx2",
}

_NO_LIMIT_BYTES: Final = 1 << 60
"""cgroup v1 writes 'no limit' as a number near 2**63."""


def probe_host(root: Path = Path("/")) -> HostFacts:
    """Look at this machine.

    Args:
        root: Folder that holds ``proc`` and ``sys``; another folder only in tests.
    """
    psutil = require("psutil")
    system = _OS_NAMES.get(sys.platform, sys.platform)
    n_cores = usable_cores(_affinity_cores(), read_cpu_quota(root))
    physical = psutil.cpu_count(logical=False)
    memory_bytes = int(psutil.virtual_memory().total)
    limit = read_memory_limit(root)
    return HostFacts(
        os=system,
        os_version=platform.mac_ver()[0] if system == "macos" else platform.release(),
        arch=_ARCH_NAMES.get(platform.machine(), platform.machine()),
        cpu=read_cpu_name(root) or _sysctl("machdep.cpu.brand_string") or platform.processor(),
        n_cores=n_cores,
        n_physical_cores=None if physical is None else min(physical, n_cores),
        memory_bytes=memory_bytes,
        memory_limit_bytes=limit if limit is not None and limit < memory_bytes else None,
        python=platform.python_version(),
        cpu_features=read_cpu_features(root) or _mac_features(system),
        engines=installed_engines(system),
    )


def available_memory() -> int:
    """Give the bytes of memory that are available now without swapping."""
    return int(require("psutil").virtual_memory().available)


def usable_cores(n_affinity: int, quota: float | None) -> int:
    """Give the cores this process may use: its affinity, limited by the cgroup's CPU quota."""
    return n_affinity if quota is None else max(1, min(n_affinity, ceil(quota)))


def installed_engines(system: str) -> dict[str, str]:
    """Give the engines that can run here, each with the version of its package.

    Args:
        system: ``linux``, ``macos`` or ``windows``.
    """
    found = {}
    for engine, packages in _ENGINE_PACKAGES.items():
        version = _first_version(packages)
        if version is not None and _ENGINE_OS.get(engine, system) == system:
            found[engine] = version
    return found


def read_cpu_name(root: Path) -> str:
    """Read the CPU's name: the x86 model name, or the board and core type on Arm Linux."""
    text = _read(root / "proc/cpuinfo")
    for key in ("model name", "Model", "Hardware"):
        match = re.search(rf"^{key}\s*:\s*(.+)$", text, re.MULTILINE)
        if match:
            return match[1].strip()
    return _read(root / "proc/device-tree/model").strip("\0\n ")


def read_cpu_features(root: Path) -> tuple[str, ...]:
    """Read the instruction sets that matter to the engines, sorted."""
    match = re.search(
        r"^(?:flags|Features)\s*:\s*(.+)$", _read(root / "proc/cpuinfo"), re.MULTILINE
    )
    flags = set(match[1].split()) if match else set()
    return _sorted(name for flag, name in _FEATURES.items() if flag in flags)


def read_cpu_quota(root: Path) -> float | None:
    """Read how many cores' worth of time the cgroup allows; None without a quota."""
    quotas = []
    for folder in _cgroup_folders(root, "cpu"):
        v1 = _read(folder / "cpu.cfs_quota_us") + " " + _read(folder / "cpu.cfs_period_us")
        for text in (_read(folder / "cpu.max"), v1):
            words = text.split()
            if len(words) == 2 and all(w.isdigit() and int(w) > 0 for w in words):
                quotas.append(int(words[0]) / int(words[1]))
    return min(quotas, default=None)


def read_memory_limit(root: Path) -> int | None:
    """Read the tightest memory limit of the cgroup and its parents; None without one."""
    limits = []
    for folder in _cgroup_folders(root, "memory"):
        for name in ("memory.max", "memory.limit_in_bytes"):
            text = _read(folder / name).strip()
            if text.isdigit() and int(text) < _NO_LIMIT_BYTES:
                limits.append(int(text))
    return min(limits, default=None)


def _cgroup_folders(root: Path, controller: str) -> list[Path]:
    """Give the folders of this process's cgroup and its parents, version 2 and version 1.

    Inside a container, the path of the group is the host's and does not exist; then the mount
    point itself is the group. So the mount point always ends the list.
    """
    base = root / "sys/fs/cgroup"
    folders = []
    for line in _read(root / "proc/self/cgroup").splitlines():
        _, _, rest = line.partition(":")
        controllers, separator, group = rest.partition(":")
        if not separator:
            continue
        if controllers == "":
            top = base
        elif controller in controllers.split(","):
            top = base / controller
        else:
            continue
        here = top / group.strip("/")
        folders += [here, *(p for p in here.parents if p.is_relative_to(top))]
    return folders


def _affinity_cores() -> int:
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _first_version(packages: Iterable[str]) -> str | None:
    for package in packages:
        try:
            return importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return None


def _mac_features(system: str) -> tuple[str, ...]:
    if system != "macos":
        return ()
    return _sorted(name for key, name in _MAC_FEATURES.items() if _sysctl(key) == "1")


def _sysctl(key: str) -> str:
    if sys.platform != "darwin":
        return ""
    command = ["/usr/sbin/sysctl", "-n", key]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=5, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout.strip()


def _sorted(names: Iterable[str]) -> tuple[str, ...]:
    return tuple(sorted(set(names)))


def _read(path: Path) -> str:
    """Read a small system file; an absent or forbidden one reads as empty."""
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""
