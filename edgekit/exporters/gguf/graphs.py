"""llama.cpp's graphs: what each architecture computes, and which one computes a given decoder.

One entry per name in ``general.architecture``: the features that its graph has, and the keys of the
metadata that it reads. The names of tensors and what happens to q, k and norms are the tables of
checkpoint/gguf/architectures.py, read in the other direction. The spec describes a decoder
completely, so a decoder that the architecture of its own name would compute wrongly may be written
under another name.

Source:
    https://github.com/ggml-org/llama.cpp, src/models/*.cpp (graphs, and the keys of an
    architecture), src/llama-model.cpp (``load_hparams``), src/llama-context.cpp (YaRN).
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from enum import Enum, auto
from typing import Final, cast

import numpy as np

from edgekit.checkpoint.gguf.architectures import ARCHITECTURES, TOP_NAMES, Architecture
from edgekit.checkpoint.gguf.rope import FACTOR_TABLE, LONG_TABLE, SHORT_TABLE
from edgekit.decision import Rejected
from edgekit.dtypes import F32Array
from edgekit.errors import FormatError
from edgekit.families import FAMILIES
from edgekit.families.base import Family
from edgekit.families.names import NameTable
from edgekit.families.rope import rope_inv_freq
from edgekit.families.rope_spec import Llama3Scaling, LongRopeScaling, RopeSpec, YarnScaling
from edgekit.families.spec import Activation, DecoderSpec, NormPlacement, QkNorm
from edgekit.formats.gguf_writer import Value
from edgekit.lazy import load_object

_BF16_ROUNDING: Final = 2.0**-8
_SAME: Final = 1e-6  # float32
_USUAL_BETAS: Final = (32.0, 1.0)
_NO_ROPE_STEP: Final = 4
_EXAONE4_LAYERS: Final = 64
_CACHE_STEP: Final = 256  # llama.cpp rounds the positions of its cache up to a multiple of it


class Windows(Enum):
    """How an architecture supports sliding windows."""

    IGNORED = auto()
    ALWAYS = auto()  # some layers slide in any case
    BY_KEY = auto()
    BY_SIZE = auto()  # only with the number of layers of EXAONE 4 32B


class NoRope(Enum):
    """Which layers an architecture leaves without rope."""

    NONE = auto()
    ALL = auto()  # all layers, or none of them
    EVERY_FOURTH = auto()
    GLOBAL = auto()  # full-attention layers, where others have a sliding window


class Softcaps(Enum):
    """Whether scores and logits are capped."""

    NEVER = auto()
    LOGITS = auto()  # logits, if a key says so
    ALWAYS = auto()


@dataclass(frozen=True, slots=True)
class Graph:
    """What the graph of one architecture computes; defaults are those of ``llama``.

    Attributes:
        name: As ``general.architecture`` says.
        norm_placement: As in ``DecoderSpec``, and so the next two.
        has_o_bias: Whether the output of attention may have a bias. q, k and v always may.
        has_mlp_bias: Whether the feed-forward block may have biases.
        needs_full_width: All query heads together are as wide as the model.
        is_tied: True: the head is always the embedding; False: never; None: either.
        ropes: Kinds of scaling that the graph computes, besides none and linear.
        reads_betas: Whether YaRN's ramp is read; else it is from 32 to 1 rotations.
        has_partial_rotary: Whether some channels of a head may stay unrotated.
        scales: Which scale fields of ``DecoderSpec`` it reads.
        has_root_scale: The embedding is multiplied by the root of its width, in float32.
        has_gemma_scale: Scores are divided by the root of the head width, or, with this number of
            layers, by that of the model's width over the number of heads.
    """

    name: str
    norm_placement: NormPlacement = NormPlacement.BEFORE
    qk_norm: QkNorm = QkNorm.NONE
    activation: Activation = Activation.SILU
    has_o_bias: bool = False
    has_mlp_bias: bool = False
    needs_full_width: bool = False
    is_tied: bool | None = None
    windows: Windows = Windows.IGNORED
    ropes: tuple[type, ...] = (YarnScaling,)
    reads_betas: bool = False
    has_partial_rotary: bool = False
    no_rope: NoRope = NoRope.NONE
    has_query_scaling: bool = False
    scales: frozenset[str] = frozenset()
    has_root_scale: bool = False
    has_gemma_scale: int | None = None
    softcaps: Softcaps = Softcaps.NEVER

    @property
    def architecture(self) -> Architecture:
        """The names of its tensors, and what llama.cpp's converter does to them."""
        return ARCHITECTURES[self.name]

    @property
    def names(self) -> NameTable:
        """Hugging Face's names of the weights, which ``architecture`` translates."""
        family = cast(Family, load_object(FAMILIES[self.architecture.model_type]))
        return family.name_tables[0]

    def tensor_name(self, canonical: str) -> str:
        """Give the name in the file of a canonical weight; of a part, that of the whole tensor.

        Raises:
            FormatError: The architecture has no such weight.
        """
        top = {theirs: name for name, theirs in TOP_NAMES.items()}
        layer = {theirs: name for name, theirs in self.architecture.layer.items()}
        try:
            theirs = self.names.to_checkpoint(canonical)
            if theirs in top:
                return top[theirs]
            before, after = self.names.layer_prefix.split("{i}")
            index, _, rest = theirs.removeprefix(before).partition(after)
            module, _, kind = rest.rpartition(".")
            return f"blk.{int(index)}.{layer[module]}.{kind}"
        except (KeyError, ValueError) as error:
            raise FormatError(f"llama.cpp's {self.name} has no weight", got=canonical) from error

    def n_positions(self, spec: DecoderSpec) -> int:
        """Give the length up to which the graph computes the decoder correctly."""
        limits = [spec.context_length]
        if self.windows is Windows.IGNORED:
            windows = (spec.attention(layer).window for layer in range(spec.n_layers))
            limits += [window for window in windows if window is not None]
        # llama.cpp chooses one of LongRoPE's two sets by the positions of its cache, not by those
        # of the text.
        limits += [
            rope.scaling.original_context_length // _CACHE_STEP * _CACHE_STEP
            for rope in spec.ropes
            if isinstance(rope.scaling, LongRopeScaling)
        ]
        return min(limits)

    def faults(self, spec: DecoderSpec) -> Iterator[str]:
        """Name everything of a decoder that the graph would compute wrongly, at any length."""
        if spec.qk_norm is not self.qk_norm:
            yield f"norms of q and k: {self.qk_norm.value}, not {spec.qk_norm.value}"
        if spec.norm_placement is not self.norm_placement:
            yield f"norms stand {self.norm_placement.value} a block, not {spec.norm_placement}"
        if spec.norm_offset != self.architecture.norm_shift:
            yield f"{self.architecture.norm_shift:g} is added to norms, not {spec.norm_offset:g}"
        if spec.activation is not self.activation:
            yield f"the feed-forward activation is {self.activation}, not {spec.activation}"
        if spec.has_o_bias and not self.has_o_bias:
            yield "the output of attention has no bias"
        if spec.has_mlp_bias and not self.has_mlp_bias:
            yield "the feed-forward block has no biases"
        if self.needs_full_width and spec.q_width != spec.hidden_width:
            yield "query heads together are as wide as the model"
        if self.is_tied is not None and spec.is_tied is not self.is_tied:
            yield f"the head is {'always' if self.is_tied else 'never'} the embedding"
        if spec.query_scaling is not None and not self.has_query_scaling:
            yield "queries have no factor that grows with position"
        yield from self._scale_faults(spec)
        yield from self._window_faults(spec)
        yield from self._no_rope_faults(spec)
        for rope in spec.ropes:
            yield from self._rope_faults(rope, spec)

    def _scale_faults(self, spec: DecoderSpec) -> Iterator[str]:
        root = spec.hidden_width**0.5
        wanted = {
            "score_scale": self._score_scale(spec),
            "embed_scale": root if self.has_root_scale else 1.0,
            "residual_scale": 1.0,
            "logits_scale": 1.0,
        }
        for field, value in wanted.items():
            is_root = field == "embed_scale" and self.has_root_scale
            own, slack = getattr(spec, field), _BF16_ROUNDING if is_root else _SAME
            if field not in self.scales and not math.isclose(own, value, rel_tol=slack):
                yield f"{field} is {value:g}, not {own:g}"
        for what, cap in (("scores", spec.scores_softcap), ("logits", spec.logits_softcap)):
            is_read = self.softcaps is Softcaps.LOGITS and what == "logits"
            if not is_read and (cap is not None) != (self.softcaps is Softcaps.ALWAYS):
                yield f"{what} are {'never' if cap else 'always'} capped"

    def _score_scale(self, spec: DecoderSpec) -> float:
        if self.has_gemma_scale is not None and spec.n_layers == self.has_gemma_scale:
            return float((spec.hidden_width // spec.n_heads) ** -0.5)
        return float(spec.head_width**-0.5)

    def _window_faults(self, spec: DecoderSpec) -> Iterator[str]:
        layers = [spec.attention(layer) for layer in range(spec.n_layers)]
        slides = [layer.window is not None for layer in layers]
        local = {layer.rope for layer in layers if layer.window is not None and layer.rope}
        whole = {layer.rope for layer in layers if layer.window is None and layer.rope}
        is_large = spec.n_layers == _EXAONE4_LAYERS
        if self.windows is Windows.BY_SIZE and any(slides) != is_large:
            yield f"layers slide exactly where there are {_EXAONE4_LAYERS} of them"
        if self.name == "gemma3":
            if len(local) > 1 or any(rope != RopeSpec(rope.theta) for rope in local):
                yield "sliding layers have one rope without scaling"
        elif self.name == "olmo2":
            if any(rope != RopeSpec(spec.rope.theta) for rope in local):
                yield "sliding layers have the theta of the others and no scaling"
        elif len(local | whole) > 1:
            yield "all layers have one rope"

    def _no_rope_faults(self, spec: DecoderSpec) -> Iterator[str]:
        without = set(spec.no_rope_layers)
        every = set(range(spec.n_layers))
        slides = any(spec.attention(layer).window for layer in every)
        by_kind: dict[NoRope, list[set[int]]] = {
            NoRope.NONE: [set()],
            NoRope.ALL: [set(), every],
            NoRope.EVERY_FOURTH: [set(range(_NO_ROPE_STEP - 1, spec.n_layers, _NO_ROPE_STEP))],
            NoRope.GLOBAL: [
                {layer for layer in every if slides and spec.attention(layer).window is None}
            ],
        }
        possible = by_kind[self.no_rope]
        if without not in possible:
            wanted = " or ".join(_listed(layers) for layers in possible)
            yield f"layers without position encoding: {wanted}, not {_listed(without)}"

    def _rope_faults(self, rope: RopeSpec, spec: DecoderSpec) -> Iterator[str]:
        scaling = rope.scaling
        if rope.rotary_width not in (None, spec.head_width) and not self.has_partial_rotary:
            yield "all channels of a head are rotated"
        if scaling is None:
            return
        if rope.linear_factor != 1.0:
            yield f"there is one scaling of positions, not {scaling.kind} and linear together"
        if not isinstance(scaling, self.ropes):
            yield f"rope scaling of type {scaling.kind} is not computed"
        if isinstance(scaling, LongRopeScaling) and self.n_positions(spec) < _CACHE_STEP:
            yield f"LongRoPE's first length is at least {_CACHE_STEP}, the smallest cache"
        if isinstance(scaling, YarnScaling):
            if not scaling.is_truncated:
                yield "YaRN's ramp is rounded to whole channels"
            if not self.reads_betas and (scaling.beta_fast, scaling.beta_slow) != _USUAL_BETAS:
                yield "YaRN's ramp is from 32 to 1 rotations"
        temperature = spec.query_scaling
        if temperature is not None and (
            isinstance(scaling, Llama3Scaling)
            or scaling.original_context_length != temperature.original_context_length
        ):
            yield "rope and queries share one original_context_length"

    def metadata(self, spec: DecoderSpec, n_positions: int) -> dict[str, Value]:
        """Give the keys of the architecture, each with its prefix.

        Args:
            spec: The decoder.
            n_positions: Positions of the artifact.
        """
        keys: dict[str, Value] = {
            "block_count": spec.n_layers,
            "context_length": n_positions,
            "embedding_length": spec.hidden_width,
            "feed_forward_length": spec.ffn_width,
            "attention.head_count": spec.n_heads,
            "attention.head_count_kv": spec.n_kv_heads,
            "attention.key_length": spec.head_width,
            "attention.value_length": spec.head_width,
            "attention.layer_norm_rms_epsilon": float(spec.norm_eps),
            "vocab_size": spec.vocab_size,
            **_rope_keys(spec),
            **dict(self._own_keys(spec, n_positions)),
        }
        return {f"{self.name}.{key}": value for key, value in keys.items()}

    def _own_keys(self, spec: DecoderSpec, n_positions: int) -> Iterator[tuple[str, Value]]:
        """Give what only some architectures read."""
        if "logits_scale" in self.scales:
            yield "attention.scale", float(spec.score_scale)
            yield "embedding_scale", float(spec.embed_scale)
            yield "residual_scale", float(spec.residual_scale)
            yield "logit_scale", 1 / float(spec.logits_scale)
        if self.no_rope is NoRope.ALL:
            yield "rope.scaling.finetuned", not spec.no_rope_layers
        if spec.query_scaling is not None:
            yield "attention.temperature_scale", float(spec.query_scaling.beta)
        if spec.scores_softcap is not None:
            yield "attn_logit_softcapping", float(spec.scores_softcap)
        if spec.logits_softcap is not None:
            yield "final_logit_softcapping", float(spec.logits_softcap)
        slides = [spec.attention(layer).window is not None for layer in range(spec.n_layers)]
        if self.windows is not Windows.IGNORED and any(slides):
            yield "attention.sliding_window", cast(int, spec.sliding_window)
            yield "attention.sliding_window_pattern", slides
            local = spec.attention(slides.index(True)).rope
            if self.name == "gemma3" and local is not None:
                yield "rope.freq_base_swa", float(local.theta)
        elif self.windows is Windows.ALWAYS:
            yield "attention.sliding_window", n_positions  # as long as the text: without effect

    def tables(self, spec: DecoderSpec) -> dict[str, F32Array]:
        """Give the tensors with divisors of frequencies, one number for each rotary pair."""
        rope = _whole_rope(spec)
        scaling = rope.scaling
        if isinstance(scaling, LongRopeScaling):
            return {
                LONG_TABLE: np.array(scaling.long_factors, np.float32),
                SHORT_TABLE: np.array(scaling.short_factors, np.float32),
            }
        if isinstance(scaling, Llama3Scaling):
            plain = rope_inv_freq(replace(rope, scaling=None), spec.head_width)
            divisors = plain / rope_inv_freq(rope, spec.head_width)
            return {FACTOR_TABLE: divisors.astype(np.float32)}
        return {}


def _listed(layers: set[int]) -> str:
    return ", ".join(map(str, sorted(layers))) or "none"


def _whole_rope(spec: DecoderSpec) -> RopeSpec:
    """Give the rope of the layers that see everything, or of all."""
    layers = [spec.attention(layer) for layer in range(spec.n_layers)]
    whole = [layer.rope for layer in layers if layer.rope and layer.window is None]
    return next(iter(whole), next(iter(spec.ropes), spec.rope))


def _rope_keys(spec: DecoderSpec) -> dict[str, Value]:
    rope = _whole_rope(spec)
    keys: dict[str, Value] = {
        "rope.freq_base": float(rope.theta),
        "rope.dimension_count": rope.rotary_width or spec.head_width,
    }
    scaling = rope.scaling
    if rope.linear_factor != 1.0:
        keys |= {"rope.scaling.type": "linear", "rope.scaling.factor": float(rope.linear_factor)}
    if isinstance(scaling, YarnScaling):
        # llama.cpp multiplies by 1 + 0.1 ln(factor) itself.
        own = 1 + 0.1 * math.log(scaling.factor) if scaling.factor > 1 else 1.0
        keys |= {
            "rope.scaling.type": "yarn",
            "rope.scaling.factor": float(scaling.factor),
            "rope.scaling.original_context_length": scaling.original_context_length,
            "rope.scaling.attn_factor": float(scaling.attention_factor / own),
            "rope.scaling.yarn_beta_fast": float(scaling.beta_fast),
            "rope.scaling.yarn_beta_slow": float(scaling.beta_slow),
        }
    if isinstance(scaling, LongRopeScaling):
        keys |= {
            "rope.scaling.type": "longrope",
            "rope.scaling.original_context_length": scaling.original_context_length,
            "rope.scaling.attn_factor": float(scaling.attention_factor),
        }
    return keys


_GRANITE_SCALES: Final = frozenset({"score_scale", "embed_scale", "residual_scale", "logits_scale"})
_LLAMA: Final = Graph(
    "llama",
    has_o_bias=True,
    has_mlp_bias=True,
    ropes=(Llama3Scaling, YarnScaling, LongRopeScaling),
)
GRAPHS: Final[Mapping[str, Graph]] = {
    graph.name: graph
    for graph in (
        _LLAMA,
        Graph("qwen2", needs_full_width=True),
        Graph("qwen3", qk_norm=QkNorm.HEAD),
        Graph(
            "phi3",
            needs_full_width=True,
            ropes=(YarnScaling, LongRopeScaling),
            has_partial_rotary=True,
        ),
        Graph(
            "gemma",
            activation=Activation.GELU_TANH,
            is_tied=True,
            has_root_scale=True,
        ),
        Graph(
            "gemma2",
            NormPlacement.BOTH,
            activation=Activation.GELU_TANH,
            is_tied=True,
            windows=Windows.ALWAYS,
            has_root_scale=True,
            has_gemma_scale=46,
            softcaps=Softcaps.ALWAYS,
        ),
        Graph(
            "gemma3",
            NormPlacement.BOTH,
            QkNorm.HEAD,
            Activation.GELU_TANH,
            windows=Windows.BY_KEY,
            ropes=(),
            has_root_scale=True,
            has_gemma_scale=62,
            softcaps=Softcaps.LOGITS,
        ),
        replace(_LLAMA, name="granite", no_rope=NoRope.ALL, scales=_GRANITE_SCALES),
        Graph("hunyuan-dense", qk_norm=QkNorm.HEAD_AFTER_ROPE),
        Graph("smollm3", no_rope=NoRope.EVERY_FOURTH),
        Graph(
            "olmo2",
            NormPlacement.AFTER,
            QkNorm.FULL,
            needs_full_width=True,
            is_tied=False,
            windows=Windows.BY_KEY,
        ),
        Graph(
            "exaone4",
            NormPlacement.AFTER,
            QkNorm.HEAD,
            needs_full_width=True,
            ropes=(Llama3Scaling, YarnScaling),
            windows=Windows.BY_SIZE,
            no_rope=NoRope.GLOBAL,
        ),
        replace(_LLAMA, name="mistral3", reads_betas=True, has_query_scaling=True),
    )
}
"""By name; of several that compute a decoder, the first is used unless its own does too."""
_OWN: Final[Mapping[str, str]] = {
    **{ARCHITECTURES[name].model_type: name for name in GRAPHS},
    "granitemoehybrid": "granite",
    "olmo3": "olmo2",
}


@dataclass(frozen=True, slots=True)
class ChosenGraph:
    """The architecture that an artifact names, its longest length, and notes about it."""

    graph: Graph
    n_positions: int
    notes: tuple[str, ...]


def choose_graph(spec: DecoderSpec) -> ChosenGraph | Rejected:
    """Choose the architecture that computes the decoder at the most positions, its own first."""
    own = GRAPHS[_OWN.get(spec.model_type, _LLAMA.name)]
    others = [graph for graph in GRAPHS.values() if graph is not own]
    fitting = [graph for graph in (own, *others) if next(graph.faults(spec), None) is None]
    if not fitting:
        return Rejected(f"llama.cpp's {own.name}: {'; '.join(own.faults(spec))}")
    graph = max(fitting, key=lambda graph: graph.n_positions(spec))
    return ChosenGraph(graph, graph.n_positions(spec), tuple(_notes(spec, own, graph)))


def why_shorter(spec: DecoderSpec, graph: Graph) -> str:
    """Say why an architecture computes a decoder correctly only up to its ``n_positions``."""
    if graph.n_positions(spec) == spec.sliding_window:
        return f"its {graph.name} has no sliding window"
    return "it chooses LongRoPE's factors by the size of its cache, not by the length of the text"


def _notes(spec: DecoderSpec, own: Graph, graph: Graph) -> Iterator[str]:
    if graph is not own:
        yield (
            f"written as architecture {graph.name}: llama.cpp's {own.name} does not compute all of "
            f"this {spec.model_type}, its {graph.name} does"
        )
    n_positions = graph.n_positions(spec)
    if n_positions < spec.context_length:
        yield (
            f"holds {n_positions} of {spec.context_length} positions; llama.cpp would be wrong "
            f"beyond: {why_shorter(spec, graph)}"
        )
    root = spec.hidden_width**0.5
    if graph.has_root_scale and not math.isclose(root, spec.embed_scale, rel_tol=_SAME):
        yield (
            f"llama.cpp multiplies embeddings by {root:g}, sqrt({spec.hidden_width}), not by "
            f"{spec.embed_scale:g}, the same rounded as in training"
        )
