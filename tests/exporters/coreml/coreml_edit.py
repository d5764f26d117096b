"""Single changes that damage a saved Core ML package."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from edgekit.artifact import Artifact
from edgekit.exporters.base import ExportOptions
from edgekit.exporters.coreml.exporter import CoremlExporter
from edgekit.exporters.staging import write_artifact
from edgekit.formats.mlpackage import PACKAGE_NAME, main_block, read_spec, spec_path
from edgekit.quantize.model import QuantizedModel


def export(model: QuantizedModel, folder: Path, context_length: int | None = None) -> Artifact:
    """Export into ``folder / "coreml"``."""
    options = ExportOptions(context_length=context_length)
    return write_artifact(CoremlExporter(), model, folder / "coreml", options)


def copy(artifact: Artifact, folder: Path) -> Artifact:
    """Copy an artifact, for a test that damages it."""
    return Artifact.open(shutil.copytree(artifact.path, folder / "copy"))


@contextmanager
def edited(artifact: Artifact) -> Iterator[Any]:
    """Give the spec of an artifact's package; what is changed in it is saved."""
    package = artifact.path / PACKAGE_NAME
    spec = read_spec(package)
    yield spec
    spec_path(package).write_bytes(spec.SerializeToString(deterministic=True))


def find_op(spec: Any, is_wanted: Callable[[Any], bool]) -> Any:
    """Give the first op of the program that fits."""
    return next(op for op in main_block(spec).operations if is_wanted(op))


def merge_state_reads(spec: Any) -> None:
    """Do what coremltools' remove_redundant_ops does to a naive cache.

    Every read of a state becomes the first one, so that layer 1 writes back the cache as it was
    before layer 0.
    """
    block = main_block(spec)
    first: dict[str, str] = {}
    renamed: dict[str, str] = {}
    kept = []
    for op in block.operations:
        for argument in op.inputs.values():
            for binding in argument.arguments:
                if binding.name in renamed:
                    binding.name = renamed[binding.name]
        if op.type == "read_state":
            state = op.inputs["input"].arguments[0].name
            name = op.outputs[0].name
            if state in first:
                renamed[name] = first[state]
                continue
            first[state] = name
        kept.append(op)
    copies = [type(op).FromString(op.SerializeToString()) for op in kept]
    del block.operations[:]
    block.operations.extend(copies)
