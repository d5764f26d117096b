"""Measure what an export takes, beside the exporters of mlx-lm and onnxruntime-genai.

    python scripts/export_speed.py FOLDER --page
    python scripts/export_speed.py FOLDER --shape llama-100m --repeats 1
    python scripts/export_speed.py --page

FOLDER gets random bfloat16 checkpoints of 0.1, 1.1 and 3.4 B parameters (9.3 GB), written once, and
one export at a time beside them. Every export is a command in a fresh process, on weights that were
just read, so that they are in the page cache. The commands take turns, and a first round is not
counted. Of each process: wall time; the largest private (anonymous) memory, looked at every 20 ms;
the largest resident memory, kept by the kernel, mapped weights included; bytes written to the disk,
temporary ones included; bytes that remain.

The table is printed. `--page` writes docs/export_speed.md and every sample to
docs/export_speed.json; without FOLDER only the page, from the samples there. Tools that are not
installed are named. Run it on an idle machine: nothing here asserts a speed.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from statistics import median
from typing import Any, Final

from random_checkpoint import SHAPES, write_checkpoint

from edgekit.profiler.memory import MemorySampler

SHAPES_MEASURED: Final = ("llama-100m", "tinyllama-1.1b", "ministral-3-3b")
PAGE: Final = Path(__file__).resolve().parent.parent / "docs" / "export_speed.md"
SAMPLES: Final = PAGE.with_suffix(".json")
MARK: Final = "<!-- measured -->"
READ_BYTES: Final = 1 << 24
BLOCK_BYTES: Final = 512  # the unit of ru_oublock


@dataclass(frozen=True, slots=True)
class Sample:
    """One export.

    Attributes:
        shape: Name of the checkpoint.
        what: Tool and what it wrote.
        wall_s: From start to end of the process.
        private_bytes: Largest anonymous memory seen.
        resident_bytes: Largest resident memory, mapped files included.
        written_bytes: Written to the disk, temporary files included.
        size_bytes: What remains.
    """

    shape: str
    what: str
    wall_s: float
    private_bytes: int
    resident_bytes: int
    written_bytes: int
    size_bytes: int


@dataclass(frozen=True, slots=True)
class Tool:
    """An exporter.

    Attributes:
        what: As the table says it.
        modules: The packages that it needs.
        command: Model folder and output folder to the command line.
    """

    what: str
    modules: tuple[str, ...]
    command: Callable[[Path, Path], list[str]]


class ExportFailedError(Exception):
    """An exporter ended with an error; the text says which, and its last words."""


EDGEKIT_RUNS: Final[Mapping[str, tuple[str, ...]]] = {
    "MLX; int4 by search": ("mlx",),
    "ONNX, MLX and Core ML; int4 by search": ("onnx", "mlx", "coreml"),
    "all four formats; int4 by search": ("all",),
    "all four formats; --scheme fast": ("all",),
}
"""What is exported; "by search" reads no text, ``fast`` reads edgekit's own few words."""
_BY_SEARCH: Final = ("--scheme", "int4", "--method", "search", "--no-fold")


def tools() -> list[Tool]:
    """Give edgekit's runs, and the other exporters, each writing four bits."""
    python = sys.executable

    def edgekit(what: str, formats: Sequence[str]) -> Tool:
        def command(model: Path, out: Path) -> list[str]:
            asked = [part for name in formats for part in ("--format", name)]
            asked += ("--scheme", "fast") if "fast" in what else _BY_SEARCH
            return [python, "-m", "edgekit", "export", str(model), *asked, "--out", str(out)]

        return Tool(f"edgekit: {what}", (), command)

    def mlx_lm(model: Path, out: Path) -> list[str]:
        asked = ["-q", "--q-bits", "4", "--q-group-size", "64", "--mlx-path", str(out / "mlx")]
        return [python, "-m", "mlx_lm", "convert", "--hf-path", str(model), *asked]

    def genai(model: Path, out: Path) -> list[str]:
        asked = ["-p", "int4", "-e", "cpu", "-c", str(out / "cache")]
        builder = "onnxruntime_genai.models.builder"
        return [python, "-m", builder, "-i", str(model), "-o", str(out / "onnx"), *asked]

    return [
        *(edgekit(what, formats) for what, formats in EDGEKIT_RUNS.items()),
        Tool("mlx-lm convert -q, g64", ("mlx_lm",), mlx_lm),
        Tool(
            "onnxruntime-genai builder, int4",
            ("onnxruntime_genai", "onnx_ir", "torch", "transformers"),
            genai,
        ),
    ]


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", type=Path, nargs="?")
    parser.add_argument("--shape", action="append", choices=SHAPES)
    parser.add_argument("--repeats", type=int, default=3, help="counted rounds")
    parser.add_argument("--page", action="store_true", help=f"write {PAGE.name} and its samples")
    options = parser.parse_args()
    if options.folder is not None:
        data = measure_all(options)
        print("\n".join([*table(data), "", *data["missing"]]))
        if options.page:
            SAMPLES.write_text(json.dumps(data, indent=1) + "\n", encoding="utf-8")
    if options.page:
        write_page(json.loads(SAMPLES.read_text(encoding="utf-8")))


def measure_all(options: argparse.Namespace) -> dict[str, Any]:
    """Run every export in turn; give machine, samples and what was not run."""
    shapes = options.shape or SHAPES_MEASURED
    for shape in shapes:
        if not (options.folder / shape).is_dir():
            partial = options.folder / f"{shape}.partial"
            shutil.rmtree(partial, ignore_errors=True)
            write_checkpoint(partial, SHAPES[shape])
            partial.replace(options.folder / shape)
    usable, missing = [], []
    for tool in tools():
        absent = [name for name in tool.modules if find_spec(name) is None]
        if absent:
            missing.append(f"{tool.what}: not run, {', '.join(absent)} not installed")
        else:
            usable.append(tool)
    samples = []
    runs = [(tool, shape) for shape in shapes for tool in usable]
    for number in range(options.repeats + 1):
        for tool, shape in list(runs):
            try:
                sample = measure(tool, shape, options.folder)
            except ExportFailedError as error:
                missing.append(str(error))
                runs.remove((tool, shape))
                continue
            if number:
                samples.append(sample)
    return {
        "machine": machine(),
        "n_rounds": options.repeats,
        "samples": [asdict(sample) for sample in samples],
        "missing": missing,
    }


def measure(tool: Tool, shape: str, folder: Path) -> Sample:
    """Export once in a fresh process, with the weights in the page cache.

    Raises:
        ExportFailedError: The process ended with an error.
    """
    model, out = folder / shape, folder / "export"
    shutil.rmtree(out, ignore_errors=True)
    out.mkdir()
    read_all(model)
    log = folder / "export.log"
    with log.open("wb") as words:
        began = time.perf_counter()
        child = subprocess.Popen(tool.command(model, out), stdout=words, stderr=words)
        sampler = MemorySampler(child.pid)
        sampler.start()
        _, status, usage = os.wait4(child.pid, 0)
        wall_s = time.perf_counter() - began
    peak = sampler.stop()
    child.returncode = os.waitstatus_to_exitcode(status)
    if child.returncode:
        lines = log.read_text(encoding="utf-8", errors="replace").strip().splitlines()
        reason = lines[-1].replace(f"{folder}/", "") if lines else "no word"
        raise ExportFailedError(f"{tool.what} of {shape}: exit status {child.returncode}, {reason}")
    size = sum(path.stat().st_size for path in out.rglob("*") if path.is_file())
    shutil.rmtree(out)
    resident = usage.ru_maxrss * (1 if sys.platform == "darwin" else 1024)
    written = usage.ru_oublock * BLOCK_BYTES
    return Sample(shape, tool.what, wall_s, peak.anon_bytes, resident, written, size)


def read_all(folder: Path) -> None:
    """Read every file of a folder once."""
    for path in sorted(folder.iterdir()):
        with path.open("rb", buffering=0) as stream:
            while stream.read(READ_BYTES):
                pass


def table(data: Mapping[str, Any]) -> list[str]:
    """Write the samples as lines of Markdown: medians, of times the range too."""
    samples = [Sample(**sample) for sample in data["samples"]]
    lines = [
        "| model | export | s, median (min to max) | private, MB | resident, MB | written, MB "
        "| remains, MB |",
        "| --- | --- | --- | --- | --- | --- | --- |",
    ]
    groups: dict[tuple[str, str], list[Sample]] = {}
    for sample in samples:
        groups.setdefault((sample.shape, sample.what), []).append(sample)
    for (shape, what), found in groups.items():
        times = sorted(sample.wall_s for sample in found)
        sizes = [
            f"{median(values) / 1e6:,.0f}"
            for values in (
                [sample.private_bytes for sample in found],
                [sample.resident_bytes for sample in found],
                [sample.written_bytes for sample in found],
                [sample.size_bytes for sample in found],
            )
        ]
        spread = f"{median(times):.1f} ({times[0]:.1f} to {times[-1]:.1f})"
        lines.append(f"| {shape} | {what} | {spread} | {' | '.join(sizes)} |")
    return lines


def write_page(data: Mapping[str, Any]) -> None:
    """Write the table below the text that the page holds already."""
    text = PAGE.read_text(encoding="utf-8").partition(MARK)[0]
    about = ", ".join(f"{name} {value}" for name, value in data["machine"].items())
    lines = [f"{data['n_rounds']} rounds; {about}.", "", *table(data), *data["missing"]]
    PAGE.write_text(text + MARK + "\n\n" + "\n".join(lines) + "\n", encoding="utf-8")


def machine() -> Mapping[str, str]:
    """Say where the samples were taken, and with what."""
    tools = ("numpy", "numba", "mlx-lm", "onnxruntime-genai", "torch")
    return {
        "system": platform.platform(),
        "processor": platform.processor() or platform.machine(),
        "n_cores": str(os.cpu_count()),
        "python": platform.python_version(),
        **{name: version(name) for name in tools if find_spec(name.replace("-", "_"))},
    }


if __name__ == "__main__":
    main()
