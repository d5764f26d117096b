"""Artifacts and their manifests: an exported model on disk, and what is recorded about it.

An artifact is a folder with ``manifest.json``. Exporters write it; engines and ``verify`` read it.
This module knows nothing about the file formats themselves.
"""

from __future__ import annotations

import enum
import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Final

from edgekit.errors import ArtifactError, FormatError, UsageError
from edgekit.files import open_plain, read_inside
from edgekit.scheme import Scheme
from edgekit.strict_json import parse_object
from edgekit.typed_values import from_plain

MANIFEST_NAME: Final = "manifest.json"
SCHEMA_VERSION: Final = 1
MAX_MANIFEST_BYTES: Final = 16 << 20
OPTIMUM_GRAPH: Final = "optimum"
"""``settings["graph"]`` of an ONNX artifact whose graph optimum wrote; absent: edgekit's own."""
_CHUNK_BYTES: Final = 1 << 20
_CONTROL: Final = re.compile(r"[\x00-\x1f\x7f-\x9f]")  # a terminal would obey them


class Format(enum.Enum):
    """A file format that edgekit writes."""

    ONNX = "onnx"
    MLX = "mlx"
    COREML = "coreml"


@dataclass(frozen=True, slots=True)
class FileEntry:
    """One file of an artifact; ``path`` is relative with forward slashes."""

    path: str
    n_bytes: int
    sha256: str


@dataclass(frozen=True, slots=True)
class TensorEntry:
    """One weight: canonical name, shape, how it is stored, why, and the hash of its codes.

    ``sha256`` covers the packed codes and the float32 scales and is equal in every format;
    it is None for float tensors, whose stored width a format may choose. ``imported`` names the
    format of a source whose codes and scales these are, unchanged; None: they were made here.
    ``keeps_codes`` is true where the codes are the source's own, their scales rounded or not.
    """

    name: str
    shape: tuple[int, ...]
    scheme: str
    reason: str
    sha256: str | None
    imported: str | None = None
    keeps_codes: bool = False


@dataclass(frozen=True, slots=True)
class EndToken:
    """A token that ends an answer: its id, its text, and which files say that it ends one.

    ``text`` is empty where the model has no tokenizer.
    """

    id: int
    text: str
    origins: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Manifest:
    """Everything written down about an artifact, ``manifest.json``.

    ``weights_sha256`` is the hash over all quantized tensors: equal for two artifacts exactly
    when they hold the same codes and scales. ``decoder`` is ``DecoderSpec.as_dict()``; of a graph
    that optimum wrote, only its sizes and end tokens are known. ``notes`` says in one sentence each
    what was left out, ignored or changed on the way from the source; ``ignored_config_keys`` are
    the keys of its config that passed because the user said so. ``adapter`` is the folder of the
    adapter that was merged into the weights, ``adapter_sha256`` its hash; empty without one.
    ``end_tokens`` are those of the decoder, with where each comes from.
    """

    format: Format
    scheme: str
    model_name: str
    model_type: str
    source: str
    source_sha256: str
    weights_sha256: str
    n_parameters: int
    context_length: int
    decoder: Mapping[str, Any]
    tensors: tuple[TensorEntry, ...]
    files: tuple[FileEntry, ...]
    tool_versions: Mapping[str, str]
    settings: Mapping[str, Any] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    ignored_config_keys: tuple[str, ...] = ()
    adapter: str = ""
    adapter_sha256: str = ""
    end_tokens: tuple[EndToken, ...] = ()
    schema_version: int = SCHEMA_VERSION

    def to_json(self) -> str:
        """Write as deterministic JSON text."""
        data = asdict(self)
        data["format"] = self.format.value
        return json.dumps(data, indent=2, sort_keys=True, ensure_ascii=False) + "\n"

    @classmethod
    def from_json(cls, text: str, *, where: str) -> Manifest:
        """Read a manifest; ``where`` names the file in errors.

        Raises:
            ArtifactError: Not JSON, another version, or fields missing, unknown or of another type.
        """
        try:
            data = parse_object(text.encode("utf-8", "surrogatepass"), where)
            version = data.get("schema_version")
            if version != SCHEMA_VERSION and isinstance(version, int):
                raise ArtifactError(
                    f"{where}: manifest version",
                    got=version,
                    wanted=SCHEMA_VERSION,
                    do="Export the model again with this edgekit.",
                )
            manifest = from_plain(cls, data)
            _check_values(manifest)
        except (FormatError, UsageError, ValueError) as error:
            raise ArtifactError(
                f"{where} is not a manifest",
                got=error.got if isinstance(error, FormatError) else error,
                do="Export the model again.",
            ) from error
        return manifest


@dataclass(frozen=True, slots=True)
class Artifact:
    """An exported model on disk: its folder and its manifest."""

    path: Path
    manifest: Manifest

    @classmethod
    def open(cls, path: str | Path) -> Artifact:
        """Read the manifest of an artifact folder; no weight is touched.

        Raises:
            ArtifactError: No folder, no manifest, a damaged manifest, or a listed file is
                absent or has another size.
        """
        folder = Path(path)
        manifest_path = folder / MANIFEST_NAME
        try:
            text = read_inside(manifest_path, MAX_MANIFEST_BYTES).decode("utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise ArtifactError(
                f"{folder} is not an artifact",
                got=str(error),
                wanted=f"a folder with {MANIFEST_NAME}",
                do="Make one with: edgekit export MODEL --format onnx --out DIR",
            ) from error
        manifest = Manifest.from_json(text, where=str(manifest_path))
        for entry in manifest.files:
            target = folder / entry.path
            try:
                is_inside = _is_inside(target, folder)
                n_bytes = target.stat().st_size if target.is_file() else None
            except OSError as error:
                raise ArtifactError(
                    f"{manifest_path}: file name", got=error.strerror or str(error)
                ) from error
            if not is_inside:
                raise ArtifactError(f"{manifest_path}: file outside the artifact", got=entry.path)
            if n_bytes != entry.n_bytes:
                raise ArtifactError(
                    f"{target}: size",
                    got="no such file" if n_bytes is None else n_bytes,
                    wanted=entry.n_bytes,
                    do="Export the model again.",
                )
        return cls(folder, manifest)

    @property
    def format(self) -> Format:
        """The file format."""
        return self.manifest.format

    @property
    def scheme(self) -> Scheme:
        """How the weights are stored."""
        return Scheme.parse(self.manifest.scheme)

    @property
    def name(self) -> str:
        """Short name for tables, such as ``pocket onnx int4-g32``."""
        name = f"{self.manifest.model_name} {self.format.value} {self.manifest.scheme}"
        # A folder may hold both: the model as edgekit wrote it and as optimum wrote it.
        return f"{name} {OPTIMUM_GRAPH}" if self.is_traced else name

    @property
    def is_traced(self) -> bool:
        """True when the graph is optimum's and not edgekit's own."""
        return self.manifest.settings.get("graph") == OPTIMUM_GRAPH

    @property
    def n_bytes(self) -> int:
        """Size of all files."""
        return sum(entry.n_bytes for entry in self.manifest.files)

    def check_files(self) -> None:
        """Hash every file against the manifest.

        Raises:
            ArtifactError: A file differs; the message lists every such file.
        """
        try:
            changed = [
                entry.path
                for entry in self.manifest.files
                if hash_file(self.path / entry.path) != entry.sha256
            ]
        except OSError as error:
            raise ArtifactError(
                f"{self.path}: a file cannot be read",
                got=str(error),
                do="Export the model again.",
            ) from error
        if changed:
            raise ArtifactError(
                f"{self.path}: files changed since the export",
                got=", ".join(changed),
                wanted="the sha256 in manifest.json",
                do="Export the model again.",
            )


def hash_file(path: Path) -> str:
    """Give the sha256 of a file as hex digits."""
    digest = hashlib.sha256()
    with open_plain(path) as stream:
        while chunk := stream.read(_CHUNK_BYTES):
            digest.update(chunk)
    return digest.hexdigest()


def _check_values(manifest: Manifest) -> None:
    """Refuse values that would break later code; a manifest is untrusted input."""
    names = (manifest.model_name, manifest.model_type, *(t.name for t in manifest.tensors))
    wrong = [f"name {name!r}" for name in names if _CONTROL.search(name)]
    counts = (
        manifest.n_parameters, manifest.context_length, *(end.id for end in manifest.end_tokens)
    )  # fmt: skip
    wrong += [f"a count of {n}" for n in counts if n < 0]
    for file in manifest.files:
        if "\0" in file.path or file.n_bytes < 0:
            wrong.append(f"files entry {file.path!r}")
    for tensor in manifest.tensors:
        if any(n < 0 for n in tensor.shape):
            wrong.append(f"tensors entry {tensor.name!r}: shape {tensor.shape}")
        Scheme.parse(tensor.scheme)
    Scheme.parse(manifest.scheme)
    if wrong:
        raise ValueError(", ".join(wrong[:5]))


def _is_inside(target: Path, folder: Path) -> bool:
    return target.resolve().is_relative_to(folder.resolve())
