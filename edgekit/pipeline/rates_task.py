"""The child process that measures the export rates of this machine.

A random model is really exported, stage by stage: a wide one gives the costs of weights and bytes,
a deep and narrow one those of layers and libraries. It runs in a process of its own, because the
first import of a library, and the memory of a new process, can be measured only once per process.
"""

from __future__ import annotations

import contextlib
import json
import resource
import sys
import time
from collections import Counter
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from itertools import count
from math import prod
from pathlib import Path
from typing import Any, Final, Protocol

import numpy as np

from edgekit.artifact import Format
from edgekit.decision import Accepted
from edgekit.dtypes import DType
from edgekit.encoding import Encoding
from edgekit.exporters import open_exporter
from edgekit.exporters.staging import write_artifacts
from edgekit.families import open_model
from edgekit.families.base import SourceModel
from edgekit.formats.floats import to_bf16
from edgekit.formats.safetensors import SafetensorsWriter
from edgekit.lazy import require
from edgekit.quantize.encoded_model import EncodedModel, find_scales, quantize_model
from edgekit.quantize.memory_estimate import largest_held_bytes
from edgekit.quantize.model import encodings_of
from edgekit.quantize.prequantized import plan_source
from edgekit.scheme import Scheme
from edgekit.tensors import TensorInfo

KINDS: Final = ("int4", "int8", "fp16", "fp32")
_N_REPEATS: Final = 2
_N_RANDOM: Final = 1 << 20
# hidden width, feed-forward width, layers, heads, vocabulary
_WIDE: Final = (1024, 3072, 2, 16, 49152)
_DEEP: Final = (64, 128, 24, 2, 256)


class Report(Protocol):
    """Sends one event to the parent."""

    def __call__(self, event: str, **fields: Any) -> None:
        """Send ``event`` with JSON-ready fields."""
        ...


def rates_task(arguments: Mapping[str, Any], report: Report) -> dict[str, Any]:
    """Measure; give the fields of ``rates.Rates``."""
    # What the command line has loaded before it exports.
    for module in ("typer", "rich.progress"):
        require(module)
    start_s = time.monotonic() - arguments["spawn_s"]
    folder, n_threads = Path(arguments["folder"]), arguments["n_threads"]
    n_total = 2 + _N_REPEATS * len(KINDS)
    wide = _write_model(folder / "wide", _WIDE)
    deep = _write_model(folder / "deep", _DEEP)
    bench = _Bench(folder, n_threads)
    report("stage", n_done=1, n_total=n_total)
    # First, the steps of a real command, for its memory and its imports.
    first_s, process_bytes = bench.first_run(wide, KINDS[0])
    layer_s = bench.layer_s(deep)
    report("stage", n_done=2, n_total=n_total)
    for n_done in range(_N_REPEATS * len(KINDS)):
        bench.run(wide, KINDS[n_done % len(KINDS)])
        report("stage", n_done=3 + n_done, n_total=n_total)
    return {
        "n_threads": n_threads,
        "start_s": start_s,
        "hash_s": bench.hash_s(),
        "quantize_s": bench.quantize_s(),
        "calibrate_s": bench.calibrate_s(),
        "library_s": {
            form.value: max(0.0, seconds - bench.writing_s(form, KINDS[0]))
            for form, seconds in first_s.items()
        },
        "layer_s": {form.value: seconds for form, seconds in layer_s.items()},
        "write_s": bench.write_s(layer_s),
        "process_bytes": {form.value: n for form, n in process_bytes.items()},
    }


class _Bench:
    """Times stages of the wide model; of several times the median counts.

    Nothing is deleted in between: memory that was just freed is faster to get again than memory
    that an export gets (three times faster on a virtual machine).
    """

    def __init__(self, folder: Path, n_threads: int) -> None:
        self._folder = folder
        self._n_threads = n_threads
        self._hashes: list[float] = []
        self._encodes: dict[str, list[float]] = {kind: [] for kind in KINDS}
        self._writes: dict[tuple[Format, str], list[tuple[float, int]]] = {}
        self._n_weights: dict[str, Counter[str]] = {}
        self._calibrations: list[float] = []
        self._numbers = count()

    def first_run(self, path: Path, kind: str) -> tuple[dict[Format, float], dict[Format, int]]:
        """Export in every format; give the seconds of each, and the process's memory after it."""
        times: dict[Format, float] = {}
        sizes: dict[Format, int] = {}
        with self._opened(path, kind) as model:
            encode_s = self._encode(model)
            held = largest_held_bytes(model.entries)
            for form in Format:
                times[form] = self._write(model, form, encode_s)[0]
                sizes[form] = _peak_bytes() - held
        return times, sizes

    def layer_s(self, path: Path) -> dict[Format, float]:
        """Give the seconds for each layer of a model that is nearly all graph."""
        with self._opened(path, KINDS[0]) as model:
            encode_s = self._encode(model)
            times = {form: self._write(model, form, encode_s)[0] for form in Format}
            return {form: seconds / model.spec.n_layers for form, seconds in times.items()}

    @contextlib.contextmanager
    def _opened(self, path: Path, kind: str) -> Iterator[EncodedModel]:
        source = open_model(path)
        try:
            yield quantize_model(source, Scheme.parse(kind), self._new("files"), fold=False)
        finally:
            source.close()

    def _encode(self, model: EncodedModel) -> float:
        """Encode every tensor and write none; give the seconds."""
        began_s = time.perf_counter()
        parts = [(e.name, part) for e in model.entries for part in model.row_blocks(e.name)]
        with ThreadPoolExecutor(self._n_threads) as pool:
            for _ in pool.map(lambda item: model.rows(*item) and None, parts):
                pass
        return time.perf_counter() - began_s

    def run(self, path: Path, kind: str) -> None:
        """Encode to one kind, and write every format that accepts it; store all times."""
        source = open_model(path)
        try:
            began_s = time.perf_counter()
            source.checkpoint.sha256()
            n_source_bytes = source.checkpoint.weights_bytes
            self._hashes.append((time.perf_counter() - began_s) / n_source_bytes)
            if Scheme.parse(kind).is_quantized:
                self._calibrations.append(_calibrate(source, Scheme.parse(kind)))
        finally:
            source.close()
        with self._opened(path, kind) as model:
            encode_s = self._encode(model)
            self._encodes[kind].append(encode_s)
            self._n_weights[kind] = Counter()
            for entry in model.entries:
                self._n_weights[kind][Encoding.parse(entry.encoding).kind] += prod(entry.shape)
            encodings = encodings_of(model.entries)
            for form in Format:
                if isinstance(open_exporter(form).supports(model.spec, encodings), Accepted):
                    written = self._write(model, form, encode_s)
                    self._writes.setdefault((form, kind), []).append(written)

    def _write(self, model: EncodedModel, form: Format, encode_s: float) -> tuple[float, int]:
        """Write an artifact; give the seconds beyond those of encoding, and bytes."""
        exporters = {self._new("artifact"): open_exporter(form)}
        began_s = time.perf_counter()
        [artifact] = write_artifacts(exporters, model, n_threads=self._n_threads)
        return max(0.0, time.perf_counter() - began_s - encode_s), artifact.n_bytes

    def _new(self, name: str) -> Path:
        return self._folder / f"{next(self._numbers)}" / name

    def hash_s(self) -> float:
        """Seconds for each byte of a source."""
        return float(np.median(self._hashes))

    def calibrate_s(self) -> float:
        """Seconds for each weight of the layers."""
        return float(np.median(self._calibrations))

    def quantize_s(self) -> dict[str, float]:
        """Seconds for each weight by kind; an int4 model has 8-bit weights, too."""
        costs: dict[str, float] = {}
        for kind in reversed(KINDS):
            counts = self._n_weights[kind]
            others = sum(n * costs.get(other, 0.0) for other, n in counts.items() if other != kind)
            total_s = float(np.median(self._encodes[kind]))
            costs[kind] = max(0.0, total_s - others) / counts[kind]
        return costs

    def write_s(self, layer_s: Mapping[Format, float]) -> dict[str, dict[str, float]]:
        """Seconds for each byte by format and kind, without the cost of the layers."""
        costs: dict[str, dict[str, float]] = {form.value: {} for form in Format}
        for (form, kind), runs in self._writes.items():
            of_bytes_s = max(0.0, self.writing_s(form, kind) - _WIDE[2] * layer_s[form])
            costs[form.value][kind] = of_bytes_s / runs[0][1]
        return costs

    def writing_s(self, form: Format, kind: str) -> float:
        """Seconds to write the wide model, with its library already loaded."""
        return float(np.median([seconds for seconds, _ in self._writes[form, kind]]))


def _calibrate(source: SourceModel, scheme: Scheme) -> float:
    """Choose channel scales; give the seconds for each weight of the layers."""
    began_s = time.perf_counter()
    find_scales(source, plan_source(source, scheme))
    shapes = source.spec.weight_shapes()
    n_weights = sum(prod(shape) for name, shape in shapes.items() if name.startswith("layers."))
    return (time.perf_counter() - began_s) / n_weights


def _write_model(folder: Path, sizes: tuple[int, ...]) -> Path:
    """Write a random Llama in bfloat16."""
    width, ffn, n_layers, n_heads, n_tokens = sizes
    folder.mkdir()
    config = {
        "model_type": "llama", "hidden_size": width, "intermediate_size": ffn,
        "num_hidden_layers": n_layers, "num_attention_heads": n_heads,
        "num_key_value_heads": n_heads, "vocab_size": n_tokens, "rms_norm_eps": 1e-5,
        "max_position_embeddings": 4096, "tie_word_embeddings": True, "torch_dtype": "bfloat16",
    }  # fmt: skip
    (folder / "config.json").write_text(json.dumps(config))
    shapes = {"model.embed_tokens": (n_tokens, width), "model.norm": (width,)}
    for i in range(n_layers):
        at = f"model.layers.{i}."
        shapes |= {f"{at}self_attn.{part}_proj": (width, width) for part in "qkvo"}
        shapes |= {f"{at}mlp.{part}_proj": (ffn, width) for part in ("gate", "up")}
        shapes[f"{at}mlp.down_proj"] = (width, ffn)
        shapes |= dict.fromkeys((f"{at}input_layernorm", f"{at}post_attention_layernorm"), (width,))
    infos = [TensorInfo(f"{name}.weight", shape, DType.BF16) for name, shape in shapes.items()]
    values = np.random.default_rng(0).standard_normal(_N_RANDOM, dtype=np.float32)
    bits = to_bf16(values * np.float32(1 / 32))
    with SafetensorsWriter(folder / "model.safetensors", infos) as writer:
        for info in infos:
            writer.write(info.name, np.resize(bits, info.shape))
    return folder


def _peak_bytes() -> int:
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
