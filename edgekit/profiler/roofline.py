"""Roofline metrics: how much of the possible decode speed a run reached.

One decoded token must read every streamed byte once. So ``streamed_bytes / time per token`` is the
bandwidth that the run achieved, and its share of the device's bandwidth shows how much is left. A
share above 1 is an error in the numbers, or a model small enough to stay in the CPU's caches.
"""

from __future__ import annotations

from typing import Final

from edgekit.devices.facts import ArtifactFacts
from edgekit.devices.profile import DeviceProfile
from edgekit.records import Kind, Metric

SUSPICIOUS_FRACTION: Final = 0.95
"""Published runs reach 0.94 at most; more means a wrong size or a model that fits in caches."""


def roofline_metrics(
    facts: ArtifactFacts,
    profile: DeviceProfile,
    tpot_s: float,
    *,
    kind: Kind,
    n_cached: float = 0,
) -> tuple[Metric, ...]:
    """Give bytes per token, achieved bandwidth and its share of the device's.

    Args:
        facts: The artifact.
        profile: The device that ran it.
        tpot_s: Time per output token.
        kind: Kind of the time, which the derived numbers inherit.
        n_cached: Mean number of positions in the cache while decoding.
    """
    n_bytes = facts.streamed_bytes + n_cached * facts.kv_bytes_per_token
    achieved = n_bytes / tpot_s
    bandwidth = profile.memory.bandwidth_bytes_per_s
    if bandwidth.value is None:
        fraction, note = None, f"bandwidth of {profile.name} is unknown: {bandwidth.source}"
    else:
        fraction = achieved / bandwidth.value
        note = f"of {bandwidth.value / 1e9:.1f} GB/s ({bandwidth.kind.value})"
        if fraction > SUSPICIOUS_FRACTION:
            note += "; suspicious: a wrong figure, or the weights fit in the CPU's caches"
    return (
        Metric("streamed_bytes_per_token", n_bytes, kind, "streamed-bytes"),
        Metric("decode_bytes_per_s", achieved, kind, "achieved-bandwidth"),
        Metric("bandwidth_fraction", fraction, kind, "bandwidth-fraction", note=note),
    )
