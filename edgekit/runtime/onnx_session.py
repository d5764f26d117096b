"""Loading of an ONNX graph into onnxruntime, and the options for it.

Used by the engine for edgekit's own graphs (onnxruntime.py) and the one for graphs with plain key
and value inputs (onnx_plain.py).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from edgekit.errors import EngineLoadError, UsageError
from edgekit.formats.onnx_io import GRAPH_NAME
from edgekit.lazy import require

DEFAULT_CHUNK: Final = 128
PROVIDER: Final = "CPUExecutionProvider"
_FATAL: Final = 4
# With any level except 4, MatMulNBits keeps activations in float; 8-bit weights are then slow.
_FLOAT_ACTIVATION_LEVEL: Final = 1


@dataclass(frozen=True, slots=True)
class OnnxruntimeOptions:
    """Options of the engine.

    Attributes:
        activation: ``int8`` as in the artifact (activations rounded per block, fast), or ``fp32``
            to check numerics. Float weights always have float activations.
        chunk: Most tokens in one run; longer inputs are split.
    """

    activation: str = "int8"
    chunk: int = DEFAULT_CHUNK

    @classmethod
    def parse(cls, options: Mapping[str, Any]) -> OnnxruntimeOptions:
        """Read options by name.

        Raises:
            UsageError: An unknown name or an impossible value.
        """
        known = cls.__dataclass_fields__
        unknown = sorted(set(options) - set(known))
        if unknown:
            raise UsageError(
                "onnxruntime: unknown option", got=", ".join(unknown), wanted=", ".join(known)
            )
        parsed = cls(**options)
        if parsed.activation not in ("int8", "fp32"):
            raise UsageError(
                "onnxruntime option activation", got=repr(parsed.activation), wanted="int8 or fp32"
            )
        if isinstance(parsed.chunk, bool) or not isinstance(parsed.chunk, int) or parsed.chunk < 1:
            raise UsageError(
                "onnxruntime option chunk",
                got=repr(parsed.chunk),
                wanted="a number of tokens, 1 or more",
            )
        return parsed


def foreign_errors() -> tuple[type[Exception], ...]:
    """Give every exception that onnxruntime raises: its own, and those of its bindings."""
    state = require("onnxruntime.capi.onnxruntime_pybind11_state")
    own = [
        value
        for value in vars(state).values()
        if isinstance(value, type) and issubclass(value, Exception)
    ]
    return (*own, RuntimeError, ValueError, TypeError, OSError, MemoryError)


def make_session(folder: Path, n_threads: int | None, is_float: bool = False) -> Any:
    """Load the graph of an artifact; ``is_float`` keeps activations of quantized matmuls in float.

    Raises:
        EngineLoadError: With ``is_float``: the file is not an ONNX model.
    """
    ort = require("onnxruntime")
    options = ort.SessionOptions()
    options.intra_op_num_threads = n_threads or 0
    options.inter_op_num_threads = 1
    options.execution_mode = ort.ExecutionMode.ORT_SEQUENTIAL
    # Failures are raised as exceptions; the log would only repeat them on stderr.
    options.log_severity_level = _FATAL
    model: str | bytes = str(folder / GRAPH_NAME)
    if is_float:
        model = _float_activation_graph(folder / GRAPH_NAME)
        options.add_session_config_entry(
            "session.model_external_initializers_file_folder_path", str(folder)
        )
    return ort.InferenceSession(model, options, providers=[PROVIDER])


def _float_activation_graph(path: Path) -> bytes:
    """Give the graph with float activations in every quantized matmul."""
    decode_error = require("google.protobuf.message", package="protobuf").DecodeError
    try:
        model = require("onnx").load_model(path, load_external_data=False)
    except decode_error as error:
        raise EngineLoadError(
            f"{path} is not an ONNX model", got=error, do="Export the model again."
        ) from error
    for node in model.graph.node:
        for attribute in node.attribute:
            if attribute.name == "accuracy_level":
                attribute.i = _FLOAT_ACTIVATION_LEVEL
    graph: bytes = model.SerializeToString()
    return graph
