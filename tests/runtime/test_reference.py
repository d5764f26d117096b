"""Claims: the numpy decoder gives the right logits, however a text is fed to it."""

from __future__ import annotations

import json
import math
from dataclasses import replace

import mlx.core as mx
import mlx_lm
import numpy as np
import pytest

from edgekit.errors import EngineCrashError, UsageError
from edgekit.families import open_model
from edgekit.families.rope_spec import RopeSpec
from edgekit.families.spec import DecoderSpec
from edgekit.quantize.encoded_model import quantize_model
from edgekit.runtime import reference
from edgekit.runtime.reference import ReferenceDecoder
from edgekit.scheme import Scheme
from tests.builders import write_tiny_checkpoint

CHUNK_TOLERANCE = 1e-5  # float64 arithmetic, logits rounded to float32
# Logits of the tiny models spread by about 2; two float32 forwards differ by about 3e-5.
FP32_TOLERANCE = 2e-4
N_TOKENS = 150
IDS = np.random.default_rng(0).integers(0, 384, N_TOKENS).tolist()


@pytest.fixture(scope="module")
def source_of(tmp_path_factory):
    opened = []

    def make(model_type="mistral", **config):
        folder = tmp_path_factory.mktemp("tiny")
        write_tiny_checkpoint(folder, model_type, dtype="fp32", **config)
        opened.append(open_model(folder))
        return opened[-1]

    yield make
    for source in opened:
        source.close()


@pytest.fixture(scope="module")
def source(source_of):
    return source_of(sliding_window=40)


def all_logits(decoder: ReferenceDecoder, ids=IDS) -> np.ndarray:
    return decoder.forward(ids, n_past=0, n_logits=len(ids))


def naive_logits(source, ids) -> np.ndarray:
    """Compute one position, head and pair at a time in float64, from the definition."""
    spec = source.spec
    weight = {name: source.tensor(name).read().astype(np.float64) for name in spec.weight_shapes()}
    n_shared = spec.n_heads // spec.n_kv_heads

    def norm(x, name):
        return x / math.sqrt((x @ x) / len(x) + spec.norm_eps) * weight[name]

    def linear(x, name):
        return weight[name] @ x + weight.get(f"{name}.bias", 0.0)

    def rotate(x, position):
        # Channels i and i + D/2 are one complex number.
        half = spec.head_width // 2
        angle = position * spec.rope.theta ** (-2 * np.arange(half) / spec.head_width)
        rotated = (x[:half] + 1j * x[half:]) * np.exp(1j * angle)
        return np.concatenate([rotated.real, rotated.imag])

    def split(x, position=None):
        heads = x.reshape(-1, spec.head_width)
        return heads if position is None else np.array([rotate(h, position) for h in heads])

    residual = [weight["embed"][i] for i in ids]
    for layer in range(spec.n_layers):
        at = f"layers.{layer}."
        inner = [norm(x, at + "attn_norm") for x in residual]
        queries = [split(linear(x, at + "q"), p) for p, x in enumerate(inner)]
        keys = [split(linear(x, at + "k"), p) for p, x in enumerate(inner)]
        values = [split(linear(x, at + "v")) for x in inner]
        for p in range(len(ids)):
            first = 0 if spec.sliding_window is None else max(0, p - spec.sliding_window + 1)
            mixed = []
            for head in range(spec.n_heads):
                shared = head // n_shared
                scores = [queries[p][head] @ keys[j][shared] for j in range(first, p + 1)]
                share = np.exp(np.array(scores) / math.sqrt(spec.head_width))
                share /= share.sum()
                mixed.append(sum(w * values[first + j][shared] for j, w in enumerate(share)))
            residual[p] = residual[p] + linear(np.concatenate(mixed), at + "o")
            inner_ffn = norm(residual[p], at + "ffn_norm")
            gate = linear(inner_ffn, at + "gate")
            gated = gate / (1 + np.exp(-gate)) * linear(inner_ffn, at + "up")
            residual[p] = residual[p] + linear(gated, at + "down")
    head = weight["embed" if spec.is_tied else "lm_head"]
    return np.array([head @ norm(x, "final_norm") for x in residual])


def test_one_layer_worked_by_hand():
    spec = DecoderSpec(
        model_type="llama", n_layers=1, hidden_width=2, n_heads=1, n_kv_heads=1, head_width=2,
        ffn_width=1, vocab_size=2, context_length=8, norm_eps=0.0, rope=RopeSpec(1e4),
        is_tied=False,
    )  # fmt: skip
    weights = {
        "embed": [[1, 1], [1, -1]], "layers.0.attn_norm": [1, 2], "layers.0.ffn_norm": [1, 1],
        "layers.0.q": [[1, 0], [0, 1]], "layers.0.k": [[1, 0], [0, 1]],
        "layers.0.v": [[1, 0], [0, 1]], "layers.0.o": [[1, 0], [0, 0.5]],
        "layers.0.gate": [[0.5, 0.5]], "layers.0.up": [[1, 2]], "layers.0.down": [[1], [-1]],
        "final_norm": [1, 1], "lm_head": [[1, 0], [0, 2]],
    }  # fmt: skip
    decoder = ReferenceDecoder(spec, lambda name: np.array(weights[name], np.float32))

    def finish(x: float, y: float) -> list[float]:
        """From the residual after attention to the logits."""
        rms = math.sqrt((x * x + y * y) / 2)
        gate, up = (x / rms + y / rms) / 2, x / rms + 2 * y / rms
        step = gate / (1 + math.exp(-gate)) * up
        x, y = x + step, y - step
        rms = math.sqrt((x * x + y * y) / 2)
        return [x / rms, 2 * y / rms]

    # Position 0: token (1, 1) is normed to (1, 2) and attends to itself alone: o gives (1, 1).
    first = finish(2.0, 2.0)
    # Position 1: token (1, -1) is normed to (1, -2); rotated by one radian against (1, 2).
    to_first = (math.cos(1) + 2 * math.sin(1)) + 2 * (-2 * math.cos(1) + math.sin(1))
    share = 1 / (1 + math.exp((5 - to_first) / math.sqrt(2)))
    second = finish(1 + 1.0, -1 + 0.5 * (2 * share - 2 * (1 - share)))
    np.testing.assert_allclose(all_logits(decoder, [0, 1]), [first, second], rtol=1e-5)


@pytest.mark.parametrize(
    ("model_type", "config"),
    [
        ("mistral", {}),
        ("mistral", {"sliding_window": 5}),
        ("mistral", {"sliding_window": 1, "num_key_value_heads": 1}),
        ("llama", {"attention_bias": True, "mlp_bias": True, "tie_word_embeddings": False}),
        ("llama", {"num_key_value_heads": 4, "rope_theta": 500000.0}),
        ("mistral", {"head_dim": 64, "rms_norm_eps": 1e-2}),
    ],
)
def test_logits_are_those_of_the_definition(source_of, model_type, config):
    source = source_of(model_type, **config)
    expected = naive_logits(source, IDS[:24])
    exact = all_logits(ReferenceDecoder.from_source(source, np.float64), IDS[:24])
    # What is left is the rounding of rope tables and of the result to float32.
    np.testing.assert_allclose(exact, expected, atol=1e-5)
    single = all_logits(ReferenceDecoder.from_source(source), IDS[:24])
    np.testing.assert_allclose(single, expected, atol=FP32_TOLERANCE)
    assert exact.dtype == single.dtype == np.float32


def test_weights_of_a_large_model_are_read_at_each_use(tiny_model, monkeypatch):
    """Memory is then that of one weight; the logits are the same."""
    source = open_model(tiny_model)
    wanted = all_logits(ReferenceDecoder.from_source(source))
    monkeypatch.setattr(reference, "KEPT_BYTES", 4 * source.n_parameters - 1)
    decoder = ReferenceDecoder.from_source(source)
    np.testing.assert_array_equal(all_logits(decoder), wanted)
    assert not decoder._forward._weights
    monkeypatch.setattr(reference, "KEPT_BYTES", 4 * source.n_parameters)
    decoder = ReferenceDecoder.from_source(source)
    np.testing.assert_array_equal(all_logits(decoder), wanted)
    assert decoder._forward._weights
    source.close()


@pytest.mark.parametrize(
    ("model_type", "config"),
    [
        ("mistral", {}),
        ("mistral", {"tie_word_embeddings": False, "num_key_value_heads": 1}),
        ("llama", {"attention_bias": True, "mlp_bias": True}),
        (
            "llama",
            {
                "max_position_embeddings": 256,
                "rope_scaling": {
                    "rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0,
                    "high_freq_factor": 4.0, "original_max_position_embeddings": 64,
                },
            },
        ),
    ],
)  # fmt: skip
def test_logits_are_those_of_mlx_lm(source_of, model_type, config):
    source = source_of(model_type, **config)
    model, _ = mlx_lm.load(str(source.checkpoint.folder))
    theirs = np.array(model(mx.array([IDS]))[0])
    assert theirs.dtype == np.float32
    ours = all_logits(ReferenceDecoder.from_source(source))
    np.testing.assert_allclose(ours, theirs, atol=1e-3)
    # The tolerance is tight beside what the logits are.
    assert theirs.std() > 1


def test_float64_and_float32_agree_but_are_not_the_same(source):
    single = all_logits(ReferenceDecoder.from_source(source))
    double = all_logits(ReferenceDecoder.from_source(source, np.float64))
    difference = np.abs(single - double).max()
    assert 0 < difference < FP32_TOLERANCE


@pytest.mark.parametrize("sizes", [[1] * N_TOKENS, [100, 1, 49], [7, 43, 100]])
def test_chunks_and_single_steps_give_what_one_call_gives(source, sizes):
    expected = all_logits(ReferenceDecoder.from_source(source, np.float64))
    decoder = ReferenceDecoder.from_source(source, np.float64)
    parts, n_past = [], 0
    for size in sizes:
        ids = IDS[n_past : n_past + size]
        parts.append(decoder.forward(ids, n_past=n_past, n_logits=size))
        n_past += size
    np.testing.assert_allclose(np.concatenate(parts), expected, atol=CHUNK_TOLERANCE)


def test_inner_chunks_of_a_long_text_change_nothing(source, monkeypatch):
    expected = all_logits(ReferenceDecoder.from_source(source, np.float64))
    for n_chunk in (1, 13, N_TOKENS):
        monkeypatch.setattr(reference, "_CHUNK_TOKENS", n_chunk)
        found = all_logits(ReferenceDecoder.from_source(source, np.float64))
        np.testing.assert_allclose(found, expected, atol=CHUNK_TOLERANCE)


def test_n_logits_gives_the_last_positions(source):
    decoder = ReferenceDecoder.from_source(source, np.float64)
    whole = all_logits(decoder)
    for n_logits in (1, 2, 149):
        found = decoder.forward(IDS, n_past=0, n_logits=n_logits)
        assert found.shape == (n_logits, 384)
        np.testing.assert_allclose(found, whole[-n_logits:], atol=CHUNK_TOLERANCE)


def test_rewinding_forgets_later_positions(source):
    decoder = ReferenceDecoder.from_source(source, np.float64)
    all_logits(decoder)
    other = [5, 6, 7]
    found = decoder.forward(other, n_past=20, n_logits=3)
    fresh = ReferenceDecoder.from_source(source, np.float64)
    expected = all_logits(fresh, IDS[:20] + other)[-3:]
    np.testing.assert_allclose(found, expected, atol=CHUNK_TOLERANCE)
    with pytest.raises(UsageError, match="n_past is beyond the cache"):
        decoder.forward([1], n_past=24)


def test_a_later_token_changes_no_earlier_logits(source):
    decoder = ReferenceDecoder.from_source(source)
    before = all_logits(decoder)
    changed = [*IDS[:90], (IDS[90] + 1) % 384, *IDS[91:]]
    after = all_logits(decoder, changed)
    np.testing.assert_array_equal(after[:90], before[:90])
    assert (np.abs(after[90:] - before[90:]).max(axis=1) > 0).all()


def test_a_token_outside_the_window_is_not_seen(source_of):
    # Two layers with a window of 4 see 1 + 2 * 3 positions.
    decoder = ReferenceDecoder.from_source(source_of(sliding_window=4))
    before = all_logits(decoder, IDS[:30])
    after = all_logits(decoder, [(IDS[0] + 1) % 384, *IDS[1:30]])
    np.testing.assert_array_equal(after[7:], before[7:])
    assert (np.abs(after[:7] - before[:7]).max(axis=1) > 0).all()


@pytest.mark.parametrize("scheme", ["fp32", "fp16", "int8", "int4"])
def test_a_quantized_model_runs_the_weights_of_its_store(source, tmp_path, scheme):
    model = quantize_model(source, Scheme.parse(scheme), tmp_path)

    def stored(name):
        tensor = model.get(name)
        return tensor.values if hasattr(tensor, "values") else tensor.dequantize()

    decoder = ReferenceDecoder.from_quantized(model)
    found = all_logits(decoder)
    np.testing.assert_array_equal(found, all_logits(ReferenceDecoder(source.spec, stored)))
    error = np.abs(found - all_logits(ReferenceDecoder.from_source(source))).max()
    limit = {"fp32": 0.0, "fp16": 0.02, "int8": 0.5}.get(scheme, np.inf)
    assert error <= limit
    assert scheme != "int4" or error > 0.5
    assert decoder.info.model == f"{model.source.name} {model.scheme}"


def test_info_says_what_ran(source):
    info = ReferenceDecoder.from_source(source, np.float64).info
    assert (info.engine, info.version) == ("reference", np.__version__)
    assert info.model == source.checkpoint.name
    assert dict(info.settings) == {"dtype": "float64"}
    assert json.dumps(dict(info.settings))
    assert not info.is_emulated


def test_context_is_the_models_own_or_shorter(source):
    spec = source.spec

    def read(name):
        return source.tensor(name).read()

    decoder = ReferenceDecoder(spec, read, context_length=10)
    assert (decoder.context_length, decoder.vocab_size) == (10, 384)
    assert decoder.forward(IDS[:10], n_past=0).shape == (1, 384)
    with pytest.raises(UsageError, match="longer than the context"):
        decoder.forward([1], n_past=10)
    for wrong in (0, 257):
        with pytest.raises(UsageError, match="context_length"):
            ReferenceDecoder(spec, read, context_length=wrong)
    # Room is made as needed: a context of millions of positions costs nothing until it is used.
    huge = ReferenceDecoder(replace(spec, context_length=1 << 40), read)
    np.testing.assert_array_equal(
        huge.forward(IDS[:10], n_past=0), decoder.forward(IDS[:10], n_past=0)
    )


@pytest.mark.parametrize(
    ("ids", "n_past", "n_logits"),
    [([], 0, 1), ([384], 0, 1), ([-1], 0, 1), ([1], 1, 1), ([1], -1, 1), ([1], 0, 2), ([1], 0, 0)],
)
def test_a_bad_call_is_refused_and_changes_nothing(source, ids, n_past, n_logits):
    decoder = ReferenceDecoder.from_source(source)
    with pytest.raises(UsageError):
        decoder.forward(ids, n_past=n_past, n_logits=n_logits)
    assert decoder.forward([1], n_past=0).shape == (1, 384)


def test_a_closed_decoder_says_so(source):
    decoder = ReferenceDecoder.from_source(source)
    decoder.close()
    decoder.close()
    with pytest.raises(EngineCrashError, match="closed"):
        decoder.forward([1], n_past=0)


def test_activations_far_from_zero_raise_no_warning(source):
    def loud(name):
        values = source.tensor(name).read()
        return values * np.float32(1000) if name.endswith("gate") else values

    assert np.isfinite(all_logits(ReferenceDecoder(source.spec, loud))).all()
