"""Export through optimum: trace a model, compare the graph with it, write an ONNX artifact.

This is not an ``Exporter``. ``optimum-cli`` traces the model in an environment of its own
(environment.py), the graph is compared there with the model (check.py), and the files become an
artifact with the manifest that every artifact has.
"""

from __future__ import annotations

import json
import os
import platform
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any, Final

from edgekit.artifact import MANIFEST_NAME, OPTIMUM_GRAPH, Artifact, Format, Manifest
from edgekit.checkpoint.assets import copy_assets, read_text
from edgekit.checkpoint.base import Checkpoint
from edgekit.encoding import FP16, FP32, Encoding
from edgekit.errors import CheckpointError, ExportError, UsageError
from edgekit.exporters.base import ExportOptions
from edgekit.exporters.context import ContextRange
from edgekit.exporters.staging import list_files, refuse_small_disk, staged_folder
from edgekit.exporters.work_folder import work_folder
from edgekit.formats.onnx_io import GRAPH_NAME
from edgekit.optimum import check as optimum_check
from edgekit.optimum.child import last_error, run_python
from edgekit.optimum.environment import OptimumEnvironment, child_variables
from edgekit.optimum.graph import GraphFacts, read_facts
from edgekit.optimum.model import (
    check_floats,
    check_model_type,
    read_rows,
    trained_length,
    translate_config,
    write_input_folder,
)
from edgekit.paths import cache_dir
from edgekit.progress import Progress
from edgekit.quantize.model import Source
from edgekit.text.view import TextView

DEFAULT_CONTEXT: Final = 4096
# For models whose config states no length (ALiBi): the length that bloom was trained with.
_UNSAID_CONTEXT: Final = 2048
_MAX_POSITIONS: Final = 1 << 20
_GRAPH: Final = "optimum's graph"
_CHECK_TOKENS: Final = 192
_CLI: Final = "optimum.commands.optimum_cli"
# Largest logit error against transformers, as a multiple of the logits' standard deviation.
_TOLERANCES: Final[Mapping[Encoding, float]] = {
    FP32: 2e-4,  # float32 sums in another order, as pipeline/verify.py has it
    FP16: 5e-2,  # half the digits in weights, activations and cache
}
# Text in optimum's output -> the step that begins with it; the last step is the comparison.
_STAGES: Final = (
    ("torch_dtype", "load the model"),
    ("TracerWarning", "trace the model"),
    ("tied weights", "join tied weights"),
    ("exported model was saved", "graph written"),
)
_N_STEPS: Final = len(_STAGES) + 2
_OFFLINE: Final = {
    "CUDA_VISIBLE_DEVICES": "",
    "HF_HUB_OFFLINE": "1",
    "TRANSFORMERS_OFFLINE": "1",
}


@dataclass(frozen=True, slots=True)
class Comparison:
    """Optimum's graph against the transformers model that it was traced from."""

    n_tokens: int
    max_error: float
    std: float
    top1: float
    unexpected_keys: tuple[str, ...]

    @property
    def relative_error(self) -> float:
        """Largest logit error as a multiple of the logits' standard deviation."""
        return self.max_error / self.std if self.std else float("inf")


def check_request(checkpoint: Checkpoint, dtype: Encoding, options: ExportOptions) -> None:
    """Refuse, before any work or download, what optimum cannot do.

    Raises:
        UsageError: The scheme, the context length or a quantized source.
        UnsupportedArchError: The model_type, or an encoding that its config cannot express.
    """
    if dtype not in _TOLERANCES:
        raise UsageError(
            "--via optimum cannot write this scheme",
            got=str(dtype),
            wanted=" or ".join(map(str, _TOLERANCES)),
            do="optimum writes float weights; edgekit quantizes only graphs of its own, for "
            "families it knows (leave --via out).",
        )
    where = str(checkpoint.folder)
    check_model_type(checkpoint.config, where)
    check_floats(checkpoint.config, where)
    _positions(translate_config(checkpoint.config, where)).choose(options.context_length, _GRAPH)


def write_optimum_artifact(
    checkpoint: Checkpoint,
    source: Source,
    environment: OptimumEnvironment,
    dtype: Encoding,
    folder: Path,
    options: ExportOptions,
    progress: Progress,
) -> Artifact:
    """Trace a checkpoint and write it as an artifact, replacing an earlier one there.

    Raises:
        UsageError, UnsupportedArchError: See ``check_request``.
        ExportError: optimum failed, its graph is not what the engine can feed or not equal to the
            model, or a file cannot be written. The folder is then as it was before.
        CheckpointError: Weights that the model needs are not in the checkpoint.
    """
    check_request(checkpoint, dtype, options)
    n_parameters = sum(tensor.info.n_elements for tensor in checkpoint.tensors.values())
    # The tracer writes tensors one by one and then joins them.
    refuse_small_disk(
        folder.parent, 8 * n_parameters, "for the export", "Free space or choose another --out."
    )
    with staged_folder(folder) as staging, _scratch(folder.parent) as scratch:
        given = scratch / "model"
        traced = scratch / "traced"
        given.mkdir()
        config = write_input_folder(checkpoint, given)
        positions = _positions(config)
        n_positions = positions.choose(options.context_length, _GRAPH)
        cut = positions.note(options.context_length, positions.longest)
        notes = [text for text in (positions.reason, cut) if text]
        view = read_text(checkpoint, read_rows(config))
        with _log(checkpoint.name) as log:
            _trace(environment, given, traced, dtype, log, progress)
            facts = read_facts(traced / GRAPH_NAME)
            progress("compare with the model", _N_STEPS - 1, _N_STEPS)
            n_tokens = min(_CHECK_TOKENS, n_positions)
            found = _compare(environment, given, traced, scratch, n_tokens, log)
            _refuse_difference(found, dtype, checkpoint)
        _move_graph(traced, staging)
        copy_assets(view, staging)
        checkpoint.refuse_changed(None)
        manifest = _manifest(
            checkpoint,
            source,
            environment,
            dtype,
            facts,
            found,
            n_positions,
            notes,
            view,
            staging,
        )
        (staging / MANIFEST_NAME).write_bytes(manifest.to_json().encode("utf-8"))
    progress("done", _N_STEPS, _N_STEPS)
    return Artifact.open(folder)


def _trace(
    environment: OptimumEnvironment,
    given: Path,
    traced: Path,
    dtype: Encoding,
    log: Path,
    progress: Progress,
) -> None:
    step = 0
    progress("start optimum", step, _N_STEPS)

    def on_line(line: str) -> None:
        nonlocal step
        for index, (phrase, title) in enumerate(_STAGES[step:], start=step + 1):
            if phrase in line:
                step = index
                progress(title, step, _N_STEPS)
                return

    arguments = ["export", "onnx", "--model", str(given), "--task", "text-generation-with-past"]
    arguments += ["--dtype", str(dtype), "--device", "cpu", "--framework", "pt", str(traced)]
    code, lines = run_python(
        environment.python,
        _CLI,
        arguments,
        log=log,
        environment=_variables(environment),
        on_line=on_line,
    )
    if code or not (traced / GRAPH_NAME).is_file():
        hint = "Try --scheme fp32, which it can for more architectures. " if dtype == FP16 else ""
        killed = "; ended by the system, perhaps because memory ran out" if code < 0 else ""
        raise ExportError(
            f"optimum-cli export failed with exit code {code}{killed}",
            got=last_error(lines),
            do=f"{hint}Full log: {log}",
        )


def _compare(
    environment: OptimumEnvironment,
    given: Path,
    traced: Path,
    scratch: Path,
    n_tokens: int,
    log: Path,
) -> Comparison:
    result = scratch / "comparison.json"
    code, lines = run_python(
        environment.python,
        optimum_check.__file__,
        [str(given), str(traced / GRAPH_NAME), str(n_tokens), str(result)],
        log=log,
        environment=_variables(environment),
        on_line=lambda line: None,
    )
    if code or not result.is_file():
        raise ExportError(
            f"optimum's graph could not be compared with the model (exit code {code})",
            got=last_error(lines),
            do=f"Full log: {log}",
        )
    found = json.loads(result.read_text(encoding="utf-8"))
    absent = [*found["missing_keys"], *found["mismatched_keys"]]
    if absent:
        raise CheckpointError(
            f"{len(absent)} weights that the model needs are not in the checkpoint",
            got=", ".join(absent[:5]) + (" ..." if absent[5:] else ""),
            wanted="every weight; transformers would draw these at random",
            do="Download the model again, or save it with transformers 4.57.",
        )
    keys = tuple(found["unexpected_keys"])
    return Comparison(
        found["n_tokens"], found["max_error"], found["std"], found["top1"], unexpected_keys=keys
    )


def _refuse_difference(found: Comparison, dtype: Encoding, checkpoint: Checkpoint) -> None:
    if not found.relative_error <= _TOLERANCES[dtype]:
        raise ExportError(
            f"optimum's graph of {checkpoint.name} does not give the logits of the model",
            got=f"an error of {found.relative_error:.1e} standard deviations over "
            f"{found.n_tokens} tokens",
            wanted=f"at most {_TOLERANCES[dtype]:.0e}",
            do="Half precision moves this model too far; use --scheme fp32."
            if dtype == FP16
            else "The tracer lost a part of the model; it cannot be exported through optimum.",
        )


def _manifest(
    checkpoint: Checkpoint,
    source: Source,
    environment: OptimumEnvironment,
    dtype: Encoding,
    facts: GraphFacts,
    found: Comparison,
    n_positions: int,
    notes: list[str],
    view: TextView,
    staging: Path,
) -> Manifest:
    model_type = str(checkpoint.config["model_type"])
    notes = [*notes, *view.notes]
    if found.unexpected_keys:
        some = ", ".join(found.unexpected_keys[:3])
        notes.append(
            f"{len(found.unexpected_keys)} tensors left out by transformers, such as {some}"
        )
    return Manifest(
        format=Format.ONNX,
        scheme=str(dtype),
        model_name=source.name,
        model_type=model_type,
        source=source.origin,
        source_sha256=checkpoint.sha256(),
        weights_sha256="",
        n_parameters=sum(tensor.info.n_elements for tensor in checkpoint.tensors.values()),
        context_length=n_positions,
        decoder={
            "model_type": model_type,
            "context_length": n_positions,
            "eos_token_ids": list(view.end_ids),
            **facts.sizes,
        },
        tensors=facts.tensors,
        files=list_files(staging),
        tool_versions={
            "edgekit": version("edgekit"),
            "python": platform.python_version(),
            **environment.tool_versions,
        },
        settings={
            "graph": OPTIMUM_GRAPH,
            "activations": str(dtype),
            "cache_type": facts.cache_type,
            "opset": facts.opset,
            "checked_against_transformers": {
                "n_tokens": found.n_tokens,
                "max_logit_error": found.max_error,
                "logit_std": found.std,
                "top1_agreement": found.top1,
            },
        },
        notes=tuple(notes),
        end_tokens=view.ends,
    )


def _positions(config: Mapping[str, Any]) -> ContextRange:
    """Give the positions for which a traced graph is right; no length, no limit."""
    length, why_fewer = trained_length(config)
    default = min(length or _UNSAID_CONTEXT, DEFAULT_CONTEXT)
    return ContextRange(default, length or _MAX_POSITIONS, why_fewer or "")


def _variables(environment: OptimumEnvironment) -> dict[str, str]:
    return (
        child_variables()
        | _OFFLINE
        | {
            # A home of its own: the user's token, cached models and modules are not used.
            "HF_HOME": str(environment.folder / "hf-home"),
            # torch makes this folder when imported; its default is in the shared temporary folder.
            "TORCHINDUCTOR_CACHE_DIR": str(environment.folder / "torchinductor"),
        }
    )


def _move_graph(traced: Path, staging: Path) -> None:
    """Move the graph and its external data; configs and tokenizers come from the checkpoint."""
    for path in sorted(traced.glob(f"{GRAPH_NAME}*")):
        shutil.move(path, staging / path.name)
        (staging / path.name).chmod(0o644)  # the tracer gives external data to its user only


@contextmanager
def _scratch(parent: Path) -> Iterator[Path]:
    with work_folder(parent) as folder:
        yield folder.absolute()


@contextmanager
def _log(name: str) -> Iterator[Path]:
    """Give a log file that stays only if the block fails."""
    folder = cache_dir() / "logs"
    folder.mkdir(parents=True, exist_ok=True)
    log = folder / f"optimum-{name.rpartition('/')[2]}-{os.getpid()}.log"
    log.unlink(missing_ok=True)
    yield log
    log.unlink(missing_ok=True)
