"""The Core ML exporter: a quantized model as an artifact with a Core ML package.

The artifact is ``model.mlpackage`` (iOS 18 and macOS 15, key/value cache as state, weights as
int4 or int8 blocks or fp16) with the tokenizer files that swift-transformers looks for.
Weights in fp32 are refused: states and logits of Core ML are fp16, so such a package would be
twice as large without being more exact.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator, Mapping
from importlib.metadata import version
from math import prod
from pathlib import Path
from typing import Any, Final

from edgekit.artifact import Artifact, Format, TensorEntry
from edgekit.decision import Accepted, Decision, Rejected
from edgekit.encoding import BF16, FP32, Encoding
from edgekit.errors import ExportError
from edgekit.exporters.base import ExportOptions, Sink, SizeEstimate, Written
from edgekit.exporters.context import ContextRange, usual_length
from edgekit.exporters.coreml.attention import position_bytes
from edgekit.exporters.coreml.graph import build_graph
from edgekit.exporters.coreml.lint import lint_package
from edgekit.exporters.coreml.package import SPECIFICATION_VERSION, PackageWriter
from edgekit.exporters.coreml.recover import recover_tensors
from edgekit.families.spec import DecoderSpec
from edgekit.formats.mlpackage import (
    CAUSAL_MASK,
    INPUT_IDS,
    KEY_CACHE,
    LOGITS,
    PACKAGE_NAME,
    VALUE_CACHE,
)
from edgekit.quantize.model import (
    ModelOutline,
    ModelTensor,
    QuantizedModel,
    combine_hashes,
    encodings_of,
)
from edgekit.text.files import TextFiles

_GRAPH_LAYER_BYTES: Final = 20 << 10
# Source: huggingface/swift-transformers issue 136.
MAX_CONTEXT_LENGTH: Final = 16384
_LONGER: Final = "packages of 32,768 positions and more fail to load"
_TOKENIZER_CONFIG: Final = "tokenizer_config.json"
# swift-transformers refuses other classes; what a class does depends on tokenizer.json alone.
_SWIFT_TOKENIZERS: Final = frozenset(
    {
        "BertTokenizer", "CodeGenTokenizer", "CodeLlamaTokenizer", "CohereTokenizer",
        "DistilBertTokenizer", "FalconTokenizer", "GemmaTokenizer", "GPT2Tokenizer",
        "LlamaTokenizer", "PreTrainedTokenizer", "Qwen2Tokenizer", "RobertaTokenizer",
        "T5Tokenizer", "TokenizersBackend", "WhisperTokenizer", "XLMRobertaTokenizer",
    }
)  # fmt: skip
_FALLBACK_TOKENIZER: Final = "PreTrainedTokenizerFast"
_FEATURES: Final = {
    INPUT_IDS: "New token ids [1, T].",
    CAUSAL_MASK: "Added to the scores [1, 1, 1 or T, past + T]; its length tells where the new "
    "tokens go. Zeros will do: the model hides later positions itself.",
    KEY_CACHE: "Keys of all layers [L, 1, K, CTX, D].",
    VALUE_CACHE: "Values of all layers [L, 1, K, CTX, D].",
    LOGITS: "Scores of the next token after each new token [1, T, V].",
}


class CoremlExporter:
    """Writes Core ML packages; satisfies ``Exporter`` (exporters/base.py)."""

    format = Format.COREML

    def supports(self, spec: DecoderSpec, encodings: Mapping[str, Encoding]) -> Decision:
        """Tell whether Core ML can hold the model, before any work."""
        matrices = [name for name, shape in spec.weight_shapes().items() if len(shape) == 2]
        wide = [name for name in matrices if encodings.get(name) == FP32]
        if wide:
            which = "" if len(wide) == len(matrices) else f" ({', '.join(wide[:3])})"
            return Rejected(
                f"Core ML keeps the key/value cache and the logits in fp16, so fp32 weights{which} "
                "would double the size without being more exact; use fp16"
            )
        if BF16 in encodings.values():
            return Rejected("Core ML has no bfloat16; use fp16")
        for rope in spec.ropes:
            width = rope.rotary_width or spec.head_width
            if width % 2:
                return Rejected(
                    f"RoPE rotates pairs of channels, so their number is even, not {width}"
                )
        notes = []
        four_bits = [encodings[n] for n in matrices if n in encodings and encodings[n].bits == 4]
        if any(not encoding.has_palette for encoding in four_bits):
            notes.append("int4 blocks are made for the GPU; the Neural Engine is slower")
        if spec.context_length > MAX_CONTEXT_LENGTH:
            notes.append(
                f"holds at most {MAX_CONTEXT_LENGTH:,} of the model's {spec.context_length:,} "
                f"positions: {_LONGER}"
            )
        return Accepted(tuple(notes))

    def supports_text(self, files: TextFiles, spec: DecoderSpec) -> Decision:
        """Tell that the format holds any tokenizer: its files lie beside the weights."""
        del files, spec
        return Accepted()

    def positions(self, spec: DecoderSpec) -> ContextRange:
        """Tell how many positions a package can hold."""
        longest = min(spec.context_length, MAX_CONTEXT_LENGTH)
        is_cut = longest < spec.context_length
        return ContextRange(usual_length(spec, longest), longest, _LONGER if is_cut else "")

    def predict(self, model: ModelOutline, options: ExportOptions) -> SizeEstimate:
        """Estimate the size of what ``write`` writes; reads no tensor."""
        spec = model.spec
        tables = position_bytes(spec, self._n_positions(spec, options))
        weights = sum(_stored_bytes(entry) for entry in model.entries)
        return SizeEstimate(
            weights + tables + spec.n_layers * _GRAPH_LAYER_BYTES,
            tables,
        )

    def open(self, model: QuantizedModel, folder: Path, options: ExportOptions) -> Sink:
        """Begin an artifact.

        Raises:
            ExportError: Core ML cannot hold the model, or coremltools refuses the program.
            OSError: A file cannot be written.
        """
        return _CoremlSink(model, folder, self._n_positions(model.spec, options))

    def recover(self, artifact: Artifact) -> Iterator[ModelTensor]:
        """Re-read every tensor with coremltools.

        Raises:
            FormatError: The files are not what this exporter writes.
        """
        return recover_tensors(artifact)

    def _n_positions(self, spec: DecoderSpec, options: ExportOptions) -> int:
        return self.positions(spec).choose(options.context_length, "Core ML")


class _CoremlSink:
    """A Core ML artifact that is being written; satisfies ``Sink``."""

    def __init__(self, model: QuantizedModel, folder: Path, n_positions: int) -> None:
        self._model = model
        self._folder = folder
        self._n_positions = n_positions
        self._encodings = _encodings(model)
        graph = build_graph(model.spec, self._encodings, n_positions)
        shapes = model.spec.weight_shapes()
        self._package = PackageWriter(folder / PACKAGE_NAME, graph, self._encodings, shapes)

    def put(self, tensor: ModelTensor, first_row: int = 0) -> None:
        """Write rows of a tensor."""
        self._package.put(tensor, first_row)

    def finish(self, entries: tuple[TensorEntry, ...]) -> Written:
        """Write the program and the tokenizer files, and check the package on disk."""
        model, n_positions = self._model, self._n_positions
        summary = f"{model.source.name}, {model.scheme}, with state"
        self._package.finish(summary, _metadata(model, entries, n_positions), _FEATURES)
        lint_package(self._folder / PACKAGE_NAME, self._encodings, n_positions)
        _write_assets(model.assets, self._folder)
        return Written(
            context_length=n_positions,
            tool_versions={"coremltools": version("coremltools")},
            settings={
                "specification_version": SPECIFICATION_VERSION,
                "deployment_target": "iOS 18, macOS 15",
                "activation_type": "fp16",
                "norm_type": "fp32",
                "cache_type": "fp16",
                "compute_units": "cpuAndGPU",
            },
        )

    def discard(self) -> None:
        """Close what is open; the caller removes the folder."""
        self._package.discard()


def _encodings(model: QuantizedModel) -> dict[str, Encoding]:
    """Give how each tensor is stored, checked against what the decoder needs."""
    encodings = encodings_of(model.entries)
    shapes = {entry.name: entry.shape for entry in model.entries}
    wanted = model.spec.weight_shapes()
    if shapes != wanted:
        wrong = sorted(n for n in shapes.keys() | wanted if shapes.get(n) != wanted.get(n))
        raise ExportError(
            f"tensors of {model.source.name}",
            got={n: shapes.get(n) for n in wrong},
            wanted={n: wanted.get(n) for n in wrong},
        )
    wide = [n for n, shape in wanted.items() if len(shape) == 2 and encodings[n] == FP32]
    if wide:
        raise ExportError(
            "Core ML holds no fp32 matrix", got=", ".join(wide), do="Quantize these to fp16."
        )
    return encodings


def _stored_bytes(entry: TensorEntry) -> int:
    """Give the bytes of a weight in the blob file, its records left out."""
    if len(entry.shape) == 2:
        return Encoding.parse(entry.encoding).bytes_of(*entry.shape)
    return prod(entry.shape) * Encoding.parse(entry.encoding).bits // 8


def _metadata(
    model: QuantizedModel, entries: tuple[TensorEntry, ...], context_length: int
) -> dict[str, str]:
    return {
        "co.huggingface.exporters.name": model.source.name,
        "edgekit.version": version("edgekit"),
        "edgekit.scheme": str(model.scheme),
        "edgekit.context_length": str(context_length),
        "edgekit.eos_token_ids": ",".join(str(i) for i in model.spec.eos_token_ids),
        "edgekit.source_sha256": model.source_sha256,
        "edgekit.weights_sha256": combine_hashes(entries),
        "edgekit.compute_units": "cpuAndGPU",
    }


def _write_assets(assets: Mapping[str, Path], folder: Path) -> None:
    for name, source in assets.items():
        if name == _TOKENIZER_CONFIG:
            config = _swift_tokenizer_config(source)
            text = json.dumps(config, indent=2, ensure_ascii=False) + "\n"
            (folder / name).write_text(text, encoding="utf-8")
        else:
            shutil.copyfile(source, folder / name)


def _swift_tokenizer_config(source: Path) -> dict[str, Any]:
    """Read a tokenizer config and replace its class by one that swift-transformers knows."""
    try:
        config = json.loads(source.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ExportError(f"{source.name} is not JSON", got=error) from error
    if not isinstance(config, dict):
        raise ExportError(f"{source.name}", got=type(config).__name__, wanted="a JSON object")
    if str(config.get("tokenizer_class", "")).removesuffix("Fast") not in _SWIFT_TOKENIZERS:
        config["tokenizer_class"] = _FALLBACK_TOKENIZER
    return config
