"""The split of a time to first token, worked out by hand."""

from __future__ import annotations

import dataclasses

import pytest

from edgekit.errors import MeasureError
from edgekit.hosted.latency import split_latency
from edgekit.records import Kind
from edgekit.runtime.request_stats import NetworkSamples, RequestStats

# Times are binary fractions, so that sums and differences are exact.
NETWORK = NetworkSamples((0.25, 0.125, 0.5), (0.5, 0.5, 1.0), (0.125, 0.0625, 0.25))
WARM = RequestStats("m", "", "stop", 10, 5, None, None, 100.0, ttft_s=1.0, e2e_s=3.0)
COLD = dataclasses.replace(WARM, ttft_s=3.0, e2e_s=5.0, connect_s=0.5, tls_s=0.5)


def metrics(*requests, network=NETWORK):
    return {m.name: m for m in split_latency(requests, network)}


def test_server_time_is_what_the_round_trip_leaves():
    got = metrics(WARM)
    assert got["network_round_trip_s"].value == 0.125
    assert got["ttft_s"].value == 1.0
    assert got["server_ttft_s"].value == 0.875
    assert got["server_ttft_s"].value + got["network_round_trip_s"].value == got["ttft_s"].value


def test_handshakes_are_counted_apart():
    got = metrics(COLD)
    assert (got["network_connect_s"].value, got["network_tls_s"].value) == (0.25, 0.5)
    assert (got["ttft_s"].value, got["e2e_s"].value) == (2.0, 4.0)
    assert got["cold_ttft_s"].value == 2.75


def test_samples_keep_their_order_and_the_value_is_their_median():
    got = metrics(COLD, WARM, dataclasses.replace(WARM, ttft_s=0.5))
    assert got["ttft_s"].samples == (2.0, 1.0, 0.5)
    assert got["ttft_s"].value == 1.0
    assert got["network_connect_s"].samples == (0.25, 0.125, 0.5)
    assert {m.kind for m in got.values()} == {Kind.MEASURED}


def test_decode_speed_leaves_the_first_token_out():
    assert metrics(WARM)["decode_tok_per_s"].samples == (2.0,)  # 4 tokens in 2 s
    for change in ({"n_output_tokens": 1}, {"n_output_tokens": None}, {"e2e_s": 1.0}):
        assert "decode_tok_per_s" not in metrics(dataclasses.replace(WARM, **change))


def test_tool_calls_count_for_the_whole_time_only():
    call = dataclasses.replace(WARM, finish_reason="tool_calls", ttft_s=3.0)
    got = metrics(WARM, call)
    assert got["ttft_s"].samples == (1.0,)
    assert got["ttft_s"].note == "1 tool-call answers left out"
    assert got["e2e_s"].samples == (3.0, 3.0)


def test_the_server_s_own_figure_is_shown_where_there_is_one():
    assert metrics(dataclasses.replace(WARM, server_ttft_s=0.75))["reported_ttft_s"].value == 0.75
    assert "reported_ttft_s" not in metrics(WARM)


def test_plain_http_has_no_tls():
    network = dataclasses.replace(NETWORK, tls_s=())
    got = metrics(WARM, network=network)
    assert "network_tls_s" not in got
    assert got["cold_ttft_s"].value == 1.25


def test_a_negative_rest_is_shown_with_a_note():
    fast = dataclasses.replace(WARM, ttft_s=0.0625)
    assert metrics(fast)["server_ttft_s"].value == -0.0625
    assert "varied" in metrics(fast)["server_ttft_s"].note


def test_every_metric_names_its_definition():
    got = metrics(dataclasses.replace(WARM, server_ttft_s=0.75))
    assert {name: m.formula for name, m in got.items()} == {
        "network_round_trip_s": "rtt-head-warm",
        "network_connect_s": "tcp-connect-fresh",
        "network_tls_s": "tls-handshake-fresh",
        "ttft_s": "ttft-first-text-warm",
        "server_ttft_s": "ttft-minus-rtt",
        "cold_ttft_s": "ttft-plus-connect",
        "reported_ttft_s": "server-timings-prompt",
        "e2e_s": "e2e-request-to-end-warm",
        "decode_tok_per_s": "decode-first-text-to-end",
    }


@pytest.mark.parametrize(
    ("requests", "network"),
    [
        ([], NETWORK),
        ([dataclasses.replace(WARM, ttft_s=None)], NETWORK),
        ([dataclasses.replace(WARM, finish_reason="tool_calls")], NETWORK),
        ([WARM], dataclasses.replace(NETWORK, round_trip_s=())),
        ([WARM], dataclasses.replace(NETWORK, connect_s=())),
    ],
)
def test_nothing_is_split_without_measurements(requests, network):
    with pytest.raises(MeasureError):
        split_latency(requests, network)
