"""The files that an artifact holds beside its weights: config, tokenizer and chat template.

Runtimes on the device read tokenizer.json, one chat template and one list of end tokens, each from
other files. So the facts from all files of the source are written into each of these files: every
runtime then gives the same token ids and stops at the same tokens. A file that is already complete
is copied unchanged.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from edgekit.checkpoint.base import Checkpoint
from edgekit.errors import CheckpointError
from edgekit.model_files import (
    ASSET_NAMES,
    CONFIG_NAME,
    GENERATION_NAME,
    SPECIAL_MAP_NAME,
    TEMPLATE_NAME,
    TOKENIZER_CONFIG_NAME,
    TOKENIZER_NAME,
)
from edgekit.text.files import TextFiles
from edgekit.text.tokenizer_file import MAX_TOKENIZER_BYTES
from edgekit.text.view import TextView, read_text_view


def read_text(
    checkpoint: Checkpoint, n_rows: int, config_ends: Sequence[int] | None = None
) -> TextView:
    """Read the text files of a model together.

    Args:
        checkpoint: The model.
        n_rows: Rows of its embedding.
        config_ends: End ids that its config states; default ``eos_token_id`` of config.json.

    Raises:
        CheckpointError: See ``read_text_view``.
    """
    if config_ends is None:
        config_ends = read_end_ids(checkpoint.config, CONFIG_NAME)
    generation = checkpoint.text_files.read_object(GENERATION_NAME)
    stated = {
        GENERATION_NAME: read_end_ids(generation, checkpoint.text_files.path(GENERATION_NAME)),
        CONFIG_NAME: config_ends,
    }
    return read_text_view(checkpoint.text_files, n_rows, stated)


def read_end_ids(values: Mapping[str, Any], where: str | Path) -> tuple[int, ...]:
    """Read ``eos_token_id``: one id, a list of them, or none.

    Raises:
        CheckpointError: It is something else.
    """
    value = values.get("eos_token_id")
    ids = value if isinstance(value, list) else [] if value is None else [value]
    if not all(type(token_id) is int and token_id >= 0 for token_id in ids):
        raise CheckpointError(
            f"{where}: eos_token_id is {repr(value)[:80]}",
            wanted="a token id or a list of them",
            do="Compare it with the model's original file.",
        )
    return tuple(dict.fromkeys(ids))


def copy_assets(view: TextView, target: Path) -> list[str]:
    """Write config, tokenizer and template files of a model in the form that an artifact holds.

    Args:
        view: The model's text files.
        target: An existing folder.

    Returns:
        The names of the files, sorted.

    Raises:
        CheckpointError: A file is damaged.
        OSError: A file cannot be written.
    """
    changed = rewritten_assets(view)
    contents = {
        name: data
        for name in ASSET_NAMES
        if name not in changed and (data := view.files.read(name, MAX_TOKENIZER_BYTES)) is not None
    }
    # Written as bytes, because a line end in a template is part of the prompt.
    contents |= {n: text.encode("utf-8") for n, text in changed.items() if text is not None}
    for name, data in contents.items():
        (target / name).write_bytes(data)
    return sorted(contents)


def files_of_artifact(view: TextView) -> TextFiles:
    """Give the text files as an artifact holds them: the model's, with those that are rewritten."""
    changed = {name: text for name, text in rewritten_assets(view).items() if text is not None}
    return view.files.overlaid(TextFiles.of_contents(view.files.where, changed))


def rewritten_assets(view: TextView) -> dict[str, str | None]:
    """Give the text of each file that an artifact needs instead of the model's.

    Returns:
        File name to text; None for a file that the artifact does without.

    Raises:
        CheckpointError: A file is damaged.
    """
    files, tokenizer = view.files, view.tokenizer
    texts: dict[str, str | None] = {}
    config = files.read_object(TOKENIZER_CONFIG_NAME)
    wanted = dict(config)
    if tokenizer is not None:
        if tokenizer.is_changed:
            texts[TOKENIZER_NAME] = tokenizer.file_text
        roles = {role: tokenizer.named_tokens[role] for role in tokenizer.stated_roles}
        if not files.has(TOKENIZER_NAME):  # tokenizer.json is made from other files
            wanted = {"tokenizer_class": "PreTrainedTokenizerFast", **tokenizer.named_tokens}
            wanted |= config
        wanted = _with_roles(wanted, roles)
        special_map = files.read_object(SPECIAL_MAP_NAME)
        _put(texts, SPECIAL_MAP_NAME, special_map, _with_roles(special_map, roles, adds=False))
    _put_template(texts, view, wanted)
    _put(texts, TOKENIZER_CONFIG_NAME, config, wanted)
    _put_ends(texts, view)
    return texts


def _put_template(texts: dict[str, str | None], view: TextView, wanted: dict[str, Any]) -> None:
    """Write one template into both files, because runtimes differ in which one they read."""
    text, entry = view.template.single_text, wanted.get("chat_template")
    if text is None:
        return
    is_in_config = view.template.where.name == TOKENIZER_CONFIG_NAME and isinstance(entry, str)
    if is_in_config:
        wanted["chat_template"] = text
        return
    wanted.pop("chat_template", None)
    data = view.files.read(TEMPLATE_NAME, MAX_TOKENIZER_BYTES)
    if data != text.encode("utf-8"):
        texts[TEMPLATE_NAME] = text


def _put_ends(texts: dict[str, str | None], view: TextView) -> None:
    """Write the end tokens where runtimes look for them; a file that has them all stays."""
    ids = list(view.end_ids)
    for name in (GENERATION_NAME, CONFIG_NAME):
        content = view.files.read_object(name)
        is_told = set(read_end_ids(content, name)) == set(ids)
        is_elsewhere = name == CONFIG_NAME and "eos_token_id" not in content
        if ids and not is_told and not is_elsewhere:
            _put(texts, name, content, content | {"eos_token_id": ids})


def _with_roles(
    content: Mapping[str, Any], roles: Mapping[str, str], *, adds: bool = True
) -> dict[str, Any]:
    """Give a file in which each role names its final token, after all files were read."""
    result = dict(content)
    for role, text in sorted(roles.items()):
        value = result.get(role)
        found = value.get("content") if isinstance(value, dict) else value
        if found != text and (adds or role in result):
            result[role] = text
    return result


def _put(
    texts: dict[str, str | None], name: str, old: Mapping[str, Any], new: Mapping[str, Any]
) -> None:
    if new != old:
        texts[name] = json.dumps(new, indent=2, ensure_ascii=False) + "\n"
