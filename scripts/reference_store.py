"""Measure what the reference store of a float model loses, and write it into docs/quality.md.

    python scripts/reference_store.py FOLDER [--tokens 1000]

FOLDER is a float checkpoint, such as scripts/real_model.py writes. Whole distributions of the float
model and of three artifacts are compared with stores of several sizes, of the same tokens. The
error of a size is that of eight stores, each with another sample.
"""

from __future__ import annotations

import argparse
import contextlib
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Final
from unittest import mock

import numpy as np

from edgekit.dtypes import F64Array
from edgekit.families import open_model
from edgekit.pipeline.export import export
from edgekit.quality import reference_store
from edgekit.quality.divergence import LiveReference, log_softmax, row_blocks_of, walk
from edgekit.quality.reference_store import compare_records, encode, record_type
from edgekit.quality.texts import builtin_documents, take_tokens
from edgekit.runtime import open_decoder
from edgekit.runtime.base import Decoder
from edgekit.runtime.reference import ReferenceDecoder

PAGE: Final = Path(__file__).resolve().parent.parent / "docs" / "quality.md"
MARK: Final = "<!-- measured: store -->"
SCHEMES: Final = ("int8", "int4", "int4-g128")
SIZES: Final = ((32, 0), (256, 0), (1024, 0), (64, 64), (128, 64), (256, 64), (512, 64))
N_STORES: Final = 8
LARGE_VOCABULARY: Final = 131_072


def main() -> None:
    """Measure and write the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--tokens", type=int, default=1000)
    arguments = parser.parse_args()
    with contextlib.ExitStack() as stack:
        work = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="edgekit-store-")))
        source = stack.enter_context(contextlib.closing(open_model(arguments.folder)))
        documents, _ = take_tokens(builtin_documents(source.text), arguments.tokens, 1024)
        candidates: dict[str, Decoder] = {}
        for scheme in SCHEMES:
            (artifact,) = export(arguments.folder, "onnx", scheme, work)
            candidates[scheme] = stack.enter_context(contextlib.closing(open_decoder(artifact)))
        float_model = stack.enter_context(contextlib.closing(ReferenceDecoder.from_source(source)))
        lines = _measure(arguments.folder.name, float_model, candidates, documents)
    text = PAGE.read_text(encoding="utf-8")
    before, found, after = text.partition(MARK)
    if not found:
        raise SystemExit(f"{PAGE} has no line {MARK}")
    heading = after.find("\n## ")
    rest = after[heading:] if heading >= 0 else ""
    PAGE.write_text(f"{before}{MARK}\n\n" + "\n".join(lines) + f"\n{rest}", encoding="utf-8")


def _measure(
    name: str,
    float_model: Decoder,
    candidates: Mapping[str, Decoder],
    documents: list[list[int]],
) -> list[str]:
    whole = dict.fromkeys(candidates, 0.0)
    bounds = {size: dict.fromkeys(candidates, 0.0) for size in SIZES}
    stored = {size: {scheme: np.zeros(N_STORES) for scheme in candidates} for size in SIZES}
    residuals = dict.fromkeys(SIZES, 0.0)
    n_tokens = 0
    rng = np.random.default_rng(1)
    for wanted, others in _blocks(float_model, candidates, documents):
        n_tokens += len(wanted)
        following = np.zeros(len(wanted), dtype=np.int64)
        for scheme, got in others.items():
            whole[scheme] += float((np.exp(wanted) * (wanted - got)).sum())
        for size in SIZES:
            with _sized(size):
                for number in range(N_STORES if size[1] else 1):
                    records, residual = encode(wanted, following, rng.random(len(wanted)))
                    residuals[size] += float(residual.sum()) / (N_STORES if size[1] else 1)
                    for scheme, got in others.items():
                        found = compare_records(records, got)
                        stored[size][scheme][number] += found.kl.sum()
                        if number == 0:
                            bounds[size][scheme] += float(found.kl_bound.sum())
    lines = [
        f"{name}, {n_tokens} tokens of the built-in text; KL of whole distributions: "
        + ", ".join(f"{s} {value / n_tokens:.5f}" for s, value in whole.items())
        + ".",
        "",
        "| kept + sampled | 100,000 tokens, V = 131,072 | probability of the others |"
        + "".join(f" {s}: bound, estimate |" for s in whole),
        "| --- | --- | --- |" + " --- |" * len(whole),
    ]
    for size in SIZES:
        with _sized(size):
            n_bytes = 100_000 * record_type(LARGE_VOCABULARY).itemsize
        cells = []
        for scheme, total in whole.items():
            cell = f"{100 * (bounds[size][scheme] / total - 1):+.2f} %"
            if size[1]:
                error = float(np.sqrt(((stored[size][scheme] / total - 1) ** 2).mean()))
                cell += f", ±{100 * error:.2f} %"
            cells.append(cell)
        lines.append(
            f"| {size[0]} + {size[1]} | {n_bytes / 1e6:.0f} MB | "
            f"{100 * residuals[size] / n_tokens:.2f} % | " + " | ".join(cells) + " |"
        )
        print(lines[-1], flush=True)
    return lines


@contextlib.contextmanager
def _sized(size: tuple[int, int]) -> Iterator[None]:
    """Let stores have another size; with no sample one token is drawn and not looked at."""
    with (
        mock.patch.object(reference_store, "TOP_K", size[0]),
        mock.patch.object(reference_store, "N_SAMPLES", max(1, size[1])),
    ):
        yield


def _blocks(
    float_model: Decoder, candidates: Mapping[str, Decoder], documents: list[list[int]]
) -> Iterator[tuple[F64Array, dict[str, F64Array]]]:
    """Give log-probabilities of the float model and of each artifact, a few tokens at a time."""
    for ids in LiveReference(float_model, documents).documents:
        for start, logits in walk(float_model, ids):
            part = ids[start : start + len(logits)]
            others = {
                scheme: decoder.forward(part, n_past=start, n_logits=len(part))
                for scheme, decoder in candidates.items()
            }
            for rows in row_blocks_of(logits):
                yield (
                    log_softmax(logits[rows]),
                    {scheme: log_softmax(found[rows]) for scheme, found in others.items()},
                )


if __name__ == "__main__":
    main()
