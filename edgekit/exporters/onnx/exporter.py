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

from edgekit.artifact import Artifact, Format, TensorEntry
from edgekit.decision import Accepted, Decision, Rejected
from edgekit.encoding import BF16, Encoding
from edgekit.errors import ExportError
from edgekit.exporters.base import ExportOptions, Sink, SizeEstimate, Written
from edgekit.exporters.context import ContextRange, usual_length
from edgekit.exporters.onnx.activations import (
    ACCURACY_LEVEL,
    EXACT_KEY,
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
    open_weights,
    plan_arrays,
    plan_linears,
    weight_file_bytes,
)
from edgekit.families.spec import DecoderSpec
from edgekit.formats.onnx_io import GRAPH_NAME
from edgekit.lazy import require
from edgekit.quantize.model import ModelOutline, ModelTensor, QuantizedModel, encodings_of
from edgekit.text.files import TextFiles

_GRAPH_LAYER_BYTES: Final = 4 << 10


class OnnxExporter:
    """Writes ``model.onnx``, ``weights.safetensors``, ``genai_config.json`` and the assets."""

    format = Format.ONNX

    def supports(self, spec: DecoderSpec, encodings: Mapping[str, Encoding]) -> Decision:
        """Tell whether this format can hold the model, before any work."""
        if BF16 in encodings.values():
            return Rejected("onnxruntime computes no bfloat16 on a CPU; use fp16")
        if any(encoding.has_palette for encoding in encodings.values()):
            return Rejected("onnxruntime has no palettes (lut4); use int4")
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

    def supports_text(self, files: TextFiles, spec: DecoderSpec) -> Decision:
        """Tell that the format holds any tokenizer: its files lie beside the weights."""
        del files, spec
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
            tables,
        )

    def open(self, model: QuantizedModel, folder: Path, options: ExportOptions) -> Sink:
        """Begin an artifact.

        Raises:
            ExportError: The format cannot hold the model.
            OSError: A file cannot be written.
        """
        spec = model.spec
        decision = self.supports(spec, encodings_of(model.entries))
        if isinstance(decision, Rejected):
            raise ExportError("ONNX cannot hold this model", got=decision.reason)
        missing = sorted(set(spec.weight_shapes()) - {entry.name for entry in model.entries})
        if missing:
            raise ExportError("the model lacks tensors", got=", ".join(missing))
        return _OnnxSink(
            model, folder, self._n_positions(spec, options), is_exact=options.exact_activations
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


class _OnnxSink:
    """An ONNX artifact that is being written; the graph comes last. Satisfies ``Sink``."""

    def __init__(
        self, model: QuantizedModel, folder: Path, n_positions: int, *, is_exact: bool
    ) -> None:
        self._model = model
        self._is_exact = is_exact
        self._folder = folder
        self._n_positions = n_positions
        self._encodings = encodings_of(model.entries)
        self._arrays = plan_arrays(model.spec, self._encodings, n_positions)
        path = folder / WEIGHTS_NAME
        self._weights = open_weights(path, self._arrays, model.spec, n_positions)

    def put(self, tensor: ModelTensor, first_row: int = 0) -> None:
        """Write rows of a tensor."""
        self._weights.put(tensor, first_row)

    def finish(self, entries: tuple[TensorEntry, ...]) -> Written:
        """Write everything but the weights."""
        spec, n_positions = self._model.spec, self._n_positions
        self._weights.close()
        offsets = {item.info.name: self._weights.offset(item.info.name) for item in self._arrays}
        precision = plan_precision(spec, entries, is_exact=self._is_exact)
        terms = terms_of(precision)
        builder = GraphBuilder(spec, self._encodings, self._arrays, offsets, n_positions, terms)
        graph = builder.build()
        config = genai_config(spec, GRAPH_NAME, n_positions)
        for name, source in self._model.assets.items():
            shutil.copyfile(source, self._folder / name)
        text = json.dumps(config, indent=2, sort_keys=True) + "\n"
        (self._folder / GENAI_NAME).write_text(text, encoding="utf-8")
        (self._folder / GRAPH_NAME).write_bytes(graph.SerializeToString(deterministic=True))
        linears = plan_linears(spec, self._encodings, terms)
        return Written(
            context_length=n_positions,
            tool_versions={"onnx": require("onnx").__version__},
            settings={
                "opset": OPSET,
                "ir_version": IR_VERSION,
                "accuracy_level": ACCURACY_LEVEL,
                "activations": "fp32",
                "matmuls": describe_precision(precision, linears),
                **({EXACT_KEY: True} if self._is_exact else {}),
                "weights_file": WEIGHTS_NAME,
            },
        )

    def discard(self) -> None:
        """Close what is open; the caller removes the folder."""
        self._weights.discard()
