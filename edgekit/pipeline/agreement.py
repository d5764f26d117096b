"""How close an engine comes to a plain numpy forward over the weights that an artifact holds.

Twice: with float activations, where only the order of the sums differs, and as the artifact runs
by default, where activations are rounded too. What rounding may cost is a named ``Tolerance``.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import prod
from typing import Any, Final

import numpy as np

from edgekit.artifact import Artifact, Format
from edgekit.dtypes import F32Array
from edgekit.errors import ArtifactError, CheckpointError, UsageError
from edgekit.exporters import open_exporter
from edgekit.families.spec import DecoderSpec
from edgekit.pipeline.run import plan_run
from edgekit.progress import Progress
from edgekit.quality.divergence import token_divergence
from edgekit.quality.evaluate import SuitePlan
from edgekit.quality.suites import Item
from edgekit.quantize.model import EncodedTensor, ModelTensor
from edgekit.records import AnswerDifference, Answered, EngineInfo, LogitsCheck, RunCheck
from edgekit.runtime import open_decoder
from edgekit.runtime.base import Decoder, Finish, GenerateOptions
from edgekit.runtime.reference import KEPT_BYTES, ReferenceDecoder
from edgekit.runtime.session import Session, open_session
from edgekit.text.tokenizer import spread_ids

REFERENCE: Final = "the plain numpy forward"
_SHOWN_TOKENS: Final = 8
_PROMPT_TOKENS: Final = 16
_QUESTION_SUITES: Final = ("multi_step", "tool_calls", "structured_output")  # the short ones


@dataclass(frozen=True, slots=True)
class Tolerance:
    """What an arithmetic may change.

    Attributes:
        name: For tables.
        kl: Largest mean of KL(reference || engine), in nats per token.
        reason: Why these numbers.
    """

    name: str
    kl: float
    reason: str


FLOAT_FACTOR: Final = 2e-4
"""Largest logit error with float activations, in standard deviations of the logits."""
FLOAT_TOLERANCE: Final = Tolerance(
    "float32-sums",
    1e-6,
    "float32 sums in another order; weights are exactly equal. Seen on a model of 135 million "
    "parameters: 5e-5 standard deviations, 1e-10 nats",
)
TOLERANCES: Final[Mapping[str, Tolerance]] = {
    "fp32": FLOAT_TOLERANCE,
    "fp16": Tolerance(
        "float16-activations",
        1e-3,
        "every result is rounded to 11 bits. Seen on a model of 135 million parameters: 2e-5 nats",
    ),
    "bf16": Tolerance(
        "bfloat16-activations",
        1e-2,
        "every result is rounded to 8 bits, as coarse as int8 activations and judged as they are",
    ),
    "int8": Tolerance(
        "int8-activations",
        1e-2,
        "activations are rounded to int8 in blocks. Seen on models of 5 and 135 million "
        "parameters, blocks of 32: 0.0002 to 0.0012 nats with channel scales moved, 0.0004 to "
        "0.005 without; rounding the weights of the larger one to int4 costs 0.2 to 0.3 nats",
    ),
}
"""By number type of the activations, as ``arithmetic_of`` names it."""


@dataclass(frozen=True, slots=True)
class FloatCheck:
    """The engine, and its options, that run a format with float activations."""

    engine: str
    options: Mapping[str, Any]


FLOAT_CHECKS: Final[Mapping[Format, FloatCheck]] = {
    Format.ONNX: FloatCheck("onnxruntime", {"activation": "fp32"}),
    Format.MLX: FloatCheck("mlx", {"activation": "fp32"}),
    Format.COREML: FloatCheck("mil", {"arithmetic": "fp32"}),
    Format.GGUF: FloatCheck("llama_cpp", {"activation": "fp32"}),
}
_MLX_TYPES: Final = {"float32": "fp32", "float16": "fp16", "bfloat16": "bf16"}


def arithmetic_of(info: EngineInfo, artifact: Artifact) -> str:
    """Name the number type of an engine's activations: a key of ``TOLERANCES``.

    Raises:
        ArtifactError: The manifest names none where the engine takes the artifact's own.
    """
    said = info.settings.get("arithmetic") or info.settings.get("activation") or "fp16"
    if said != "native":
        return str(said)
    named = artifact.manifest.settings.get("float_dtype")
    if named not in _MLX_TYPES:
        raise ArtifactError(
            f"{artifact.path}: float_dtype in the manifest",
            got=named,
            wanted=", ".join(_MLX_TYPES),
            do="Export the model again.",
        )
    return _MLX_TYPES[str(named)]


def open_float_decoder(artifact: Artifact) -> Decoder:
    """Open an artifact on the engine, and with the options, that give float activations."""
    check = FLOAT_CHECKS[artifact.format]
    return open_decoder(artifact, engine=check.engine, options=check.options)


def read_spec(artifact: Artifact) -> DecoderSpec:
    """Give the decoder that a manifest describes.

    Raises:
        ArtifactError: It describes none.
    """
    try:
        return DecoderSpec.from_dict(artifact.manifest.decoder)
    except ValueError as error:
        raise ArtifactError(
            f"{artifact.path}: decoder in the manifest", got=error, do="Export the model again."
        ) from error


def refuse_traced(artifacts: Sequence[Artifact]) -> None:
    """Refuse graphs that optimum wrote: their weights carry no names to compare by.

    Raises:
        UsageError: See above.
    """
    for artifact in artifacts:
        if artifact.is_traced:
            raise UsageError(
                f"{artifact.path}: the graph is optimum's",
                wanted="artifacts that edgekit wrote",
                do="It was compared with transformers when it was exported; the manifest has the "
                "figures under settings.checked_against_transformers.",
            )


def reference_decoder(artifact: Artifact) -> ReferenceDecoder:
    """Open a plain numpy forward over the weights recovered from an artifact.

    Small models are kept as float32; of others the codes are, one byte for each.
    """
    tensors: dict[str, ModelTensor] = {
        t.name: t for t in open_exporter(artifact.format).recover(artifact)
    }
    is_kept = 4 * sum(_n_values(t) for t in tensors.values()) <= KEPT_BYTES

    def weights(name: str) -> F32Array:
        tensor = tensors.pop(name) if is_kept else tensors[name]
        return tensor.dequantize() if isinstance(tensor, EncodedTensor) else tensor.values

    spec = read_spec(artifact)
    return ReferenceDecoder(spec, weights, model=artifact.name, keeps_weights=is_kept)


def _n_values(tensor: ModelTensor) -> int:
    return prod(tensor.shape) if isinstance(tensor, EncodedTensor) else tensor.values.size


def compare_logits(
    engine: str,
    arithmetic: str,
    artifact: Artifact,
    got: F32Array,
    wanted: F32Array,
    title: str,
) -> LogitsCheck:
    """Compare logits with float activations; arrays of shape (T, V).

    Args:
        engine: What gave ``got``.
        arithmetic: In which number type.
        artifact: What it ran.
        got: Its logits.
        wanted: Those of the other computation.
        title: What that is.

    Raises:
        ArtifactError: The shapes differ.
    """
    if got.shape != wanted.shape:
        raise ArtifactError(
            f"{artifact.path}: logits", got=got.shape, wanted=f"{wanted.shape} as {title}"
        )
    limit = FLOAT_FACTOR * float(wanted.std())
    return LogitsCheck(
        engine=engine,
        arithmetic=arithmetic,
        n_tokens=len(wanted),
        max_error=float(np.abs(got - wanted).max()),
        limit=limit,
        tolerance=FLOAT_TOLERANCE.name,
        reason=FLOAT_TOLERANCE.reason,
        top1_agreement=float((got.argmax(-1) == wanted.argmax(-1)).mean()),
        compared_with=title,
    )


def make_prompts(n_prompts: int) -> list[Item]:
    """Take ``n_prompts`` suite questions, one suite after the other.

    Long contexts are left out, and so are definitions of tools: onnxruntime-genai 0.18 rewrites
    them before the template sees them, so its prompt would be another one.
    """
    plan = SuitePlan(suites=_QUESTION_SUITES, n_items=max(1, -(-n_prompts // 3)))
    suites = plan.make_items(None).values()
    return [item for pack in zip(*suites, strict=True) for item in pack][:n_prompts]


@dataclass(frozen=True, slots=True, eq=False)
class DefaultRun:
    """What an artifact gave on its default engine.

    Attributes:
        session: The session, closed; its tokenizer still works.
        arithmetic: A key of ``TOLERANCES``.
        read: Logits (T, V) of the texts that were read.
        answers: Greedy answers to the prompts.
        written: For each answer the logits (N, V) that its N tokens were picked from.
    """

    session: Session
    arithmetic: str
    read: F32Array
    answers: tuple[Answered, ...]
    written: tuple[F32Array, ...]

    @property
    def has_tokenizer(self) -> bool:
        """Whether ids can be turned into text."""
        try:
            return bool(self.session.tokenizer)
        except CheckpointError:
            return False

    def text(self, token_ids: Sequence[int]) -> str:
        """Give the text of ids, special tokens included; the ids where there is no tokenizer."""
        if not self.has_tokenizer:
            return " ".join(str(i) for i in token_ids)
        return self.session.tokenizer.decode(token_ids, skip_special=False)


def run_by_default(
    artifact: Artifact,
    token_ids: Sequence[int],
    prompts: Sequence[Item],
    n_new_tokens: int,
    n_positions: int,
    progress: Progress,
) -> DefaultRun:
    """Open an artifact as ``edgekit run`` opens it; read texts and answer prompts greedily.

    Args:
        artifact: What to run.
        token_ids: Texts to read.
        prompts: What to answer.
        n_new_tokens: Most tokens of an answer.
        n_positions: What every artifact that is compared holds; of a longer prompt its end is
            taken, which shows as well whether engines agree.
        progress: Called as ``progress(what, n_done, n_total)``.

    Raises:
        NoFitError: No engine of this machine can run it, with every reason.
        EngineError: The engine refused it or failed.
    """
    rows: list[F32Array] = []
    plan = plan_run(artifact)
    session = open_session(
        artifact,
        engine=plan.engine,
        n_threads=plan.n_threads,
        context_length=plan.context_length,
        on_logits=lambda row: rows.append(row.copy()),
    )
    answers: list[Answered] = []
    written: list[F32Array] = []
    with session:
        progress(f"run {artifact.name}", 0, len(prompts))
        read = session.logits(token_ids)
        for index, prompt in enumerate(prompts):
            progress(f"answer {artifact.name}", index, len(prompts))
            rows.clear()
            ids = _prompt_ids(session, prompt, index)[-n_positions + n_new_tokens :]
            answers.append(_answer(session, prompt, ids, n_new_tokens))
            written.append(np.stack(rows))
        arithmetic = arithmetic_of(session.info, artifact)
    return DefaultRun(session, arithmetic, read, tuple(answers), tuple(written))


def _answer(session: Session, prompt: Item, ids: list[int], n_new_tokens: int) -> Answered:
    events = list(session.generate(ids, GenerateOptions(max_tokens=n_new_tokens)))
    return Answered(
        prompt=prompt.id,
        prompt_ids=tuple(ids),
        ids=tuple(event.token_id for event in events if event.token_id is not None),
        text="".join(event.text for event in events),
        finish=(events[-1].finish or Finish.STOP).value,
    )


def _prompt_ids(session: Session, prompt: Item, index: int) -> list[int]:
    ids = chat_ids(session, prompt)
    if ids is None:
        n_rows = session.decoder.vocab_size
        ids = spread_ids(_PROMPT_TOKENS, n_rows, first=index * _PROMPT_TOKENS)
    return ids


def chat_ids(session: Session, prompt: Item) -> list[int] | None:
    """Give the ids of a prompt in the model's own chat form.

    None for a model without a tokenizer or chat template, or whose template refuses the messages.
    """
    try:
        return session.encode_chat(prompt.messages)
    except CheckpointError:
        return None


def compare_run(
    run: DefaultRun, reference: Reference, prompt_ids: Mapping[str, tuple[int, ...]]
) -> RunCheck:
    """Compare a default run with the reference over the same weights.

    Args:
        run: What the engine gave.
        reference: Over the weights of the artifact.
        prompt_ids: Name of each prompt -> its ids in the first artifact of the scheme.
    """
    wanted = [reference.read, *(reference.logits_of(answered) for answered in run.answers)]
    got = [run.read, *run.written]
    pairs = list(zip(wanted, got, strict=True))
    divergence = np.concatenate([token_divergence(ours, theirs) for ours, theirs in pairs])
    is_same = np.concatenate([o.argmax(-1) == t.argmax(-1) for o, t in pairs])
    tolerance = TOLERANCES[run.arithmetic]
    limit = reference.float_margin if run.arithmetic == "fp32" else None
    found = (
        first_difference(answered, logits.argmax(-1).tolist(), logits, run, limit)
        for answered, logits in zip(run.answers, wanted[1:], strict=True)
    )
    info = run.session.info
    return RunCheck(
        engine=f"{info.engine} ({info.version})",
        arithmetic=run.arithmetic,
        n_read=len(run.read),
        n_written=len(divergence) - len(run.read),
        kl_mean=float(divergence.mean()),
        kl_max=float(divergence.max()),
        limit=tolerance.kl,
        tolerance=tolerance.name,
        reason=tolerance.reason,
        top1_agreement=float(is_same.mean()),
        answers=run.answers,
        differences=tuple(difference for difference in found if difference is not None),
        problems=tuple(
            f"prompt {answered.prompt}: other token ids than in the first artifact of the scheme"
            for answered in run.answers
            if answered.prompt_ids != prompt_ids[answered.prompt]
        ),
    )


def first_difference(
    answered: Answered,
    wanted: Sequence[int],
    logits: F32Array,
    run: DefaultRun,
    limit: float | None,
) -> AnswerDifference | None:
    """Give the token at which an answer parts from the ids ``wanted``; None if none does.

    Args:
        answered: The answer.
        wanted: The other ids. Where one has more, that is no difference of a token.
        logits: The reference's logits (N, V) behind the tokens that both have.
        run: Gives the text of tokens.
        limit: See ``AnswerDifference``.
    """
    for index, (ours, theirs) in enumerate(zip(wanted, answered.ids, strict=False)):
        if ours != theirs:
            return AnswerDifference(
                prompt=answered.prompt,
                index=index,
                before=run.text(answered.ids[max(0, index - _SHOWN_TOKENS) : index]),
                wanted=run.text([ours]),
                got=run.text([theirs]),
                margin=abs(float(logits[index, ours] - logits[index, theirs])),
                limit=limit,
            )
    return None


class Reference:
    """The plain numpy forward over the weights of an artifact, asked about answers of others."""

    def __init__(self, artifact: Artifact, token_ids: Sequence[int]) -> None:
        """Open it, and run ``token_ids``."""
        self._decoder = reference_decoder(artifact)
        self._ids: tuple[int, ...] = ()
        self.read = self._run(tuple(token_ids), len(token_ids))
        self._known: dict[tuple[tuple[int, ...], tuple[int, ...]], F32Array] = {}

    def close(self) -> None:
        """Let go of the weights."""
        self._decoder.close()

    @property
    def float_margin(self) -> float:
        """How far apart two logits may be for sums in another order to turn them round."""
        return 2 * FLOAT_FACTOR * float(self.read.std())

    def logits_of(self, answered: Answered) -> F32Array:
        """Give the logits (N, V) after the prompt and each but the last of an answer's N tokens."""
        key = (answered.prompt_ids, answered.ids)
        if key not in self._known:
            self._known[key] = self._run((*key[0], *key[1][:-1]), len(key[1]))
        return self._known[key]

    def _run(self, ids: tuple[int, ...], n_logits: int) -> F32Array:
        """Run a sequence; what the cache holds of it already is not run again."""
        n_same = 0
        for ours, theirs in zip(self._ids, ids[: len(ids) - n_logits], strict=False):
            if ours != theirs:
                break
            n_same += 1
        self._ids = ids
        return self._decoder.forward(ids[n_same:], n_past=n_same, n_logits=n_logits)
