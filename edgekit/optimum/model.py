"""The models that optimum can read, and the folder in which it gets them.

optimum reads a folder of links: the weights as they are, and a config in the spelling of
transformers 4.57, which ignores unknown keys without a message. The folder holds no tokenizer,
pickle or code.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Final

from edgekit.checkpoint.base import Checkpoint
from edgekit.errors import CheckpointError, UnsupportedArchError, UsageError
from edgekit.families.other_types import OPTIMUM_TYPES
from edgekit.families.rope_config import effective_length
from edgekit.model_files import CONFIG_NAME, INDEX_NAME, read_weight_map
from edgekit.model_files import WEIGHTS_NAME as SOURCE_WEIGHTS

# Keys for the number of positions a model was trained for, in order of preference.
_LENGTH_KEYS: Final = (
    "max_position_embeddings", "n_positions", "max_seq_len", "seq_length", "n_ctx",
)  # fmt: skip
_DROPPED_KEYS: Final = ("auto_map", "quantization_config", "transformers_version")


def check_model_type(
    config: Mapping[str, Any],
    where: str,
    do: str = "Neither edgekit nor this optimum has a graph for it.",
) -> str:
    """Give the model_type, if optimum can take it.

    Raises:
        UnsupportedArchError: It cannot.
    """
    model_type = config.get("model_type")
    if isinstance(model_type, str) and model_type in OPTIMUM_TYPES:
        return model_type
    raise UnsupportedArchError(
        f"{where}: model_type",
        got=repr(model_type)[:80],
        wanted=f"one that optimum-onnx 0.1.0 with transformers 4.57 exports: "
        f"{', '.join(OPTIMUM_TYPES)}",
        do=do,
    )


def check_floats(config: Mapping[str, Any], where: str) -> None:
    """Refuse a quantized checkpoint: optimum would need the kernels of its quantization program.

    Raises:
        UsageError: See above.
    """
    quantization = config.get("quantization_config")
    if quantization:
        method = quantization.get("quant_method") if isinstance(quantization, dict) else None
        raise UsageError(
            f"{where}: quantized weights",
            got=str(method or "quantization_config")[:80],
            wanted="weights in fp32, fp16 or bf16 for --via optimum",
            do="Name the float model that this one was made from.",
        )


def translate_config(config: Mapping[str, Any], where: str) -> dict[str, Any]:
    """Translate a config of transformers 5 into the spelling of transformers 4.57.

    ``rope_parameters`` becomes ``rope_theta`` and ``rope_scaling``, ``dtype`` ``torch_dtype``.
    A config that already has this spelling stays unchanged.

    Raises:
        UnsupportedArchError: Position encodings by kind of layer that 4.57 cannot express.
    """
    translated = {key: value for key, value in config.items() if key not in _DROPPED_KEYS}
    if "dtype" in translated:
        translated["torch_dtype"] = translated.pop("dtype")
    if isinstance(inner := translated.get("text_config"), dict):
        translated["text_config"] = translate_config(inner, f"{where}: text_config")
    parameters = translated.pop("rope_parameters", None)
    if not isinstance(parameters, dict):
        return translated
    by_kind = {kind: value for kind, value in parameters.items() if isinstance(value, dict)}
    if by_kind:
        if set(by_kind) != {"full_attention", "sliding_attention"} or not str(
            translated.get("model_type")
        ).startswith("gemma3"):
            raise UnsupportedArchError(
                f"{where}: rope_parameters by kind of layer",
                got=", ".join(sorted(map(str, by_kind)))[:80],
                wanted="one set for all layers, or those of gemma3",
                do="transformers 4.57 cannot say this in a config.",
            )
        local = by_kind["sliding_attention"].get("rope_theta")
        if local is not None:
            translated["rope_local_base_freq"] = local
        parameters = by_kind["full_attention"]
    return translated | _old_rope(parameters)


def _old_rope(parameters: Mapping[str, Any]) -> dict[str, Any]:
    """Give the keys for one set of rope parameters in transformers 4.57."""
    rest = dict(parameters)
    old: dict[str, Any] = {}
    for key in ("rope_theta", "partial_rotary_factor"):
        if rest.get(key) is not None:
            old[key] = rest.pop(key)
    kind = rest.get("rope_type") or rest.get("type") or "default"
    # A section with only a default type says the same as no section.
    old["rope_scaling"] = None if kind == "default" else {**rest, "rope_type": kind}
    return old


def trained_length(config: Mapping[str, Any]) -> tuple[int | None, str | None]:
    """Give the positions for which a traced graph is right, and the reason if they are fewer.

    LongRoPE uses other factors beyond the original length; the tracer records only those of a short
    text (measured: docs/oracle.md).
    """
    inner = config.get("text_config")
    if isinstance(inner, dict):
        config = {**config, **inner}
    found = (config.get(key) for key in _LENGTH_KEYS)
    lengths = [n for n in found if isinstance(n, int) and not isinstance(n, bool) and n > 0]
    length = lengths[0] if lengths else None
    scaling = config.get("rope_scaling")
    kind = scaling.get("rope_type", scaling.get("type")) if isinstance(scaling, dict) else None
    if kind in ("longrope", "su"):
        inside = scaling.get("original_max_position_embeddings") if scaling else None
        original = config.get("original_max_position_embeddings", inside)
        if isinstance(original, int) and (length is None or original < length):
            return original, (
                f"LongRoPE: optimum's graph holds the factors of texts up to {original} tokens only"
            )
    return length and effective_length(config, length), None


def write_input_folder(checkpoint: Checkpoint, folder: Path) -> dict[str, Any]:
    """Fill a folder with links to the weights and a config that transformers 4.57 reads.

    Returns:
        The config as written.

    Raises:
        UnsupportedArchError: See ``translate_config``.
        OSError: The folder cannot be written.
    """
    where = str(checkpoint.folder / CONFIG_NAME)
    config = translate_config(checkpoint.config, where)
    text = json.dumps(config, indent=2, sort_keys=True, ensure_ascii=False)
    (folder / CONFIG_NAME).write_text(text + "\n", encoding="utf-8")
    for name in _weight_files(checkpoint.folder):
        (folder / name).symlink_to((checkpoint.folder / name).resolve())
    return config


def _weight_files(folder: Path) -> Iterator[str]:
    if (folder / SOURCE_WEIGHTS).is_file():
        yield SOURCE_WEIGHTS
        return
    yield INDEX_NAME
    yield from sorted(set(read_weight_map(folder / INDEX_NAME).values()))


def read_rows(config: Mapping[str, Any]) -> int:
    """Give the rows of the embedding as a config states them, ``vocab_size``.

    Raises:
        CheckpointError: It states none.
    """
    rows = config.get("vocab_size", config.get("text_config", {}).get("vocab_size"))
    if type(rows) is not int:
        raise CheckpointError(f"{CONFIG_NAME}: vocab_size", got=repr(rows)[:80], wanted="a number")
    return rows
