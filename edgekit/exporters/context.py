"""The context length of an artifact: the model's own, a format's limit, or what was asked for.

``--context`` means the same in every format: the positions of prompt and answer together.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from edgekit.errors import UsageError
from edgekit.families.spec import DecoderSpec

_FEWEST: Final = 2  # one for the prompt, one for the answer
_ALWAYS: Final = 4096
# Engines reserve the key/value cache for all positions of an artifact when they load it.
_CACHE_BYTES: Final = 512 << 20
_CACHE_VALUE_BYTES: Final = 4


@dataclass(frozen=True, slots=True)
class ContextRange:
    """The positions that artifacts of one format can hold for a model.

    Attributes:
        default: Positions without ``--context``.
        longest: The most that ``--context`` may ask for.
        reason: Why ``longest`` is less than the model's own; empty if it is not.
    """

    default: int
    longest: int
    reason: str = ""

    def choose(self, asked: int | None, where: str) -> int:
        """Give the positions of an artifact.

        Args:
            asked: ``--context``; None for the default.
            where: Name of the format, for the message.

        Raises:
            UsageError: Fewer than 2 are asked for, or more than the format can hold.
        """
        if asked is None:
            return self.default
        if not _FEWEST <= asked <= self.longest:
            raise UsageError(
                f"--context is not possible for {where}",
                got=asked,
                wanted=f"{_FEWEST} .. {self.longest}, "
                + (self.reason or "the positions that the model was made for"),
                do="Choose another --context.",
            )
        return asked

    def note(self, asked: int | None, n_model: int) -> str | None:
        """Note that an artifact holds fewer positions than it could, if nobody asked for fewer.

        ``Exporter.supports`` notes what a format cannot hold at all.

        Args:
            asked: ``--context``; None for the default.
            n_model: Positions of the model.
        """
        if asked is not None or self.default == self.longest:
            return None
        return (
            f"holds {self.default:,} of the model's {n_model:,} positions; "
            f"--context asks for more, up to {self.longest:,}"
        )


def usual_length(spec: DecoderSpec, longest: int | None = None) -> int:
    """Give the positions of an artifact whose engines reserve their cache when they load it.

    These are the model's own, but more than 4,096 only if the key/value cache stays within 512 MiB
    in fp32; then a power of two.

    Args:
        spec: The decoder.
        longest: The most that the format can hold.
    """
    n_bytes = 2 * spec.n_layers * spec.kv_width * _CACHE_VALUE_BYTES
    length = _ALWAYS
    while 2 * length * n_bytes <= _CACHE_BYTES and length < spec.context_length:
        length *= 2
    return min(length, spec.context_length, longest or length)
