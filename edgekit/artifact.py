"""Artifacts and their manifests: an exported model on disk, and what is recorded about it.

An artifact is a folder with ``manifest.json``. Exporters write it; engines and ``verify`` read it.
This module knows nothing about the file formats themselves.
"""

from __future__ import annotations

import enum
import hashlib
import json
import os
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any, Final

from edgekit.encoding import Encoding
from edgekit.errors import ArtifactError, FormatError, UsageError
from edgekit.file_hashes import hash_file, hash_files
from edgekit.files import file_kind, read_inside
from edgekit.model_files import TEMPLATES_FOLDER, TEXT_NAMES
from edgekit.strict_json import parse_object
from edgekit.typed_values import from_plain

MANIFEST_NAME: Final = "manifest.json"
SCHEMA_VERSION: Final = 2
MAX_MANIFEST_BYTES: Final = 16 << 20
OPTIMUM_GRAPH: Final = "optimum"
"""``settings["graph"]`` of an ONNX artifact whose graph optimum wrote; absent: edgekit's own."""
# Bounds for what is shown in tables and messages; a manifest that edgekit wrote is far below them.
MAX_NAME_CHARS: Final = 255
MAX_TEXT_CHARS: Final = 4_096
MAX_NOTES: Final = 512
_SEAL: Final = "manifest_sha256"
_SEALED: Final = re.compile(rf'\n  "{_SEAL}": "([0-9a-f]{{64}})"')
_NO_SEAL: Final = "0" * 64
_SHA256: Final = re.compile(r"[0-9a-f]{64}")
_MAX_NAMED: Final = 8
# What file managers leave in every folder that they show or copy, and what version control and
# downloads from the Hub keep for themselves. No program reads it as part of a model.
_KEPT_BY_SYSTEMS: Final = {
    None: frozenset(
        {".ds_store", ".localized", "thumbs.db", "desktop.ini", ".gitattributes", ".gitignore"}
    ),
    "a folder": frozenset({".git", ".cache"}),
}
_APPLE_DOUBLE: Final = "._"
# What edgekit, onnxruntime(-genai), mlx-lm, Core ML, transformers and swift-transformers open when
# they find it in a model folder: by its ending alone, and by name.
_READ_SUFFIXES: Final = frozenset(
    {
        ".bin", ".data", ".gguf", ".jinja", ".mlmodel", ".mlmodelc", ".mlpackage", ".model", ".npz",
        ".onnx", ".ort", ".pt", ".pth", ".safetensors", ".spm", ".tiktoken",
    }
)  # fmt: skip
_READ_NAMES: Final = re.compile(
    r".*(config|index|merges|modules|params|template|token|vocab).*\.(json|txt)"
    r"|(configuration|modeling|processing|tokenization).*\.py"
)
_NEVER_PLAIN: Final = ("a pipe", "a socket", "a device")
_CONTROL: Final = re.compile(r"[\x00-\x1f\x7f-\x9f]")  # a terminal would obey them


class Format(enum.Enum):
    """A file format that edgekit writes."""

    ONNX = "onnx"
    MLX = "mlx"
    COREML = "coreml"
    GGUF = "gguf"


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
    encoding: str
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
        """Write as deterministic JSON text, sealed.

        The seal ``manifest_sha256`` is the sha256 of the text itself with 64 zeros in its place.
        It shows an accidental change of any byte; who changes a manifest on purpose can write
        another seal, and is found by ``verify``, which computes again what the manifest claims.
        """
        data = asdict(self) | {"format": self.format.value, _SEAL: _NO_SEAL}
        text = json.dumps(data, indent=2, sort_keys=True, ensure_ascii=False) + "\n"
        return _with_seal(text, _seal_of(text))

    @classmethod
    def from_json(cls, text: str, *, where: str) -> Manifest:
        """Read a manifest; ``where`` names the file in errors.

        Raises:
            ArtifactError: Not JSON, another version, fields missing, unknown or of another type,
                or texts longer than any that edgekit writes.
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
            data.pop(_SEAL, None)  # of the text; Artifact.open compares it
            _check_texts(data)
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
            ArtifactError: No folder, no manifest, a damaged or changed manifest, or a listed file
                is absent, is no plain file or has another size.
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
        artifact = cls(folder, manifest)
        for entry in manifest.files:
            artifact._check_size(entry)
        _check_seal(text, manifest_path)
        return artifact

    @property
    def format(self) -> Format:
        """The file format."""
        return self.manifest.format

    @property
    def is_quantized(self) -> bool:
        """True when a matrix is stored as codes."""
        return any(entry.sha256 is not None for entry in self.manifest.tensors)

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

    def listed_path(self, name: str) -> Path | None:
        """Give the path of a file that the manifest lists; None for any other.

        What the manifest does not list was not part of the export and must not be read.
        """
        is_listed = any(entry.path == name for entry in self.manifest.files)
        return self.path / name if is_listed else None

    def check_unchanged(self) -> None:
        """Refuse an artifact that is not as it was exported, before it is loaded.

        Every file is hashed at the first load. Later loads compare size, times and inode with
        those of that time and read nothing (file_hashes.py). Of what the manifest does not list,
        that is refused which a program might read as part of a model.

        Raises:
            ArtifactError: A file differs, or there are files that might be read and are not
                listed; all are named.
        """
        self._refuse_unlisted(
            path for path, kind in self._unlisted() if kind in _NEVER_PLAIN or _might_be_read(path)
        )
        self._refuse_changed(is_remembered=True)

    def check_files(self) -> None:
        """Hash every file against the manifest, and refuse whatever the manifest does not list.

        Raises:
            ArtifactError: A file differs, or is not listed; the message lists every such file.
        """
        self._refuse_unlisted(path for path, _ in self._unlisted())
        self._refuse_changed(is_remembered=False)

    def _refuse_unlisted(self, paths: Iterable[str]) -> None:
        found = sorted(paths)
        if found:
            raise ArtifactError(
                f"{self.path}: files that {MANIFEST_NAME} does not list",
                got=_some(found),
                wanted="the files of the export and no other",
                do="Move them elsewhere, or export the model again.",
            )

    def _refuse_changed(self, *, is_remembered: bool) -> None:
        names = [entry.path for entry in self.manifest.files]
        try:
            for entry in self.manifest.files:
                self._check_size(entry)
            found = (
                hash_files(self.path, names)
                if is_remembered
                else {name: hash_file(self.path / name) for name in names}
            )
        except OSError as error:
            raise ArtifactError(
                f"{self.path}: a file cannot be read",
                got=str(error),
                do="Export the model again.",
            ) from error
        changed = [e.path for e in self.manifest.files if found[e.path] != e.sha256]
        if changed:
            raise ArtifactError(
                f"{self.path}: files changed since the export",
                got=_some(changed),
                wanted=f"the sha256 in {MANIFEST_NAME}",
                do="Export the model again.",
            )

    def _check_size(self, entry: FileEntry) -> None:
        """Refuse a listed file that is absent, is no plain file here, or has another size."""
        target = self.path / entry.path
        found: object
        try:
            is_inside = _is_inside(target, self.path)
            kind = file_kind(target.resolve()) if is_inside else None
            found = target.stat().st_size if is_inside and kind is None else kind
        except FileNotFoundError:
            is_inside, found = True, "no such file"
        except (OSError, RuntimeError) as error:
            raise ArtifactError(
                f"{self.path / MANIFEST_NAME}: file name",
                got=getattr(error, "strerror", None) or str(error),
            ) from error
        if not is_inside:
            raise ArtifactError(
                f"{self.path / MANIFEST_NAME}: file outside the artifact", got=entry.path
            )
        if found != entry.n_bytes:
            raise ArtifactError(
                f"{target}: size", got=found, wanted=entry.n_bytes, do="Export the model again."
            )

    def _unlisted(self) -> Iterator[tuple[str, str | None]]:
        """Give path and kind of what the manifest does not list; a folder stands for its content.

        Left out is what systems keep for themselves and no program reads.
        """
        listed = {MANIFEST_NAME, *(entry.path for entry in self.manifest.files)}
        folders = {str(up) for name in listed for up in PurePosixPath(name).parents} - {"."}
        folded = {name.casefold(): name for name in listed | folders}
        waiting = [""]
        while waiting:
            above = waiting.pop()
            for entry in sorted(os.scandir(self.path / above), key=lambda e: e.name):
                path = above + entry.name
                kind = file_kind(Path(entry.path))
                known = path if path in listed or path in folders else folded.get(path.casefold())
                # A disk that ignores case may show a name in other letters.
                if known is not None and known != path and not _is_same(entry, self.path / known):
                    known = None
                if known in folders and kind == "a folder":
                    waiting.append(f"{path}/")
                elif known not in listed and not _is_kept_by_system(entry.name, kind):
                    yield path, kind


def _with_seal(text: str, seal: str) -> str:
    return _SEALED.sub(lambda found: found[0].replace(found[1], seal), text, count=1)


def _seal_of(text: str) -> str:
    return hashlib.sha256(_with_seal(text, _NO_SEAL).encode("utf-8", "surrogatepass")).hexdigest()


def _check_seal(text: str, where: Path) -> None:
    """Refuse a manifest of which a byte changed; those of earlier versions have no seal."""
    said = _SEALED.search(text)
    if said is None and f'"{_SEAL}"' not in text:
        return
    wanted = _seal_of(text)
    if said is None or said[1] != wanted:
        raise ArtifactError(
            f"{where} was changed since the export",
            got="another form of the file" if said is None else f"{_SEAL} {said[1][:12]}",
            wanted=f"{wanted[:12]}, the hash of the file",
            do="Export the model again.",
        )


def _might_be_read(path: str) -> bool:
    """Tell whether a program that is given the artifact's folder might read this path in it."""
    name = path.casefold()
    first, _, inner = name.partition("/")
    is_known = name in TEXT_NAMES or first == TEMPLATES_FOLDER or _READ_NAMES.fullmatch(name)
    return bool(is_known or inner or PurePosixPath(name).suffix in _READ_SUFFIXES)


def _is_kept_by_system(name: str, kind: str | None) -> bool:
    is_double = kind is None and name.startswith(_APPLE_DOUBLE)
    return is_double or name.casefold() in _KEPT_BY_SYSTEMS.get(kind, ())


def _is_same(entry: os.DirEntry[str], path: Path) -> bool:
    try:
        return Path(entry.path).samefile(path)
    except OSError:
        return False


def _some(names: list[str]) -> str:
    more = f" and {len(names) - _MAX_NAMED} more" if len(names) > _MAX_NAMED else ""
    return ", ".join(names[:_MAX_NAMED]) + more


def _check_texts(data: Any) -> None:
    """Refuse texts, keys included, longer than any that edgekit writes.

    Raises:
        ValueError: There is one; its beginning is named.
    """
    level = [data]
    while level:
        inner: list[Any] = []
        for value in level:
            if isinstance(value, dict):
                inner += value.keys()
                inner += value.values()
            elif isinstance(value, list):
                inner += value
            elif isinstance(value, str) and len(value) > MAX_TEXT_CHARS:
                raise ValueError(
                    f"a text of {len(value)} characters, at most {MAX_TEXT_CHARS}: {value[:40]!r}"
                )
        level = inner


def _check_values(manifest: Manifest) -> None:
    """Refuse values that would break later code; a manifest is untrusted input."""
    names = (
        manifest.model_name,
        manifest.model_type,
        manifest.scheme,
        *(t.name for t in manifest.tensors),
    )
    wrong = [
        f"name {name[:40]!r} of {len(name)} characters"
        for name in names
        if _CONTROL.search(name) or len(name) > MAX_NAME_CHARS
    ]
    hashes = [manifest.weights_sha256, manifest.adapter_sha256, manifest.source_sha256]
    hashes += [file.sha256 for file in manifest.files]
    hashes += [tensor.sha256 for tensor in manifest.tensors if tensor.sha256 is not None]
    wrong += [f"sha256 {text[:80]!r}" for text in hashes if text and not _SHA256.fullmatch(text)]
    if len(manifest.notes) > MAX_NOTES:
        wrong.append(f"{len(manifest.notes)} notes")
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
        Encoding.parse(tensor.encoding)
    if wrong:
        raise ValueError(", ".join(wrong[:5]))


def _is_inside(target: Path, folder: Path) -> bool:
    return target.resolve().is_relative_to(folder.resolve())
