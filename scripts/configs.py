"""Write docs/configs.md: published configs, and how edgekit reads each.

    PYTHONPATH=. python scripts/configs.py               the page
    PYTHONPATH=. python scripts/configs.py NAME ...      print the result for these

Every row is a real call: the config as published, and a weight file with the names, types and
shapes that its writer gives (tests/corpus/tensors.py), with a hole in place of the weights. The
tests compare the page with what this script makes.
"""

import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Final

from tests.corpus.published import Outcome, names, outcome, rows, tensors_of
from tests.corpus.tensors import versions

DOC: Final = Path(__file__).resolve().parent.parent / "docs" / "configs.md"
TEMPLATE: Final = """\
# Published configs

Written by `scripts/configs.py`; do not edit.

{n} published configurations: first saves, fine-tunes, conversions, quantizations.
`tests/corpus/SOURCES.tsv` says where each comes from. Each was opened with a weight file that has
the names, types and shapes of the published one, but a hole in place of the values.
{n_open} open; {n_refused} are refused.

Names and shapes do not come from edgekit. Where the last column says transformers, they are those
of the tensors that it would save for the config, found by building the model without memory
({versions}; `scripts/corpus_tensors.py`). Otherwise it names the code
of the checkpoint from which they were written down. After a semicolon follows what a quantizer
stores in place of a matrix.

| model | writer | result | decoder, or reason | tensors |
| --- | --- | --- | --- | --- |
{rows}
"""


def main() -> None:
    """Run the command line."""
    with tempfile.TemporaryDirectory() as root:
        if sys.argv[1:]:
            for name in sys.argv[1:]:
                print(name, outcome(name, Path(root)))
            return
        DOC.write_text(make_text({n: outcome(n, Path(root)) for n in names()}), encoding="utf-8")


def make_text(outcomes: Mapping[str, Outcome]) -> str:
    """Give the page."""
    writer_of = {row["name"]: row["writer"] for row in rows("SOURCES.tsv")}
    lines = []
    for name, found in outcomes.items():
        text = "; ".join((found.what, *found.said)).replace("|", "\\|")
        lines.append(
            f"| {name} | {writer_of[name]} | {found.result} | {text} | {tensors_of(name)} |"
        )
    n_open = sum(found.result == "opens" for found in outcomes.values())
    return TEMPLATE.format(
        n=len(outcomes),
        versions=versions(),
        n_open=n_open,
        n_refused=len(outcomes) - n_open,
        rows="\n".join(lines),
    )


if __name__ == "__main__":
    main()
