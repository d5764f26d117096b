"""The tables of tokenizer classes say what transformers says."""

import inspect

import pytest
import transformers
from transformers.models.auto import tokenization_auto

from edgekit.text.tokenizer_class import (
    DEFAULT_ROLES,
    GENERIC,
    LLAMA,
    MISLABELLED,
    QWEN2,
    REGISTERED,
    tokenizer_class,
)


@pytest.mark.parametrize("model_type", REGISTERED)
def test_the_registered_class_is_that_of_transformers(model_type):
    assert REGISTERED[model_type] == tokenization_auto.TOKENIZER_MAPPING_NAMES[model_type]
    wrong = tokenization_auto.MODELS_WITH_INCORRECT_HUB_TOKENIZER_CLASS
    assert (model_type in MISLABELLED) == (model_type in wrong)


@pytest.mark.parametrize("name", DEFAULT_ROLES)
def test_the_default_tokens_are_those_of_the_signature(name):
    parameters = inspect.signature(getattr(transformers, name).__init__).parameters.items()
    wanted = {key: p.default for key, p in parameters if key.endswith("_token")}
    texts = {role: text for role, text in wanted.items() if isinstance(text, str)}
    assert DEFAULT_ROLES[name] == texts


@pytest.mark.parametrize(
    ("named", "model_type", "is_byte_level", "wanted"),
    [
        ("LlamaTokenizerFast", "llama", False, LLAMA),
        ("LlamaTokenizer", "llama", True, GENERIC),
        ("LlamaTokenizer", "mistral", False, GENERIC),
        ("LlamaTokenizer", "qwen2", False, QWEN2),
        ("LlamaTokenizer", "qwen3", False, LLAMA),
        ("PreTrainedTokenizerFast", "llama", True, GENERIC),
        ("GPT2Tokenizer", "granite", True, GENERIC),
        (None, "qwen3", True, QWEN2),
        (None, "llama", True, GENERIC),
        (None, None, False, GENERIC),
        ("SomebodysTokenizer", "llama", False, GENERIC),
    ],
)
def test_the_class_follows_from_what_is_named_and_what_is_registered(
    named, model_type, is_byte_level, wanted
):
    assert tokenizer_class(named, model_type, is_byte_level=is_byte_level) == wanted
