"""The virtual environment that optimum runs in, and how it is made.

optimum-onnx needs transformers < 4.58 and torch. edgekit needs neither, so optimum gets a virtual
environment of its own in the cache folder. A marker that is written last says that it is complete;
an environment without the marker, or that no longer works, is made again. One process makes it,
others wait.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import os
import platform
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final, TypeAlias

from edgekit.errors import ExportError
from edgekit.exporters.staging import refuse_small_disk
from edgekit.lazy import quiet_variables
from edgekit.optimum.child import last_error, run_python
from edgekit.paths import cache_dir
from edgekit.progress import Progress, ignore_progress
from edgekit.units import format_bytes

REQUIREMENTS: Final = (
    "accelerate==1.15.0",  # without it optimum stores a tied embedding twice
    "huggingface-hub==0.36.2",
    "numpy==2.4.6",
    "onnx==1.23.2",
    "onnxruntime==1.32.0",
    "optimum==2.1.0",
    "optimum-onnx==0.1.0",
    "safetensors==0.8.0",
    "tokenizers==0.22.2",
    "torch==2.13.0",
    "transformers==4.57.6",
)
"""Packages that decide the graph, with exact versions; their dependencies are left to pip."""

# Measured with Python 3.11 on Linux x86-64 and the CPU build of torch (docs/oracle.md).
DOWNLOAD_BYTES: Final = 300_000_000
INSTALLED_BYTES: Final = 1_150_000_000
_SPARE_BYTES: Final = 500_000_000

Tell: TypeAlias = Callable[[str], None]
"""Called with a sentence for the user; must not raise."""

_MARKER: Final = "edgekit-environment.json"
_MODULES: Final = ("accelerate", "onnx", "onnxruntime", "optimum.exporters.onnx", "torch",
                   "transformers", "safetensors")  # fmt: skip
# Variables that must not reach the environment: other places to import from or install to, and
# choices that contradict the pins. Where pip downloads from, and its proxy, stay as the user set.
_DROPPED: Final = (
    "PIP_CONSTRAINT", "PIP_DRY_RUN", "PIP_EDITABLE", "PIP_IGNORE_INSTALLED", "PIP_NO_DEPS",
    "PIP_PREFIX", "PIP_PYTHON", "PIP_REQUIREMENT", "PIP_ROOT", "PIP_TARGET", "PIP_USER",
    "PYTHONHOME", "PYTHONPATH", "PYTHONSTARTUP", "VIRTUAL_ENV", "__PYVENV_LAUNCHER__",
)  # fmt: skip
# Lines of pip that show progress; a wheel on this disk is processed, another is downloaded.
_STEPS: Final = ("Collecting ", "Processing ", "Downloading ", "Installing collected ")
_PROBE: Final = (
    "import importlib.util, json, re\n"
    "from importlib.metadata import distributions\n"
    "missing = [m for m in {modules!r} if importlib.util.find_spec(m) is None]\n"
    "name = lambda d: re.sub('[-_.]+', '-', d.name).lower()\n"
    "versions = {{name(d): d.version for d in distributions()}}\n"
    "print(json.dumps([missing, versions]))\n"
)
_ELSEWHERE: Final = "Free space or set EDGEKIT_HOME to another folder."
_HINT: Final = (
    "Check the network and pip's settings (PIP_INDEX_URL, PIP_FIND_LINKS, proxies), then try again."
)


@dataclass(frozen=True, slots=True)
class OptimumEnvironment:
    """A complete environment.

    Attributes:
        folder: Where it is.
        versions: Distribution to version, of everything installed.
    """

    folder: Path
    versions: Mapping[str, str]

    @property
    def python(self) -> Path:
        """Its interpreter."""
        return self.folder / "bin" / "python"

    @property
    def tool_versions(self) -> dict[str, str]:
        """Versions that decide the graph, in the form that a manifest keeps."""
        names = ("optimum-onnx", "optimum", "transformers", "torch", "onnx")
        return {name: self.versions.get(name, "unknown") for name in names}


def environment_dir() -> Path:
    """Give the folder of the environment for this interpreter and these requirements."""
    tag = f"{sys.implementation.cache_tag} {platform.machine()} {' '.join(REQUIREMENTS)}"
    return cache_dir() / "envs" / f"optimum-{hashlib.sha256(tag.encode()).hexdigest()[:12]}"


def open_environment(
    tell: Tell, progress: Progress = ignore_progress, *, may_create: bool = True
) -> OptimumEnvironment:
    """Give the environment, making it first if it is absent or broken.

    Args:
        tell: Gets a text about what will be installed, before anything is.
        progress: Called as ``progress(what, n_done, n_total)``.
        may_create: Whether it may be installed; if not, an absent one is refused.

    Raises:
        ExportError: It cannot be made: no network, no such version, no space; or it may not.
    """
    folder = environment_dir()
    found = _probe(folder)
    if found is not None:
        return found
    if not may_create:
        raise ExportError(
            "the environment of optimum does not exist",
            got=f"nothing complete at {folder}",
            do="Make it with: python scripts/optimum_env.py",
        )
    with _locked(folder):
        found = _probe(folder)  # another process may have made it in the meantime
        return found or _create(folder, tell, progress)


def child_variables() -> dict[str, str]:
    """Give the environment variables for programs of the environment."""
    kept = {name: value for name, value in os.environ.items() if name not in _DROPPED}
    return (
        kept
        | quiet_variables()
        | {
            "PIP_DISABLE_PIP_VERSION_CHECK": "1",
            "PIP_NO_INPUT": "1",
            # A setting in the user's pip.conf that a virtual environment would refuse.
            "PIP_USER": "0",
        }
    )


def _create(folder: Path, tell: Tell, progress: Progress) -> OptimumEnvironment:
    log = folder.with_suffix(".log")
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        need = INSTALLED_BYTES + DOWNLOAD_BYTES + _SPARE_BYTES
        refuse_small_disk(folder.parent, need, "for the environment of optimum", _ELSEWHERE)
        tell(_announcement(folder))
        log.unlink(missing_ok=True)
        shutil.rmtree(folder, ignore_errors=True)
        progress("make the environment of optimum", 0, 1)
        _make_venv(folder)
        _install(folder, log, progress)
        found = _look(folder)
        if found is None:
            raise ExportError(
                f"the environment at {folder} does not work",
                got=f"modules of {', '.join(REQUIREMENTS)} are missing",
                do=f"See {log}.",
            )
        text = json.dumps({"requirements": REQUIREMENTS, "versions": found.versions}, indent=1)
        (folder / _MARKER).write_text(text + "\n", encoding="utf-8")
    except OSError as error:
        shutil.rmtree(folder, ignore_errors=True)
        raise ExportError(
            f"cannot make the environment at {folder}",
            got=error.strerror or str(error),
            do=_ELSEWHERE,
        ) from error
    except BaseException:
        shutil.rmtree(folder, ignore_errors=True)
        raise
    log.unlink(missing_ok=True)
    return found


def _announcement(folder: Path) -> str:
    lines = [
        f"optimum needs an environment of its own, once: {', '.join(REQUIREMENTS)}.",
        f"It goes to {folder}; about {format_bytes(DOWNLOAD_BYTES)} to download and "
        f"{format_bytes(INSTALLED_BYTES)} on disk with a CPU build of torch.",
    ]
    if sys.platform == "linux" and platform.machine() in ("x86_64", "aarch64"):
        lines.append(
            "On Linux pip may choose a CUDA build of torch, several GB more; point pip at CPU "
            "wheels first (PIP_EXTRA_INDEX_URL or PIP_FIND_LINKS) to avoid that."
        )
    return "\n".join(lines)


def _make_venv(folder: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-I", "-m", "venv", str(folder)],
        capture_output=True,
        text=True,
        errors="replace",
        env=child_variables(),
        check=False,
    )
    if done.returncode:
        raise ExportError(
            f"cannot make a virtual environment at {folder}",
            got=last_error((done.stdout + done.stderr).splitlines()),
            do="Install venv and ensurepip for this Python (on Debian: python3-venv).",
        )


def _install(folder: Path, log: Path, progress: Progress) -> None:
    n_seen = 0

    def on_line(line: str) -> None:
        nonlocal n_seen
        if line.lstrip().startswith(_STEPS):
            n_seen += 1
            progress(line.strip(), n_seen, 2 * len(REQUIREMENTS) + n_seen)

    code, lines = run_python(
        folder / "bin" / "python",
        "pip",
        ["install", "--no-compile", "--progress-bar", "off", *REQUIREMENTS],
        log=log,
        environment=child_variables(),
        on_line=on_line,
    )
    if code:
        raise ExportError(
            "pip could not install the environment of optimum",
            got=last_error(lines),
            wanted=", ".join(REQUIREMENTS),
            do=f"{_HINT} Full log: {log}",
        )


def _probe(folder: Path) -> OptimumEnvironment | None:
    """Give the environment if its marker exists and it still works."""
    try:
        marked = json.loads((folder / _MARKER).read_text(encoding="utf-8"))["versions"]
    except (OSError, ValueError, KeyError, TypeError):
        return None
    found = _look(folder)
    return found if found is not None and found.versions == marked else None


def _look(folder: Path) -> OptimumEnvironment | None:
    """Ask the interpreter of an environment which packages it finds."""
    try:
        done = subprocess.run(
            [str(folder / "bin" / "python"), "-I", "-c", _PROBE.format(modules=_MODULES)],
            capture_output=True,
            text=True,
            env=child_variables(),
            check=True,
        )
        missing, versions = json.loads(done.stdout)
    except (OSError, subprocess.CalledProcessError, ValueError):
        return None
    return None if missing else OptimumEnvironment(folder, versions)


@contextlib.contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """Hold the lock of an environment; the system releases it when this process dies."""
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        stream = folder.with_suffix(".lock").open("w", encoding="utf-8")
    except OSError as error:
        raise ExportError(
            f"cannot write to {folder.parent}",
            got=error.strerror or str(error),
            do="Set EDGEKIT_HOME to another folder.",
        ) from error
    with stream:
        fcntl.flock(stream, fcntl.LOCK_EX)
        yield
