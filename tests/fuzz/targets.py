"""The list of readers of untrusted bytes that are fuzzed."""

from __future__ import annotations

from tests.fuzz import (
    targets_artifacts,
    targets_formats,
    targets_models,
    targets_servers,
    targets_text,
)
from tests.fuzz.contract import Target

TARGETS: dict[str, Target] = {
    target.name: target
    for module in (
        targets_formats,
        targets_models,
        targets_text,
        targets_artifacts,
        targets_servers,
    )
    for target in module.TARGETS
}
