"""Compare ways to quantize a model in one run on the same text, and write docs/quantization.md.

    python scripts/quantization_study.py MODEL --out FOLDER --data DATA

MODEL is a float checkpoint, such as scripts/real_model.py writes or models/pocket. DATA holds the
test set of GSM8K (gsm8k.test.jsonl) and HumanEval (HumanEval.jsonl.gz); without it the model is
compared on items of edgekit's own suites. Every row is a set of weights, dequantized, run through
the same float forward on the same documents. FOLDER keeps what is computed once and the values of
every token (npz); a row whose file is there is not made again. The page gets one table for each
model.

Rows of llama.cpp need llama-cpp-python (K-quants on padded rows: or xllamacpp), those of MLX need
mlx-lm, those of onnxruntime need onnx_ir, and torch for HQQ. A row whose tool is missing says so.
"""

from __future__ import annotations

import argparse
import contextlib
import fnmatch
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from study import edgekit_rows, llama_rows, mlx_rows, onnx_rows, super_block_rows
from study.measure import Reference, TokenValues, forward_logits
from study.moments import Moments
from study.page import write_table
from study.row import Model, NotInstalledError, Row
from study.texts import calibration_text, evaluation_documents
from study.weights import read

from edgekit.dtypes import F32Array
from edgekit.families import open_model
from edgekit.quantize.calibration_text import DEFAULT_TOKENS

PAGE: Final = Path(__file__).resolve().parent.parent / "docs" / "quantization.md"


def all_rows() -> Iterator[Row]:
    """Give every row, in the order of the table."""
    for module in (edgekit_rows, super_block_rows, llama_rows, mlx_rows, onnx_rows):
        yield from module.rows()


def main() -> None:
    """Make the rows that are missing, then write the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("model", help="a float checkpoint")
    parser.add_argument("--out", type=Path, required=True, help="keeps values and what is reused")
    parser.add_argument("--data", type=Path, help="folder with GSM8K's test set and HumanEval")
    parser.add_argument("--only", default="*", metavar="PATTERN", help="names of rows, * and ?")
    parser.add_argument("--documents", type=int, default=10, help="of each kind")
    parser.add_argument("--tokens", type=int, default=256, help="most tokens of a document")
    parser.add_argument("--calibration-tokens", type=int, default=DEFAULT_TOKENS)
    parser.add_argument("--again", action="store_true", help="make rows that are there anew")
    parser.add_argument("--list", action="store_true", help="name the rows and stop")
    arguments = parser.parse_args()
    rows = list(all_rows())
    if arguments.list:
        print("\n".join(f"{row.name:32} {row.label}" for row in rows))
        return
    with contextlib.closing(open_model(arguments.model)) as source:
        arguments.out.mkdir(parents=True, exist_ok=True)
        kinds = evaluation_documents(
            source,
            arguments.data,
            n_documents=arguments.documents,
            n_tokens=arguments.tokens,
        )
        documents = [ids for found in kinds.values() for ids in found]
        text = calibration_text(source, arguments.calibration_tokens)
        moments = Moments(source, text, arguments.out)
        reference = Reference(source, documents, arguments.out)
        folder = arguments.out / f"rows-{reference.key}"
        folder.mkdir(exist_ok=True)
        model = Model(source, moments, arguments.out)
        paths = {row.name: folder / _file_name(row, moments) for row in rows}
        missing: dict[str, str] = {}
        for row in rows:
            is_asked = fnmatch.fnmatchcase(row.name, arguments.only)
            if paths[row.name].is_file() and not (is_asked and arguments.again):
                continue
            if not is_asked:
                missing[row.name] = "left out so far"
                continue
            try:
                values = make(row, model, reference)
            except NotInstalledError as error:
                missing[row.name] = str(error)
                continue
            values.save(paths[row.name])
            seconds = values.about["seconds"]
            print(f"{row.label}: KL {values.kl_mean:.4f}, made in {seconds} s", flush=True)
        found = [TokenValues.load(path) for path in paths.values() if path.is_file()]
        n_of_kind = {kind: len(ids) for kind, ids in kinds.items()}
        write_table(PAGE, source.checkpoint.name, found, n_of_kind, text.n_tokens, missing)


def _file_name(row: Row, moments: Moments) -> str:
    """Give the name of a row's values; that of a calibrated row says on which text."""
    return f"{row.name}-{moments.key}.npz" if row.is_calibrated else f"{row.name}.npz"


def make(row: Row, model: Model, reference: Reference) -> TokenValues:
    """Make the weights of a row and measure them.

    Raises:
        NotInstalledError: What the row needs is not installed.
    """
    began = time.process_time()
    made = row.make(model)
    seconds = time.process_time() - began
    spec, source = model.source.spec, model.source

    def weights(name: str) -> F32Array:
        kept = made.weights.tensors.get(name)
        return read(source, name) if kept is None else kept

    logits = forward_logits(spec, weights) if made.logits is None else made.logits
    about = {
        "name": row.name,
        "label": row.label,
        "tool": made.tool,
        "linear_bits": made.weights.bits(spec, linear_only=True),
        "all_bits": made.weights.bits(spec, linear_only=False),
        "seconds": round(seconds, 1),
    }
    return reference.measure(logits, about)


if __name__ == "__main__":
    main()
