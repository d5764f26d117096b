"""The model card of the bundled model.

Every number comes from the evaluation that was just run and from the record of the training that
produced the weights; nothing is typed in by hand.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pocket.evaluate import Tally, wilson
from pocket.export import replace_file
from pocket.model import Config

__all__ = ["write_card"]

# suite -> (what the row says, slice key that carries the target or None, wanted share in percent)
_TARGETS = {
    "tool_calls": ("Tool calls, name and all arguments exact", None, 95),
    "structured_output": ("Structured output, all fields exact", None, 95),
    "long_context": ("Long-context retrieval, at 512 tokens", "n_context_tokens=512", 90),
    "multi_step": ("Multi-step arithmetic, at 2 steps", "n_steps=2", 90),
}

_HEAD = """\
---
license: apache-2.0
language: en
pipeline_tag: text-generation
---

# pocket

A decoder of {n_parameters} parameters ({n_mb} MB in bfloat16) in the Mistral layout, made for
edgekit's own tests, examples and comparisons. It is small enough to live in the repository and to
train on a laptop, and has real skills, so that what quantization costs can be measured. It does
four narrow things: call tools, fill a JSON schema, find a fact in a text, keep a count through a
story. It is not a general assistant and knows nothing about the world.

| | |
|---|---|
| layers, width, feed-forward | {c.num_hidden_layers}, {c.hidden_size}, {c.intermediate_size} |
| query heads, kv heads | {c.num_attention_heads}, {c.num_key_value_heads}, each {c.head_dim} wide |
| vocabulary | {c.vocab_size}, byte-level BPE, one token per digit |
| context | {c.max_position_embeddings} positions; trained on talks of up to about 1100 |
| licence | Apache-2.0, weights and data generators |

## Chat format

`<s>[SYSTEM_PROMPT]...[/SYSTEM_PROMPT][AVAILABLE_TOOLS]...[/AVAILABLE_TOOLS][INST]...[/INST]answer</s>`

The template in `tokenizer_config.json` writes `<s>` itself, so encode its output without adding
special tokens. A tool becomes one line, `set_timer(minutes: integer, label?: string): Start a
countdown`. A call is `[TOOL_CALLS][{{"name": ..., "arguments": {{...}}}}]`; when no offered tool
fits, the answer is `No tool fits this request.`

## Data

All text is generated from seeds by `edgekit/quality/suites`; there is no corpus. Training and
held-out examples differ in sentence templates (none is shared), in made-up names, places, titles
and codes (a hash of the whole value decides its side) and in seeds. The words and the kinds of
task are shared, so the numbers below measure generalising to new sentences and names of known
kinds, not to new tools or new tasks.

## Training

`scripts/train_pocket.py`, seed {record[seed]}: {n_tokens:.1f} M tokens in {record[n_steps]} steps,
{wall_min:.0f} minutes of wall time on two CPU cores that other work shared. The starting weights
are random but for hand-set copying heads (`scripts/pocket/start.py`). Muon for matrices, AdamW for
embeddings and norms, a learning rate that is constant and then falls to zero. A talk asks several
questions about one text, so that few tokens are read without an answer to learn from. The
curriculum starts with short talks and with drills in copying, looking up and adding. Because the
schedule follows the wall clock, a second run on another machine gives a similar model, not the
same bits.

What was tried on the way: three earlier runs never learned to copy, mainly because the matrix
learning rate was 5 to 8 times too high for batches this small; a lower rate, the hand-set copying
heads and the drills cured that. The weights come from {record[runs]} resumed runs. The first 11.4 M
tokens asked one question a talk and reached 93, 72, 88 and 23 % in the rows with a target. Then
came several questions a talk, more training wordings, drills on codes whose digits repeat and on
who did what. Which kinds of answer failed was looked up on held-out items of other seeds; no
held-out wording or value was moved to training.

## Held-out results

Greedy answers of the weights in this folder (rounded to bfloat16, computed in float32), n = {n} per
suite and for each slice with a target, item seed {seed}, 95 % Wilson intervals. `target` was fixed
before training. The same items were answered after 8.7 M and 11.4 M tokens; the weights are the
last ones, not the best on these items.

"""

_TAIL = """
## Limits

English of a few dozen sentence patterns. A name, place or message far from the made-up ones can be
copied wrongly. Other tools than those in `edgekit/quality/suites/tools.py` are not reliably
called. Arithmetic is limited to counts from 0 to 99 with changes of 2 to 12. Do not use it to make
decisions about people.
"""


def write_card(
    folder: Path,
    config: Config,
    tallies: Mapping[str, Tally],
    record: Mapping[str, Any],
    seed: int,
) -> None:
    """Write README.md for the weights in `folder`."""
    n_bytes = (folder / "model.safetensors").stat().st_size
    text = _HEAD.format(
        n_parameters=f"{n_bytes / 2e6:.2f} M",
        n_mb=f"{n_bytes / 1e6:.1f}",
        c=config,
        record=record,
        n_tokens=record["n_tokens"] / 1e6,
        wall_min=record["wall_s"] / 60,
        n=min(tallies[suite].n for suite in _TARGETS),
        seed=seed,
    )
    lines = ["| skill | right | share | 95 % interval | target |", "|---|---|---|---|---|"]
    missed = []
    for suite, (label, slice_key, wanted) in _TARGETS.items():
        if slice_key:
            lines.append(_row(f"{label.split(',')[0]}, all", tallies[suite], ""))
        tally = tallies[f"{suite}/{slice_key}" if slice_key else suite]
        is_met = 100 * tally.n_right >= wanted * tally.n
        lines.append(_row(label, tally, f"{wanted} %, {'met' if is_met else 'missed'}"))
        if not is_met:
            missed.append(label)
    lines += ["", f"Missed targets: {'; '.join(missed) or 'none'}.", "", "By sub-kind:", ""]
    lines += ["| slice | right | share | 95 % interval |", "|---|---|---|---|"]
    for key, tally in sorted(tallies.items(), key=lambda entry: _natural(entry[0])):
        if "/" in key:
            lines.append(_row(key.replace("/", ", ").replace("_", "\\_"), tally, None))
    replace_file(folder / "README.md", (text + "\n".join(lines) + "\n" + _TAIL).encode())


def _row(label: str, tally: Tally, target: str | None) -> str:
    low, high = wilson(tally.n_right, tally.n)
    cells = [
        label,
        f"{tally.n_right}/{tally.n}",
        f"{100 * tally.n_right / tally.n:.1f} %",
        f"{100 * low:.1f} to {100 * high:.1f} %",
    ]
    if target is not None:
        cells.append(target)
    return f"| {' | '.join(cells)} |"


def _natural(key: str) -> tuple[str, int, str]:
    head, _, tail = key.partition("=")
    return head, int(tail) if tail.isdigit() else 0, tail
