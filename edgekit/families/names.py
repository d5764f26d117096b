"""Answer one question: what does a checkpoint call each canonical weight?"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class NameTable:
    """Canonical weight names and the checkpoint's, both ways; the inverse is derived.

    Attributes:
        top: Names outside the layers, canonical to checkpoint.
        layer_prefix: Checkpoint prefix of layer ``{i}``.
        layer: Names inside a layer, canonical to checkpoint.
        ignored: Patterns of checkpoint tensors that carry nothing, with the reason.
    """

    top: Mapping[str, str]
    layer_prefix: str
    layer: Mapping[str, str]
    ignored: Mapping[str, str]

    def to_checkpoint(self, canonical: str) -> str:
        """Give the checkpoint's name of a canonical one."""
        if canonical in self.top:
            return self.top[canonical]
        _, index, part = canonical.split(".", 2)
        return self.layer_prefix.format(i=int(index)) + self.layer[part]

    def to_canonical(self, name: str) -> str | None:
        """Give the canonical name of a checkpoint's, or None if the table has none."""
        for canonical, theirs in self.top.items():
            if theirs == name:
                return canonical
        before, after = self.layer_prefix.split("{i}")
        match = re.fullmatch(
            re.escape(before) + r"(0|[1-9][0-9]{0,8})" + re.escape(after) + "(.+)", name
        )
        if match is None:
            return None
        for canonical, theirs in self.layer.items():
            if theirs == match[2]:
                return f"layers.{match[1]}.{canonical}"
        return None

    def is_ignored(self, name: str) -> bool:
        """Tell whether a checkpoint tensor is known to carry nothing."""
        return any(re.fullmatch(pattern, name) for pattern in self.ignored)
