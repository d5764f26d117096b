"""A GGUF file as a checkpoint: config, weights and text files read from one file.

The metadata become the keys of a config.json (architectures.py). The tensors get Hugging Face's
names, so that a family reads them like those of a folder (weights.py). The vocabulary becomes the
tokenizer files of a model folder (tokenizer.py). The user may name any part of a model that is
split over several files; all parts are read.

Source: https://github.com/ggml-org/ggml, docs/gguf.md, and
https://github.com/ggml-org/llama.cpp, tools/gguf-split (split files).
"""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections.abc import Iterable, Mapping
from contextlib import ExitStack
from pathlib import Path
from types import MappingProxyType
from typing import Any, Final

from edgekit.checkpoint.base import Checkpoint
from edgekit.checkpoint.config import RawConfig
from edgekit.checkpoint.gguf.architectures import (
    LAYER_NAME,
    Architecture,
    head_width_of,
    name_weight,
    read_config,
)
from edgekit.checkpoint.gguf.rope import TABLES
from edgekit.checkpoint.gguf.tokenizer import has_tokenizer, text_contents, why_unreadable
from edgekit.checkpoint.gguf.weights import open_weight, original_float_type
from edgekit.checkpoint.prequantized.tensor import describe_decoded
from edgekit.errors import CheckpointError, MissingFileError
from edgekit.formats.gguf import GgufFile, GgufTensor
from edgekit.formats.gguf_blocks import NOT_FLOATS
from edgekit.model_files import CONFIG_NAME, TEXT_NAMES, TOKENIZER_NAME
from edgekit.tensors import LazyTensor
from edgekit.text.files import TextFiles
from edgekit.text.tokenizer_file import MAX_TOKENIZER_BYTES

SUFFIX: Final = ".gguf"
_PART: Final = re.compile(r"(?P<name>.+)-(?P<number>[0-9]{5})-of-(?P<count>[0-9]{5})\.gguf")
_MAX_PARTS: Final = 1 << 10
_MAX_LICENSE: Final = 80
_FROM_BESIDE: Final = frozenset(TEXT_NAMES) - {CONFIG_NAME}
# Tensors that a converter stores although they follow from the settings.
_COMPUTED: Final = ("rope_freqs", "attn_rot_embd")


def is_gguf(model: str | Path) -> bool:
    """Say whether the user names a GGUF file."""
    return str(model).endswith(SUFFIX) and Path(model).is_file()


class GgufCheckpoint(Checkpoint):
    """An open GGUF file; ``tensors`` is empty, ``weights`` gives what it holds."""

    def __init__(self, model: str | Path, ignore_keys: Iterable[str] = ()) -> None:
        """Open the file, and the other parts of a split one; no weight is read.

        Args:
            model: The file, or any part of a split one.
            ignore_keys: Keys of the metadata that pass whatever their value is.

        Raises:
            MissingFileError: Parts of a split file are absent; all are named.
            FormatError: A file is damaged, or holds tensors of types that no reader knows.
            CheckpointError: Metadata are missing or not supported; all such keys are named.
            UsageError: A key to ignore is not there, or the result depends on it.
        """
        path = Path(model)
        parts = find_parts(path)
        self.folder, self.name, self.origin = path.parent, _display_name(path), str(model)
        self.notes = []
        self.assets = MappingProxyType({})  # no files; what they would hold is in text_files
        self.tensors = MappingProxyType({})
        self._files = ExitStack()
        try:
            self._parts = [self._files.enter_context(GgufFile(part)) for part in parts]
            _check_parts(self._parts)
            first = self._parts[0]
            stored = _join_tensors(self._parts)
            architecture, config = read_config(first, stored, ignore_keys, self.notes)
            self._weights = _read_weights(stored, architecture, config, self.notes)
            float_type = original_float_type(self._weights.values())
            if float_type is not None:
                config["torch_dtype"] = float_type
            self.config = RawConfig(config, str(path))
            self._text_files = self._read_text_files(first, config)
        except BaseException:
            self.close()
            raise

    def fetch_text(self) -> None:
        """Do nothing: tokenizer and chat template are in the file."""

    @property
    def weights_bytes(self) -> int:
        """Bytes of all tensors as stored."""
        return sum(tensor.n_bytes for part in self._parts for tensor in part.tensors.values())

    @property
    def license(self) -> str:
        """The license that the metadata name; empty if they do not."""
        value = self._parts[0].metadata.get("general.license", "")
        return value[:_MAX_LICENSE] if isinstance(value, str) and value.isprintable() else ""

    def weights(self) -> dict[str, LazyTensor]:
        """Give the weights by Hugging Face's names; nothing is read yet."""
        return dict(self._weights)

    def sha256(self) -> str:
        """Hash the file, or all parts one after the other."""
        digest = hashlib.sha256()
        for part in self._parts:
            for piece in part.read_pieces(0, part.n_bytes):
                digest.update(piece.data)
        return digest.hexdigest()

    def close(self) -> None:
        """Let go of the files; safe to call twice."""
        self._files.close()

    @property
    def text_files(self) -> TextFiles:
        """The tokenizer, chat template and generation files that the file stands for."""
        return self._text_files

    @property
    def assets_bytes(self) -> int:
        """Bytes of the files that every artifact gets."""
        files = self._text_files
        return sum(len(files.read(name, MAX_TOKENIZER_BYTES) or b"") for name in files.names())

    def _read_text_files(self, first: GgufFile, config: Mapping[str, Any]) -> TextFiles:
        """Give the text files; those beside the file count where it has no tokenizer of its own."""
        contents: dict[str, str | bytes] = {CONFIG_NAME: json.dumps(config, indent=2) + "\n"}
        reason = None if has_tokenizer(first) else "no tokenizer in it"
        reason = reason or why_unreadable(first)
        beside = TextFiles.of_folder(self.folder)
        if reason is None or (has_tokenizer(first) and not beside.has(TOKENIZER_NAME)):
            contents |= text_contents(first)
        else:
            names = [name for name in beside.names() if name in _FROM_BESIDE]
            for name in names:
                contents[name] = beside.read(name, MAX_TOKENIZER_BYTES) or b""
            if names:
                self.notes.append(
                    f"{first.path.name}: {reason}; taken from beside it: {', '.join(names)}"
                )
        return TextFiles.of_contents(first.path, contents)


def find_parts(path: Path) -> list[Path]:
    """Give all files of a model of which one is named, in order; one file alone is its own part.

    Raises:
        MissingFileError: Parts are absent; all are named.
        CheckpointError: The numbers in the name make no sense.
    """
    match = _PART.fullmatch(path.name)
    if match is None:
        return [path]
    number, count = int(match["number"]), int(match["count"])
    if not 1 <= number <= count <= _MAX_PARTS:
        raise CheckpointError(
            f"{path}: part {number} of {count}",
            wanted=f"a part from 1 on, and at most {_MAX_PARTS} parts",
            do="Give the file the name that it was published under.",
        )
    names = [f"{match['name']}-{i:05d}-of-{count:05d}{SUFFIX}" for i in range(1, count + 1)]
    missing = [name for name in names if not (path.parent / name).is_file()]
    if missing:
        more = f" and {len(missing) - 8} more" if missing[8:] else ""
        raise MissingFileError(
            f"{path.parent}: {len(missing)} of {count} parts of {match['name']} are missing",
            got=f"no {', '.join(missing[:8])}{more}",
            wanted=f"all {count} files in one folder",
            do="Download the missing parts.",
        )
    return [path.parent / name for name in names]


def _display_name(path: Path) -> str:
    match = _PART.fullmatch(path.name)
    return path.stem if match is None else match["name"]


def _check_parts(parts: list[GgufFile]) -> None:
    """Check that every file is the part that its name says."""
    for number, part in enumerate(parts):
        count = part.metadata.get("split.count", 1)
        said = part.metadata.get("split.no", number)
        # A file that was not split has no such key, or says that it has 0 or 1 parts.
        if (count or 1, said) != (len(parts), number):
            raise CheckpointError(
                f"{part.path}: part of a split model",
                got=f"split.no {said}, split.count {count}, by its metadata",
                wanted=f"split.no {number}, split.count {len(parts)}, by its name",
                do="Give the file the name that it was published under, next to the other parts.",
            )


def _join_tensors(parts: list[GgufFile]) -> Mapping[str, GgufTensor]:
    joined: dict[str, GgufTensor] = {}
    for part in parts:
        for name, tensor in part.tensors.items():
            if name in joined:
                raise CheckpointError(f"{part.path}: a tensor of two parts", got=name)
            joined[name] = tensor
    wanted = parts[0].metadata.get("split.tensors.count", len(joined))
    if wanted != len(joined):
        raise CheckpointError(
            f"{parts[0].path}: tensors of all parts",
            got=len(joined),
            wanted=f"{wanted}, as split.tensors.count says",
            do="Download all parts again.",
        )
    return MappingProxyType(joined)


def _read_weights(
    stored: Mapping[str, GgufTensor],
    architecture: Architecture,
    config: Mapping[str, Any],
    notes: list[str],
) -> dict[str, LazyTensor]:
    """Give the tensors under Hugging Face's names; those of no weight keep their own."""
    weights: dict[str, LazyTensor] = {}
    head_width = head_width_of(config)
    left_out: list[str] = []
    for name, tensor in stored.items():
        named = name_weight(architecture, name)
        match = LAYER_NAME.fullmatch(name)
        if name in TABLES or (match is not None and match[3] in ("scale", "input_scale")):
            continue  # read with the config, or with the weight that it belongs to
        if named is None and (_is_computed(name) or tensor.kind.name in NOT_FLOATS):
            left_out.append(name)
            continue
        ours, part = named or (name, "")
        if ours in weights:
            raise CheckpointError(f"{tensor.file.path}: two tensors have the name {ours}", got=name)
        undo = architecture.undo(part, head_width, _scale_of(name, stored))
        weights[ours] = open_weight(tensor, ours, undo)
    if left_out:
        notes.append(f"left out: {_listed(left_out)}")
    notes += describe_decoded(weights)
    return weights


def _is_computed(name: str) -> bool:
    return any(part in _COMPUTED for part in name.split("."))


def _scale_of(name: str, stored: Mapping[str, GgufTensor]) -> float:
    """Give the second scale of a tensor, a tensor of its own in NVFP4 and BitNet files."""
    base, _, kind = name.rpartition(".")
    tensor = stored.get(f"{base}.scale") if kind == "weight" else None
    if tensor is None:
        return 1.0
    values = open_weight(tensor, tensor.name).read() if tensor.shape == (1,) else None
    if values is None or not math.isfinite(values[0]):
        raise CheckpointError(
            f"{tensor.file.path}: tensor {tensor.name}",
            got=f"shape {list(tensor.shape)}" if values is None else values[0],
            wanted="one finite number",
        )
    return float(values[0])


def _listed(names: list[str]) -> str:
    return ", ".join(names[:4]) + (f" and {len(names) - 4} more tensors" if names[4:] else "")
