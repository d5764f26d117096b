"""The network that is trained, and its greedy answers.

A Mistral-layout decoder under Hugging Face names: RMSNorm, rotate-half RoPE, grouped-query
attention, SwiGLU, tied embeddings. Shapes use B batch, T tokens, H heads, K kv heads, D width.
"""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn

__all__ = ["Config", "Pocket", "config_json", "generate"]


@dataclass(frozen=True, slots=True)
class Config:
    """Sizes, named as in config.json."""

    vocab_size: int = 2048
    hidden_size: int = 256
    intermediate_size: int = 640
    num_hidden_layers: int = 6
    num_attention_heads: int = 8
    num_key_value_heads: int = 4
    head_dim: int = 32
    max_position_embeddings: int = 1280
    rope_theta: float = 10000.0
    rms_norm_eps: float = 1e-5


def config_json(config: Config) -> str:
    """Give the text of config.json."""
    return (
        json.dumps(
            {
                "architectures": ["MistralForCausalLM"],
                "model_type": "mistral",
                **asdict(config),
                "hidden_act": "silu",
                "attention_dropout": 0.0,
                "initializer_range": 0.02,
                "sliding_window": None,
                "tie_word_embeddings": True,
                "use_cache": True,
                "torch_dtype": "bfloat16",
                "pad_token_id": 0,
                "bos_token_id": 1,
                "eos_token_id": 2,
            },
            indent=2,
        )
        + "\n"
    )


Cache = list[tuple[Tensor, Tensor]]


def _rope(config: Config) -> tuple[Tensor, Tensor]:
    """Give cos and sin, each of shape (max positions, D)."""
    power = torch.arange(0, config.head_dim, 2, dtype=torch.float64) / config.head_dim
    angle = torch.outer(
        torch.arange(config.max_position_embeddings, dtype=torch.float64),
        config.rope_theta**-power,
    )
    angle = torch.cat((angle, angle), dim=-1)
    return angle.cos().float(), angle.sin().float()


def _rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    low, high = x.chunk(2, dim=-1)
    return x * cos + torch.cat((-high, low), dim=-1) * sin


class _Attention(nn.Module):  # type: ignore[misc]
    def __init__(self, c: Config) -> None:
        super().__init__()
        self.head_dim = c.head_dim
        self.q_proj = nn.Linear(c.hidden_size, c.num_attention_heads * c.head_dim, bias=False)
        self.k_proj = nn.Linear(c.hidden_size, c.num_key_value_heads * c.head_dim, bias=False)
        self.v_proj = nn.Linear(c.hidden_size, c.num_key_value_heads * c.head_dim, bias=False)
        self.o_proj = nn.Linear(c.num_attention_heads * c.head_dim, c.hidden_size, bias=False)

    def forward(
        self, x: Tensor, cos: Tensor, sin: Tensor, past: tuple[Tensor, Tensor] | None
    ) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        b, t, _ = x.shape
        q, k, v = (
            proj(x).view(b, t, -1, self.head_dim).transpose(1, 2)
            for proj in (self.q_proj, self.k_proj, self.v_proj)
        )  # (B, H or K, T, D)
        q, k = _rotate(q, cos, sin).to(v.dtype), _rotate(k, cos, sin).to(v.dtype)
        if past is not None:
            k, v = torch.cat((past[0], k), dim=2), torch.cat((past[1], v), dim=2)
        n_groups = q.shape[1] // k.shape[1]
        mixed = F.scaled_dot_product_attention(
            q,
            k.repeat_interleave(n_groups, dim=1),
            v.repeat_interleave(n_groups, dim=1),
            is_causal=t > 1,
        )
        return self.o_proj(mixed.transpose(1, 2).reshape(b, t, -1)), (k, v)


class _Mlp(nn.Module):  # type: ignore[misc]
    def __init__(self, c: Config) -> None:
        super().__init__()
        self.gate_proj = nn.Linear(c.hidden_size, c.intermediate_size, bias=False)
        self.up_proj = nn.Linear(c.hidden_size, c.intermediate_size, bias=False)
        self.down_proj = nn.Linear(c.intermediate_size, c.hidden_size, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.down_proj(F.silu(self.gate_proj(x)) * self.up_proj(x))
        return out


class _Layer(nn.Module):  # type: ignore[misc]
    def __init__(self, c: Config) -> None:
        super().__init__()
        self.input_layernorm = nn.RMSNorm(c.hidden_size, eps=c.rms_norm_eps)
        self.self_attn = _Attention(c)
        self.post_attention_layernorm = nn.RMSNorm(c.hidden_size, eps=c.rms_norm_eps)
        self.mlp = _Mlp(c)

    def forward(
        self, x: Tensor, cos: Tensor, sin: Tensor, past: tuple[Tensor, Tensor] | None
    ) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        mixed, kept = self.self_attn(self.input_layernorm(x), cos, sin, past)
        x = x + mixed
        return x + self.mlp(self.post_attention_layernorm(x)), kept


class _Body(nn.Module):  # type: ignore[misc]
    def __init__(self, c: Config) -> None:
        super().__init__()
        self.embed_tokens = nn.Embedding(c.vocab_size, c.hidden_size)
        self.layers = nn.ModuleList(_Layer(c) for _ in range(c.num_hidden_layers))
        self.norm = nn.RMSNorm(c.hidden_size, eps=c.rms_norm_eps)


class Pocket(nn.Module):  # type: ignore[misc]
    """The whole model; parameter names are those of the Hugging Face checkpoint."""

    cos: Tensor
    sin: Tensor

    def __init__(self, config: Config) -> None:
        """Start from small random weights; layer outputs start at zero."""
        super().__init__()
        self.model = _Body(config)
        cos, sin = _rope(config)
        self.register_buffer("cos", cos, persistent=False)
        self.register_buffer("sin", sin, persistent=False)
        for name, parameter in self.named_parameters():
            if "o_proj" in name or "down_proj" in name:
                nn.init.zeros_(parameter)
            elif parameter.ndim == 2:
                nn.init.normal_(parameter, std=parameter.shape[1] ** -0.5 * 0.6)

    def forward(self, ids: Tensor, past: Cache | None = None) -> tuple[Tensor, Cache]:
        """Give hidden states (B, T, hidden) and the grown cache for ids (B, T)."""
        start = past[0][0].shape[2] if past else 0
        cos, sin = (table[start : start + ids.shape[1]] for table in (self.cos, self.sin))
        x = self.model.embed_tokens(ids)
        kept: Cache = []
        for i, layer in enumerate(self.model.layers):
            x, pair = layer(x, cos, sin, past[i] if past else None)
            kept.append(pair)
        return self.model.norm(x), kept

    def logits(self, hidden: Tensor) -> Tensor:
        """Give scores over the vocabulary, (..., V)."""
        return F.linear(hidden, self.model.embed_tokens.weight)

    def loss(self, ids: Tensor, at: Tensor, weights: Tensor) -> Tensor:
        """Give the weighted mean loss of next-token prediction.

        Args:
            ids: Token ids, shape (B, T + 1).
            at: Which of the B * T targets count, shape (N,); scores are made for these alone.
            weights: Weights of those targets, shape (N,).
        """
        hidden, _ = self(ids[:, :-1])
        logits = self.logits(hidden.flatten(0, 1)[at])  # (N, V)
        losses = F.cross_entropy(logits, ids[:, 1:].flatten()[at], reduction="none")
        return (losses * weights).sum() / weights.sum()


@torch.inference_mode()  # type: ignore[untyped-decorator]
def generate(model: Pocket, prompt: Sequence[int], max_tokens: int, eos_id: int) -> list[int]:
    """Answer greedily; the end token is not part of the result."""
    device = model.cos.device
    hidden, past = model(torch.tensor([prompt], device=device))
    answer: list[int] = []
    while len(answer) < max_tokens and len(prompt) + len(answer) < len(model.cos):
        token = int(model.logits(hidden[0, -1]).argmax())
        if token == eos_id:
            break
        answer.append(token)
        hidden, past = model(torch.tensor([[token]], device=device), past)
    return answer
