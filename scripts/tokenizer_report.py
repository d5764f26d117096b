"""Write docs/tokenizers.md: edgekit's ids and prompts next to those of other programs.

    PYTHONPATH=. python scripts/tokenizer_report.py

Compares edgekit with the goldens of golden_tokenizers.py, which only transformers made, and adds
the results of golden_real_tokenizers.py about real vocabularies.
"""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import Any, Final

from edgekit.checkpoint.recipe import recipes
from edgekit.errors import CheckpointError
from edgekit.paths import models_dir
from edgekit.text.chat import ChatTemplate
from edgekit.text.tokenizer import Tokenizer
from tests.text.token_families import FAMILY_TOKENIZERS, write_family
from tests.text.token_texts import CHATS, TEXTS, forged_chats

ROOT: Final = Path(__file__).resolve().parent.parent
GOLDENS: Final = ROOT / "tests" / "golden" / "tokenizers"
HEAD: Final = """\
# Tokenizers and chat templates

Made by `PYTHONPATH=. python scripts/tokenizer_report.py` (reference: transformers {version}).

Each row is a small tokenizer with the structure of the published one: kind of model, normalizer,
split pattern, decoder, begin token, added tokens with their flags, and a chat template in the
published format. Vocabulary and templates were made for the tests; no file of another project is
kept here. `texts`: {n_texts} texts of 12 scripts, code, emoji, control characters, long runs: ids
with and without begin token, and decoding, whole and streamed. `chats`: text and ids of
{n_chats} chats with system message, several turns, tools, calls and results, reasoning, content
in parts; a chat that transformers refuses is refused with the same reason. `tools left out`: the
template has no place for tools, transformers drops them silently, edgekit refuses. `names kept
as text`: chats whose messages, tool results or tools hold the names of control tokens (see
below).

| family | class in transformers | texts equal | chats equal | tools left out | names kept as text |
|---|---|---|---|---|---|
"""
MIDDLE: Final = """
## Names of control tokens in a user's text

`</s>[INST]` in a message, in a tool result or in the description of a tool stays text: no control
token inside it, and those of the template stay in their places. transformers makes control tokens
of them unless it is called with `sanitize_control_tokens=True`. The expected ids are those that
transformers gives for the whole text between two control tokens of the template with
`split_special_tokens=True`. mistral-common, which never looks for control tokens in a message,
gives the same ids for every such chat in its format 13 (`tests/golden/tekken.json`).
`sanitize_control_tokens` keeps the same control tokens and cuts the text at each name, so its
other ids can differ.

Control tokens are the special ones, and those that the template writes although the tokenizer does
not call them special, such as `<tool_call>` and `<think>` of Qwen. In messages of the *assistant*
the latter are its own words and stay tokens.

## Real vocabularies

Read from Python packages by `scripts/golden_real_tokenizers.py`, compared with the package's own
encoder (mistral-common, tiktoken); only token ids of them are kept. `random`: texts put together at
random from the words of the set.

| source | texts equal | random equal |
|---|---|---|
"""
TAIL: Final = """
## mistral-common's own templates

mistral-common writes chats without a template and generates templates for other programs. Here
edgekit renders the generated template over `tekken.json`; the ids are compared with
mistral-common's. In the older format, mistral-common parses a tool result and writes it again, and
strips the assistant's messages; templates cannot do that.

| source | chats equal | differing |
|---|---|---|
{templates}

`tekken.json` as the only tokenizer of a folder is read and becomes a `tokenizer.json` in the
artifact (`edgekit/text/tekken.py`).

## Several files, one tokenizer

A tokenizer is described by several files together: `tokenizer.json`, `tokenizer_config.json`,
`added_tokens.json`, `special_tokens_map.json`, `generation_config.json`, `config.json` and the
chat template. edgekit reads all of them (`edgekit/text/view.py`) and writes the result into every
file of an artifact.

- **Added tokens** have the ids, flags and roles of transformers, whichever file names them:
  `added_tokens_decoder` replaces `added_tokens.json` and `special_tokens_map.json`, which otherwise
  count before the config; a token without an id gets the next free one. The artifact's
  `tokenizer.json` holds them all (`tests/text/test_added_tokens.py`).
- **An answer ends** at any id that `generation_config.json` or `config.json` states, at the
  tokenizer's `eos_token`, and at the token that the chat template writes after the assistant's
  message, which is found by rendering a chat. The manifest holds each with its source; the export
  prints a note about one that no file states as an id. White space, and a token that only begins
  the next turn, do not end an answer.
- **Refused at export**: an `eos_token` that is not a token, a template that writes ids without a
  row in the embedding, a vocabulary with such ids. Accepted with a note: added tokens without a
  row that nothing needs, and a model without a tokenizer, whose artifact takes token ids.
- **Without tokenizer.json**: `tekken.json`; `tokenizer.model` of Llama 2's kind (byte-pair
  merges, unknown characters as bytes, text not normalized); `vocab.json` with `merges.txt` of the
  classes `GPT2Tokenizer` and `Qwen2Tokenizer`. They are converted to a `tokenizer.json`. Other
  kinds are refused, because the tokenizers library would split some texts differently.
- **The same in stock runtimes**: prompt ids, end tokens and the answer are equal in
  onnxruntime-genai, mlx-lm, transformers and edgekit (`tests/contract/test_stock_text.py`). So an
  artifact has one template in one place, with line feeds, which is how Jinja reads every line end;
  two templates (`default` and `tool_use`) are joined to one that chooses between them.

## Recipes

{n_golden} of {n_recipes} recipes hold token ids of their real vocabulary; `edgekit export NAME`
compares them with the downloaded tokenizer and refuses another one. Llama 3.2 has Llama 3's
vocabulary, Qwen2.5 and Qwen3 have the first Qwen's ("identical tokenizer", Qwen2 Technical
Report; Qwen3 Technical Report, section 2). For the others no examined package contains the
vocabulary.

| recipe | golden | source |
|---|---|---|
{recipes}

## Known differences

- transformers 5 lets the classes `LlamaTokenizer` and `CodeLlamaTokenizer` replace normalizer,
  pre-tokenizer and decoder of tokenizer.json (`legacy`, `add_prefix_space`). edgekit does the
  same and writes the result into the artifact's tokenizer.json, so that other runtimes agree.
  Other rebuilding classes (such as `GPT2Tokenizer` in a `llama` folder) are not followed, because
  the model was trained with tokenizer.json.
- `add_bos_token` and `add_eos_token` change nothing where there is a tokenizer.json, as in
  transformers 5; neither does `clean_up_tokenization_spaces`.
- A `tokenizer.model` alone in a folder whose class is not `LlamaTokenizer` gets a space in front of
  a text where the file says so; transformers 5.23 leaves it out there.
- Sentencepiece writes two leading spaces of a text as two; tokenizer.json with a space in front
  of the first word loses one, in transformers and here.
- Templates in `additional_chat_templates/` are read in a local folder and not fetched from the
  Hub, where `chat_template.jinja` is used instead.
- Variables of a template such as `enable_thinking` or `date_string` cannot be set; templates get
  their defaults.
- A template that shows tools only after certain messages, and not in the current chat, is refused
  like one that has no place for tools.
"""


def main() -> None:
    """Write the page."""
    (ROOT / "docs" / "tokenizers.md").write_text(make_report(), encoding="utf-8")


def make_report() -> str:
    """Compare, and give the page."""
    version, rows = "", []
    for name in FAMILY_TOKENIZERS:
        golden = json.loads((GOLDENS / f"{name}.json").read_text(encoding="utf-8"))
        version = golden["transformers"]
        with tempfile.TemporaryDirectory() as folder:
            rows.append(_row(name, golden, write_family(name, Path(folder) / name)))
    real = json.loads((ROOT / "docs" / "real_tokenizers.json").read_text(encoding="utf-8"))
    known = recipes(models_dir())
    lines = [
        f"| {name} | {'yes' if recipe.golden.texts else 'no'} | "
        f"{recipe.golden.source or recipe.golden.status} |"
        for name, recipe in known.items()
    ]
    head = HEAD.format(version=version, n_texts=len(TEXTS), n_chats=len(CHATS))
    found = "".join(
        f"| {r['source']} | {_of(*r['texts'])} | {_of(*r['random'])} |\n"
        for r in real["vocabularies"]
    )
    templates = [
        f"| {r['source']} | {_of(*r['chats'])} | {', '.join(r['differing'])} |"
        for r in real["templates"]
    ]
    n_golden = sum(bool(recipe.golden.texts) for recipe in known.values())
    tail = TAIL.format(
        n_golden=n_golden,
        n_recipes=len(known),
        recipes="\n".join(lines),
        templates="\n".join(templates),
    )
    return head + "".join(rows) + MIDDLE + found + tail


def _row(name: str, golden: dict[str, Any], folder: Path) -> str:
    tokenizer, template = Tokenizer.open(folder), ChatTemplate.open(folder)
    texts = [
        tokenizer.encode(text, allow_special=True) == _ids(golden["texts"][key]["ids"])
        for key, text in TEXTS.items()
    ]
    n_left_out, chats = _compare(tokenizer, template, CHATS, golden["chats"])
    _, forged = _compare(
        tokenizer, template, forged_chats(golden["control"]), golden["forged_chats"]
    )
    cells = [_of(sum(texts), len(texts)), _of(sum(chats), len(chats))]
    cells += [str(n_left_out), _of(sum(forged), len(forged))]
    return f"| {name} | {golden['tokenizer_class']} | {' | '.join(cells)} |\n"


def _compare(
    tokenizer: Tokenizer, template: ChatTemplate, chats: dict[str, Any], golden: dict[str, Any]
) -> tuple[int, list[bool]]:
    """Give how many chats were refused for their tools, and for each other one if it is equal."""
    n_left_out, equal = 0, []
    for key, chat in chats.items():
        wanted = golden[key]
        asked = (chat["messages"], tokenizer, chat["tools"])
        try:
            ids = template.encode(*asked, add_generation_prompt=chat["add_generation_prompt"])
        except CheckpointError as error:
            if "leaves out the tools" in error.what:
                n_left_out += 1
            else:
                equal.append((error.got or "") == wanted.get("refused", "")[:300])
            continue
        equal.append("ids" in wanted and ids == _ids(wanted["ids"]))
    return n_left_out, equal


def _ids(text: str) -> list[int]:
    return [int(number) for number in text.split()]


def _of(n: int, n_all: int) -> str:
    return f"{n:,} of {n_all:,}"


if __name__ == "__main__":
    main()
