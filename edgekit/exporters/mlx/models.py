"""mlx-lm's model files: what each can compute, and which one computes a given decoder exactly.

One entry per ``model_type``: the modules that hold its weights, the features that the file knows,
the config keys it reads. The spec describes a decoder completely, so a decoder that its own file
would compute wrongly may be written under another file's name.

Source:
    mlx-lm 0.32: the files of models/ that are named below, rope_utils.py, utils.py
    (MODEL_REMAPPING: mistral is llama.py).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from enum import Enum, auto
from typing import Any, Final

import numpy as np

from edgekit.artifact import TensorEntry
from edgekit.decision import Rejected
from edgekit.dtypes import DType
from edgekit.encoding import BF16, FP32, Encoding
from edgekit.errors import FormatError
from edgekit.exporters.mlx import config as mlx_config
from edgekit.families.rope_spec import Llama3Scaling, LongRopeScaling, RopeSpec, YarnScaling
from edgekit.families.spec import Activation, DecoderSpec, LayerAttention, NormPlacement, QkNorm
from edgekit.formats.floats import to_bf16, to_float32
from edgekit.quantize.model import encodings_of

_TOP: Final = {"embed": "model.embed_tokens", "final_norm": "model.norm", "lm_head": "lm_head"}
_SPLIT: Final = {
    "q": "self_attn.q_proj",
    "k": "self_attn.k_proj",
    "v": "self_attn.v_proj",
    "o": "self_attn.o_proj",
    "gate": "mlp.gate_proj",
    "up": "mlp.up_proj",
    "down": "mlp.down_proj",
}
_FUSED: Final = {
    **dict.fromkeys("qkv", "self_attn.qkv_proj"),
    **dict.fromkeys(("gate", "up"), "mlp.gate_up_proj"),
}
_NORMS: Final = {
    NormPlacement.BEFORE: {
        "attn_norm": "input_layernorm",
        "ffn_norm": "post_attention_layernorm",
    },
    NormPlacement.AFTER: {
        "attn_post_norm": "post_attention_layernorm",
        "ffn_post_norm": "post_feedforward_layernorm",
    },
    NormPlacement.BOTH: {
        "attn_norm": "input_layernorm",
        "attn_post_norm": "post_attention_layernorm",
        "ffn_norm": "pre_feedforward_layernorm",
        "ffn_post_norm": "post_feedforward_layernorm",
    },
}
_Q_AND_K: Final = {"q_norm": "self_attn.q_norm", "k_norm": "self_attn.k_norm"}
_QK_NORMS: Final[Mapping[QkNorm, Mapping[str, str]]] = {
    QkNorm.NONE: {},
    QkNorm.HEAD: _Q_AND_K,
    QkNorm.FULL: _Q_AND_K,
    QkNorm.HEAD_AFTER_ROPE: {
        "q_norm": "self_attn.query_layernorm",
        "k_norm": "self_attn.key_layernorm",
    },
}
# Largest relative error of a number rounded to bf16: half of 2 ** -7.
_BF16_ROUNDING: Final = 2.0**-8
_SAME: Final = 1e-9


class AttentionBias(Enum):
    """Which projections of attention a model file gives a bias."""

    NONE = auto()
    QKV = auto()
    ALL = auto()  # attention_bias: q, k, v and o, or none of them


class NoRope(Enum):
    """Which layers a model file can leave without rope."""

    NONE = auto()
    ANY = auto()
    ALL = auto()  # all layers, or none of them
    GLOBAL = auto()  # full-attention layers, where others have a sliding window


class EmbedScale(Enum):
    """The factor that a model file applies to the embedding's output without a config key."""

    ONE = auto()
    ROOT = auto()  # sqrt(hidden_size), in the number type of the artifact
    ROOT_BF16 = auto()  # sqrt(hidden_size), rounded to bf16 whatever that type is


class Windows(Enum):
    """How a model file supports sliding windows."""

    IGNORED = auto()
    LAYER_TYPES = auto()
    PATTERN = auto()


@dataclass(frozen=True, slots=True)
class ModelFile:
    """What one of mlx-lm's model files computes; defaults are those of llama.py.

    Attributes:
        model_type: As config.json says.
        architecture: As config.json says; mlx-lm does not read it.
        path: The file, for messages.
        keys: Config keys beyond the common ones, of a spec and the number of positions.
        matrices: Part of a layer -> module, where it is not llama.py's; the rows of several parts
            of one module follow one another.
        norm_placement: As in ``DecoderSpec``, and so the next two.
        activation: As in ``DecoderSpec``, or one that no decoder of edgekit has.
        has_head_dim: False: the head width is hidden_size // num_attention_heads.
        ropes: Kinds of scaling that the file reads, besides none and linear.
        scales: Which scale fields of ``DecoderSpec`` may differ from their defaults.
        embed_factor: What multiplies the embedding's output.
        has_plain_local_rope: Sliding-window layers have the theta of the others and no scaling.
        needs_both_kinds: Fails unless some layers have a window and some full attention.
        has_softcaps: Scores and logits are always capped; False: never.
        reads_rope_scaling: False: every rope is plain.
        is_always_tied: The head is the embedding, whatever ``tie_word_embeddings`` says.
    """

    model_type: str
    architecture: str
    path: str = "llama.py"
    keys: Callable[[DecoderSpec, int], mlx_config.Keys] = mlx_config.llama_keys
    matrices: Mapping[str, str] | None = None
    norm_placement: NormPlacement = NormPlacement.BEFORE
    norm_offset: float = 0.0
    qk_norm: QkNorm = QkNorm.NONE
    activation: str = Activation.SILU
    attention_bias: AttentionBias = AttentionBias.ALL
    has_mlp_bias: bool = True
    has_head_dim: bool = True
    windows: Windows = Windows.LAYER_TYPES
    ropes: tuple[type, ...] = (Llama3Scaling, YarnScaling, LongRopeScaling)
    has_partial_rotary: bool = False
    no_rope: NoRope = NoRope.NONE
    has_query_scaling: bool = False
    scales: frozenset[str] = frozenset()
    embed_factor: EmbedScale = EmbedScale.ONE
    has_plain_local_rope: bool = False
    needs_both_kinds: bool = False
    has_softcaps: bool = False
    reads_rope_scaling: bool = True
    is_always_tied: bool = False

    @property
    def modules(self) -> dict[str, str]:
        """Part of a layer -> module below ``model.layers.{i}``."""
        norms = {**_NORMS[self.norm_placement], **_QK_NORMS[self.qk_norm]}
        return {**_SPLIT, **(self.matrices or {}), **norms}

    def module_of(self, name: str) -> str:
        """Give the module of a canonical weight: ``layers.0.q`` is a projection.

        Raises:
            FormatError: The model file has no such weight.
        """
        stem = name.removesuffix(".bias")
        try:
            if not stem.startswith("layers."):
                return _TOP[stem]
            _, index, part = stem.split(".")
            return f"model.layers.{int(index)}.{self.modules[part]}"
        except (KeyError, ValueError) as error:
            raise FormatError(f"mlx-lm's {self.path} has no weight", got=name) from error

    def embed_scale(self, spec: DecoderSpec, encoding: Encoding | None = None) -> float:
        """Give the factor of an embedding that is stored so; None: as codes."""
        root = spec.hidden_width**0.5
        if self.embed_factor is EmbedScale.ONE:
            return 1.0
        if self.embed_factor is EmbedScale.ROOT_BF16:
            fraction, exponent = math.frexp(root)
            return math.ldexp(round(fraction * 256) / 256, exponent)
        if encoding is None or encoding.is_quantized:
            # Its floats have the type of the model's weights, to which the model rounds it as well.
            is_root = math.isclose(spec.embed_scale, root, rel_tol=_BF16_ROUNDING)
            return spec.embed_scale if is_root else root
        if encoding == BF16:
            return float(to_float32(to_bf16(np.array([root], np.float32)), DType.BF16)[0])
        return float(np.float32(root) if encoding == FP32 else np.float16(root))

    def n_positions(self, spec: DecoderSpec) -> int:
        """Give the length up to which the file computes the decoder correctly."""
        limits = [spec.context_length]
        windows = [spec.attention(layer).window for layer in range(spec.n_layers)]
        # A window as long as the artifact has no effect.
        if self.windows is Windows.IGNORED or (
            self.windows is Windows.LAYER_TYPES and None not in windows
        ):
            limits += [window for window in windows if window is not None]
        limits += [
            rope.scaling.original_context_length
            for rope in spec.ropes
            if isinstance(rope.scaling, LongRopeScaling)
        ]
        return min(limits)

    def faults(self, spec: DecoderSpec) -> Iterator[str]:
        """Name everything of a decoder that the file would compute wrongly, at any length."""
        if spec.qk_norm is not self.qk_norm:
            yield f"q_norm and k_norm are {self.qk_norm.value}, not {spec.qk_norm.value}"
        if spec.norm_placement is not self.norm_placement:
            yield f"norms stand {self.norm_placement.value} a block, not {spec.norm_placement}"
        if spec.norm_offset != self.norm_offset:
            yield f"RMSNorm adds {self.norm_offset} to its weight, not {spec.norm_offset}"
        if spec.activation != self.activation:
            yield f"the MLP's activation is {self.activation}, not {spec.activation}"
        yield from self._head_faults(spec)
        if not self.has_head_dim and spec.head_width != spec.hidden_width // spec.n_heads:
            yield "the head width is hidden_size // num_attention_heads; head_dim is not read"
        yield from self._bias_faults(spec)
        yield from self._scale_faults(spec)
        yield from self._layer_faults(spec)
        for rope in spec.ropes or (spec.rope,):
            yield from self._rope_faults(rope, spec)

    def _head_faults(self, spec: DecoderSpec) -> Iterator[str]:
        if self.is_always_tied and not spec.is_tied:
            yield "the head is always the embedding"
        for what, cap in (("scores", spec.scores_softcap), ("logits", spec.logits_softcap)):
            if (cap is not None) != self.has_softcaps:
                yield f"{what} are {'always' if self.has_softcaps else 'never'} capped"

    def _bias_faults(self, spec: DecoderSpec) -> Iterator[str]:
        has_some = spec.has_qkv_bias or spec.has_o_bias
        if self.attention_bias is AttentionBias.NONE and has_some:
            yield "there is no attention_bias"
        if self.attention_bias is AttentionBias.QKV and (spec.has_o_bias or not spec.has_qkv_bias):
            yield "q_proj, k_proj and v_proj have a bias and o_proj has none"
        if spec.has_mlp_bias and not self.has_mlp_bias:
            yield "there is no mlp_bias"

    def _scale_faults(self, spec: DecoderSpec) -> Iterator[str]:
        wanted = {
            "score_scale": spec.head_width**-0.5,
            "embed_scale": self.embed_scale(spec),
            "residual_scale": 1.0,
            "logits_scale": 1.0,
        }
        for field, value in wanted.items():
            is_root = field == "embed_scale" and self.embed_factor is not EmbedScale.ONE
            slack = _BF16_ROUNDING if is_root else _SAME
            own = getattr(spec, field)
            if field not in self.scales and not math.isclose(own, value, rel_tol=slack):
                yield f"{field} is {value:g}, not {own:g}"

    def _layer_faults(self, spec: DecoderSpec) -> Iterator[str]:
        if spec.query_scaling is not None and not self.has_query_scaling:
            yield "llama_4_scaling_beta is not read"
        layers = [spec.attention(layer) for layer in range(spec.n_layers)]
        n_without = len(set(spec.no_rope_layers))
        if n_without and self.no_rope is NoRope.NONE:
            yield "there are no no_rope_layers"
        if 0 < n_without < spec.n_layers and self.no_rope is NoRope.ALL:
            yield "all layers have rope or none has"
        if self.no_rope is NoRope.GLOBAL and not _rotates_what_slides(layers):
            yield "layers slide and have rope, or see everything and have none"
        if self.needs_both_kinds and len({layer.window is None for layer in layers}) == 1:
            yield "some layers slide and some see everything"
        local = [layer.rope for layer in layers if layer.window]
        if self.windows is Windows.PATTERN:
            if mlx_config.sliding_pattern(spec) is None:
                yield "layers slide by sliding_window_pattern, every n-th of them not"
            if any(rope is not None and rope != RopeSpec(rope.theta) for rope in local):
                yield "sliding layers have rope_local_base_freq and no scaling"
        elif self.has_plain_local_rope:
            if any(rope is not None and rope != RopeSpec(spec.rope.theta) for rope in local):
                yield "sliding layers have the theta of the others and no scaling"
        elif len(spec.ropes) > 1:
            yield "all layers have one rope; rope_local_base_freq is not read"

    def _rope_faults(self, rope: RopeSpec, spec: DecoderSpec) -> Iterator[str]:
        scaling, width = rope.scaling, rope.rotary_width
        if width not in (None, spec.head_width) and not self.has_partial_rotary:
            yield "partial_rotary_factor is not read"
        if not self.reads_rope_scaling and (scaling is not None or rope.linear_factor != 1.0):
            yield "rope_scaling is not read"
        if scaling is None:
            return
        if rope.linear_factor != 1.0:
            yield f"there is one rope_scaling, not {scaling.kind} and linear together"
        if not isinstance(scaling, self.ropes):
            yield f"rope_scaling of type {scaling.kind} is not read"
        if isinstance(scaling, YarnScaling):
            if not scaling.is_truncated:
                yield "rope_utils.YarnRoPE rounds the ends of its ramp (truncate)"
            if scaling.factor <= 1 and scaling.attention_factor != 1:
                yield "rope_utils.YarnRoPE has attention factor 1 where factor is at most 1"
        if isinstance(scaling, LongRopeScaling) and not _has_su_factor(scaling):
            yield "rope_utils.SuScaledRoPE takes its factor from max_position_embeddings alone"
        temperature = spec.query_scaling
        if temperature is not None and (
            isinstance(scaling, LongRopeScaling)
            or scaling.original_context_length != temperature.original_context_length
        ):
            yield "rope and queries share one original_max_position_embeddings"


_LLAMA: Final = ModelFile("llama", "LlamaForCausalLM")
_PLAIN: Final = replace(
    _LLAMA,
    attention_bias=AttentionBias.NONE,
    has_mlp_bias=False,
    windows=Windows.IGNORED,
)
MODEL_FILES: Final[Mapping[str, ModelFile]] = {
    file.model_type: file
    for file in (
        _LLAMA,
        replace(_LLAMA, model_type="mistral", architecture="MistralForCausalLM"),
        replace(
            _LLAMA,
            model_type="smollm3",
            architecture="SmolLM3ForCausalLM",
            path="smollm3.py",
            keys=mlx_config.smollm3_keys,
            no_rope=NoRope.ANY,
        ),
        replace(
            _PLAIN,
            model_type="ministral3",
            architecture="Ministral3ForCausalLM",
            path="ministral3.py",
            keys=mlx_config.ministral3_keys,
            windows=Windows.LAYER_TYPES,
            has_query_scaling=True,
        ),
        replace(
            _PLAIN,
            model_type="qwen2",
            architecture="Qwen2ForCausalLM",
            path="qwen2.py",
            attention_bias=AttentionBias.QKV,
            has_head_dim=False,
        ),
        replace(
            _PLAIN,
            model_type="qwen3",
            architecture="Qwen3ForCausalLM",
            path="qwen3.py",
            qk_norm=QkNorm.HEAD,
        ),
        replace(
            _PLAIN,
            model_type="gemma3_text",
            architecture="Gemma3ForCausalLM",
            path="gemma3_text.py",
            keys=mlx_config.gemma3_keys,
            norm_placement=NormPlacement.BOTH,
            norm_offset=1.0,
            qk_norm=QkNorm.HEAD,
            activation=Activation.GELU_TANH,
            windows=Windows.PATTERN,
            scales=frozenset({"score_scale"}),
            embed_factor=EmbedScale.ROOT_BF16,
        ),
        replace(
            _PLAIN,
            model_type="gemma",
            architecture="GemmaForCausalLM",
            path="gemma.py",
            norm_offset=1.0,
            # GELU in the form with the error function; Gemma has the form with tanh.
            activation="gelu",
            embed_factor=EmbedScale.ROOT,
            reads_rope_scaling=False,
            is_always_tied=True,
        ),
        replace(
            _PLAIN,
            model_type="gemma2",
            architecture="Gemma2ForCausalLM",
            path="gemma2.py",
            keys=mlx_config.gemma2_keys,
            norm_placement=NormPlacement.BOTH,
            norm_offset=1.0,
            activation=Activation.GELU_TANH,
            scales=frozenset({"score_scale"}),
            embed_factor=EmbedScale.ROOT,
            has_softcaps=True,
            reads_rope_scaling=False,
            is_always_tied=True,
        ),
        replace(
            _PLAIN,
            model_type="phi3",
            architecture="Phi3ForCausalLM",
            path="phi3.py",
            keys=mlx_config.phi3_keys,
            matrices=_FUSED,
            has_head_dim=False,
            ropes=(LongRopeScaling,),
            has_partial_rotary=True,
        ),
        replace(
            _PLAIN,
            model_type="granite",
            architecture="GraniteForCausalLM",
            path="granite.py",
            keys=mlx_config.granite_keys,
            attention_bias=AttentionBias.ALL,
            has_mlp_bias=True,
            has_head_dim=False,
            scales=frozenset({"score_scale", "embed_scale", "residual_scale", "logits_scale"}),
        ),
        replace(
            _PLAIN,
            model_type="granitemoehybrid",
            architecture="GraniteMoeHybridForCausalLM",
            path="granitemoehybrid.py",
            keys=mlx_config.granitemoehybrid_keys,
            attention_bias=AttentionBias.ALL,
            has_mlp_bias=True,
            has_head_dim=False,
            no_rope=NoRope.ALL,
            reads_rope_scaling=False,
            scales=frozenset({"score_scale", "embed_scale", "residual_scale", "logits_scale"}),
        ),
        replace(
            _LLAMA,
            model_type="olmo2",
            architecture="Olmo2ForCausalLM",
            path="olmo2.py",
            norm_placement=NormPlacement.AFTER,
            qk_norm=QkNorm.FULL,
            windows=Windows.IGNORED,
        ),
        replace(
            _PLAIN,
            model_type="hunyuan_v1_dense",
            architecture="HunYuanDenseV1ForCausalLM",
            path="hunyuan_v1_dense.py",
            keys=mlx_config.hunyuan_keys,
            qk_norm=QkNorm.HEAD_AFTER_ROPE,
            attention_bias=AttentionBias.ALL,
            reads_rope_scaling=False,
        ),
        replace(
            _PLAIN,
            model_type="exaone4",
            architecture="Exaone4ForCausalLM",
            path="exaone4.py",
            keys=mlx_config.exaone4_keys,
            norm_placement=NormPlacement.AFTER,
            qk_norm=QkNorm.HEAD,
            windows=Windows.LAYER_TYPES,
            no_rope=NoRope.GLOBAL,
        ),
        replace(
            _LLAMA,
            model_type="olmo3",
            architecture="Olmo3ForCausalLM",
            path="olmo3.py",
            norm_placement=NormPlacement.AFTER,
            qk_norm=QkNorm.FULL,
            has_mlp_bias=False,
            has_plain_local_rope=True,
            needs_both_kinds=True,
        ),
    )
}


@dataclass(frozen=True, slots=True)
class ChosenFile:
    """The model file that an artifact names, its longest length, and notes about it."""

    file: ModelFile
    n_positions: int
    notes: tuple[str, ...]


def choose_file(spec: DecoderSpec, encoding: Encoding | None = None) -> ChosenFile | Rejected:
    """Choose the model file that computes the decoder at the most positions, its own first.

    Args:
        spec: The decoder.
        encoding: Encoding of the embedding, for the notes; None: codes.
    """
    own = MODEL_FILES.get(spec.model_type, _LLAMA)
    others = [file for file in MODEL_FILES.values() if file is not own]
    fitting = [file for file in (own, *others) if next(file.faults(spec), None) is None]
    if not fitting:
        return Rejected(f"mlx-lm's {own.path}: {'; '.join(own.faults(spec))}")
    file = max(fitting, key=lambda file: file.n_positions(spec))
    n_positions = file.n_positions(spec)
    return ChosenFile(file, n_positions, tuple(_notes(spec, encoding, own, file, n_positions)))


def make_config(
    chosen: ChosenFile,
    spec: DecoderSpec,
    entries: tuple[TensorEntry, ...],
    dtype: DType,
) -> dict[str, Any]:
    """Give the ``config.json`` of an artifact, every key of mlx-lm's model spelled out."""
    file = chosen.file
    config: dict[str, Any] = {
        **mlx_config.common_keys(spec, chosen.n_positions),
        "architectures": [file.architecture],
        "model_type": file.model_type,
        "torch_dtype": mlx_config.TORCH_NAMES[dtype],
        **file.keys(spec, chosen.n_positions),
    }
    encodings = {
        file.module_of(name): encoding
        for name, encoding in encodings_of(entries).items()
        if encoding.is_quantized
    }
    if encodings:
        config["quantization"] = mlx_config.quantization_keys(encodings)
    return config


def _rotates_what_slides(layers: Sequence[LayerAttention]) -> bool:
    """Tell whether all layers with rope have the same window, and the others full attention.

    Where all layers have rope, none may have a window. Where some have no rope, the layers with
    rope may have no window either: that equals a window of the whole length.
    """
    rotated = {layer.window for layer in layers if layer.rope is not None}
    still = {layer.window for layer in layers if layer.rope is None}
    return len(rotated) == 1 and (still == {None} or (not still and rotated == {None}))


def why_shorter(spec: DecoderSpec, file: ModelFile, n_positions: int) -> str:
    """Say why a model file computes a decoder correctly only up to these positions."""
    if n_positions == spec.sliding_window:
        return f"its {file.path} has no sliding_window that holds in these layers"
    return "its SuScaledRoPE has one set of LongRoPE's factors, here the short one"


def _has_su_factor(scaling: LongRopeScaling) -> bool:
    """Tell whether SuScaledRoPE gives the attention factor of the decoder."""
    original, length = scaling.original_context_length, mlx_config.longrope_length(scaling)
    if length <= original:
        return scaling.attention_factor == 1.0
    return math.isclose(
        math.sqrt(math.log(length) / math.log(original)), scaling.attention_factor, rel_tol=1e-6
    )


def _notes(
    spec: DecoderSpec, encoding: Encoding | None, own: ModelFile, file: ModelFile, n_positions: int
) -> Iterator[str]:
    if file is not own:
        yield (
            f"written as model_type {file.model_type}: mlx-lm's {own.path} does not compute all "
            f"of this {spec.model_type}, its {file.path} does"
        )
    if n_positions < spec.context_length:
        is_window = n_positions == spec.sliding_window
        reason = (
            f"its {file.path} has no sliding_window that holds in these layers"
            if is_window
            else "its SuScaledRoPE has one set of LongRoPE's factors, here the short one"
        )
        yield (
            f"holds {n_positions} of {spec.context_length} positions; mlx-lm does not stop there "
            f"and would be wrong beyond: {reason}"
        )
    factor, is_bf16 = file.embed_scale(spec, encoding), file.embed_factor is EmbedScale.ROOT_BF16
    is_own = file.embed_factor is not EmbedScale.ONE
    if is_own and not math.isclose(factor, spec.embed_scale, rel_tol=_SAME):
        kind = "bf16" if is_bf16 else f"{encoding}"
        yield (
            f"mlx-lm's {file.path} multiplies embeddings by {factor:g}, "
            f"sqrt({spec.hidden_width}) rounded to {kind}, not by {spec.embed_scale:g}"
        )
