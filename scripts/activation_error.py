"""Measure what quantization and int8 activations cost a real model, and write docs/activations.md.

    python scripts/activation_error.py FOLDER            the table of errors
    python scripts/activation_error.py FOLDER --speed    decode speed instead; on an idle machine

FOLDER is a float checkpoint with a chat template, such as scripts/real_model.py writes. Every
artifact is exported twice, with channel scales moved and without (``--no-fold``); of the latter,
onnxruntime also runs a graph whose head takes one int8 term, as edgekit wrote it before. The texts
below are written for this measurement, and no part of them is in the calibration of edgekit.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Final
from unittest import mock

import numpy as np

from edgekit.artifact import Artifact
from edgekit.dtypes import F32Array
from edgekit.exporters.onnx import exporter
from edgekit.families import open_model
from edgekit.pipeline.export import export
from edgekit.quality.divergence import ReferenceRun, measure_divergence, run_reference
from edgekit.records import Divergence
from edgekit.runtime import open_decoder
from edgekit.runtime.base import Decoder
from edgekit.runtime.reference import ReferenceDecoder
from edgekit.text.chat import ChatTemplate
from edgekit.text.tokenizer import Tokenizer

PAGE: Final = Path(__file__).resolve().parent.parent / "docs" / "activations.md"
TABLE_MARK: Final = "<!-- measured: errors -->"
SPEED_MARK: Final = "<!-- measured: speed -->"
SCHEMES: Final = ("int8", "int4", "int4-g128")
N_ROUNDS: Final = 40
N_STEPS: Final = 16
PROMPT_TOKENS: Final = 128
CHATS: Final = (
    (
        "What is the capital of France, and which river runs through it?",
        "The capital of France is Paris. The river Seine runs through the middle of the city.",
    ),
    (
        "Write a short poem about the sea in winter.",
        "Grey is the water, white is the foam,\nThe fishing boats have all come "
        "home.\nThe wind is cold, the gulls are few,\nAnd the far horizon is a "
        "line of blue.",
    ),
    (
        "How do I boil an egg so that the yolk stays soft?",
        "Put the egg into boiling water with a spoon, wait for six minutes, then "
        "cool it under cold running water for one minute. The white will be firm "
        "and the yolk soft.",
    ),
    (
        "Explain in two sentences why the sky is blue.",
        "Sunlight is scattered by the molecules of the air, and short wavelengths "
        "such as blue are scattered far more strongly than long ones such as red. "
        "So blue light reaches our eyes from every direction of the sky.",
    ),
    (
        "List three things to check before buying a used bicycle.",
        "1. The frame: look for cracks and dents near the welds.\n2. The brakes: "
        "they should stop both wheels firmly.\n3. The chain and gears: they should "
        "run without slipping.",
    ),
    (
        "Give me a Python function that returns the larger of two numbers.",
        'def larger(a, b):\n    """Return the larger of two numbers."""\n    '
        "return a if a > b else b",
    ),
    (
        "A train travels 120 kilometres in 90 minutes. What is its average speed?",
        "90 minutes are 1.5 hours. 120 kilometres divided by 1.5 hours is 80 kilometres per hour.",
    ),
    (
        "Can you summarize what photosynthesis does?",
        "Plants take in carbon dioxide and water and, with the energy of light, "
        "turn them into sugar and oxygen. The sugar feeds the plant, and the "
        "oxygen goes into the air.",
    ),
)
PROSE: Final = (
    (
        "The old mill stood at the end of the village, where the road turned "
        "towards the hills. Nobody had ground corn there for thirty years, but the "
        "wheel still moved when the stream was high, and the children said that it "
        "was the miller who turned it at night. In spring the swallows came back "
        "to the beams under the roof, and the cat of the last house sat in the "
        "grass below and waited. When the council decided to sell the building, a "
        "young couple from the city bought it for less than the price of a small "
        "car and began to repair the floor."
    ),
    (
        "Heat moves in three ways. In solids it is passed on from one particle to "
        "the next, which is called conduction; metals do this well and wood does "
        "it badly. In liquids and gases the warm parts rise because they are "
        "lighter, and cooler parts take their place, so that a circulation begins. "
        "The third way needs no matter at all: every warm body sends out "
        "radiation, and the warmer it is, the more it sends. A good flask slows "
        "all three: its walls are thin glass with a vacuum between them, and they "
        "are coated with a bright layer of silver."
    ),
    (
        "Minutes of the meeting of 14 March. Present were all members of the board "
        "except Mr. Weber, who had excused himself. The treasurer reported that "
        "income from fees had grown by four per cent, while the cost of energy had "
        "risen by eleven per cent. It was decided that the heating of the hall be "
        "lowered by two degrees from next autumn. The question of a new roof was "
        "put off until two more offers have been received. The next meeting will "
        "be held on the second Tuesday of May at seven o'clock in the evening."
    ),
    (
        "Bread needs only flour, water, salt and time. Mix the flour with the "
        "water and let it rest for half an hour before you add the salt and the "
        "yeast. Knead the dough until it no longer sticks to your fingers, cover "
        "it with a cloth and leave it in a warm place until it has doubled. Shape "
        "a loaf, let it rise again, and bake it in a very hot oven on a stone or "
        "in an iron pot. The crust should be dark and should sound hollow when you "
        "knock on the bottom."
    ),
)


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
            _write_section(SPEED_MARK, [line for lines in tables for line in (*lines, "")][:-1])
        elif arguments.documents is not None:
            documents = _read_documents(arguments.folder, arguments.documents)
            print("\n".join(_compare_errors(arguments.folder, made, documents)))
        else:
            documents = _documents(arguments.folder)
            _write_section(TABLE_MARK, _compare_errors(arguments.folder, made, documents))


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
    tokenizer, template = Tokenizer.open(model), ChatTemplate.open(model)
    documents = [
        template.encode(
            [{"role": "user", "content": question}, {"role": "assistant", "content": answer}],
            tokenizer,
            add_generation_prompt=False,
        )
        for question, answer in CHATS
    ]
    return documents + [tokenizer.encode(text, allow_special=False) for text in PROSE]


def _read_documents(model: Path, path: Path) -> list[list[int]]:
    tokenizer, template = Tokenizer.open(model), ChatTemplate.open(model)
    items = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    return [
        template.encode(item["messages"], tokenizer, add_generation_prompt=False)
        if "messages" in item
        else tokenizer.encode(item["text"], allow_special=False)
        for item in items
    ]


def _logits_of(decoder: Decoder | ReferenceDecoder) -> Callable[[Sequence[int]], F32Array]:
    return lambda ids: decoder.forward(ids, n_past=0, n_logits=len(ids))


def _compare_errors(
    model: Path, made: Mapping[tuple[str, str], Artifact], documents: list[list[int]]
) -> list[str]:
    source = open_model(model)
    reference = run_reference(_logits_of(ReferenceDecoder.from_source(source)), documents)
    source.close()
    n_tokens = sum(len(ids) - 1 for ids in reference.documents)
    lines = [
        f"{model.name}, {n_tokens} tokens of chats and prose, KL(float model, artifact) in nats a",
        "token with 95 % bootstrap over documents, and the share of tokens whose most likely",
        "successor is the float model's.",
        "",
        "| scheme | | KL, weights alone | KL, as shipped | top-1, as shipped |",
        "| --- | --- | --- | --- | --- |",
    ]
    for (scheme, when), artifact in made.items():
        alone = _measure(artifact, reference, {"activation": "fp32"})
        shipped = _measure(artifact, reference, {})
        lines.append(
            f"| {scheme} | {when} | {alone.kl_mean:.5f} | {shipped.kl_mean:.5f} "
            f"[{shipped.kl_low:.5f}, {shipped.kl_high:.5f}] | {shipped.top1_agreement:.4f} |"
        )
        print(lines[-1], flush=True)
    return lines


def _measure(artifact: Artifact, reference: ReferenceRun, options: Mapping[str, str]) -> Divergence:
    decoder = open_decoder(artifact, engine="onnxruntime", options=options)
    try:
        return measure_divergence(_logits_of(decoder), reference)
    finally:
        decoder.close()


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


def _write_section(mark: str, lines: Sequence[str]) -> None:
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
