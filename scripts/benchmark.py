"""Measure this machine: start-up, export and speed of the bundled model, or speed of another.

    python scripts/benchmark.py [--repeats N] [--out FILE.json]
    python scripts/benchmark.py --model MODEL --scheme int4 --scheme int4-g128 --gguf FILE.gguf

Whole-process figures (start-up, export) run as child processes, interleaved, after one
discarded run each; medians with minimum and maximum, every sample in the JSON. Decode and
prefill run in turn at equal threads: edgekit and stock onnxruntime-genai on the same ONNX files,
and with `--gguf` llama.cpp (llama-cpp-python) on files of the same model, such as the study
(scripts/quantization_study.py) leaves. With `--model` only this second part is measured.
Nothing here asserts a speed: it is a report, not a test.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

N_PROMPT, N_NEW = 64, 128
START_LIMIT_S = 0.200


def time_process(command: list[str]) -> dict[str, float]:
    """Run a command; give wall seconds and its peak resident bytes."""
    start = time.perf_counter()
    child = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    _, status, usage = os.wait4(child.pid, 0)
    child.returncode = os.waitstatus_to_exitcode(status)
    if child.returncode:
        sys.exit(f"failed with {child.returncode}: {' '.join(command)}")
    scale = 1 if sys.platform == "darwin" else 1024
    return {"wall_s": time.perf_counter() - start, "peak_bytes": float(usage.ru_maxrss * scale)}


def measure_processes(folder: Path, n_repeats: int) -> dict[str, list[dict[str, float]]]:
    """Time start-up and export, one of each in turn, first round discarded."""
    python = [sys.executable]
    edgekit = [*python, "-m", "edgekit"]
    commands = {
        "python, nothing": [*python, "-c", "pass"],
        "import edgekit": [*python, "-c", "import edgekit"],
        "edgekit --help": [*edgekit, "--help"],
    }
    for fmt in ("onnx", "mlx", "coreml", "all"):
        for scheme in ("int4", "int8"):
            out = str(folder / f"{fmt}-{scheme}")
            options = ["--format", fmt, "--scheme", scheme, "--out", out]
            commands[f"export {fmt} {scheme}"] = [*edgekit, "export", "pocket", *options]
    samples: dict[str, list[dict[str, float]]] = {name: [] for name in commands}
    for round_index in range(n_repeats + 1):
        for name, command in commands.items():
            sample = time_process(command)
            if round_index:
                samples[name].append(sample)
    return samples


def decode_edgekit(folder: str, n_threads: int, n_prompt: int) -> tuple[float, float]:
    """Give prefill and decode tokens per second of our engine, one fresh session."""
    from edgekit.artifact import Artifact
    from edgekit.runtime import open_decoder

    decoder = open_decoder(Artifact.open(folder), n_threads=n_threads)
    start = time.perf_counter()
    token = int(decoder.forward(prompt(n_prompt), n_past=0)[-1].argmax())
    first = time.perf_counter()
    for n_past in range(n_prompt, n_prompt + N_NEW - 1):
        token = int(decoder.forward([token], n_past=n_past)[-1].argmax())
    last = time.perf_counter()
    decoder.close()
    return n_prompt / (first - start), (N_NEW - 1) / (last - first)


def decode_genai(folder: str, n_threads: int, n_prompt: int) -> tuple[float, float]:
    """Give prefill and decode tokens per second of stock onnxruntime-genai on the same files."""
    import onnxruntime_genai as og

    config = og.Config(folder)
    config.overlay(
        json.dumps({"model": {"decoder": {"session_options": {"intra_op_num_threads": n_threads}}}})
    )
    model = og.Model(config)
    params = og.GeneratorParams(model)
    params.set_search_options(max_length=n_prompt + N_NEW, min_length=n_prompt + N_NEW)
    generator = og.Generator(model, params)
    start = time.perf_counter()
    generator.append_tokens(prompt(n_prompt))
    generator.generate_next_token()
    first = time.perf_counter()
    for _ in range(N_NEW - 1):
        generator.generate_next_token()
    last = time.perf_counter()
    return n_prompt / (first - start), (N_NEW - 1) / (last - first)


def decode_llama(file: str, n_threads: int, n_prompt: int) -> tuple[float, float]:
    """Give prefill and decode tokens per second of llama.cpp on a GGUF file."""
    import llama_cpp
    import numpy as np

    llama = llama_cpp.Llama(
        file, n_ctx=n_prompt + N_NEW, n_batch=max(512, n_prompt), n_threads=n_threads,
        n_threads_batch=n_threads, verbose=False,
    )  # fmt: skip
    n_vocab = llama.n_vocab()

    def likeliest() -> int:
        logits = llama_cpp.llama_get_logits_ith(llama.ctx, -1)
        return int(np.ctypeslib.as_array(logits, (n_vocab,)).argmax())

    start = time.perf_counter()
    llama.eval(prompt(n_prompt))
    token = likeliest()
    first = time.perf_counter()
    for _ in range(N_NEW - 1):
        llama.eval([token])
        token = likeliest()
    last = time.perf_counter()
    llama.close()
    return n_prompt / (first - start), (N_NEW - 1) / (last - first)


def prompt(n_tokens: int) -> list[int]:
    """Give the ids of a prompt that every model has."""
    return [5 + i % 97 for i in range(n_tokens)]


def export_onnx(model: str, schemes: list[str], folder: Path) -> dict[str, str]:
    """Export a model; give scheme -> folder of the artifact."""
    from edgekit.pipeline.export import export

    return {scheme: str(export(model, "onnx", scheme, folder)[0].path) for scheme in schemes}


def measure_decode(
    artifacts: dict[str, str], files: list[str], n_repeats: int, n_threads: int, n_prompt: int
) -> dict[str, list[tuple[float, float]]]:
    """Run every engine in turn, first round discarded.

    Args:
        artifacts: Scheme -> folder of an ONNX artifact, for edgekit and onnxruntime-genai.
        files: GGUF files, for llama.cpp.
        n_repeats: Counted rounds.
        n_threads: Threads of each engine.
        n_prompt: Tokens of the prompt.
    """
    runs: dict[str, Callable[[], tuple[float, float]]] = {}
    for scheme, folder in artifacts.items():
        runs[f"edgekit {scheme}"] = partial(decode_edgekit, folder, n_threads, n_prompt)
        runs[f"onnxruntime-genai {scheme}"] = partial(decode_genai, folder, n_threads, n_prompt)
    for file in files:
        runs[f"llama.cpp {Path(file).stem}"] = partial(decode_llama, file, n_threads, n_prompt)
    samples: dict[str, list[tuple[float, float]]] = {name: [] for name in runs}
    for round_index in range(n_repeats + 1):
        for name, run in runs.items():
            sample = run()
            if round_index:
                samples[name].append(sample)
    return samples


def describe(values: list[float], unit: float = 1.0, digits: int = 0) -> str:
    """Write median (minimum to maximum)."""
    low, mid, high = (v / unit for v in (min(values), median(values), max(values)))
    return f"{mid:,.{digits}f} ({low:,.{digits}f} to {high:,.{digits}f})"


def print_processes(processes: dict[str, list[dict[str, float]]]) -> None:
    """Print the figures of whole processes as Markdown."""
    print("| process | ms, median (min to max) | peak memory, MiB |")
    print("| --- | --- | --- |")
    for name, samples in processes.items():
        wall = describe([s["wall_s"] for s in samples], 1e-3)
        peak = describe([s["peak_bytes"] for s in samples], 1024**2)
        print(f"| {name} | {wall} | {peak} |")
    slow = median(s["wall_s"] for s in processes["edgekit --help"])
    word = "within" if slow < START_LIMIT_S else "MISSED:"
    print(f"\n`edgekit --help` goal of {1e3 * START_LIMIT_S:.0f} ms: {word} {1e3 * slow:.0f} ms\n")


def print_decode(decode: dict[str, list[tuple[float, float]]], n_threads: int) -> None:
    """Print speeds as Markdown, and each engine over the first on the same rounds."""
    first = next(iter(decode))
    print(f"| engine, {n_threads} thread(s) | prefill tok/s | decode tok/s | decode / {first} |")
    print("| --- | --- | --- | --- |")
    for name, runs in decode.items():
        ratios = [run[1] / base[1] for run, base in zip(runs, decode[first], strict=True)]
        prefill, speed = describe([r[0] for r in runs]), describe([r[1] for r in runs])
        print(f"| {name} | {prefill} | {speed} | {describe(ratios, digits=2)} |")


def main() -> None:
    """Measure everything and print it; keep the samples in a JSON file if asked."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--repeats", type=int, default=5, help="counted rounds, at least 5")
    parser.add_argument("--out", type=Path, help="keep every sample in this JSON file")
    parser.add_argument("--model", help="measure only the speed of this model")
    parser.add_argument("--scheme", action="append", help="of its ONNX artifacts; also presets")
    parser.add_argument("--gguf", action="append", default=[], help="its files for llama.cpp")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--prompt", type=int, default=N_PROMPT, help="tokens of the prompt")
    args = parser.parse_args()
    n_repeats = max(5, args.repeats)
    data: dict[str, Any] = {}
    with tempfile.TemporaryDirectory(prefix="edgekit-benchmark-") as name:
        folder = Path(name)
        if args.model is None:
            data["processes"] = measure_processes(folder, n_repeats)
            print_processes(data["processes"])
        schemes = args.scheme or ["int4", "int8"]
        artifacts = export_onnx(args.model or "pocket", schemes, folder / "speed")
        data["decode"] = measure_decode(artifacts, args.gguf, n_repeats, args.threads, args.prompt)
    print_decode(data["decode"], args.threads)
    if args.out is not None:
        args.out.write_text(json.dumps(data, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    main()
