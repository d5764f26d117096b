"""Fixtures that all tests of hostile input share."""

from __future__ import annotations

import gc
from collections.abc import Iterator

import pytest


@pytest.fixture(autouse=True)
def _no_collection_in_between() -> Iterator[None]:
    """Keep the collector out: what it ends deep inside a nested value would run out of stack."""
    gc.collect()
    gc.disable()
    yield
    gc.enable()
