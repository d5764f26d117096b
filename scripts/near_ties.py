"""Measure how often the rounding of activations changes a greedy answer (docs/activations.md).

    python scripts/near_ties.py FOLDER

FOLDER is a float checkpoint with a chat template, such as scripts/real_model.py writes. The
answers are those of the artifact's own weights with float activations. At each of their tokens,
the distance of the two likeliest next tokens is compared with what an arithmetic adds to it: where
that is more than the distance, the answer goes on with another token. All arithmetics run on the
same weights.
"""

from __future__ import annotations

import argparse
import contextlib
import math
import tempfile
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
from activation_error import write_section

from edgekit.artifact import Artifact
from edgekit.pipeline.agreement import make_prompts
from edgekit.pipeline.export import export
from edgekit.runtime import open_decoder
from edgekit.runtime.base import Decoder
from edgekit.runtime.session import open_session

MARK: Final = "<!-- measured: near ties -->"
SCHEMES: Final = ("int8", "int4")
N_PROMPTS: Final = 20
N_TOKENS: Final = 64


@dataclass(frozen=True, slots=True)
class Answer:
    """A greedy answer with float activations.

    Attributes:
        ids: The prompt and the answer.
        n_prompt: Tokens of the prompt.
        margins: At each token of the answer, the likeliest logit less the second, float64 (n,).
        pairs: The two likeliest tokens, (n, 2).
    """

    ids: tuple[int, ...]
    n_prompt: int
    margins: np.ndarray[Any, np.dtype[np.float64]]
    pairs: np.ndarray[Any, np.dtype[np.intp]]


@dataclass(frozen=True, slots=True)
class Arithmetic:
    """A way to compute with the same weights."""

    name: str
    artifact: Artifact
    engine: str
    options: Mapping[str, Any]


def main() -> None:
    """Measure and write the section."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    folder = parser.parse_args().folder
    lines = [
        f"{folder.name}, {N_PROMPTS} prompts of edgekit's suites, at most {N_TOKENS} tokens each.",
        "",
        "| scheme | arithmetic | noise of the distance, sd | tokens changed | answers changed "
        "| expected from the noise alone |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    with tempfile.TemporaryDirectory(prefix="edgekit-near-ties-") as scratch:
        for scheme in SCHEMES:
            lines += measure(folder, scheme, Path(scratch))
    write_section(MARK, lines)


def measure(model: Path, scheme: str, scratch: Path) -> list[str]:
    """Give the lines of a scheme."""
    onnx, mlx, coreml = export(model, ["onnx", "mlx", "coreml"], scheme, scratch)
    [two] = export(model, "onnx", scheme, scratch / "two", exact_activations=True)
    ways = [
        Arithmetic("one int8 term, two for the head (as shipped)", onnx, "onnxruntime", {}),
        Arithmetic("two int8 terms for every matmul (--exact-activations)", two, "onnxruntime", {}),
        Arithmetic("float16 (Core ML)", coreml, "mil", {}),
    ]
    with contextlib.closing(open_session(onnx)) as session:
        prompts = [tuple(session.encode_chat(item.messages)) for item in make_prompts(N_PROMPTS)]
        ends = session.eos_ids
    with opened(Arithmetic("float32", mlx, "mlx", {"activation": "fp32"})) as decoder:
        answers = [answer(decoder, ids, ends) for ids in prompts]
    margins = np.concatenate([item.margins for item in answers])
    low = [f"{np.quantile(margins, share):.3f}" for share in (0.01, 0.05, 0.5)]
    lines = []
    for way in ways:
        with opened(way) as decoder:
            noises = [noise(decoder, item) for item in answers]
        spread = float(np.concatenate(noises).std())
        flips = [item.margins + moved < 0 for item, moved in zip(answers, noises, strict=True)]
        n_tokens = sum(int(flip.sum()) for flip in flips)
        n_answers = sum(bool(flip.any()) for flip in flips)
        expected = sum(1 - same(item.margins, spread) for item in answers)
        lines.append(
            f"| {scheme} | {way.name} | {spread:.4f} | {n_tokens} of {len(margins)} "
            f"| {n_answers} of {len(answers)} | {expected:.1f} of {len(answers)} |"
        )
        print(lines[-1], flush=True)
    needed = noise_for(answers, 0.95)
    lines.append(
        f"| {scheme} | all {len(answers)} answers equal in 95 of 100 cases | {needed:.5f} needed "
        f"| distances: 1 % below {low[0]}, 5 % below {low[1]}, half below {low[2]} | | |"
    )
    print(lines[-1], flush=True)
    return lines


def opened(way: Arithmetic) -> contextlib.closing[Decoder]:
    """Open an artifact."""
    return contextlib.closing(open_decoder(way.artifact, engine=way.engine, options=way.options))


def answer(decoder: Decoder, prompt: tuple[int, ...], ends: Collection[int]) -> Answer:
    """Answer greedily."""
    ids, margins, pairs = list(prompt), [], []
    logits = decoder.forward(ids, n_past=0)[-1]
    while True:
        second, first = np.argsort(logits)[-2:]
        margins.append(float(logits[first] - logits[second]))
        pairs.append((int(first), int(second)))
        ids.append(int(first))
        if first in ends or len(margins) == N_TOKENS:
            break
        logits = decoder.forward(ids[-1:], n_past=len(ids) - 1)[-1]
    return Answer(tuple(ids), len(prompt), np.array(margins), np.array(pairs))


def noise(decoder: Decoder, item: Answer) -> np.ndarray[Any, np.dtype[np.float64]]:
    """Give what an arithmetic adds to the distances on the same text, (n,)."""
    n_new = len(item.margins)
    logits = decoder.forward(item.ids[:-1], n_past=0, n_logits=n_new).astype(np.float64)
    rows = np.arange(n_new)
    distances = logits[rows, item.pairs[:, 0]] - logits[rows, item.pairs[:, 1]]
    moved: np.ndarray[Any, np.dtype[np.float64]] = distances - item.margins
    return moved


def same(margins: np.ndarray[Any, np.dtype[np.float64]], spread: float) -> float:
    """Give the probability that normal noise changes no token."""
    return math.prod(0.5 * math.erfc(-m / (spread * math.sqrt(2))) for m in margins)


def noise_for(answers: Sequence[Answer], probability: float) -> float:
    """Give the noise at which all answers stay as they are with this probability."""
    low, high = 1e-7, 1.0
    for _ in range(60):
        middle = math.sqrt(low * high)
        if math.prod(same(item.margins, middle) for item in answers) < probability:
            high = middle
        else:
            low = middle
    return low


if __name__ == "__main__":
    main()
