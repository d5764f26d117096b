"""Claims that hold for every engine in the registry: a new entry is tested by being there."""

from __future__ import annotations

import shutil
import sys

import numpy as np
import pytest

from edgekit.artifact import Artifact
from edgekit.devices.probe import probe_host
from edgekit.devices.profile import OPTIONAL_ENGINES
from edgekit.errors import (
    ArtifactError,
    EdgekitError,
    EngineError,
    EngineLoadError,
    MissingExtraError,
    UsageError,
)
from edgekit.exporters import open_exporter
from edgekit.exporters.staging import write_artifact
from edgekit.pipeline.export_optimum import export_via_optimum
from edgekit.runtime import ENGINE_FORMATS, ENGINES, open_decoder
from edgekit.runtime.base import Finish
from edgekit.runtime.reference import ReferenceDecoder
from edgekit.runtime.session import Session
from edgekit.text.chat import ChatTemplate
from edgekit.text.tokenizer import Tokenizer
from tests.builders import write_tiny_tokenizer
from tests.exporters.memory_model import memory_model, tiny_spec, write_float_checkpoint

MAC_ONLY = {"coreml"}
# The same engine name over another graph: optimum's, with plain key and value inputs.
TRACED = "onnxruntime over optimum's graph"
# Engines of optional packages; each that is installed here passes every test below.
ABSENT = {name for name in OPTIONAL_ENGINES if name not in probe_host().engines}
HERE = [
    name
    for name in ENGINES
    if name not in ABSENT and (name not in MAC_ONLY or sys.platform == "darwin")
]
ELSEWHERE = sorted(set(ENGINES) - set(HERE) - ABSENT)
HERE.append(TRACED)
REAL = [name for name in HERE if name != "fake"]

# Engines choose other kernels for one token than for many; with activations of 8 bits
# (onnxruntime) or half precision (Core ML) the roundings then differ, in units of the spread.
CHUNK_LOGIT_TOLERANCE = 2e-2
# Weights are exact; what is left is the engine's activation type: 8 bits at worst.
REFERENCE_LOGIT_TOLERANCE = 1e-1

VOCAB = 384
CONTEXT = 64
TOKENS = [1, 5, 7, 9, 20, 33, 95, 350]
each_engine = pytest.mark.parametrize("engine", HERE)


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    folder = tmp_path_factory.mktemp("assets")
    write_tiny_tokenizer(folder, VOCAB)
    spec = tiny_spec(vocab_size=VOCAB, context_length=CONTEXT)
    assets = {path.name: path for path in folder.iterdir()}
    return memory_model(spec, "int4", schemes={"embed": "int8"}, assets=assets)


def engine_name(engine: str) -> str:
    return "onnxruntime" if engine == TRACED else engine


@pytest.fixture(scope="module")
def traced_artifact(tmp_path_factory, model, optimum_environment) -> Artifact:
    """The one tiny model by way of a float checkpoint and optimum."""
    folder = tmp_path_factory.mktemp("traced")
    checkpoint = write_float_checkpoint(folder / "tiny", model)
    return export_via_optimum(checkpoint, "fp32", folder)


@pytest.fixture(scope="module")
def artifact_of(tmp_path_factory, model, request):
    """Export the one tiny model in the format that an engine runs."""
    made: dict[str, Artifact] = {}

    def make(engine) -> Artifact:
        if engine == TRACED:
            return request.getfixturevalue("traced_artifact")
        artifact_format = min(ENGINE_FORMATS[engine], key=lambda f: f.value)
        if artifact_format.value not in made:
            out = tmp_path_factory.mktemp(artifact_format.value) / "a"
            made[artifact_format.value] = write_artifact(open_exporter(artifact_format), model, out)
        return made[artifact_format.value]

    return make


@pytest.fixture
def decoder_of(artifact_of):
    opened = []

    def make(engine, **arguments):
        artifact = artifact_of(engine)
        opened.append(open_decoder(artifact, engine=engine_name(engine), **arguments))
        return opened[-1]

    yield make
    for decoder in opened:
        decoder.close()


def run(decoder, token_ids, n_past=0, n_logits=None):
    return decoder.forward(token_ids, n_past=n_past, n_logits=n_logits or len(token_ids))


def assert_near(got, wanted, tolerance=CHUNK_LOGIT_TOLERANCE) -> None:
    assert np.abs(got - wanted).max() / wanted.std() < tolerance


@each_engine
def test_it_says_what_it_is(decoder_of, artifact_of, engine):
    decoder = decoder_of(engine)
    assert decoder.info.engine == engine_name(engine)
    assert decoder.info.version
    assert decoder.info.model == artifact_of(engine).name
    assert (decoder.vocab_size, decoder.context_length) == (VOCAB, CONTEXT)


@each_engine
def test_logits_have_one_row_for_each_wanted_position(decoder_of, engine):
    decoder = decoder_of(engine)
    whole = run(decoder, TOKENS)
    assert (whole.shape, whole.dtype) == ((len(TOKENS), VOCAB), np.float32)
    assert np.isfinite(whole).all()
    for n_logits in (1, 3):
        part = run(decoder, TOKENS, n_logits=n_logits)
        assert (part.shape, part.dtype) == ((n_logits, VOCAB), np.float32)
        assert_near(part, whole[-n_logits:])


@pytest.mark.parametrize("engine", REAL)
def test_logits_are_those_of_the_weights(decoder_of, model, engine):
    wanted = run(ReferenceDecoder.from_quantized(model, np.float64), TOKENS)
    assert_near(run(decoder_of(engine), TOKENS), wanted, REFERENCE_LOGIT_TOLERANCE)


@each_engine
@pytest.mark.parametrize("split", [1, 3, 7])
def test_a_text_in_two_parts_gives_the_same_logits(decoder_of, engine, split):
    decoder = decoder_of(engine)
    whole = run(decoder, TOKENS)
    first = run(decoder, TOKENS[:split])
    second = run(decoder, TOKENS[split:], n_past=split)
    assert_near(np.concatenate([first, second]), whole)


@each_engine
def test_token_by_token_gives_the_same_logits(decoder_of, engine):
    decoder = decoder_of(engine)
    whole = run(decoder, TOKENS)
    rows = [run(decoder, [token], n_past=i)[0] for i, token in enumerate(TOKENS)]
    assert_near(np.stack(rows), whole)


@each_engine
def test_the_same_call_gives_the_same_bits(decoder_of, engine):
    decoder = decoder_of(engine)
    np.testing.assert_array_equal(run(decoder, TOKENS), run(decoder, TOKENS))


@each_engine
def test_a_rewind_forgets_what_came_after(decoder_of, engine):
    decoder = decoder_of(engine)
    run(decoder, TOKENS)
    again = run(decoder, [40, 41], n_past=3)
    fresh = run(decoder, [*TOKENS[:3], 40, 41])[3:]
    assert_near(again, fresh)


@each_engine
def test_logits_depend_on_what_came_before(decoder_of, engine):
    decoder = decoder_of(engine)
    one, other = (run(decoder, [first, 60, 61], n_logits=1) for first in (40, 41))
    assert np.abs(one - other).max() / one.std() > CHUNK_LOGIT_TOLERANCE


@each_engine
def test_the_result_is_the_callers_to_keep(decoder_of, engine):
    decoder = decoder_of(engine)
    kept = run(decoder, TOKENS)
    copy = kept.copy()
    run(decoder, TOKENS[::-1])
    np.testing.assert_array_equal(kept, copy)
    kept[:] = 0
    np.testing.assert_array_equal(run(decoder, TOKENS), copy)


@each_engine
def test_the_whole_context_can_be_used_and_no_more(decoder_of, engine):
    decoder = decoder_of(engine)
    tokens = [i % VOCAB for i in range(CONTEXT)]
    assert np.isfinite(run(decoder, tokens, n_logits=1)).all()
    with pytest.raises(UsageError, match="longer than the context"):
        run(decoder, [1], n_past=CONTEXT)


@each_engine
@pytest.mark.parametrize(
    ("tokens", "n_past", "n_logits", "match"),
    [
        ([], 0, 1, "no tokens"),
        ([VOCAB], 0, 1, "outside the vocabulary"),
        ([3, -1], 0, 1, "outside the vocabulary"),
        ([3], 9, 1, "beyond the cache"),
        ([3], -1, 1, "beyond the cache"),
        ([3, 4], 0, 3, "n_logits"),
        ([3, 4], 0, 0, "n_logits"),
        ([3] * (CONTEXT + 1), 0, 1, "longer than the context"),
    ],
)
def test_a_wrong_call_is_refused_and_does_no_harm(
    decoder_of, engine, tokens, n_past, n_logits, match
):
    decoder = decoder_of(engine)
    whole = run(decoder, TOKENS)
    with pytest.raises(UsageError, match=match):
        decoder.forward(tokens, n_past=n_past, n_logits=n_logits)
    assert_near(run(decoder, TOKENS[5:], n_past=5), whole[5:])


@each_engine
def test_two_models_do_not_disturb_each_other(decoder_of, engine):
    one, two = decoder_of(engine), decoder_of(engine)
    whole = run(one, TOKENS)
    run(one, TOKENS[:4])
    run(two, TOKENS[::-1])
    assert_near(run(one, TOKENS[4:], n_past=4), whole[4:])


@each_engine
def test_closing_twice_is_safe_and_using_it_then_is_an_error(decoder_of, engine):
    decoder = decoder_of(engine)
    decoder.close()
    decoder.close()
    with pytest.raises(EngineError):
        run(decoder, [1])


@each_engine
def test_a_shorter_context_is_kept_and_a_longer_one_refused(decoder_of, engine):
    decoder = decoder_of(engine, context_length=16)
    assert decoder.context_length == 16
    with pytest.raises(UsageError, match="longer than the context"):
        run(decoder, [1] * 17)
    for wrong in (CONTEXT + 1, 0):
        with pytest.raises(UsageError, match="context"):
            decoder_of(engine, context_length=wrong)


@each_engine
def test_an_unknown_option_is_refused_by_name(decoder_of, engine):
    with pytest.raises(UsageError, match="warp_drive"):
        decoder_of(engine, options={"warp_drive": 1})


@each_engine
def test_a_number_of_threads_is_kept_or_refused_but_never_ignored(decoder_of, engine):
    try:
        decoder = decoder_of(engine, n_threads=1)
    except UsageError as error:
        assert "n_threads" in str(error)
    else:
        assert decoder.info.n_threads == 1


@pytest.mark.parametrize("engine", REAL)
@pytest.mark.parametrize("damage", ["cut", "gone", "zeros"])
def test_damaged_weights_are_a_load_error(tmp_path, artifact_of, engine, damage):
    whole = artifact_of(engine)
    artifact = Artifact(shutil.copytree(whole.path, tmp_path / "a"), whole.manifest)
    largest = max(artifact.manifest.files, key=lambda entry: entry.n_bytes)
    path = artifact.path / largest.path
    if damage == "cut":
        path.write_bytes(path.read_bytes()[: largest.n_bytes // 2])
    elif damage == "gone":
        path.unlink()
    else:
        for entry in artifact.manifest.files:
            (artifact.path / entry.path).write_bytes(bytes(entry.n_bytes))
    with pytest.raises(ArtifactError):
        open_decoder(artifact, engine=engine_name(engine))
    # Whoever changes the files after they were checked meets the engine's own error.
    with pytest.raises(EngineLoadError) as caught:
        open_decoder(artifact, engine=engine_name(engine), is_checked=True)
    assert caught.value.__cause__ is not None or damage == "gone"


@pytest.mark.parametrize("engine", ELSEWHERE)
def test_an_engine_of_another_system_says_so(artifact_of, engine):
    with pytest.raises(EdgekitError, match=r"(?i)mac"):
        open_decoder(artifact_of(engine), engine=engine)


@pytest.mark.parametrize("engine", sorted(ABSENT))
def test_an_engine_whose_package_is_missing_says_what_to_install(artifact_of, engine):
    with pytest.raises(MissingExtraError, match="pip install 'edgekit") as caught:
        open_decoder(artifact_of(engine), engine=engine)
    assert caught.value.__cause__ is not None


@pytest.fixture
def session_of(decoder_of, artifact_of):
    def make(engine) -> Session:
        folder = artifact_of(engine).path
        return Session(
            decoder_of(engine), Tokenizer.open(folder), ChatTemplate.open(folder), eos_ids={2}
        )

    return make


@each_engine
def test_greedy_answers_follow_the_logits_of_the_whole_text(session_of, engine):
    session = session_of(engine)
    events = list(session.generate(TOKENS, max_tokens=8, ignore_eos=True))
    ids = [event.token_id for event in events]
    logits = session.logits([*TOKENS, *ids])[len(TOKENS) - 1 : -1]
    for row, token_id in zip(logits, ids, strict=True):
        assert (row.max() - row[token_id]) / row.std() < 2 * CHUNK_LOGIT_TOLERANCE
    assert events[-1].finish is Finish.LENGTH


@each_engine
def test_a_seed_decides_the_answer(session_of, engine):
    session = session_of(engine)

    def ids(seed):
        events = session.generate(TOKENS, temperature=1.5, seed=seed, max_tokens=12)
        return [event.token_id for event in events]

    assert ids(1) == ids(1)
    assert ids(1) != ids(2)


@each_engine
def test_a_stop_string_cuts_the_answer(session_of, engine):
    session = session_of(engine)
    whole = "".join(e.text for e in session.generate(TOKENS, max_tokens=20, ignore_eos=True))
    stop = whole[len(whole) // 2 :][:2]
    events = list(session.generate(TOKENS, max_tokens=20, ignore_eos=True, stop=(stop,)))
    assert "".join(e.text for e in events) == whole.split(stop)[0]
    assert events[-1].finish is Finish.STOP


@each_engine
def test_chat_answers_and_counts(session_of, engine):
    session = session_of(engine)
    messages = [{"role": "user", "content": "hello"}]
    answer = session.chat(messages, max_tokens=5)
    assert 1 <= answer.n_output_tokens <= 5
    prompt = session.encode_chat(messages)
    assert answer.n_prompt_tokens == len(prompt)
    streamed = session.generate(prompt, max_tokens=5)
    assert [e.token_id for e in streamed] == [e.token_id for e in answer.events]
