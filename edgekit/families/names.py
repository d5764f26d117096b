"""Answer one question: what does a checkpoint call each canonical weight?"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class NameTable:
    """Canonical weight names and the checkpoint's, both ways; the inverse is derived.

    Attributes:
        top: Names outside the layers, canonical to checkpoint.
        layer_prefix: Checkpoint prefix of layer ``{i}``.
        layer: Names inside a layer, canonical to checkpoint.
        ignored: Patterns of checkpoint tensors that are left out, with the reason.
        fused: Names of ``layer`` that hold several canonical matrices, one below the other.
    """

    top: Mapping[str, str]
    layer_prefix: str
    layer: Mapping[str, str]
    ignored: Mapping[str, str]
    fused: Mapping[str, tuple[str, ...]] = field(default_factory=dict)

    def to_checkpoint(self, canonical: str) -> str:
        """Give the checkpoint's name of a canonical one; of a part, that of the whole."""
        if canonical in self.top:
            return self.top[canonical]
        _, index, part = canonical.split(".", 2)
        return self.layer_prefix.format(i=int(index)) + self.layer[self._whole_of(part)]

    def parts_above(self, canonical: str) -> tuple[str, ...]:
        """Give the canonical matrices that lie above this one in the same checkpoint tensor."""
        at, _, part = canonical.rpartition(".")
        parts = self.fused.get(self._whole_of(part), ())
        return tuple(f"{at}.{p}" for p in parts[: parts.index(part)]) if parts else ()

    def _whole_of(self, part: str) -> str:
        return next((whole for whole, parts in self.fused.items() if part in parts), part)

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

    def why_ignored(self, name: str) -> str | None:
        """Give the reason why a checkpoint tensor is left out, or None if it is not."""
        matches = (why for pattern, why in self.ignored.items() if re.fullmatch(pattern, name))
        return next(matches, None)
