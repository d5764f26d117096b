"""Pairing of two runs of the same suites, item by item: device against server."""

from __future__ import annotations

from collections.abc import Sequence

from edgekit.errors import MeasureError
from edgekit.records import PairedRecord, SuiteRecord
from edgekit.statistics import mcnemar_p_value, paired_difference_interval


def pair_suites(
    device: Sequence[SuiteRecord], server: Sequence[SuiteRecord]
) -> tuple[PairedRecord, ...]:
    """Pair two runs suite by suite, item by item.

    Raises:
        MeasureError: The two runs did not answer the same items.
    """
    by_name = {record.suite: record for record in server}
    missing = [record.suite for record in device if record.suite not in by_name]
    if missing:
        raise MeasureError("suites to pair", got=f"no server run of {', '.join(missing)}")
    return tuple(pair_suite(record, by_name[record.suite]) for record in device)


def pair_suite(device: SuiteRecord, server: SuiteRecord) -> PairedRecord:
    """Pair one suite; difference is device minus server.

    Raises:
        MeasureError: The two runs did not answer the same items.
    """
    ours = {outcome.item_id: outcome.is_correct for outcome in device.outcomes}
    theirs = {outcome.item_id: outcome.is_correct for outcome in server.outcomes}
    if ours.keys() != theirs.keys() or not ours:
        raise MeasureError(
            f"{device.suite}: items to pair",
            got=f"{len(ours.keys() & theirs.keys())} in common",
            wanted=f"the same {max(len(ours), len(theirs))} items on both sides",
            do="Run both sides with the same --items and --seed.",
        )
    n_both = sum(ours[key] and theirs[key] for key in ours)
    n_device = sum(ours[key] and not theirs[key] for key in ours)
    n_server = sum(theirs[key] and not ours[key] for key in ours)
    n_neither = len(ours) - n_both - n_device - n_server
    low, high = paired_difference_interval(n_both, n_device, n_server, n_neither)
    return PairedRecord(
        suite=device.suite,
        n_items=len(ours),
        device_rate=device.rate,
        server_rate=server.rate,
        difference=device.rate - server.rate,
        low=low,
        high=high,
        n_only_device=n_device,
        n_only_server=n_server,
        p_value=mcnemar_p_value(n_device, n_server),
    )
