"""Claims about records: what is written down comes back equal, and nothing else is accepted."""

from __future__ import annotations

import dataclasses
import inspect
import json

import pytest
from hypothesis import Phase, given, settings

from edgekit import records
from edgekit.errors import UsageError
from edgekit.records import EngineInfo, ItemOutcome, Kind, Metric, Workload, from_data, to_data
from tests.record_values import values_of

CLASSES = [
    item
    for item in vars(records).values()
    if inspect.isclass(item) and dataclasses.is_dataclass(item)
]


@pytest.mark.parametrize("cls", CLASSES, ids=lambda cls: cls.__name__)
def test_every_record_comes_back_equal_from_json(cls):
    @settings(max_examples=20, phases=[Phase.explicit, Phase.reuse, Phase.generate])
    @given(values_of(cls))
    def check(record):
        text = records.to_json(record)
        assert from_data(cls, json.loads(text)) == record
        assert records.to_json(from_data(cls, json.loads(text))) == text

    check()


def test_the_list_of_records_is_complete():
    assert {"ReportData", "VerifyRecord", "ProfileRecord"} <= {cls.__name__ for cls in CLASSES}
    assert all(cls.__dataclass_params__.frozen for cls in CLASSES)


METRIC = Metric("ttft_s", 0.25, Kind.MEASURED, samples=(0.25, 0.5))


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"colour": 1}, "colour: got an unknown key, wanted one of name, value,"),
        ({"value": "0.25"}, "value: got str '0.25', wanted a number"),
        ({"value": True}, "value: got bool True, wanted a number"),
        ({"value": float("nan")}, "value: got float nan, wanted a finite number"),
        ({"samples": [0.25, float("inf")]}, "samples[1]: got float inf, wanted a finite number"),
        ({"samples": "12"}, "samples: got str '12', wanted a list"),
        ({"samples": {"0": 1}}, "samples: got dict {'0': 1}, wanted a list"),
        ({"kind": "guessed"}, "kind: got str 'guessed', wanted measured | emulated | projected"),
        ({"name": None}, "name: got null, wanted text"),
    ],
)
def test_a_wrong_field_is_refused_by_what_is_wrong(change, said):
    with pytest.raises(UsageError, match="not a Metric record") as caught:
        from_data(Metric, {**to_data(METRIC), **change})
    assert said in caught.value.got


@pytest.mark.parametrize("data", [None, 7, "name", [], [["name", 1]], {}])
def test_what_is_no_record_at_all_is_refused(data):
    with pytest.raises(UsageError, match="not a Metric record"):
        from_data(Metric, data)


def test_a_boolean_is_no_count_and_a_list_is_no_mapping():
    with pytest.raises(UsageError, match="n_warmup: got bool True, wanted a whole number"):
        from_data(Workload, {**to_data(Workload(1, 2, 3, 4)), "n_warmup": True})
    info = to_data(EngineInfo("e", "1", "m"))
    with pytest.raises(UsageError, match=r"settings: got list \['a'\], wanted keys with values"):
        from_data(EngineInfo, {**info, "settings": ["a"]})


def test_free_fields_are_refused_when_they_could_not_be_written_again():
    outcome = to_data(ItemOutcome("i", True, "", "a"))
    deep: object = "end"
    for _ in range(40):
        deep = [deep]
    for meta, said in (({"x": float("nan")}, "nan"), ({"x": deep}, "nested too deep")):
        with pytest.raises(UsageError, match=said):
            from_data(ItemOutcome, {**outcome, "meta": meta})


def test_an_integer_stands_for_a_float_but_never_overflows():
    metric = from_data(Metric, {**to_data(METRIC), "value": 3})
    assert isinstance(metric.value, float)
    with pytest.raises(UsageError):
        from_data(Metric, {**to_data(METRIC), "value": 10**400})


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_what_is_not_finite_is_never_written(value):
    with pytest.raises(ValueError, match="JSON compliant"):
        records.to_json(dataclasses.replace(METRIC, value=value))


def test_a_metric_is_found_by_its_name():
    weights = records.WeightsCheck("onnx 1.23", "", 1, 1, 0, 0)
    assert weights.is_met
    wrong = dataclasses.replace(weights, n_scales_differing=1)
    assert not wrong.is_met
    assert not records.VerifyRecord("a", "onnx", "int4", wrong).is_met
