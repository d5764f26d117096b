"""``Checkpoint``: the interface of an open model: config, tensors, text files and notes.

It is implemented by a model folder (reader.py), a GGUF file (gguf/file.py), a model on the Hub
before its download (remote.py), and a checkpoint with an adapter (adapted.py).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from pathlib import Path
from typing import Self

from edgekit.checkpoint.adapter import Adapter
from edgekit.checkpoint.config import RawConfig
from edgekit.formats.safetensors import SafetensorsTensor
from edgekit.tensors import LazyTensor
from edgekit.text.files import TextFiles


class Checkpoint(ABC):
    """An open model whose tensors can be read one at a time.

    Attributes:
        name: Short display name.
        origin: What the user named.
        folder: The folder of the model.
        config: The keys of config.json.
        tensors: Tensors of its safetensors files by their own names, in file order; of a GGUF file
            none.
        assets: Config, tokenizer and template files that exist, by file name.
        notes: What is left out, ignored or changed while reading, one sentence each, for the user.
        has_weights: Whether the tensors can be read, and not only listed.
        adapter: The adapter that will be merged into the weights, or None.
        adapter_files: Weight files of adapters in the model's folder.
        ignored_config_keys: Keys that the user wants ignored, whatever their value is.
    """

    name: str
    origin: str
    folder: Path
    config: RawConfig
    tensors: Mapping[str, SafetensorsTensor]
    assets: Mapping[str, Path]
    notes: list[str]
    has_weights: bool = True
    adapter: Adapter | None = None
    adapter_files: tuple[str, ...] = ()
    ignored_config_keys: tuple[str, ...] = ()

    @abstractmethod
    def fetch_text(self) -> None:
        """Download tokenizer and chat template if they are not on this disk."""

    @property
    @abstractmethod
    def text_files(self) -> TextFiles:
        """The tokenizer, chat template and generation files of the model."""

    @property
    @abstractmethod
    def license(self) -> str:
        """The license that the model names; empty if it names none."""

    @property
    @abstractmethod
    def weights_bytes(self) -> int:
        """Bytes of all tensors as stored."""

    @property
    @abstractmethod
    def assets_bytes(self) -> int:
        """Bytes of the files that every artifact holds unchanged."""

    @abstractmethod
    def weights(self) -> dict[str, LazyTensor]:
        """Give the weights by the names that a Hugging Face checkpoint has; nothing is read yet.

        Raises:
            CheckpointError: Parts are missing or do not fit together or the config.
        """

    @abstractmethod
    def sha256(self) -> str:
        """Hash everything that the result follows from: 64 hexadecimal digits."""

    @abstractmethod
    def close(self) -> None:
        """Close the files; safe to call twice."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
