"""Ollama's Modelfile for an artifact.

Ollama reads the tokenizer and the chat template from the GGUF file. It knows the templates of
many published models by their text; of any other it needs a translation to its own template
language, ``TEMPLATE``, which is written only where it is exact.

Source: https://docs.ollama.com/modelfile (instructions and parameters).
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Final

from edgekit.families.spec import DecoderSpec
from edgekit.text.files import TextFiles
from edgekit.text.tokenizer import Tokenizer
from edgekit.text.tokenizer_file import has_tokenizer

MODELFILE_NAME: Final = "Modelfile"
_MAX_CONTEXT: Final = 8192


@dataclass(frozen=True, slots=True)
class Modelfile:
    """The text of a Modelfile.

    Attributes:
        text: The whole file.
        has_template: Whether it has a translation of the chat template.
        notes: What a user should know, one sentence each.
    """

    text: str
    has_template: bool
    notes: tuple[str, ...] = ()


def make_modelfile(
    files: TextFiles, spec: DecoderSpec, file_name: str, n_positions: int
) -> Modelfile:
    """Write a Modelfile.

    Args:
        files: The text files of the artifact.
        spec: The decoder, with its end tokens.
        file_name: The GGUF file, beside the Modelfile.
        n_positions: Positions of the artifact.
    """
    lines = [f"FROM ./{file_name}", f"PARAMETER num_ctx {min(n_positions, _MAX_CONTEXT)}"]
    if has_tokenizer(files):
        tokenizer = Tokenizer.open(files)
        ends = [tokenizer.token_text(i) for i in spec.eos_token_ids]
        lines += [f"PARAMETER stop {json.dumps(end, ensure_ascii=False)}" for end in ends if end]
    return Modelfile("\n".join(lines) + "\n", has_template=False)
