"""A checkpoint together with an adapter that will be merged into its weights."""

from __future__ import annotations

import hashlib
import json
from types import MappingProxyType
from typing import Final

from edgekit.checkpoint.adapter import Adapter
from edgekit.checkpoint.base import Checkpoint
from edgekit.model_files import CONFIG_NAME, GENERATION_NAME, TEMPLATES_FOLDER
from edgekit.tensors import LazyTensor
from edgekit.text.files import TextFiles

_TOKENIZER_CONFIG: Final = "tokenizer_config.json"
_TEMPLATE_KEY: Final = "chat_template"
# A tokenizer is all of these files together; files of two models must not be mixed.
_TOKENIZER_FILES: Final = frozenset({
    "tokenizer.json", _TOKENIZER_CONFIG, "special_tokens_map.json", "added_tokens.json",
    "tekken.json", "vocab.json", "merges.txt", "tokenizer.model",
})  # fmt: skip
_VOCABULARIES: Final = frozenset({"tokenizer.json", "tekken.json", "tokenizer.model", "vocab.json"})
_TEMPLATE_FILES: Final = frozenset({"chat_template.jinja", "chat_template.json"})


class AdaptedCheckpoint(Checkpoint):
    """A checkpoint whose weights an adapter changes; ``families/adapted.py`` merges them."""

    def __init__(self, base: Checkpoint, adapter: Adapter) -> None:
        """Join the two; closing this one closes both.

        Args:
            base: The model that the adapter belongs to.
            adapter: The adapter.
        """
        self._base, self._adapter = base, adapter
        self.adapter = adapter
        self.name = base.name if adapter.is_inside else f"{base.name}-{adapter.name}"
        self.folder, self.origin, self.config = base.folder, base.origin, base.config
        self.has_weights, self.tensors = base.has_weights, base.tensors
        self.notes, self.assets = base.notes, base.assets
        self.ignored_config_keys = base.ignored_config_keys

    def fetch_text(self) -> None:
        """Download the base's tokenizer and chat template if they are not on this disk."""
        self._base.fetch_text()

    @property
    def text_files(self) -> TextFiles:
        """The tokenizer and template of the adapter where it has them, else those of the base."""
        return overlay_text(self._base.text_files, self._adapter.text_files)

    @property
    def license(self) -> str:
        """The license that the base names."""
        return self._base.license

    @property
    def weights_bytes(self) -> int:
        """Bytes of all tensors of the base as stored."""
        return self._base.weights_bytes

    @property
    def assets_bytes(self) -> int:
        """Bytes of the files that every artifact holds unchanged."""
        return self._base.assets_bytes

    def weights(self) -> dict[str, LazyTensor]:
        """Give the base's weights, the adapter's own tensors left out."""
        if not self._adapter.is_inside:
            return self._base.weights()
        return {
            name: tensor
            for name, tensor in self._base.weights().items()
            if name not in self._adapter.tensors
        }

    def sha256(self) -> str:
        """Hash the base and the adapter."""
        both = f"{self._base.sha256()} {self._adapter.sha256()}"
        return hashlib.sha256(both.encode()).hexdigest()

    def close(self) -> None:
        """Close both; safe to call twice."""
        self._adapter.close()
        self._base.close()


def overlay_text(base: TextFiles, adapter: TextFiles) -> TextFiles:
    """Replace the base's tokenizer and chat template by the adapter's, each as a whole.

    If the adapter has a tokenizer but no template, the base's template stays.

    Args:
        base: Text files of the model.
        adapter: Text files in the adapter's folder.
    """
    own = {n: s for n, s in adapter.sources.items() if n not in (CONFIG_NAME, GENERATION_NAME)}
    if not own:
        return base
    kept = dict(base.sources)
    has_template = _has_template(adapter)
    if own.keys() & _VOCABULARIES:
        kept = {name: source for name, source in kept.items() if name not in _TOKENIZER_FILES}
    if has_template:
        kept = {name: source for name, source in kept.items() if not _is_template(name)}
    files = TextFiles(base.where, MappingProxyType({**kept, **own}))
    said = base.read_object(_TOKENIZER_CONFIG).get(_TEMPLATE_KEY)
    if has_template or said is None or _has_template(files):
        return files
    config = {**files.read_object(_TOKENIZER_CONFIG), _TEMPLATE_KEY: said}
    data = (json.dumps(config, indent=2, ensure_ascii=False) + "\n").encode()
    return TextFiles(base.where, MappingProxyType({**files.sources, _TOKENIZER_CONFIG: data}))


def _has_template(files: TextFiles) -> bool:
    return any(map(_is_template, files.names())) or bool(
        files.read_object(_TOKENIZER_CONFIG).get(_TEMPLATE_KEY)
    )


def _is_template(name: str) -> bool:
    return name in _TEMPLATE_FILES or name.startswith(f"{TEMPLATES_FOLDER}/")
