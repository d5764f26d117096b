"""Quality against size: which of several points no other beats."""

from __future__ import annotations

from collections.abc import Sequence

from edgekit.records import CostPoint


def pareto_front(points: Sequence[CostPoint]) -> tuple[CostPoint, ...]:
    """Give the points that no other beats, the smallest first.

    A point beats another that is not smaller and not nearer to the float model, and is not equal
    in both. Of points that are equal in both, the first in ``points`` stands for all.
    """
    front: list[CostPoint] = []
    # Stable: of equal points the first one stays the first.
    for point in sorted(points, key=lambda p: (p.n_bytes, p.divergence.kl_mean)):
        if not front or point.divergence.kl_mean < front[-1].divergence.kl_mean:
            front.append(point)
    return tuple(front)
