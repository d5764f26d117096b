"""Split of a server's time to first token into network time and server time.

Method: the round trip is the median of tiny requests on a warm connection; the rest of the time to
first token is the server's. A request that had to connect first is counted without its handshakes;
those are metrics of their own, because a product pays them on its first request. Answers that are
tool calls are left out: many servers hold them back until they are complete, so their first text
does not show when the first token was ready.
"""

from __future__ import annotations

from collections.abc import Sequence
from statistics import median
from typing import Final

from edgekit.errors import MeasureError
from edgekit.records import Kind, Metric
from edgekit.runtime.request_stats import NetworkSamples, RequestStats

ROUND_TRIP_FORMULA: Final = "rtt-head-warm"
CONNECT_FORMULA: Final = "tcp-connect-fresh"
TLS_FORMULA: Final = "tls-handshake-fresh"
TTFT_FORMULA: Final = "ttft-first-text-warm"
SERVER_TTFT_FORMULA: Final = "ttft-minus-rtt"
COLD_TTFT_FORMULA: Final = "ttft-plus-connect"
REPORTED_TTFT_FORMULA: Final = "server-timings-prompt"
E2E_FORMULA: Final = "e2e-request-to-end-warm"
DECODE_FORMULA: Final = "decode-first-text-to-end"
_TOOL_CALLS: Final = "tool_calls"


def split_latency(requests: Sequence[RequestStats], network: NetworkSamples) -> tuple[Metric, ...]:
    """Split the time to first token into network and server.

    Args:
        requests: Answers of one server.
        network: Samples taken in the same session.

    Returns:
        ``network_round_trip_s``, ``network_connect_s``, ``network_tls_s`` (with TLS only),
        ``ttft_s``, ``server_ttft_s``, ``cold_ttft_s``, ``reported_ttft_s`` (where the server says
        it), ``e2e_s`` and ``decode_tok_per_s`` (where it counts tokens).

    Raises:
        MeasureError: No answer has a time to first token, or the network was not measured.
    """
    texts = [e for e in requests if e.ttft_s is not None and e.finish_reason != _TOOL_CALLS]
    if not texts or not network.round_trip_s or not network.connect_s:
        raise MeasureError(
            "latency cannot be split",
            got=f"{len(texts)} timed answers, {len(network.round_trip_s)} round trips",
            wanted="at least one of each",
        )
    n_left_out = sum(e.finish_reason == _TOOL_CALLS for e in requests)
    note = f"{n_left_out} tool-call answers left out" if n_left_out else ""
    round_trip_s = median(network.round_trip_s)
    ttft_s = [_warm(e, e.ttft_s or 0.0) for e in texts]
    server_s = [t - round_trip_s for t in ttft_s]
    set_up_s = median(network.connect_s) + (median(network.tls_s) if network.tls_s else 0.0)
    noise = "" if min(server_s) >= 0 else "some below 0: the network varied more than the server"
    metrics = [
        _metric("network_round_trip_s", network.round_trip_s, ROUND_TRIP_FORMULA),
        _metric("network_connect_s", network.connect_s, CONNECT_FORMULA),
        _metric("network_tls_s", network.tls_s, TLS_FORMULA),
        _metric("ttft_s", ttft_s, TTFT_FORMULA, note),
        _metric("server_ttft_s", server_s, SERVER_TTFT_FORMULA, noise or note),
        _metric("cold_ttft_s", [t + set_up_s for t in ttft_s], COLD_TTFT_FORMULA, note),
        _metric(
            "reported_ttft_s",
            [e.server_ttft_s for e in texts if e.server_ttft_s is not None],
            REPORTED_TTFT_FORMULA,
            note,
        ),
        _metric("e2e_s", [_warm(e, e.e2e_s) for e in requests], E2E_FORMULA),
        _metric("decode_tok_per_s", _decode_rates(texts), DECODE_FORMULA, note),
    ]
    return tuple(metric for metric in metrics if metric.samples)


def _warm(stats: RequestStats, seconds: float) -> float:
    """Take the connection set-up out of a time."""
    return seconds - (stats.connect_s or 0.0) - (stats.tls_s or 0.0)


def _decode_rates(requests: Sequence[RequestStats]) -> list[float]:
    rates = []
    for stats in requests:
        n_output = stats.n_output_tokens or 0
        decode_s = stats.e2e_s - (stats.ttft_s or 0.0)
        if n_output >= 2 and decode_s > 0:
            rates.append((n_output - 1) / decode_s)
    return rates


def _metric(name: str, samples: Sequence[float], formula: str, note: str = "") -> Metric:
    value = median(samples) if samples else None
    return Metric(name, value, Kind.MEASURED, formula, tuple(samples), note=note)
