"""What edgekit makes of each published config, with tensors of the right names behind it."""

from __future__ import annotations

import csv
import json
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from edgekit.errors import EdgekitError
from edgekit.families import FAMILIES, open_model
from edgekit.families.inspect import ModelSummary, summarize
from tests.corpus.tensors import source_of, write_adapter, write_weights

CORPUS: Final = Path(__file__).resolve().parent
CONFIGS: Final = CORPUS / "configs"


@dataclass(frozen=True)
class Outcome:
    """What became of one published config.

    Attributes:
        result: ``opens`` or ``refused``.
        what: The decoder in a line, or the whole message of the refusal, folders left out.
        said: What was said aloud beside it.
    """

    result: str
    what: str
    said: tuple[str, ...] = ()


def names() -> list[str]:
    """Give the folders of the corpus."""
    return sorted(path.name for path in CONFIGS.iterdir() if path.is_dir())


def rows(name: str) -> Iterator[Mapping[str, str]]:
    """Read one of the tables beside the configs."""
    with (CORPUS / name).open(encoding="utf-8", newline="") as stream:
        yield from csv.DictReader(stream, delimiter="\t", quoting=csv.QUOTE_NONE)


def config_of(name: str) -> dict[str, Any] | None:
    """Read a model's config; None for an adapter."""
    path = CONFIGS / name / "config.json"
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else None


def tensors_of(name: str) -> str:
    """Say where the names and shapes behind a config are taken from."""
    return source_of(config_of(name), name)


def outcome(name: str, root: Path) -> Outcome:
    """Open one published model in a folder of its own, which is removed again."""
    folder = root / name
    shutil.copytree(CONFIGS / name, folder)
    try:
        config = config_of(name)
        if config is None:
            write_adapter(folder, name)
        else:
            write_weights(folder, config, name)
        source = open_model(folder)
    except EdgekitError as error:
        text = str(error).replace(str(folder), "MODEL")
        return Outcome("refused", text.replace(f"; wanted {', '.join(FAMILIES)}", ""))
    else:
        summary = summarize(source)
        source.close()
        return Outcome("opens", _describe(summary), tuple(_said(summary)))
    finally:
        shutil.rmtree(folder)


def _describe(summary: ModelSummary) -> str:
    window = ""
    if summary.sliding_window is not None:
        window = f", window {summary.sliding_window} in {summary.n_sliding_layers}"
    return (
        f"{summary.model_type}, {summary.n_layers} layers of {summary.hidden_width}, "
        f"{summary.n_heads}/{summary.n_kv_heads} heads of {summary.head_width}, "
        f"context {summary.context_length}{window}{', tied' if summary.is_tied else ''}"
    )


def _said(summary: ModelSummary) -> Iterator[str]:
    for label, n in summary.prequantized.items():
        yield f"{n} matrices already quantized: {label}"
    # The corpus leaves tokenizers out.
    yield from (note for note in summary.notes if not note.startswith("no tokenizer"))
