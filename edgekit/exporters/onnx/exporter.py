"""The ONNX exporter: a quantized model as an ONNX artifact.

It joins the weight file (weights.py), the graph (graph.py, attention.py, ops.py), the config for
onnxruntime-genai (genai.py), and reading back (recover.py).
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Final

from edgekit.artifact import Artifact, Format
from edgekit.decision import Accepted, Decision, Rejected
from edgekit.encoding import Encoding
from edgekit.errors import ExportError
from edgekit.exporters.base import ExportOptions, SizeEstimate, Written
from edgekit.exporters.context import ContextRange, usual_length
from edgekit.exporters.onnx.activations import (
    ACCURACY_LEVEL,
    describe_precision,
    plan_precision,
    terms_of,
)
from edgekit.exporters.onnx.attention import HEAD_STEP
from edgekit.exporters.onnx.genai import GENAI_NAME, genai_config
from edgekit.exporters.onnx.graph import IR_VERSION, OPSET, GraphBuilder
from edgekit.exporters.onnx.recover import recover_tensors
from edgekit.exporters.onnx.weights import (
    WEIGHTS_NAME,
    make_tables,
    plan_arrays,
    plan_linears,
    read_offsets,
    weight_file_bytes,
    write_weights,
)
from edgekit.families.spec import DecoderSpec
from edgekit.formats.onnx_io import GRAPH_NAME
from edgekit.formats.safetensors import SafetensorsFile
from edgekit.lazy import require
from edgekit.progress import Progress
from edgekit.quantize.memory_estimate import largest_handled_bytes
from edgekit.quantize.model import ModelOutline, ModelTensor, QuantizedModel, encodings_of

_GRAPH_LAYER_BYTES: Final = 4 << 10


class OnnxExporter:
    """Writes ``model.onnx``, ``weights.safetensors``, ``genai_config.json`` and the assets."""

    format = Format.ONNX

    def supports(self, spec: DecoderSpec, encodings: Mapping[str, Encoding]) -> Decision:
        """Tell whether this format can hold the model, before any work."""
        del encodings
        if spec.n_heads % spec.n_kv_heads:
            return Rejected(
                f"{spec.n_heads} query heads do not divide among {spec.n_kv_heads} key heads"
            )
        if spec.head_width % HEAD_STEP:
            return Rejected(
                f"GroupQueryAttention needs a head width that is a multiple of {HEAD_STEP}, "
                f"not {spec.head_width}"
            )
        return Accepted()

    def positions(self, spec: DecoderSpec) -> ContextRange:
        """Tell how many positions an artifact can hold."""
        return ContextRange(usual_length(spec), spec.context_length)

    def predict(self, model: ModelOutline, options: ExportOptions) -> SizeEstimate:
        """Estimate the size of what ``write`` writes; reads no tensor."""
        spec = model.spec
        encodings = encodings_of(model.entries)
        arrays = plan_arrays(spec, encodings, self._n_positions(spec, options))
        tables = sum(stored.info.n_bytes for stored in arrays if not stored.sources)
        return SizeEstimate(
            weight_file_bytes(arrays) + spec.n_layers * _GRAPH_LAYER_BYTES,
            tables + largest_handled_bytes(model.entries),
        )

    def write(
        self, model: QuantizedModel, folder: Path, options: ExportOptions, progress: Progress
    ) -> Written:
        """Write all files of the artifact except the manifest; the graph comes last.

        Raises:
            ExportError: The format cannot hold the model.
            OSError: A file cannot be written.
        """
        spec = model.spec
        encodings = encodings_of(model.entries)
        decision = self.supports(spec, encodings)
        if isinstance(decision, Rejected):
            raise ExportError("ONNX cannot hold this model", got=decision.reason)
        n_positions = self._n_positions(spec, options)
        missing = sorted(set(spec.weight_shapes()) - set(encodings))
        if missing:
            raise ExportError("the model lacks tensors", got=", ".join(missing))
        arrays = plan_arrays(spec, encodings, n_positions)
        tables = make_tables(spec, n_positions)
        write_weights(folder / WEIGHTS_NAME, arrays, model, tables, progress)
        with SafetensorsFile(folder / WEIGHTS_NAME) as weights:
            offsets = read_offsets(weights, arrays)
        precision = plan_precision(spec, model.entries)
        terms = terms_of(precision)
        graph = GraphBuilder(spec, encodings, arrays, offsets, n_positions, terms).build()
        config = genai_config(spec, GRAPH_NAME, n_positions)
        for name, source in model.assets.items():
            shutil.copyfile(source, folder / name)
        text = json.dumps(config, indent=2, sort_keys=True) + "\n"
        (folder / GENAI_NAME).write_text(text, encoding="utf-8")
        (folder / GRAPH_NAME).write_bytes(graph.SerializeToString(deterministic=True))
        return Written(
            context_length=n_positions,
            tool_versions={"onnx": require("onnx").__version__},
            settings={
                "opset": OPSET,
                "ir_version": IR_VERSION,
                "accuracy_level": ACCURACY_LEVEL,
                "activations": "fp32",
                "matmuls": describe_precision(precision, plan_linears(spec, encodings, terms)),
                "weights_file": WEIGHTS_NAME,
            },
        )

    def recover(self, artifact: Artifact) -> Iterator[ModelTensor]:
        """Re-read every tensor with the onnx library, one at a time, in file order.

        Exact: integer tensors come back with the codes and scales that were written.

        Raises:
            FormatError: The files are not what this exporter writes.
        """
        return recover_tensors(artifact)

    def _n_positions(self, spec: DecoderSpec, options: ExportOptions) -> int:
        return self.positions(spec).choose(options.context_length, self.format.value)
