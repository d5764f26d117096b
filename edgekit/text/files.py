"""``TextFiles``: the tokenizer and chat template files of a model, wherever they are stored.

A model folder holds them as files; a GGUF file holds the same facts in its header, and an adapter
may bring some of its own. Everything that reads a tokenizer or a chat template takes a
``TextFiles``, so that each of these is read in one way.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

from edgekit.errors import CheckpointError, FormatError
from edgekit.files import is_inside, read_inside
from edgekit.model_files import TEMPLATES_FOLDER, TEXT_NAMES
from edgekit.strict_json import MAX_OBJECT_BYTES, parse_object


@dataclass(frozen=True, slots=True)
class TextFiles:
    """The tokenizer, chat template and generation files of a model, by file name.

    Attributes:
        where: Folder or file that they come from, for messages.
        sources: File name to the file, or to its content where it is not a separate file.
    """

    where: Path
    sources: Mapping[str, Path | bytes]

    @classmethod
    def of(cls, source: str | Path | TextFiles) -> TextFiles:
        """Give the text files of a folder; a ``TextFiles`` is given back as it is."""
        return source if isinstance(source, TextFiles) else cls.of_folder(source)

    @classmethod
    def of_folder(cls, folder: str | Path) -> TextFiles:
        """Find the text files of a model folder; none of them has to be there."""
        folder = Path(folder)
        return cls(
            folder, MappingProxyType({p.relative_to(folder).as_posix(): p for p in _find(folder)})
        )

    @classmethod
    def of_contents(cls, where: str | Path, contents: Mapping[str, bytes | str]) -> TextFiles:
        """Take the content of files that lie in no folder.

        Args:
            where: What holds them, such as a GGUF file; for messages.
            contents: File name, such as ``tokenizer.json``, to its content; texts are UTF-8.
        """
        return cls(
            Path(where),
            MappingProxyType(
                {
                    name: content.encode("utf-8") if isinstance(content, str) else content
                    for name, content in contents.items()
                }
            ),
        )

    def overlaid(self, other: TextFiles) -> TextFiles:
        """Give these files with those of ``other`` added, which win where both have one."""
        return TextFiles(self.where, MappingProxyType({**self.sources, **other.sources}))

    def names(self) -> tuple[str, ...]:
        """Give the names of the files that are there, sorted."""
        return tuple(sorted(self.sources))

    def has(self, name: str) -> bool:
        """Tell whether there is such a file."""
        return name in self.sources

    def path(self, name: str) -> Path:
        """Give the path to name in a message; nothing has to lie there."""
        source = self.sources.get(name)
        return source if isinstance(source, Path) else self.where / name

    def read(self, name: str, max_bytes: int) -> bytes | None:
        """Read a file; None where there is none.

        Raises:
            CheckpointError: It cannot be read, leads out of its folder, or is larger than
                ``max_bytes``.
        """
        source = self.sources.get(name)
        if source is None:
            return None
        try:
            data = read_inside(source, max_bytes) if isinstance(source, Path) else source
        except OSError as error:
            raise self._unreadable(name, str(error), max_bytes) from error
        if len(data) > max_bytes:
            raise self._unreadable(name, f"a size above {max_bytes} bytes", max_bytes)
        return data

    def read_text(self, name: str, max_bytes: int) -> str | None:
        """Read a text file in UTF-8, its line ends as they are; None where there is none.

        Raises:
            CheckpointError: As ``read``, or it is not UTF-8.
        """
        data = self.read(name, max_bytes)
        try:
            return None if data is None else data.decode("utf-8")
        except UnicodeDecodeError as error:
            raise CheckpointError(
                f"{self.path(name)}: cannot be read", got=str(error), wanted="text in UTF-8"
            ) from error

    def read_object(self, name: str, max_bytes: int = MAX_OBJECT_BYTES) -> dict[str, Any]:
        """Read a JSON file whose outermost value is an object; empty where there is no file.

        Raises:
            CheckpointError: As ``read``, or it is no JSON object.
        """
        data = self.read(name, max_bytes)
        if data is None:
            return {}
        try:
            return parse_object(data, str(self.path(name)))
        except FormatError as error:
            raise CheckpointError(
                error.what, got=error.got, wanted=error.wanted, do="Download the model again."
            ) from error

    def _unreadable(self, name: str, got: str, max_bytes: int) -> CheckpointError:
        return CheckpointError(
            f"{self.path(name)}: cannot be read",
            got=got,
            wanted=f"a plain file in this folder of at most {max_bytes} bytes",
        )


def _find(folder: Path) -> Iterator[Path]:
    """Give the text files of a folder, and the named templates in the folder for them."""
    for name in TEXT_NAMES:
        if (folder / name).is_file():
            yield folder / name
    templates = folder / TEMPLATES_FOLDER
    if is_inside(templates):
        yield from sorted(path for path in templates.glob("*.jinja") if path.is_file())
