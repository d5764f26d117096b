"""Claims: texts in lockstep get the logits that each gets alone, and draws follow from the seed."""

from __future__ import annotations

import numpy as np
import pytest

from edgekit.draw import Draw
from edgekit.families import open_model
from edgekit.quantize.calibration_documents import own_prompts
from edgekit.quantize.own_answers import _draw, sample_answers
from edgekit.reference.lockstep import Lockstep
from edgekit.runtime.reference import ReferenceDecoder
from tests.builders import write_tiny_checkpoint
from tests.tiny_families import TINY_CONFIGS


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    folder = tmp_path_factory.mktemp("m") / "tiny"
    model = open_model(write_tiny_checkpoint(folder, max_position_embeddings=512))
    yield model
    model.close()


def alone(source, ids):
    decoder = ReferenceDecoder.from_source(source, np.float64)
    return decoder.forward(ids, n_past=0, n_logits=1)[-1]


@pytest.mark.parametrize("keeps", [True, False])
@pytest.mark.parametrize("family", sorted(TINY_CONFIGS))
def test_each_text_gets_the_logits_that_it_gets_alone(tmp_path, family, keeps):
    source = open_model(write_tiny_checkpoint(tmp_path / "m", family))
    forward = Lockstep(
        source.spec, lambda name: source.tensor(name).read(), np.float64,
        keeps_weights=keeps, capacity=24,
    )  # fmt: skip
    # Longer and shorter than the windows of the tiny models.
    texts = [[5, 9, 13], [(7 * i) % 300 for i in range(20)], [3]]
    steps = [([0, 2], [4, 6]), ([0, 1], [8, 2]), ([2], [11])]
    found = dict(enumerate(forward.start(texts)))
    for number, (places, ids) in enumerate([([], []), *steps]):
        if number:
            for place, token, logits in zip(places, ids, forward.step(places, ids), strict=True):
                texts[place].append(token)
                found[place] = logits
        for place, logits in found.items():
            # The decoder gives float32 logits.
            np.testing.assert_allclose(logits, alone(source, texts[place]), rtol=1e-5, atol=1e-5)
    source.close()


def test_answers_follow_from_the_seed(source):
    first = sample_answers(source, n_answers=3, n_tokens=5)
    assert first == sample_answers(source, n_answers=3, n_tokens=5)
    assert first != sample_answers(source, n_answers=3, n_tokens=5, seed=1)
    view = source.text
    for answer, question in zip(first, own_prompts()[:3], strict=True):
        prompt = view.template.encode([{"role": "user", "content": question}], view.tokenizer)
        assert answer[: len(prompt)] == prompt
        said = answer[len(prompt) :]
        assert 1 <= len(said) <= 5
        assert len(said) == 5 or said[-1] in view.end_ids
        assert not set(said[:-1]) & set(view.end_ids)


def test_an_answer_is_drawn_token_by_token_from_the_models_logits(source):
    (answer,) = sample_answers(source, n_answers=1, n_tokens=6)
    question = own_prompts()[0]
    view = source.text
    n_prompt = len(view.template.encode([{"role": "user", "content": question}], view.tokenizer))
    draw = Draw("calibration", 0, "answer", 0)
    for at in range(n_prompt, len(answer)):
        assert answer[at] == _draw(alone(source, answer[:at]), draw)


def test_a_token_is_drawn_as_often_as_the_logits_say():
    draw = Draw("test")
    logits = np.log([0.5, 0.0001, 0.25, 0.2499])
    drawn = np.bincount([_draw(logits, draw) for _ in range(20_000)], minlength=4) / 20_000
    np.testing.assert_allclose(drawn, [0.5, 0.0001, 0.25, 0.2499], atol=0.015)


def test_no_answers_without_a_tokenizer_or_a_place(tmp_path, source):
    assert sample_answers(source, n_answers=2, n_tokens=512) == []
    folder = write_tiny_checkpoint(tmp_path / "m")
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (folder / name).unlink()
    model = open_model(folder)
    assert sample_answers(model) == []
    model.close()


def test_progress(source):
    said = []
    sample_answers(source, n_answers=1, n_tokens=3, progress=lambda *what: said.append(what))
    assert said[-1][0] == "sample answers"
    assert all(n_done <= n_total == 3 for _, n_done, n_total in said)
