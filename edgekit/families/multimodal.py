"""Answer one question: how is the text decoder inside a multimodal checkpoint read?

The config holds it as ``text_config``; its tensors carry a prefix, of which there are two: that of
the published checkpoints and that of transformers 5.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Final

from edgekit.checkpoint.config import RawConfig
from edgekit.checkpoint.prequantized.method import account_for_quantization
from edgekit.errors import UnsupportedArchError
from edgekit.families.names import NameTable
from edgekit.families.spec import DecoderSpec

VISION_KEYS: Final = ("vision_config", "image_token_index", "image_token_id")
_VISION: Final = "the vision tower; edgekit takes the text decoder"
_SKIPPED: Final[Mapping[str, str]] = {
    r"(model\.)?vision_tower\..+": _VISION,
    r"(model\.)?multi_modal_projector\..+": _VISION,
}
# Keys that wrappers repeat beside text_config, where the inner ones count.
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
    # Savers of some versions repeat keys of the decoder beside it; the inner ones count.
    config.ignore(key for key in config if key in inner)
    inner.fill({key: config[key] for key in _REPEATED if config.get(key) is not None})
    config.finish()
    kind = inner.get("model_type") or default
    if not isinstance(kind, str) or kind not in readers:
        raise UnsupportedArchError(
            f"{inner.where}: model_type", got=repr(kind)[:80], wanted=", ".join(readers)
        )
    return readers[kind](inner)


def text_names(names: NameTable) -> tuple[NameTable, ...]:
    """Give the decoder's names under both prefixes of a multimodal checkpoint."""
    published = {key: f"language_model.{theirs}" for key, theirs in names.top.items()}
    saved = {
        key: f"model.language_model.{theirs.removeprefix('model.')}"
        for key, theirs in names.top.items()
    } | {"lm_head": "lm_head.weight"}
    return (
        replace(
            names,
            top=published,
            layer_prefix=f"language_model.{names.layer_prefix}",
            ignored={f"language_model\\.{k}": v for k, v in names.ignored.items()} | dict(_SKIPPED),
        ),
        replace(
            names,
            top=saved,
            layer_prefix=f"model.language_model.{names.layer_prefix.removeprefix('model.')}",
            ignored=_SKIPPED,
        ),
    )
