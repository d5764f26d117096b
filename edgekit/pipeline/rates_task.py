"""The child process that measures the export rates of this machine.

A random model is really exported, stage by stage: a wide one gives the costs of weights and bytes,
a deep and narrow one those of layers and libraries. It runs in a process of its own, because the
first import of a library, and the memory of a new process, can be measured only once per process.
"""

from __future__ import annotations

import json
import resource
import sys
import time
from collections import Counter
from collections.abc import Mapping
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
from edgekit.exporters.staging import write_artifact
from edgekit.families import open_model
from edgekit.families.base import SourceModel
from edgekit.formats.floats import to_bf16
from edgekit.formats.safetensors import SafetensorsWriter
from edgekit.lazy import require
from edgekit.quantize.memory_estimate import handled_bytes
from edgekit.quantize.model import encodings_of
from edgekit.quantize.prequantized import plan_source
from edgekit.quantize.store import StoredModel, find_scales, quantize_model
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
        self._stores: dict[str, list[float]] = {kind: [] for kind in KINDS}
        self._writes: dict[tuple[Format, str], list[tuple[float, int]]] = {}
        self._n_weights: dict[str, Counter[str]] = {}
        self._calibrations: list[float] = []
        self._numbers = count()

    def first_run(self, model: Path, kind: str) -> tuple[dict[Format, float], dict[Format, int]]:
        """Export in every format; give the seconds of each, and the process's memory after it."""
        store = self._quantize(model, kind, is_kept=False)
        encodings = [(entry, Encoding.parse(entry.encoding)) for entry in store.entries]
        largest = max(handled_bytes(entry.shape, encoding) for entry, encoding in encodings)
        times: dict[Format, float] = {}
        sizes: dict[Format, int] = {}
        for form in Format:
            times[form], _ = self._write(store, form)
            sizes[form] = _peak_bytes() - largest
        store.close()
        return times, sizes

    def layer_s(self, model: Path) -> dict[Format, float]:
        """Give the seconds for each layer of a model that is nearly all graph."""
        store = self._quantize(model, KINDS[0], is_kept=False)
        times = {form: self._write(store, form)[0] / store.spec.n_layers for form in Format}
        store.close()
        return times

    def _quantize(self, model: Path, kind: str, *, is_kept: bool = True) -> StoredModel:
        """Hash the source, then quantize it; store both times."""
        source = open_model(model)
        try:
            began_s = time.perf_counter()
            source.checkpoint.sha256()
            hashed_s = time.perf_counter()
            scheme = Scheme.parse(kind)
            store = quantize_model(
                source, scheme, self._new("store"), fold=False, n_threads=self._n_threads
            )
            # Quantizing includes hashing the source.
            hash_s = hashed_s - began_s
            quantize_s = time.perf_counter() - hashed_s - hash_s
            n_source_bytes = source.checkpoint.weights_bytes
            if is_kept and scheme.is_quantized:
                self._calibrations.append(_calibrate(source, scheme))
        finally:
            source.close()
        if is_kept:
            self._hashes.append(hash_s / n_source_bytes)
            self._stores[kind].append(max(0.0, quantize_s))
            self._n_weights[kind] = Counter()
            for entry in store.entries:
                self._n_weights[kind][Encoding.parse(entry.encoding).kind] += prod(entry.shape)
        return store

    def run(self, model: Path, kind: str) -> None:
        """Quantize to one kind and write every format that accepts it."""
        store = self._quantize(model, kind)
        for form in Format:
            if isinstance(
                open_exporter(form).supports(store.spec, encodings_of(store.entries)), Accepted
            ):
                self._writes.setdefault((form, kind), []).append(self._write(store, form))
        store.close()

    def _write(self, store: StoredModel, form: Format) -> tuple[float, int]:
        """Write an artifact; give seconds and bytes."""
        began_s = time.perf_counter()
        artifact = write_artifact(open_exporter(form), store, self._new("artifact"))
        return time.perf_counter() - began_s, artifact.n_bytes

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
            total_s = float(np.median(self._stores[kind]))
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
