"""LoRA and DoRA adapters, as PEFT and mlx-lm save them: small changes to a model's weights.

An adapter holds, for some modules of its base model, a product of two low-rank matrices to be added
to the weight (LoRA), possibly with the length of each row (DoRA), or a whole tensor in place of
the weight. This file reads which change belongs to which module; ``merging.py`` applies one to a
tensor, and ``families/adapted.py`` finds the module in the base model.

Source:
    https://github.com/huggingface/peft 0.21 (LoraConfig; get_peft_model_state_dict for names),
    https://github.com/ml-explore/mlx-lm 0.32 (tuner/utils.py, tuner/lora.py, tuner/dora.py).
"""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Any, Final

from edgekit.dtypes import DTYPES
from edgekit.errors import CheckpointError, MissingFileError
from edgekit.formats.safetensors import SafetensorsFile, SafetensorsTensor
from edgekit.model_files import ADAPTER_CONFIG_NAME, ADAPTER_WEIGHTS_NAMES, CONFIG_NAME
from edgekit.strict_json import read_object
from edgekit.text.files import TextFiles

_LORA: Final = "LORA"
_PEFT_PREFIX: Final = "base_model.model."
# Keys of a LoraConfig that say how the adapter was trained, or repeat what its tensors show.
_TRAINING_KEYS: Final = frozenset({
    "auto_mapping", "base_model_name_or_path", "bias", "corda_config", "eva_config",
    "exclude_modules", "fan_in_fan_out", "inference_mode", "layers_pattern", "layers_to_transform",
    "loftq_config", "lora_dropout", "lora_ga_config", "megatron_core", "modules_to_save",
    "peft_type", "peft_version", "qalora_group_size", "r", "rank_pattern", "revision",
    "runtime_config", "target_modules", "task_type", "use_dora", "lora_bias", "velora_config",
})  # fmt: skip
_USED_KEYS: Final = frozenset({
    "alpha_pattern", "ensure_weight_tying", "init_lora_weights", "lora_alpha",
    "trainable_token_indices", "use_rslora",
})  # fmt: skip
# Initializations that leave the base model's weights as they are; the others store an adapter that
# is right only together with changed weights.
_PLAIN_STARTS: Final = (None, True, False, "gaussian", "eva", "orthogonal")
# Tensors of an adapter that was saved together with its base model, and the base's own.
_IN_MODEL: Final = re.compile(
    r"\.(lora_(embedding_)?[ABab]|lora_magnitude_vector|modules_to_save|trainable_tokens_delta)"
    r"(\.|$)"
)
_WRAPPED: Final = re.compile(r"\.(token_adapter\.)?(base_layer|original_module)\.")
# Where PEFT and mlx-lm write the model that an adapter was trained on.
_BASE_KEYS: Final = ("base_model_name_or_path", "model")
_MAX_PATTERN_CHARS: Final = 200
_QUANTIFIER: Final = re.compile(r"(?<!\\)[*+?{]")

_PEFT_PART: Final = re.compile(
    r"(?P<module>.+)\.(?P<part>lora_A|lora_B|lora_embedding_A|lora_embedding_B"
    r"|lora_magnitude_vector)(?:\.(?P<adapter>(?!weight$|bias$)[^.]+))?(?:\.(?P<kind>weight|bias))?"
)
_PEFT_ROWS: Final = re.compile(
    r"(?P<module>.+)\.token_adapter\.trainable_tokens_delta(?:\.(?P<adapter>[^.]+))?"
)
_PEFT_UNCHANGED: Final = re.compile(
    r".+\.(original_module\.(weight|bias)|token_adapter\.trainable_tokens_original(\.[^.]+)?)"
)
_WHOLE: Final = re.compile(
    r"(?P<module>.+?)(?:\.(?P<wrap>base_layer|token_adapter\.base_layer"
    r"|modules_to_save(?:\.(?P<adapter>[^.]+))?))?\.(?P<kind>weight|bias)"
)
_MLX_PART: Final = re.compile(r"(?P<module>.+)\.(?P<part>lora_a|lora_b|m)")


@dataclass(slots=True)
class ModuleChange:
    """What an adapter changes in one module; tensors are those of its file.

    A is (r, M) and B is (N, r) for a weight of shape (N, M), or the transpose of each where
    ``is_transposed``; for an embedding PEFT has A (r, V) and B (C, r), the change being
    ``(B @ A).T``.

    Attributes:
        a: The matrix that is multiplied with the input.
        b: The matrix whose product is the output.
        scale: Factor of ``B @ A``.
        magnitude: Length of each row of the weight (DoRA), or of each column of an embedding.
        b_bias: Added to the module's bias, times ``scale``.
        is_embedding: A and B are PEFT's of an embedding.
        is_transposed: A and B are mlx-lm's: (M, r) and (r, N), of an embedding (V, r) and (r, C).
        base: Takes the place of the base model's tensor, as if it had been there: "weight", "bias".
        whole: The trained tensor, in place of the base model's: "weight", "bias".
        rows: Takes the place of the rows ``row_ids`` of an embedding.
        row_ids: Token ids of ``rows``.
    """

    a: SafetensorsTensor | None = None
    b: SafetensorsTensor | None = None
    scale: float = 1.0
    magnitude: SafetensorsTensor | None = None
    b_bias: SafetensorsTensor | None = None
    is_embedding: bool = False
    is_transposed: bool = False
    base: dict[str, SafetensorsTensor] = field(default_factory=dict)
    whole: dict[str, SafetensorsTensor] = field(default_factory=dict)
    rows: SafetensorsTensor | None = None
    row_ids: tuple[int, ...] = ()

    @property
    def rank(self) -> int:
        """The inner width of the product, r; 0 without one."""
        if self.a is None:
            return 0
        return self.a.info.shape[1 if self.is_transposed else 0]


class Adapter:
    """An open adapter.

    Attributes:
        folder: The adapter's folder.
        name: Name of the folder.
        tensors: Its tensors, by their own names.
        is_inside: Whether they are stored among the tensors of its base model.
        base: The model that it was made for, as its config names it; empty if it does not.
        changes: Module name (without PEFT's prefix) -> what changes in it.
        keeps_tie: Whether a change of the embedding is meant for the output matrix too.
        text_files: Tokenizer and template files in its folder.
    """

    def __init__(
        self, folder: Path, config: Mapping[str, Any], tensors: Mapping[str, SafetensorsTensor]
    ) -> None:
        """Tell what the tensors of an adapter change; no tensor is read.

        Args:
            folder: The adapter's folder.
            config: The adapter's config.
            tensors: The adapter's tensors, by their own names.

        Raises:
            CheckpointError: Of another kind than LoRA, or with parts that edgekit does not know;
                all of them are named.
        """
        self.folder, self.name = folder, folder.resolve().name
        self._config, self.tensors = config, tensors
        self._file: SafetensorsFile | None = None
        self.is_inside = False
        where = folder / ADAPTER_CONFIG_NAME
        read = _read_peft if "peft_type" in config else _read_mlx
        self.changes: Mapping[str, ModuleChange] = MappingProxyType(read(config, tensors, where))
        self.base = _base_of(config) or ""
        self.keeps_tie = _keeps_tie(self._config, self.changes)
        self.text_files = TextFiles.of_folder(self.folder)

    @classmethod
    def open(cls, folder: str | Path) -> Adapter:
        """Read config and header of an adapter folder.

        Args:
            folder: The adapter's folder, or its weight file.

        Raises:
            MissingFileError: No adapter there; the message names what is there instead.
            CheckpointError: See the constructor.
            FormatError: The weight file is damaged.
        """
        given = Path(folder)
        inside = given.parent if given.is_file() else given
        config, weights = _find_files(inside)
        file = SafetensorsFile(weights)
        try:
            adapter = cls(inside, read_object(config), file.tensors)
        except BaseException:
            file.close()
            raise
        adapter._file = file
        return adapter

    @classmethod
    def unmerged(cls, folder: Path, tensors: Mapping[str, SafetensorsTensor]) -> Adapter | None:
        """Give the adapter whose parts are stored among a model's own tensors, or None.

        Raises:
            CheckpointError: There is one, and no config says its scale.
        """
        parts = {name: tensor for name, tensor in tensors.items() if _IN_MODEL.search(name)}
        if not parts:
            return None
        if not (folder / ADAPTER_CONFIG_NAME).is_file():
            raise CheckpointError(
                f"{folder}: the weights hold a LoRA adapter that is not merged",
                got=f"{len(parts)} tensors such as {next(iter(parts))}, and no "
                f"{ADAPTER_CONFIG_NAME}, which says their scale",
                wanted=f"merged weights, or {ADAPTER_CONFIG_NAME} next to them",
                do="Merge it with peft (merge_and_unload), or save the adapter alone and run: "
                "edgekit export BASE_MODEL --adapter ADAPTER_FOLDER",
            )
        adapter = cls(folder, read_object(folder / ADAPTER_CONFIG_NAME), parts)
        adapter.is_inside = True
        return adapter

    def sha256(self) -> str:
        """Hash config and tensors as stored."""
        digest = hashlib.sha256(
            json.dumps(self._config, sort_keys=True, separators=(",", ":")).encode()
        )
        for name in sorted(self.tensors):
            tensor = self.tensors[name]
            digest.update(f"\n{name} {tensor.type_name} {list(tensor.info.shape)}\n".encode())
            for piece in tensor.raw_pieces():
                digest.update(piece.data)
        return digest.hexdigest()

    def close(self) -> None:
        """Let go of the file; safe to call twice."""
        if self._file is not None:
            self._file.close()


def refuse_adapter_folder(folder: Path) -> None:
    """Refuse a folder with an adapter's config and none of a model.

    Raises:
        CheckpointError: It is one; the message names the base model if the adapter does.
    """
    path = folder / ADAPTER_CONFIG_NAME
    if (folder / CONFIG_NAME).is_file() or not path.is_file():
        return
    values = read_object(path)
    base = _base_of(values)
    kind = values.get("peft_type")
    maker = f"PEFT ({kind})" if isinstance(kind, str) else "mlx-lm" if base else "PEFT or mlx-lm"
    raise CheckpointError(
        f"{folder}: an adapter of {maker}, not a model",
        got=f"changes to {base}" if base else f"{ADAPTER_CONFIG_NAME}, which names no base model",
        wanted="a model folder; an adapter goes with --adapter",
        do=f"Run: edgekit export {base or 'BASE'} --adapter {folder}",
    )


def plain_name(name: str) -> str:
    """Give the name of a base model's tensor without the parts that PEFT adds in training."""
    return _WRAPPED.sub(".", name)


def _keeps_tie(config: Mapping[str, Any], changes: Mapping[str, ModuleChange]) -> bool:
    """Tell whether the embedding's change was trained in the output matrix too.

    mlx-lm's adapted embedding is the output matrix as well; PEFT's is only with
    ``ensure_weight_tying``, and its DoRA gives the two lengths of different axes.
    """
    if "peft_type" not in config:
        return True
    has_lengths = any(c.is_embedding and c.magnitude is not None for c in changes.values())
    return bool(config.get("ensure_weight_tying")) and not has_lengths


def _base_of(config: Mapping[str, Any]) -> str | None:
    """Give the name of the base model, if the config has one that can be shown."""
    named = (config.get(key) for key in _BASE_KEYS)
    return next((base for base in named if isinstance(base, str) and base), None)


def _find_files(folder: Path) -> tuple[Path, Path]:
    """Give config and weights of an adapter folder, or say what is there instead."""
    config = folder / ADAPTER_CONFIG_NAME
    names = sorted(path.name for path in folder.iterdir()) if folder.is_dir() else []
    if ADAPTER_CONFIG_NAME not in names:
        inner = sorted(folder.glob(f"*/{ADAPTER_CONFIG_NAME}"))
        raise MissingFileError(
            f"{folder} is not an adapter",
            got="no such folder" if not folder.is_dir() else ", ".join(names[:8]) or "empty",
            wanted=f"a folder with {ADAPTER_CONFIG_NAME}",
            do=f"Name the folder that holds it: {inner[0].parent}"
            if inner
            else "Name the folder that peft's save_pretrained or mlx_lm.lora wrote.",
        )
    found = [name for name in ADAPTER_WEIGHTS_NAMES if name in names]
    if found:
        return config, folder / found[0]
    pickle = "adapter_model.bin" in names
    raise MissingFileError(
        f"{folder}: the adapter has no weights",
        got="adapter_model.bin (pickle files are never read)" if pickle else ", ".join(names[:8]),
        wanted=" or ".join(ADAPTER_WEIGHTS_NAMES),
        do="Load it with peft and save it again: save_pretrained(FOLDER) writes safetensors."
        if pickle
        else "Copy the file into the folder.",
    )


def _read_peft(
    config: Mapping[str, Any], tensors: Mapping[str, SafetensorsTensor], where: Path
) -> dict[str, ModuleChange]:
    faults = _config_faults(config)
    changes: dict[str, ModuleChange] = {}
    adapters: set[str] = set()
    saved = config.get("modules_to_save")
    # PEFT saves every module whose name ends with one of these.
    saved_ends = tuple(map(str, saved)) if isinstance(saved, list) else ()
    for name, tensor in tensors.items():
        inner = name.removeprefix(_PEFT_PREFIX)
        if _PEFT_UNCHANGED.fullmatch(inner):
            continue
        match = (
            _PEFT_PART.fullmatch(inner) or _PEFT_ROWS.fullmatch(inner) or _WHOLE.fullmatch(inner)
        )
        if match is None or not DTYPES[tensor.info.dtype].is_float:
            faults.append(f"tensor {name} ({tensor.type_name})")
            continue
        found = match.groupdict()
        change = changes.setdefault(found["module"], ModuleChange())
        adapters.add(found["adapter"] or "")
        kind = found.get("kind") or "weight"
        match found.get("part"), found.get("wrap"):
            case "lora_A" | "lora_embedding_A", _:
                change.a = tensor
                change.is_embedding = found["part"] == "lora_embedding_A"
            case "lora_B", _ if kind == "bias":
                change.b_bias = tensor
            case "lora_B" | "lora_embedding_B", _:
                change.b = tensor
            case "lora_magnitude_vector", _:
                change.magnitude = tensor
            case None, "base_layer" | "token_adapter.base_layer":
                change.base[kind] = tensor
            case None, _ if match.re is _PEFT_ROWS:
                change.rows = tensor
                change.row_ids = _row_ids(config, found["module"], tensor, faults)
            case None, None if not found["module"].endswith(saved_ends):
                change.base[kind] = tensor
            case _:
                change.whole[kind] = tensor
    if len(adapters - {""}) > 1:
        faults.append(f"several adapters in one file: {', '.join(sorted(adapters))}")
    for module, change in changes.items():
        if change.a is not None:
            change.scale = _peft_scale(config, module, change.rank, faults)
    _refuse(where, faults + _incomplete(changes))
    return changes


def _config_faults(config: Mapping[str, Any]) -> list[str]:
    """Name the options of the config that a plain LoRA does not have."""
    kind = config.get("peft_type")
    if kind != _LORA:
        return [f"peft_type {str(kind)[:40]!r} (edgekit merges 'LORA')"]
    known = _TRAINING_KEYS | _USED_KEYS
    faults = [
        f"{key} {json.dumps(value)[:60]}"
        for key, value in config.items()
        if key not in known and value not in (None, False, "", [], {})
    ]
    start = config.get("init_lora_weights")
    if start not in _PLAIN_STARTS:
        faults.append(
            f"init_lora_weights {str(start)[:40]!r} (it changes the base model's weights too; save "
            "the adapter with path_initial_model_for_weight_conversion, or merge it with peft)"
        )
    return faults


def _peft_scale(config: Mapping[str, Any], module: str, rank: int, faults: list[str]) -> float:
    """Give lora_alpha / r, or lora_alpha / sqrt(r) with ``use_rslora``."""
    alpha = config.get("lora_alpha", 8)
    patterns = config.get("alpha_pattern") or {}
    for pattern, value in patterns.items() if isinstance(patterns, dict) else ():
        if _matches(pattern, module, faults):
            alpha = value
            break
    is_number = isinstance(alpha, int | float) and not isinstance(alpha, bool)
    if not is_number or not math.isfinite(alpha) or rank < 1:
        faults.append(f"lora_alpha {str(alpha)[:40]} with r {rank} for {module}")
        return 1.0
    return float(alpha / (math.sqrt(rank) if config.get("use_rslora") else rank))


def _matches(pattern: str, module: str, faults: list[str]) -> bool:
    """Tell whether PEFT applies a pattern to a module: at the end of its name, after a dot.

    Patterns are untrusted regular expressions, so only those are tried that cannot take long.
    """
    if re.fullmatch(r"[\w.]+", pattern):
        return module == pattern or module.endswith(f".{pattern}")
    is_quick = len(_QUANTIFIER.findall(pattern)) <= 2 and not re.search(r"\)[*+?{]", pattern)
    try:
        if len(pattern) <= _MAX_PATTERN_CHARS and len(module) <= _MAX_PATTERN_CHARS and is_quick:
            return re.match(rf"(.*\.)?({pattern})$", module) is not None
    except re.error:
        pass
    faults.append(f"alpha_pattern {pattern[:60]!r}")
    return False


def _row_ids(
    config: Mapping[str, Any], module: str, rows: SafetensorsTensor, faults: list[str]
) -> tuple[int, ...]:
    """Give the token ids whose rows were trained, in the order of the rows."""
    said = config.get("trainable_token_indices")
    if isinstance(said, dict):
        last = module.rpartition(".")[2]
        said = next((ids for key, ids in said.items() if key.rpartition(".")[2] == last), None)
    ids = said if isinstance(said, list) else []
    is_sound = all(isinstance(i, int) and not isinstance(i, bool) and i >= 0 for i in ids)
    if not is_sound or len(rows.info.shape) != 2 or len(ids) != rows.info.shape[0]:
        faults.append(f"trainable_token_indices for {rows.info.shape} rows of {module}")
        return ()
    return tuple(ids)


def _read_mlx(
    config: Mapping[str, Any], tensors: Mapping[str, SafetensorsTensor], where: Path
) -> dict[str, ModuleChange]:
    kind = config.get("fine_tune_type", "lora")
    parameters = config.get("lora_parameters")
    scale = parameters.get("scale") if isinstance(parameters, dict) else None
    faults: list[str] = []
    if kind not in ("lora", "dora", "full"):
        faults.append(f"fine_tune_type {str(kind)[:40]!r} (edgekit merges lora, dora and full)")
    elif kind != "full" and (not isinstance(scale, int | float) or isinstance(scale, bool)):
        faults.append(f"lora_parameters.scale {str(scale)[:40]} (wanted a number)")
    changes: dict[str, ModuleChange] = {}
    for name, tensor in tensors.items():
        pattern = _WHOLE if kind == "full" else _MLX_PART
        match = pattern.fullmatch(name)
        if match is None or not DTYPES[tensor.info.dtype].is_float:
            faults.append(f"tensor {name} ({tensor.type_name})")
            continue
        change = changes.setdefault(match["module"], ModuleChange(is_transposed=True))
        if kind == "full":
            change.whole[match["kind"]] = tensor
            continue
        change.scale = float(scale) if isinstance(scale, int | float) else 1.0
        match match["part"]:
            case "lora_a":
                change.a = tensor
            case "lora_b":
                change.b = tensor
            case _:
                change.magnitude = tensor
    _refuse(where, faults + _incomplete(changes))
    return changes


def _incomplete(changes: Mapping[str, ModuleChange]) -> list[str]:
    """Name modules with one half of a product, and products that cannot be multiplied."""
    faults: list[str] = []
    for module, change in changes.items():
        a, b = change.a, change.b
        if a is None and b is None and change.magnitude is None and change.b_bias is None:
            continue
        if a is None or b is None:
            faults.append(f"{module} has only one of its two LoRA matrices")
        elif len(a.info.shape) != 2 or len(b.info.shape) != 2 or 0 in a.info.shape:
            faults.append(
                f"{module} has LoRA matrices of shape {list(a.info.shape)} and "
                f"{list(b.info.shape)} (a save of one part of a model that was split?)"
            )
        elif change.rank != b.info.shape[0 if change.is_transposed else 1]:
            faults.append(
                f"{module} has LoRA matrices of shape {list(a.info.shape)} and {list(b.info.shape)}"
            )
    return faults


def _refuse(where: Path, faults: list[str]) -> None:
    if faults:
        more = f" and {len(faults) - 8} more" if len(faults) > 8 else ""
        raise CheckpointError(
            f"{where}: an adapter that edgekit cannot merge",
            got="; ".join(faults[:8]) + more,
            wanted="a LoRA or DoRA adapter of PEFT or mlx-lm, all of whose parts are known",
            do="Merge it with the program that made it, and export the merged model.",
        )
