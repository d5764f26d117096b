"""Measure what quantization and int8 activations cost a real model, and write docs/activations.md.

    python scripts/activation_error.py FOLDER            the table of errors
    python scripts/activation_error.py FOLDER --speed    decode speed instead; on an idle machine

FOLDER is a float checkpoint with a chat template, such as scripts/real_model.py writes. Every
artifact is exported twice, with channel scales moved and without (``--no-fold``); of the latter,
onnxruntime also runs a graph whose head takes one int8 term, as edgekit wrote it before. No part of
the texts (edgekit/quality/texts.py) is in the calibration of edgekit.
"""

from __future__ import annotations

import argparse
import contextlib
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Final
from unittest import mock

import numpy as np

from edgekit.artifact import Artifact
from edgekit.exporters.onnx import exporter
from edgekit.families import open_model
from edgekit.pipeline.evaluate import float_model
from edgekit.pipeline.export import export
from edgekit.quality.divergence import Reference, measure_divergence
from edgekit.quality.texts import CHATS, builtin_documents, read_documents
from edgekit.records import Divergence
from edgekit.runtime import open_decoder
from edgekit.runtime.base import Decoder

PAGE: Final = Path(__file__).resolve().parent.parent / "docs" / "activations.md"
TABLE_MARK: Final = "<!-- measured: errors -->"
SPEED_MARK: Final = "<!-- measured: speed -->"
SCHEMES: Final = ("int8", "int4", "int4-g128")
N_ROUNDS: Final = 40
N_STEPS: Final = 16
PROMPT_TOKENS: Final = 128
N_CHATS: Final = 8
N_PROSE: Final = 4


def main() -> None:
    """Measure and write the page."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--speed", action="store_true", help="compare decode speed instead")
    parser.add_argument(
        "--documents",
        type=Path,
        help="other texts for the errors, printed only: JSON lines with `messages` or `text`",
    )
    parser.add_argument("--threads", type=int, nargs="*", default=[1, 2], help="for the speed")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="edgekit-activations-") as folder:
        made = _export_all(arguments.folder, Path(folder))
        if arguments.speed:
            tables = [_compare_speed(made, n_threads) for n_threads in arguments.threads]
            write_section(SPEED_MARK, [line for lines in tables for line in (*lines, "")][:-1])
        elif arguments.documents is not None:
            documents = _read_documents(arguments.folder, arguments.documents)
            print("\n".join(_compare_errors(arguments.folder, made, documents)))
        else:
            documents = _documents(arguments.folder)
            write_section(TABLE_MARK, _compare_errors(arguments.folder, made, documents))


def _export_all(model: Path, folder: Path) -> dict[tuple[str, str], Artifact]:
    """Give (scheme, "before" or "after") -> ONNX artifact."""
    made = {}
    for scheme in SCHEMES:
        # Before: no scale moves, and every product takes one int8 term.
        with mock.patch.object(exporter, "terms_of", lambda precision: {}):
            made[scheme, "before"] = export(model, "onnx", scheme, folder / "before", fold=False)[0]
        made[scheme, "after"] = export(model, "onnx", scheme, folder / "after")[0]
    return made


def _documents(model: Path) -> list[list[int]]:
    """Give the eight chats and four pieces of prose that the table is about."""
    with contextlib.closing(open_model(model)) as source:
        every = list(builtin_documents(source.text))
    return every[:N_CHATS] + every[len(CHATS) : len(CHATS) + N_PROSE]


def _read_documents(model: Path, path: Path) -> list[list[int]]:
    with contextlib.closing(open_model(model)) as source:
        return list(read_documents(source.text, path))


def _compare_errors(
    model: Path, made: Mapping[tuple[str, str], Artifact], documents: list[list[int]]
) -> list[str]:
    n_tokens = sum(len(ids) - 1 for ids in documents)
    lines = [
        f"{model.name}, {n_tokens} tokens of chats and prose, KL(float model, artifact) in nats a",
        "token with 95 % bootstrap over documents, and the share of tokens whose most likely",
        "successor is the float model's.",
        "",
        "| scheme | | KL, weights alone | KL, as shipped | top-1, as shipped |",
        "| --- | --- | --- | --- | --- |",
    ]
    with float_model(model, documents, is_exact=True) as reference:
        for (scheme, when), artifact in made.items():
            alone = _measure(artifact, reference, {"activation": "fp32"})
            shipped = _measure(artifact, reference, {})
            lines.append(
                f"| {scheme} | {when} | {alone.kl_mean:.5f} | {shipped.kl_mean:.5f} "
                f"[{shipped.kl_low:.5f}, {shipped.kl_high:.5f}] | {shipped.top1_agreement:.4f} |"
            )
            print(lines[-1], flush=True)
    return lines


def _measure(artifact: Artifact, reference: Reference, options: Mapping[str, str]) -> Divergence:
    with contextlib.closing(
        open_decoder(artifact, engine="onnxruntime", options=options)
    ) as decoder:
        return measure_divergence(decoder, reference)


def _compare_speed(made: Mapping[tuple[str, str], Artifact], n_threads: int) -> list[str]:
    """Decode before and after in turns, so that both meet the same machine."""
    lines = [
        f"Milliseconds for a token after {PROMPT_TOKENS}, {n_threads} thread(s), before and after",
        f"in turns, {N_ROUNDS} rounds of {N_STEPS} tokens: median and quartiles of the rounds.",
        "",
        "| scheme | before | after | after / before, median of the rounds |",
        "| --- | --- | --- | --- |",
    ]
    for scheme in SCHEMES:
        rounds = []
        # Which is opened first, and which decodes first, changes: neither always has the better
        # place in memory or the warmer processor.
        for first in (0, 1):
            pair: dict[int, Decoder] = {}
            for index in (first, 1 - first):
                artifact = made[scheme, ("before", "after")[index]]
                pair[index] = open_decoder(artifact, engine="onnxruntime", n_threads=n_threads)
            for decoder in pair.values():
                decoder.forward(list(range(100, 100 + PROMPT_TOKENS)), n_past=0)
                _decode(decoder)
            for number in range(N_ROUNDS // 2):
                order = (0, 1) if number % 2 == 0 else (1, 0)
                times = {index: _decode(pair[index]) for index in order}
                rounds.append((times[0], times[1]))
            for decoder in pair.values():
                decoder.close()
        values = np.asarray(rounds) * 1e3
        quartiles = [np.quantile(values[:, i], (0.25, 0.5, 0.75)) for i in (0, 1)]
        ratio = float(np.median(values[:, 1] / values[:, 0]))
        before, after = (f"{q[1]:.2f} [{q[0]:.2f}, {q[2]:.2f}]" for q in quartiles)
        lines.append(f"| {scheme} | {before} | {after} | {ratio:.3f} |")
        print(lines[-1], flush=True)
    return lines


def _decode(decoder: Decoder) -> float:
    """Give the seconds of one step, mean of ``N_STEPS``."""
    began = time.perf_counter()
    for step in range(N_STEPS):
        decoder.forward([200 + step], n_past=PROMPT_TOKENS + step)
    return (time.perf_counter() - began) / N_STEPS


def write_section(mark: str, lines: Sequence[str]) -> None:
    """Replace what follows a mark in the page, up to the next heading or the end."""
    text = PAGE.read_text(encoding="utf-8")
    before, found, after = text.partition(mark)
    if not found:
        raise SystemExit(f"{PAGE} has no line {mark}")
    heading = after.find("\n## ")
    rest = after[heading:] if heading >= 0 else ""
    body = "\n".join(lines)
    PAGE.write_text(f"{before}{mark}\n\n{body}\n{rest}", encoding="utf-8")


if __name__ == "__main__":
    main()
