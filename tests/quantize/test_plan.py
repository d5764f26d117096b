"""Claims: each tensor gets the scheme that was asked for, or another one with its reason."""

from __future__ import annotations

from dataclasses import replace

import pytest

from edgekit.encoding import Encoding
from edgekit.errors import QuantError
from edgekit.families.rope_spec import RopeSpec
from edgekit.families.spec import DecoderSpec
from edgekit.quantize.plan import plan_tensors
from edgekit.scheme import Scheme

SPEC = DecoderSpec(
    model_type="llama", n_layers=2, hidden_width=256, n_heads=4, n_kv_heads=2, head_width=64,
    ffn_width=640, vocab_size=300, context_length=64, norm_eps=1e-5, rope=RopeSpec(1e4),
    is_tied=False, has_qkv_bias=True,
)  # fmt: skip
NORMS = {
    "layers.0.attn_norm",
    "layers.1.attn_norm",
    "layers.0.ffn_norm",
    "layers.1.ffn_norm",
    "final_norm",
}


def schemes(spec: DecoderSpec, scheme: str) -> dict[str, str]:
    return {item.name: str(item.encoding) for item in plan_tensors(spec, Scheme.parse(scheme))}


@pytest.mark.parametrize("scheme", ["fp32", "fp16", "int8", "int4", "int4-g64", "int8-g128"])
def test_every_tensor_is_planned_once_in_file_order(scheme):
    plans = plan_tensors(SPEC, Scheme.parse(scheme))
    assert {item.name: item.shape for item in plans} == SPEC.weight_shapes()
    assert [item.name for item in plans] == list(SPEC.weight_shapes())
    assert all(item.reason for item in plans)


@pytest.mark.parametrize("scheme", ["fp32", "fp16", "int8", "int4"])
def test_norms_and_biases_stay_fp32(scheme):
    found = schemes(SPEC, scheme)
    vectors = {name for name, shape in SPEC.weight_shapes().items() if len(shape) == 1}
    assert vectors == NORMS | {f"layers.{i}.{part}.bias" for i in (0, 1) for part in "qkv"}
    assert {found[name] for name in vectors} == {"fp32"}


def test_int4_keeps_embedding_and_head_at_8_bits():
    found = {item.name: item for item in plan_tensors(SPEC, Scheme.parse("int4-g64"))}
    assert found["embed"].encoding == found["lm_head"].encoding == Encoding.parse("int8-g64")
    assert "first activation" in found["embed"].reason
    assert "logits" in found["lm_head"].reason
    assert found["layers.1.down"].encoding == Encoding.parse("int4-g64")
    tied = {item.name for item in plan_tensors(replace(SPEC, is_tied=True), Scheme.parse("int4"))}
    assert "lm_head" not in tied


@pytest.mark.parametrize("scheme", ["fp32", "fp16", "int8-g32"])
def test_other_schemes_are_the_same_for_every_matrix(scheme):
    matrices = {
        (str(i.encoding), i.reason)
        for i in plan_tensors(SPEC, Scheme.parse(scheme))
        if len(i.shape) == 2
    }
    assert matrices == {(scheme, "as asked")}


def test_a_group_that_does_not_divide_gives_way_to_the_next_smaller():
    spec = replace(SPEC, ffn_width=704)  # 704 = 11 * 64
    found = {item.name: item for item in plan_tensors(spec, Scheme.parse("int4-g128"))}
    assert found["layers.0.gate"].encoding == Encoding.parse("int4-g128")
    assert found["layers.0.down"].encoding == Encoding.parse("int4-g64")
    assert found["layers.0.down"].reason == "blocks of 64: 128 does not divide 704"
    assert schemes(spec, "int4-g32")["layers.0.down"] == "int4-g32"


def test_widths_that_no_group_divides_are_refused_by_name():
    spec = replace(SPEC, n_layers=1, ffn_width=650)
    with pytest.raises(QuantError) as caught:
        plan_tensors(spec, Scheme.parse("int8-g64"))
    assert caught.value.got == "layers.0.down (650)"
    assert caught.value.do == "Export this model with scheme fp16."
    assert schemes(spec, "fp16")["layers.0.down"] == "fp16"
