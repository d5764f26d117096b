"""Claims: a budget holds in every format, the next step would exceed it, and the plan says why."""

from __future__ import annotations

from math import prod

import pytest

from edgekit.artifact import Format
from edgekit.devices.facts import facts_of
from edgekit.devices.match import match, need_bytes
from edgekit.devices.profile import load_profile
from edgekit.encoding import Encoding
from edgekit.errors import ProfileError, QuantError, UsageError
from edgekit.exporters import open_exporter
from edgekit.exporters.base import ExportOptions
from edgekit.families import open_model
from edgekit.pipeline.calibration import Calibration
from edgekit.pipeline.export import NO_BUDGET, export
from edgekit.pipeline.mixed_precision import (
    Budget,
    bits_in_layers,
    mix,
    needs_budget,
    read_budget,
    weights_room,
)
from edgekit.pipeline.verify import VerifyPlan, verify
from edgekit.quantize.calibration_text import built_in_text
from edgekit.quantize.plan import plan_tensors
from edgekit.scheme import Mixed, Rule, Scheme
from tests.builders import write_tiny_checkpoint
from tests.checkpoint.prequantized.folders import (
    Grid,
    is_matrix,
    mlx_config,
    mlx_parts,
    write_coded,
)

FORMATS = tuple(Format)
MINE = Scheme("mine", Encoding("uint4", 64), mixed=Mixed(5.0, (Encoding("int8", 64),)))
DONE = {}
MATRICES = ("q", "k", "v", "o", "gate", "up", "down")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_tiny_checkpoint(tmp_path_factory.mktemp("m") / "tiny", "llama")


@pytest.fixture(scope="module")
def source(folder):
    model = open_model(folder)
    yield model
    model.close()


def mixed(source, scheme=MINE, budget=NO_BUDGET, formats=FORMATS, tell=None):
    key = (scheme, budget, formats if isinstance(formats, tuple) else None)
    if tell is None and key in DONE:
        return DONE[key]
    text = built_in_text(
        source.text, n_rows=source.spec.vocab_size, context_length=256, n_tokens=256
    )
    exporters = [open_exporter(fmt) for fmt in formats]
    found = mix(
        source, scheme, budget, exporters, ExportOptions(), text, tell=tell or (lambda line: None)
    )
    DONE[key] = found
    return found


def encodings(source, scheme):
    return {item.name: item.encoding for item in plan_tensors(source.spec, scheme)}


def test_bits_per_weight_are_met_and_the_next_step_would_exceed_them(source):
    shapes = source.spec.weight_shapes()
    n_weights = sum(prod(s) for n, s in shapes.items() if n.startswith("layers.") and len(s) == 2)
    for bits in (4.5, 5.0, 6.5):
        found = mixed(source, budget=Budget(bits_per_weight=bits))
        plans = plan_tensors(source.spec, found.scheme)
        assert bits_in_layers(plans) <= bits
        step = found.spending.next_step
        more = 8 * (step.after.most_bytes - step.before.most_bytes) / n_weights
        # Steps after the one that did not fit are smaller; the budget is as good as full.
        assert bits_in_layers(plans) > bits - max(more, 0.5)
        assert found.scheme.name == f"mine-{bits:g}bpw"
        assert found.scheme.mixed is None


def test_bits_by_hand(source):
    plans = plan_tensors(source.spec, Scheme.parse("uint4-g64"))
    # 4 bits, 16 of a scale and 4 of a zero point for 64 weights.
    assert bits_in_layers(plans) == 4 + 20 / 64
    rule = Rule(("layers.*",), Encoding("int8", 32), "x")
    assert bits_in_layers(plan_tensors(source.spec, Scheme("a", MINE.encoding, (rule,)))) == 8.5


def test_the_schemes_own_budget_counts_where_the_user_names_none(source):
    found = mixed(source)
    assert found.scheme.name == "mine"
    assert found.spending == mixed(source, budget=Budget(bits_per_weight=5.0)).spending
    assert needs_budget(MINE, Budget())
    assert not needs_budget(Scheme.parse("int4"), Budget())
    assert needs_budget(Scheme.parse("int4"), Budget(max_bytes=1))


def test_the_most_damage_is_avoided_first_and_said(source):
    said = []
    found = mixed(source, tell=said.append)
    saved = [step.saved for step in found.spending.steps]
    assert saved == sorted(saved, reverse=True)
    changed = {rule.tensors[0]: rule for rule in found.scheme.rules}
    assert {step.name for step in found.spending.steps} == changed.keys()
    first = found.spending.steps[0]
    assert changed[first.name].encoding == Encoding("int8", 64)
    assert changed[first.name].reason.startswith("8 bits: avoids a KL divergence of ")
    assert changed[first.name].reason.endswith(f"more (step 1 of {len(saved)})")
    assert said[0].startswith("measuring how much 14 matrices cost in fewer bits (each by itself,")
    assert "about" in said[0]
    assert said[1].startswith("mine: ")
    assert "bits per weight in the layers (" in said[1]


def test_two_runs_decide_alike(source):
    assert mixed(source, tell=print).scheme == mixed(source, tell=print).scheme


def test_matrices_that_a_rule_names_keep_what_it_says(source):
    rule = Rule(("layers.*.v",), Encoding("uint4", 32), "as I like")
    scheme = Scheme("mine", MINE.encoding, (rule,), mixed=MINE.mixed)
    found = mixed(source, scheme, Budget(bits_per_weight=8.4))
    chosen = encodings(source, found.scheme)
    assert chosen["layers.0.v"] == chosen["layers.1.v"] == Encoding("uint4", 32)
    assert Encoding("int8", 64) in {chosen[f"layers.0.{part}"] for part in MATRICES}


@pytest.mark.parametrize("extra", [0, 15_000])
def test_max_bytes_holds_in_every_format(folder, source, tmp_path, extra):
    with pytest.raises(QuantError) as caught:
        mixed(source, Scheme.parse("uint4-g64"), Budget(max_bytes=1000))
    assert caught.value.what.startswith("--max-bytes is too small for ")
    limit = int(caught.value.wanted.removeprefix("at least ")) + extra
    artifacts = export(
        folder, FORMATS, "uint4-g64", tmp_path, budget=Budget(max_bytes=limit),
        calibration=Calibration(n_tokens=256),
    )  # fmt: skip
    for artifact in artifacts:
        assert artifact.n_bytes <= limit
        assert artifact.manifest.scheme == f"uint4-g64-{limit / 1e6:g}MB"
    wide = [e for e in artifacts[0].manifest.tensors if e.encoding == "int8-g64"]
    assert bool(wide) == bool(extra)
    if not extra:
        reasons = {e.name: e.reason for e in artifacts[0].manifest.tensors}
        assert reasons["embed"].startswith("4 bits: the budget leaves no room for more")
    hashes = {artifact.manifest.weights_sha256 for artifact in artifacts}
    assert len(hashes) == 1


def test_one_byte_less_than_the_smallest_is_refused(source):
    with pytest.raises(QuantError) as caught:
        mixed(source, budget=Budget(max_bytes=1000))
    least = int(caught.value.wanted.removeprefix("at least "))
    assert mixed(source, budget=Budget(max_bytes=least)).spending.steps == ()
    with pytest.raises(QuantError, match=f"got {least - 1} bytes; wanted at least {least}"):
        mixed(source, budget=Budget(max_bytes=least - 1))


def test_too_few_bits_say_how_many_are_needed(source):
    with pytest.raises(
        QuantError, match=r"--bits-per-weight; got 4\.2; wanted at least 4\.32 for this scheme"
    ):
        mixed(source, budget=Budget(bits_per_weight=4.2))
    assert mixed(source, budget=Budget(bits_per_weight=4.32)).spending.steps == ()


def test_a_large_device_holds_8_bits_everywhere(source):
    found = mixed(source, budget=Budget(device=load_profile("iphone-16-pro")))
    chosen = encodings(source, found.scheme)
    assert {chosen[f"layers.{i}.{part}"] for i in range(2) for part in MATRICES} == {
        Encoding("int8", 64)
    }
    assert found.scheme.name == "mine-iphone-16-pro"


def test_the_room_on_a_device_is_the_inverse_of_what_matching_counts(folder, tmp_path):
    (artifact,) = export(folder, "onnx", "int8", tmp_path)
    facts = facts_of(artifact)
    for name in ("iphone-16-pro", "raspberry-pi-5", "macbook-air-m4"):
        profile = load_profile(name)
        for engine in profile.engines:
            if facts.format not in engine.formats:
                continue
            cache = facts.kv_bytes_per_token * 100
            for limit in (500_000_000, 3_000_000_000):
                room = weights_room(engine, limit, cache)
                at, above = (
                    need_bytes(_with_weights(facts, n), engine, 100) for n in (room, room + 1000)
                )
                assert at <= limit < above
    assert match([facts], load_profile("iphone-16-pro"))[0].plan is not None


def _with_weights(facts, weight_bytes):
    values = {name: getattr(facts, name) for name in facts.__slots__}
    return type(facts)(**{**values, "weight_bytes": weight_bytes})


def test_a_device_that_runs_none_of_the_formats(source):
    with pytest.raises(UsageError, match="no engine on Raspberry Pi 5"):
        mixed(source, budget=Budget(device=load_profile("raspberry-pi-5")), formats=[Format.COREML])


def test_schemes_without_a_choice_are_refused(source):
    with pytest.raises(UsageError, match="scheme int8-g32: no matrix can have more or fewer bits"):
        mixed(source, Scheme.parse("int8"), Budget(bits_per_weight=6))
    with pytest.raises(UsageError, match="scheme fp16: no matrix can have"):
        mixed(source, Scheme.parse("fp16"), Budget(max_bytes=10**9))


def test_codes_that_a_source_brings_have_no_choice(tmp_path):
    folder, _ = write_coded(
        tmp_path / "m", Grid(4, 64), mlx_parts, mlx_config(Grid(4, 64)), is_coded=is_matrix,
        tie_word_embeddings=False,
    )  # fmt: skip
    model = open_model(folder)
    scheme = Scheme("mine", Encoding("int4", 64), mixed=MINE.mixed)
    found = mixed(model, scheme, tell=print)
    assert found.scheme == Scheme("mine", Encoding("int4", 64))
    with pytest.raises(UsageError, match="no matrix can have more or fewer bits"):
        mixed(model, scheme, Budget(bits_per_weight=5), tell=print)
    model.close()


def test_budgets_that_are_none():
    with pytest.raises(UsageError, match="one budget at a time; got --bits-per-weight and --max"):
        read_budget(4.5, "1MB", None)
    for bits in (1.9, 16.5, float("nan"), float("inf")):
        with pytest.raises(UsageError, match="--bits-per-weight"):
            read_budget(bits, None, None)
    with pytest.raises(UsageError, match="--max-bytes; got 'big'; wanted a size such as 900MB"):
        read_budget(None, "big", None)
    with pytest.raises(ProfileError, match="no such device profile; got 'iphone-99'"):
        read_budget(None, None, "iphone-99")
    assert read_budget(None, "900MB", None) == Budget(max_bytes=900_000_000)
    assert read_budget(None, None, None) == Budget()


def test_what_is_exported_is_verified_and_says_all_of_it(folder, tmp_path):
    path = tmp_path / "mine.toml"
    path.write_text(
        'about = "Mine."\nencoding = "uint4-g64"\nmethod = "gptq"\n'
        '[mixed]\nbits_per_weight = 5.0\nwide = ["int8-g64"]\n'
    )
    artifacts = export(
        folder, FORMATS, path.as_posix(), tmp_path / "out", calibration=Calibration(n_tokens=512)
    )
    again = export(
        folder, ["onnx"], path.as_posix(), tmp_path / "2", calibration=Calibration(n_tokens=512)
    )
    manifest = artifacts[0].manifest
    assert {a.manifest.weights_sha256 for a in (*artifacts, *again)} == {manifest.weights_sha256}
    assert [a.path.name for a in artifacts] == [f"tiny-{f.value}-mine" for f in FORMATS]
    assert manifest.settings["calibration"]["method"] == "gptq"
    assert manifest.settings["calibration"]["n_tokens"] == 512
    described = manifest.settings["scheme"]
    assert (described["about"], described["encoding"]) == ("Mine.", "uint4-g64")
    wide = {e.name for e in manifest.tensors if e.encoding == "int8-g64"}
    assert {rule["tensors"][0] for rule in described["rules"]} == wide
    # Verifying computes the plan again from the manifest, and compares every reason.
    verify(artifacts, VerifyPlan(n_tokens=24, n_prompts=1, n_new_tokens=8))
