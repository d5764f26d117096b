"""Reader of the text decoder inside a multimodal checkpoint.

The config has it as ``text_config``. Its tensors have a prefix, ``language_model.`` in published
checkpoints and ``model.language_model.`` in those of transformers 5; names.py finds it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Final

from edgekit.checkpoint.config import RawConfig
from edgekit.checkpoint.prequantized.method import account_for_quantization
from edgekit.errors import UnsupportedArchError
from edgekit.families.spec import DecoderSpec

VISION_KEYS: Final = ("vision_config", "image_token_index", "image_token_id")
# Keys that wrappers repeat outside text_config; the ones inside it are used.
_REPEATED: Final = (
    "bos_token_id", "eos_token_id", "pad_token_id", "tie_word_embeddings", "torch_dtype", "dtype",
)  # fmt: skip


def read_text_spec(
    config: RawConfig, readers: Mapping[str, Callable[[RawConfig], DecoderSpec]], default: str
) -> DecoderSpec:
    """Read ``text_config`` by the family it names.

    Args:
        config: The outer config; keys of one wrapper only were taken before.
        readers: ``read_spec`` by the inner model_type.
        default: Meaning of an absent inner model_type.

    Raises:
        CheckpointError: Keys are missing or wrong; all are named.
        UnknownKeyError: Keys that could change the result and are not known.
        UnsupportedArchError: The inner model_type is none of ``readers``.
    """
    config.ignore(_REPEATED)
    account_for_quantization(config)
    inner = config.take_inner("text_config")
    # Some versions repeat keys of the decoder outside it; the ones inside are used.
    config.ignore(key for key in config if key in inner)
    inner.fill({key: config[key] for key in _REPEATED if config.get(key) is not None})
    config.finish()
    kind = inner.get("model_type") or default
    if not isinstance(kind, str) or kind not in readers:
        raise UnsupportedArchError(
            f"{inner.where}: model_type", got=repr(kind)[:80], wanted=", ".join(readers)
        )
    return readers[kind](inner)
