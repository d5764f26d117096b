"""Muon, the optimizer of the matrices.

Momentum made orthogonal by a Newton-Schulz iteration (Muon), with all matrices of one shape in
one batched product, since six layers of small matrices would otherwise be many small calls.
Source: Jordan et al. 2024, quintic coefficients 3.4445, -4.7750, 2.0315.
"""

from collections import defaultdict
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

__all__ = ["Muon"]

_A, _B, _C = 3.4445, -4.7750, 2.0315
_STEPS = 5
_MOMENTUM = 0.95


class Muon:
    """The optimizer of all two-dimensional weights but the embedding."""

    def __init__(self, parameters: Iterable[Tensor], weight_decay: float) -> None:
        """Group `parameters`, each of shape (N, M), by shape."""
        self.weight_decay = weight_decay
        groups: dict[tuple[int, ...], list[Tensor]] = defaultdict(list)
        for parameter in parameters:
            groups[tuple(parameter.shape)].append(parameter)
        self._groups = list(groups.values())
        self._momenta = [torch.stack([torch.zeros_like(p) for p in g]) for g in self._groups]

    @torch.no_grad()  # type: ignore[untyped-decorator]
    def step(self, rate: float) -> None:
        """Take one step of learning rate `rate`, in units of weight RMS times 5."""
        for parameters, momentum in zip(self._groups, self._momenta, strict=True):
            gradient = torch.stack([p.grad for p in parameters if p.grad is not None])
            momentum.lerp_(gradient, 1 - _MOMENTUM)
            update = _orthogonal(gradient.lerp_(momentum, _MOMENTUM))
            n_rows, n_columns = update.shape[-2:]
            scale = 0.2 * max(n_rows, n_columns) ** 0.5
            for parameter, direction in zip(parameters, update, strict=True):
                parameter.mul_(1 - rate * self.weight_decay)
                parameter.add_(direction.to(parameter.dtype), alpha=-rate * scale)

    def state_dict(self) -> dict[str, Any]:
        """Give the momenta."""
        return {"momenta": self._momenta}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take over saved momenta."""
        for mine, saved in zip(self._momenta, state["momenta"], strict=True):
            mine.copy_(saved)


def _orthogonal(x: Tensor) -> Tensor:
    """Bring all singular values of x, shape (L, N, M), near one."""
    is_tall = x.shape[-2] > x.shape[-1]
    if is_tall:
        x = x.mT
    x = x / (x.norm(dim=(-2, -1), keepdim=True) + 1e-7)
    for _ in range(_STEPS):
        gram = x @ x.mT
        x = _A * x + (_B * gram + _C * gram @ gram) @ x
    return x.mT if is_tall else x
