"""Claims about the reference store: distances by hand, its bound, damage, readers and writers."""

from __future__ import annotations

import contextlib
import hashlib
import json
import multiprocessing
import os
import shutil
import tempfile
import threading
import time
import tracemalloc
from math import log

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgekit import paths
from edgekit.errors import MeasureError
from edgekit.quality import reference_store as module
from edgekit.quality.divergence import (
    LiveReference,
    log_softmax,
    measure_divergence,
    token_divergence,
)
from edgekit.quality.reference_store import (
    STEP,
    compare_records,
    describe_errors,
    encode,
    forget_oldest,
    record_type,
    stored_reference,
)
from tests.quality.fake_decoder import TableDecoder

FACTS = {"source_sha256": "1", "engine": "table"}


@pytest.fixture(autouse=True)
def home(tmp_path, monkeypatch):
    monkeypatch.setenv("EDGEKIT_HOME", str(tmp_path / "home"))
    monkeypatch.setattr(module, "cache_dir", paths.cache_dir)
    return tmp_path / "home" / "reference"


@pytest.fixture
def small(monkeypatch):
    """Two kept tokens and four sampled ones, for distributions that can be worked by hand."""
    monkeypatch.setattr(module, "TOP_K", 2)
    monkeypatch.setattr(module, "N_SAMPLES", 4)


def model(seed: int, vocab_size: int = 700, spread: float = 2.0) -> TableDecoder:
    rows = np.random.default_rng(seed).normal(0, spread, (16, vocab_size)).astype(np.float32)
    return TableDecoder(rows)


def documents(n: int = 12, length: int = 9) -> list[list[int]]:
    return [np.random.default_rng(i).integers(0, 16, length).tolist() for i in range(n)]


def store_of(decoder, texts=None, facts=FACTS, **options):
    return stored_reference(
        lambda: contextlib.nullcontext(decoder), texts or documents(), facts, **options
    )


def never():
    raise AssertionError("the float model must not run again")


def logs(*probabilities: float):
    return np.log(np.array([probabilities], dtype=np.float64))


def test_a_residual_of_two_tokens_by_hand(small):
    """Kept are 1/2 and 1/4; 1/8 and 1/8 are one bucket, of which the candidate gives 3/10."""
    records, residual = encode(logs(1 / 4, 1 / 8, 1 / 2, 1 / 8), np.array([3]), np.array([0.5]))
    assert residual[0] == pytest.approx(1 / 4)
    assert records["ids"][0, :2].tolist() == [2, 0]
    assert sorted(records["ids"][0, 2:].tolist()) == [1, 1, 3, 3]
    assert records["gaps"][0].tolist() == [0, *[round(log(2) / STEP)], *[round(log(4) / STEP)] * 4]
    found = compare_records(records, logs(3 / 10, 2 / 10, 4 / 10, 1 / 10))
    bound = (1 / 2) * log((1 / 2) / (4 / 10)) + (1 / 4) * log((1 / 4) / (3 / 10))
    bound += (1 / 4) * log((1 / 4) / (3 / 10))
    whole = bound + (1 / 8) * log((1 / 2) / (2 / 3)) + (1 / 8) * log((1 / 2) / (1 / 3))
    # The sample holds both other tokens as often as their probability says, so it is exact here.
    assert found.kl_bound[0] == pytest.approx(bound, abs=STEP / 4)
    assert found.kl[0] == pytest.approx(whole, abs=STEP / 4)
    assert found.kl[0] - found.kl_bound[0] == pytest.approx(whole - bound, abs=STEP / 4)
    assert found.is_same.tolist() == [True]
    assert found.reference_log_prob[0] == pytest.approx(log(1 / 8))


def test_a_sample_follows_the_probabilities(small):
    """Others have 3/16 and 1/16: of four evenly spread places three are the first's."""
    given_ = logs(1 / 4, 3 / 16, 1 / 2, 1 / 16)
    for offset in (0.0, 0.3, 0.999):
        records, _ = encode(given_, np.array([0]), np.array([offset]))
        assert records["ids"][0, 2:].tolist() == [1, 1, 1, 3]


def test_probabilities_that_are_kept_sum_to_one_with_the_residual():
    """Also where one token is almost certain, so that a rounded step is larger than all others."""
    rows = np.full((1, 700), -20.0, dtype=np.float32)
    rows[0, :3] = (1.0, 0.9999, -11)
    certain = np.full((1, 700), -30.0, dtype=np.float32)
    certain[0, 7] = 10.0003
    for logits in (rows, certain):
        log_probs = log_softmax(logits)
        records, _ = encode(log_probs, np.array([0]), np.array([0.5]))
        found = compare_records(records, log_probs)
        assert found.kl[0] == pytest.approx(0, abs=STEP**2 / 8)
        assert 0 <= found.kl_bound[0] <= STEP**2 / 8


@pytest.mark.parametrize("vocab_size", [700, 257, 256, 100, 70_000])
def test_every_token_has_its_id_and_its_probability(vocab_size):
    log_probs = log_softmax(model(1, vocab_size).rows)
    records, residual = encode(log_probs, np.zeros(16, int), np.full(16, 0.25))
    assert records.dtype == record_type(vocab_size)
    n_kept = min(256, vocab_size)
    ids = records["ids"].astype(np.int64)
    if vocab_size > 65_536:
        ids += records["ids_high"].astype(np.int64) << 16
    order = np.argsort(-log_probs, axis=-1, kind="stable")[:, :n_kept]
    assert (ids[:, 0] == log_probs.argmax(-1)).all()
    assert (np.sort(ids[:, :n_kept], -1) == np.sort(order, -1)).all()
    kept = log_probs[np.arange(16)[:, None], ids]
    wanted = kept[:, :1] - records["gaps"] * STEP
    assert np.abs(wanted - kept).max() <= STEP / 2 + 1e-6
    assert residual == pytest.approx(1 - np.exp(kept[:, :n_kept]).sum(-1), abs=1e-6)
    assert not set(ids[0, :n_kept]) & set(ids[0, n_kept:])


def test_of_equally_likely_tokens_the_first_is_the_likeliest():
    log_probs = log_softmax(np.zeros((1, 700), dtype=np.float32))
    records, _ = encode(log_probs, np.array([0]), np.array([0.5]))
    assert records["ids"][0, 0] == 0
    assert compare_records(records, log_probs).is_same.all()


def test_a_token_takes_less_than_two_kilobytes_at_any_vocabulary():
    assert record_type(131_072).itemsize == 1_608
    assert 100_000 * record_type(131_072).itemsize < 170_000_000
    assert record_type(49_152).itemsize == 1_288


@settings(max_examples=30)
@given(st.integers(0, 10**6), st.floats(0.01, 3), st.integers(520, 900))
def test_the_bound_is_never_above_the_divergence(seed, noise, vocab_size):
    """Up to what rounding to steps does; and the estimate lies around the divergence."""
    rng = np.random.default_rng(seed)
    wanted = rng.normal(0, 1, (8, vocab_size)).astype(np.float32)
    got = (wanted + rng.normal(0, noise, wanted.shape)).astype(np.float32)
    records, _ = encode(log_softmax(wanted), np.zeros(8, int), rng.random(8))
    found = compare_records(records, log_softmax(got))
    whole = token_divergence(wanted, got)
    rounding = STEP * np.sqrt(whole) + STEP**2
    assert (found.kl_bound <= whole + rounding).all()
    # What is missing is the residual times the divergence among the others: by definition.
    others = log_softmax(wanted)
    kept = records["ids"][:, :256].astype(int)
    missing = []
    for row in range(8):
        mask = np.ones(vocab_size, bool)
        mask[kept[row]] = False
        p, q = np.exp(others[row][mask]), np.exp(log_softmax(got)[row][mask])
        missing.append(float((p * np.log((p / p.sum()) / (q / q.sum()))).sum()))
    assert np.abs(whole - found.kl_bound - missing).max() <= rounding.max()
    # Every term of the estimate is at least 0, so it is not below the bound either.
    assert (found.kl >= found.kl_bound).all()
    assert found.kl.mean() == pytest.approx(whole.mean(), rel=0.5)


def test_the_estimate_has_no_bias():
    """The mean over many samples is the divergence of the whole distributions."""
    wanted, got = model(1).rows[:1], model(2).rows[:1]
    offsets = (np.arange(400) + 0.5) / 400
    records, _ = encode(np.repeat(log_softmax(wanted), 400, 0), np.zeros(400, int), offsets)
    found = compare_records(records, np.repeat(log_softmax(got), 400, 0))
    whole = token_divergence(wanted, got)[0]
    assert found.kl.mean() == pytest.approx(whole, rel=1e-3)
    assert found.kl_bound.mean() < 0.97 * whole


def test_a_store_gives_the_numbers_of_whole_distributions():
    texts = documents(40)
    live = measure_divergence(model(2), LiveReference(model(1), texts))
    reference = store_of(model(1), texts)
    found = measure_divergence(model(2), reference)
    assert (found.n_documents, found.n_tokens) == (40, 320)
    assert found.top1_agreement == live.top1_agreement
    assert found.perplexity == live.perplexity
    assert found.reference_perplexity == pytest.approx(live.reference_perplexity, rel=1e-6)
    assert found.kl_mean == pytest.approx(live.kl_mean, rel=0.01)
    assert found.kl_bound < found.kl_mean
    assert found.kl_bound < live.kl_mean
    assert found.kl_median == pytest.approx(live.kl_median, rel=0.05)
    assert (found.top_k, live.top_k) == (256, None)
    itself = measure_divergence(model(1), reference)
    assert itself.kl_mean == pytest.approx(0, abs=1e-6)
    assert itself.top1_agreement == 1


def test_a_small_vocabulary_is_kept_whole():
    reference = store_of(model(1, 200))
    live = measure_divergence(model(2, 200), LiveReference(model(1, 200), documents()))
    found = measure_divergence(model(2, 200), reference)
    assert found.kl_mean == found.kl_bound == pytest.approx(live.kl_mean, rel=1e-4)
    assert found.top_k is None
    assert describe_errors(reference) == "the float model's whole distributions are stored"


def test_what_is_lost_is_measured_against_whole_distributions():
    """On every eighth token: the residual, and a stand-in whose divergence is known."""
    decoder = model(1)
    errors = store_of(decoder).errors
    ids = np.concatenate([ids[:-1] for ids in documents()])
    log_probs = log_softmax(decoder.rows[ids])
    rest = 1 - np.exp(-np.sort(-log_probs, -1)[:, :256]).sum(-1)
    assert errors.residual_mean == pytest.approx(rest.mean(), rel=1e-3)
    assert errors.residual_max == pytest.approx(rest.max(), rel=1e-3)
    assert errors.n_tokens == len(ids) // 8
    assert errors.kl_whole == pytest.approx(0.3**2 / 2, rel=0.2)
    assert errors.kl_bound < errors.kl_whole
    assert errors.kl_stored == pytest.approx(errors.kl_whole, rel=0.02)
    assert "the 256 likeliest of 700 tokens" in describe_errors(store_of(decoder))


def test_memory_is_that_of_a_chunk_when_writing_and_when_reading(monkeypatch):
    from edgekit.quality import divergence

    vocab_size = 131_072
    monkeypatch.setattr(divergence, "_CHUNK_ELEMENTS", 10 * vocab_size)
    rng = np.random.default_rng(3)
    tables = [rng.normal(0, 3, (2, vocab_size)).astype(np.float32) for _ in range(2)]
    texts = [rng.integers(0, 2, 51).tolist() for _ in range(4)]
    tracemalloc.start()
    reference = store_of(TableDecoder(tables[0]), texts)
    found = measure_divergence(TableDecoder(tables[1]), reference)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert found.n_tokens == 200
    assert reference.n_bytes == pytest.approx(200 * 1608, rel=0.01)
    # Whole log-probabilities of 200 tokens would take 105 MB.
    assert peak < 10 * vocab_size * 4 + 9 * 8 * divergence._BLOCK_ELEMENTS


def test_the_model_runs_once_for_each_model_and_text(home):
    told = []
    first = store_of(model(1), progress=lambda *said: told.append(said))
    assert told[-1] == ("float model", 96, 96)
    again = stored_reference(never, documents(), dict(FACTS))
    assert measure_divergence(model(2), again) == measure_divergence(model(2), first)
    assert again.errors == first.errors
    for texts, facts in ((documents(11), FACTS), (documents(), {**FACTS, "engine": "other"})):
        with pytest.raises(AssertionError, match="must not run again"):
            stored_reference(never, texts, facts)
    assert [path.suffix for path in home.iterdir()] == [".logprobs"]


def damage_byte(path):
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def damage_facts(path):
    """Other facts under a right hash: as if another program had written the file."""
    content = path.read_bytes()[: -module._DIGEST_BYTES].replace(b'"table"', b'"tabla"')
    path.write_bytes(seal(content))


def seal(content: bytes) -> bytes:
    return content + hashlib.sha256(content).digest()


@pytest.mark.parametrize(
    "damage",
    [
        damage_byte,
        damage_facts,
        lambda path: path.write_bytes(seal(b"[]" + (2).to_bytes(8, "little"))),
        lambda path: path.write_bytes(seal(b"{}" + (2).to_bytes(8, "little"))),
        lambda path: path.write_bytes(seal(b"{}" + (99).to_bytes(8, "little"))),
        lambda path: path.write_bytes(path.read_bytes()[:-1]),
        lambda path: path.write_bytes(b""),
        lambda path: path.write_bytes(b"x" * 39),
        lambda path: path.write_bytes(b"x" * 5000),
        lambda path: (path.unlink(), path.mkdir()),
        lambda path: (path.unlink(), os.mkfifo(path)),
    ],
)
def test_a_damaged_store_is_made_again(home, damage):
    wanted = measure_divergence(model(2), store_of(model(1)))
    (path,) = home.iterdir()
    damage(path)
    if path.is_dir():  # cannot be replaced: the answer is the same without a cache
        with pytest.raises(OSError, match="directory"):
            path.read_bytes()
    decoder = model(1)
    with contextlib.suppress(MeasureError) if path.is_dir() else contextlib.nullcontext():
        assert measure_divergence(model(2), store_of(decoder)) == wanted
        assert decoder.calls
        assert stored_reference(never, documents(), FACTS).errors
    assert not list(home.glob(".partial-*"))


def test_a_failed_run_leaves_nothing(home):
    broken = model(1)
    broken.rows[3, 5] = np.nan
    with pytest.raises(MeasureError, match="NaN or infinity"):
        store_of(broken)
    assert list(home.iterdir()) == []


@pytest.mark.parametrize("fault", ["no room", "a file in the way", "no home"])
def test_without_a_cache_the_numbers_are_the_same(home, monkeypatch, fault):
    wanted = measure_divergence(model(2), store_of(model(1)))
    shutil.rmtree(home)
    if fault == "no room":
        monkeypatch.setattr(shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(9, 9, 0))
    elif fault == "a file in the way":
        home.write_text("")
    else:

        def no_home():
            raise RuntimeError

        monkeypatch.setattr(module, "cache_dir", no_home)
    assert measure_divergence(model(2), store_of(model(1))) == wanted
    if home.is_dir():
        assert list(home.iterdir()) == []


def test_a_full_disk_is_said_and_leaves_nothing(home, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(module, "write_store", full)
    with pytest.raises(
        MeasureError, match=r"cannot be stored; got No space.*wanted .* KiB"
    ) as error:
        store_of(model(1))
    assert "EDGEKIT_HOME" in str(error.value)
    assert list(home.iterdir()) == []


def _measure(home: str, seed: int, queue) -> None:
    os.environ["EDGEKIT_HOME"] = home
    queue.put(measure_divergence(model(2), store_of(model(seed))).kl_mean)


def test_two_processes_write_the_same_store_at_once(home):
    """Both may run the model; each has a whole store, and one is left."""
    context = multiprocessing.get_context("spawn")
    queue = context.Queue()
    children = [
        context.Process(target=_measure, args=(str(home.parent), 1, queue)) for _ in range(2)
    ]
    for child in children:
        child.start()
    found = [queue.get(timeout=120) for _ in children]
    for child in children:
        child.join(timeout=120)
    assert found[0] == found[1]
    assert len(list(home.iterdir())) == 1
    assert (
        measure_divergence(model(2), stored_reference(never, documents(), FACTS)).kl_mean
        == (found[0])
    )


def test_a_store_can_be_read_while_it_is_written_again(home):
    """The reader has the whole old file, whatever the writer has done so far."""
    reference = store_of(model(1))
    wanted = measure_divergence(model(2), reference)
    (path,) = home.iterdir()
    damage_byte(path)
    entered, go_on = threading.Event(), threading.Event()

    class Slow(TableDecoder):
        def forward(self, token_ids, *, n_past, n_logits=1):
            entered.set()
            assert go_on.wait(60)
            return super().forward(token_ids, n_past=n_past, n_logits=n_logits)

    writer = threading.Thread(target=store_of, args=(Slow(model(1).rows),))
    writer.start()
    assert entered.wait(60)
    assert len(list(home.glob(".partial-*"))) == 1
    fresh = store_of(model(1))  # a third one meets the damaged file and is ready first
    assert measure_divergence(model(2), fresh) == wanted
    go_on.set()
    writer.join(60)
    assert measure_divergence(model(2), fresh) == wanted
    assert measure_divergence(model(2), stored_reference(never, documents(), FACTS)) == wanted
    assert len(list(home.iterdir())) == 1


def test_the_cache_is_bounded_and_the_least_used_goes_first(tmp_path):
    def add(name: str, n_bytes: int, age_s: float):
        path = tmp_path / name
        path.write_bytes(b"x" * n_bytes)
        os.utime(path, (time.time() - age_s,) * 2)
        return path

    oldest, middle, newest = (add(f"{n}.logprobs", 100, 10 * n) for n in (3, 2, 1))
    left_over, at_work = add(".partial-a", 5, 90_000), add(".partial-b", 5, 60)
    foreign = add("notes.txt", 1000, 10**6)
    forget_oldest(tmp_path, 250, keep=newest)
    assert set(tmp_path.iterdir()) == {middle, newest, at_work, foreign}
    assert not oldest.exists()
    assert not left_over.exists()
    forget_oldest(tmp_path, 10, keep=newest)
    assert set(tmp_path.iterdir()) == {newest, at_work, foreign}


def test_use_makes_a_store_new(home):
    store_of(model(1))
    (path,) = home.iterdir()
    os.utime(path, (1, 1))
    stored_reference(never, documents(), FACTS)
    assert path.stat().st_mtime > time.time() - 3600


def test_facts_are_in_the_file_for_a_person_to_read(home):
    store_of(model(1))
    (path,) = home.iterdir()
    content = path.read_bytes()
    text = content[content.index(b'{"errors"') : -module._TAIL_BYTES]
    said = json.loads(text)
    assert said["facts"]["source_sha256"] == "1"
    assert said["vocab_size"] == 700
    assert len(text) == int.from_bytes(content[-module._TAIL_BYTES :][:8], "little")


def test_sampling_does_not_depend_on_where_chunks_end(monkeypatch, home):
    from edgekit.quality import divergence

    store_of(model(1))
    (path,) = home.iterdir()
    once = path.read_bytes()
    path.unlink()
    monkeypatch.setattr(divergence, "_CHUNK_ELEMENTS", 700 * 3)
    monkeypatch.setattr(divergence, "_BLOCK_ELEMENTS", 700 * 2)
    store_of(model(1))
    again = path.read_bytes()
    n_records = 96 * record_type(700).itemsize
    assert once[:n_records] == again[:n_records]


def test_certain_and_very_unlikely_tokens_stay_finite():
    rows = np.full((16, 700), -400.0, dtype=np.float32)
    rows[:, 3] = 400
    other = np.roll(rows, 5, axis=-1)
    found = measure_divergence(TableDecoder(other), store_of(TableDecoder(rows)))
    assert found.kl_mean == pytest.approx(800, rel=1e-3)
    assert found.top1_agreement == 0


def test_temporary_files_go_to_the_systems_folder_only_without_a_cache(home, monkeypatch):
    made = []
    original = tempfile.TemporaryFile
    monkeypatch.setattr(tempfile, "TemporaryFile", lambda: made.append(1) or original())
    store_of(model(1))
    assert made == []
