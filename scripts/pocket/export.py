"""Export of a training state as a Hugging Face folder.

Every file is written under another name and renamed, so a reader never sees half of one. Tokenizer
files are written once and then left unchanged.
"""

import json
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors.torch import save

from pocket.chat import CHAT_TEMPLATE, SPECIAL_TOKENS, Chat
from pocket.model import Config, config_json

__all__ = ["export_weights", "replace_file", "write_tokenizer_files"]


def replace_file(path: Path, content: bytes) -> None:
    """Write a file in one step."""
    part = path.with_name(f".{path.name}.part")
    part.write_bytes(content)
    part.replace(path)


def write_tokenizer_files(folder: Path, chat: Chat, config: Config) -> None:
    """Write everything but the weights and the card."""
    folder.mkdir(parents=True, exist_ok=True)
    added = {
        str(i): {
            "content": token,
            "lstrip": False,
            "normalized": False,
            "rstrip": False,
            "single_word": False,
            "special": True,
        }
        for i, token in enumerate(SPECIAL_TOKENS)
    }
    tokenizer_config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": "<s>",
        "eos_token": "</s>",
        "pad_token": "<pad>",
        "additional_special_tokens": list(SPECIAL_TOKENS[3:]),
        "added_tokens_decoder": added,
        "clean_up_tokenization_spaces": False,
        "model_max_length": config.max_position_embeddings,
        "chat_template": CHAT_TEMPLATE,
    }
    generation = {
        "bos_token_id": chat.bos_id,
        "eos_token_id": chat.eos_id,
        "pad_token_id": chat.pad_id,
        "do_sample": False,
    }
    files = {
        "config.json": config_json(config),
        "tokenizer.json": chat.tokenizer.to_str(pretty=True) + "\n",
        "tokenizer_config.json": json.dumps(tokenizer_config, indent=2) + "\n",
        "generation_config.json": json.dumps(generation, indent=2) + "\n",
    }
    for name, text in files.items():
        replace_file(folder / name, text.encode())


def export_weights(folder: Path, weights: Mapping[str, torch.Tensor]) -> None:
    """Write model.safetensors in bfloat16."""
    tensors = {name: w.detach().bfloat16().contiguous() for name, w in weights.items()}
    replace_file(folder / "model.safetensors", save(tensors, metadata={"format": "pt"}))
