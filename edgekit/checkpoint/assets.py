"""Assets: the tokenizer, template and config files that go into every artifact.

Runtimes on the device read tokenizer.json and one chat template, and nothing else: what the
source says elsewhere is written into those, so that every runtime gives the same token ids.
"""

from __future__ import annotations

import json
from pathlib import Path

from edgekit.checkpoint.reader import Checkpoint
from edgekit.model_files import ASSET_NAMES, TEKKEN_NAME
from edgekit.text.chat import TEMPLATE_NAME, ChatTemplate
from edgekit.text.files import TextFiles
from edgekit.text.tokenizer_file import (
    MAX_TOKENIZER_BYTES,
    TOKENIZER_CONFIG_NAME,
    TOKENIZER_NAME,
    read_tokenizer_file,
)


def copy_assets(checkpoint: Checkpoint, target: Path) -> list[str]:
    """Write tokenizer, template and config files of a model as an artifact carries them.

    Args:
        checkpoint: The model.
        target: An existing folder.

    Returns:
        The names of the files, sorted.

    Raises:
        CheckpointError: A tokenizer or template file is damaged.
        OSError: A file cannot be written.
    """
    files = checkpoint.text_files
    contents = {name: files.read(name, MAX_TOKENIZER_BYTES) for name in ASSET_NAMES}
    for name, text in rewritten_assets(files).items():
        contents[name] = None if text is None else text.encode("utf-8")
    written = {name: content for name, content in contents.items() if content is not None}
    for name, content in written.items():
        (target / name).write_bytes(content)
    return sorted(written)


def rewritten_assets(source: str | Path | TextFiles) -> dict[str, str | None]:
    """Give the text of each file that an artifact of a model needs instead of the file.

    Args:
        source: A model folder, or its text files.

    Returns:
        File name to text; None for a file that the artifact does without.

    Raises:
        CheckpointError: A tokenizer or template file is damaged.
    """
    files = TextFiles.of(source)
    texts: dict[str, str | None] = {}
    config = files.read_object(TOKENIZER_CONFIG_NAME)
    wanted = dict(config)
    if files.has(TOKENIZER_NAME) or files.has(TEKKEN_NAME):
        file = read_tokenizer_file(files)
        if file.is_changed:
            texts[TOKENIZER_NAME] = file.text
        if file.path.name == TEKKEN_NAME:
            wanted = {"tokenizer_class": "PreTrainedTokenizerFast", **file.named_tokens, **config}
    template = ChatTemplate.open(files)
    if template.where.name not in (TEMPLATE_NAME, TOKENIZER_CONFIG_NAME):
        texts[TEMPLATE_NAME] = template.sources["default"]
    elif template.where.name == TEMPLATE_NAME and template.sources.keys() - {"default"}:
        # Beside a chat_template.jinja the list would not be read.
        texts[TEMPLATE_NAME] = None
        wanted["chat_template"] = [
            {"name": name, "template": source} for name, source in template.sources.items()
        ]
    if wanted != config:
        texts[TOKENIZER_CONFIG_NAME] = json.dumps(wanted, indent=2, ensure_ascii=False) + "\n"
    return texts
