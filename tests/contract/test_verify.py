"""Every kind of decoder passes the three checks of verify in every format that holds it."""

from __future__ import annotations

import pytest

import edgekit
from edgekit.artifact import Format
from edgekit.pipeline.verify import VerifyPlan, verify
from tests.builders import write_tiny_checkpoint

PLAN = VerifyPlan(n_tokens=24, n_prompts=1, n_new_tokens=6)
# Windows and two rotary encodings; caps and a scaled embedding; norms after the blocks and of whole
# queries; fused matrices and LongRoPE; norms of heads; multipliers; a growing scale of queries.
MEMBERS = ("gemma3_text", "gemma2", "olmo2", "phi3", "qwen3", "granite", "ministral3")


@pytest.mark.parametrize("scheme", ["int4", "int8"])
@pytest.mark.parametrize("member", MEMBERS)
def test_every_kind_of_decoder_is_verified_as_it_runs(member, scheme, tmp_path):
    model = write_tiny_checkpoint(tmp_path / "m", member)
    records = verify(edgekit.export(model, "all", scheme, tmp_path / "out"), PLAN)
    # Not as published, so llama.cpp computes these otherwise and there is no GGUF.
    n_formats = 3 if member in MEMBERS[:2] or member == "phi3" else 4
    assert [record.format for record in records] == [form.value for form in Format][:n_formats]
    for record in records:
        assert record.weights.is_met
        if record.not_run:  # the engine of GGUF is an optional package
            assert record.format == Format.GGUF.value
            assert record.is_met
            continue
        assert record.logits.is_met
        assert record.run.is_met
        assert 0 < record.run.kl_mean <= record.run.limit


@pytest.mark.parametrize("scheme", ["fp16", "fp32"])
def test_float_schemes_are_verified_too(scheme, tmp_path):
    model = write_tiny_checkpoint(tmp_path / "m", "llama")
    formats = ["onnx", "mlx"] if scheme == "fp32" else "all"
    records = verify(edgekit.export(model, formats, scheme, tmp_path / "out"), PLAN)
    for record in records:
        assert record.weights.n_codes == 0
        assert record.weights.weights_sha256 == ""
        assert record.is_met
