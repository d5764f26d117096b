"""The weights that training starts from.

Random ones, with two circuits set by hand: heads of layer 0 that carry each token's predecessor
along, and heads of layers 1 and 2 that find where the present token stood before and copy what
came next. Gradient descent finds this pair of circuits too, but only after a good part of the
tokens that a run on two CPU cores has.

The residual stream starts in three parts: token content, one constant, and room for the content
of the token before. Training may change all of it.
Source: induction heads as described by Olsson et al. 2022; the construction under RoPE is ours.
"""

import torch
from torch import Tensor

from pocket.model import Config, Pocket

__all__ = ["set_copying_heads"]

_CONSTANT = 3.0
_PREVIOUS_SHARPNESS = 12.0
_MATCH_GAIN = 3.0
_COPY_GAIN = 0.8


@torch.no_grad()  # type: ignore[untyped-decorator]
def set_copying_heads(model: Pocket, config: Config, seed: int) -> None:
    """Write the circuits into a freshly made model, in place."""
    generator = torch.Generator().manual_seed(seed)
    half = config.hidden_size // 2
    embedding = model.model.embed_tokens.weight
    scale = float(embedding.std())
    embedding[:, half:] *= 0.1
    embedding[:, half - 1] = _CONSTANT * scale
    # What the constant and a content entry become after RMSNorm.
    entry = 1.0 / ((half - 1 + _CONSTANT**2) / config.hidden_size) ** 0.5
    _set_previous_heads(model, config, entry)
    for layer in (1, 2):
        _set_matching_heads(model, config, layer, generator)


def _set_previous_heads(model: Pocket, config: Config, entry: float) -> None:
    """Let every key be one vector and every query that vector turned back by one position."""
    attention = model.model.layers[0].self_attn
    width, half, half_width = config.head_dim, config.hidden_size // 2, config.head_dim // 2
    power = torch.arange(half_width) / half_width
    angle = config.rope_theta**-power  # (D / 2)
    key = torch.zeros(width)
    key[: half_width // 2] = _PREVIOUS_SHARPNESS**0.5 * 2.0
    query = torch.cat((key[:half_width] * angle.cos(), -key[:half_width] * angle.sin()))
    n_groups = config.num_attention_heads // config.num_key_value_heads
    for group in range(config.num_key_value_heads):
        of_key = slice(group * width, (group + 1) * width)
        of_query = slice(group * n_groups * width, (group * n_groups + 1) * width)
        attention.k_proj.weight[of_key] *= 0.1
        attention.q_proj.weight[of_query] *= 0.1
        attention.k_proj.weight[of_key, half - 1] = key / (_CONSTANT * entry)
        attention.q_proj.weight[of_query, half - 1] = query / (_CONSTANT * entry)
        attention.v_proj.weight[of_key] *= 0.1
        attention.v_proj.weight[of_key, of_key] += torch.eye(width)
        room = slice(half + group * width, half + (group + 1) * width)
        attention.o_proj.weight[room, of_query] = torch.eye(width) * float(
            model.model.embed_tokens.weight[:, : half - 1].std()
        )


def _set_matching_heads(
    model: Pocket, config: Config, layer: int, generator: torch.Generator
) -> None:
    """Compare the present token with each position's predecessor; copy the content found there."""
    attention = model.model.layers[layer].self_attn
    width, half, half_width = config.head_dim, config.hidden_size // 2, config.head_dim // 2
    n_groups = config.num_attention_heads // config.num_key_value_heads
    # Only slowly turning pairs compare content over hundreds of positions.
    slow = [*range(half_width - 6, half_width), *range(width - 6, width)]
    scale = float(model.model.embed_tokens.weight[:, : half - 1].std())
    for group in range(config.num_key_value_heads):
        of_key = slice(group * width, (group + 1) * width)
        of_query = slice(group * n_groups * width, (group * n_groups + 1) * width)
        signature = _directions(len(slow), half - 1, generator) * _MATCH_GAIN
        for weight, rows, first in (
            (attention.q_proj.weight, of_query, 0),
            (attention.k_proj.weight, of_key, half),
        ):
            block = weight[rows]
            block *= 0.1
            block[slow, first : first + half - 1] += signature
        attention.v_proj.weight[of_key] *= 0.1
        attention.v_proj.weight[of_key, of_key] += torch.eye(width)
        attention.o_proj.weight[of_key, of_query] = torch.eye(width) * _COPY_GAIN * scale


def _directions(n: int, width: int, generator: torch.Generator) -> Tensor:
    """Give `n` orthonormal rows of `width`."""
    return torch.linalg.qr(torch.randn(width, n, generator=generator)).Q.T
