"""Ollama's Modelfile for an artifact.

Ollama reads tokenizer and chat template from the GGUF file. It knows the templates of many
published models by their text. A translation of the template to Ollama's own language is not
written: nothing here could tell whether it gives the same prompts.

Source: https://docs.ollama.com/modelfile (instructions and parameters).
"""

from __future__ import annotations

import json
from typing import Final

from edgekit.families.spec import DecoderSpec
from edgekit.text.files import TextFiles
from edgekit.text.tokenizer import Tokenizer
from edgekit.text.tokenizer_file import has_tokenizer

MODELFILE_NAME: Final = "Modelfile"
_MAX_CONTEXT: Final = 8192  # Ollama reserves its cache for all of them


def make_modelfile(files: TextFiles, spec: DecoderSpec, file_name: str, n_positions: int) -> str:
    """Give the text of a Modelfile.

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
    return "\n".join(lines) + "\n"
