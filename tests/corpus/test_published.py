"""Every published config opens, or is refused for the reason that its maths gives."""

from __future__ import annotations

import math

import pytest

from scripts.configs import DOC, make_text
from tests.corpus.published import config_of, names, outcome, rows, tensors_of
from tests.corpus.tensors import published_tensors

EXPECTED = {row["name"]: row for row in rows("EXPECTED.tsv")}


@pytest.fixture(scope="module")
def outcomes(tmp_path_factory):
    root = tmp_path_factory.mktemp("published")
    return {name: outcome(name, root) for name in names()}


def test_the_tables_name_every_config():
    assert sorted(EXPECTED) == names()
    assert sorted(row["name"] for row in rows("SOURCES.tsv")) == names()


@pytest.mark.parametrize("name", EXPECTED)
def test_a_published_config_opens_or_is_refused_for_its_reason(outcomes, name):
    found, wanted = outcomes[name], EXPECTED[name]
    assert found.result == wanted["result"], found.what
    if wanted["result"] == "opens":
        assert found.what == wanted["what"]
    else:
        for words in wanted["what"].split(" ... "):
            assert words in found.what
    for words in filter(None, wanted["said"].split(" ... ")):
        assert words in "; ".join(found.said)


def test_tensors_of_every_model_are_not_edgekits_own():
    sources = {name: tensors_of(name) for name in names()}
    n_built = sum(source.startswith(("transformers, ", "peft ")) for source in sources.values())
    assert n_built == 59
    rest = {name for name, source in sources.items() if not source.startswith(("tra", "peft"))}
    assert rest == {
        "chatglm3-6b", "exaone3-7.8b", "fm9g7b", "internlm2-7b", "internvl2-2b", "mimo-7b",
        "xverse-7b",
    }  # fmt: skip


@pytest.mark.parametrize(
    ("name", "n_parameters"),
    [  # as the models' pages on the Hub give them
        ("smollm2-1.7b-instruct", 1_711_376_384),
        ("mistral-7b-v0.1", 7_241_732_096),
        ("gemma2-2b", 2_614_341_888),
        ("qwen2.5-14b-md", 14_770_033_664),
        ("qwen3-30b-a3b", 30_532_122_624),
        ("phi-4-mini-instruct", 3_836_021_760),
        ("qwen2.5-vl-7b", 8_292_166_656),
        ("chatglm3-6b", 6_243_584_032),
        ("internlm2-7b", 7_737_708_544),
        ("internvl2-2b", 2_205_754_368),
        ("exaone3-7.8b", 7_818_448_896),
    ],
)
def test_the_tensors_are_as_many_numbers_as_the_published_model(name, n_parameters):
    tensors = published_tensors(config_of(name), name)
    assert sum(math.prod(tensor.shape) for tensor in tensors.values()) == n_parameters


def test_the_page_is_what_the_script_makes_today(outcomes):
    assert DOC.read_text(encoding="utf-8") == make_text(outcomes)
