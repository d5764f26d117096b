"""Records: measured and computed results, in the form in which they are stored.

The profiler, the quality suites and the comparison write records; the report reads them. Times are
in seconds and sizes in bytes; only the report formats them. Every number has its ``Kind``.
"""

from __future__ import annotations

import dataclasses
import enum
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final, TypeVar

from edgekit.errors import UsageError
from edgekit.typed_values import WrongValuesError, from_plain

SCHEMA_VERSION: Final = 1


class Kind(enum.Enum):
    """Where a number comes from: measured here, emulated, projected, or published by others."""

    MEASURED = "measured"
    EMULATED = "emulated"
    PROJECTED = "projected"
    PUBLISHED = "published"


@dataclass(frozen=True, slots=True)
class HostFacts:
    """Facts of this machine from the probe; None means that a fact could not be read."""

    os: str
    os_version: str
    arch: str
    cpu: str
    n_cores: int
    n_physical_cores: int | None
    memory_bytes: int
    memory_limit_bytes: int | None
    python: str
    cpu_features: tuple[str, ...] = ()
    engines: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class EngineInfo:
    """What answered: engine, version, the artifact or model behind it, and its settings."""

    engine: str
    version: str
    model: str
    n_threads: int | None = None
    is_emulated: bool = False
    settings: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Metric:
    """One number, with what a reader needs to judge it.

    Attributes:
        name: Unit last, such as ``decode_tok_per_s``.
        value: The main value (median of the samples unless the formula says otherwise); None
            when there is none, with the reason in ``note``.
        kind: See ``Kind``.
        formula: Id of the definition, such as ``tpot-excl-first`` (docs/method.md).
        samples: Raw values in the order they were taken.
        low, high: 95 % interval (measured) or range (projected), if known.
        source: Where a published number comes from.
    """

    name: str
    value: float | None
    kind: Kind
    formula: str = ""
    samples: tuple[float, ...] = ()
    low: float | None = None
    high: float | None = None
    source: str = ""
    note: str = ""


@dataclass(frozen=True, slots=True)
class Workload:
    """The work of a speed run; token counts are exact and end tokens do not end it."""

    n_prompt_tokens: int
    n_new_tokens: int
    n_repeats: int
    n_warmup: int


@dataclass(frozen=True, slots=True)
class ProfileRecord:
    """Speed and memory of one artifact on one engine and machine."""

    candidate: str
    format: str
    scheme: str
    artifact_bytes: int
    device: str
    engine: EngineInfo
    host: HostFacts
    workload: Workload
    metrics: tuple[Metric, ...]
    notes: tuple[str, ...] = ()
    failure: str = ""

    def metric(self, name: str) -> Metric | None:
        """Find a metric by name."""
        return next((m for m in self.metrics if m.name == name), None)


@dataclass(frozen=True, slots=True)
class Divergence:
    """Distance of a candidate from the float model on the same tokens (docs/quality.md).

    Attributes:
        n_documents, n_tokens: What was compared; the last token of a document does not count.
        kl_mean: KL(reference || candidate) in nats per token; of a stored reference an estimate
            without bias, which adds what a sample of the less likely tokens says to ``kl_bound``.
        kl_median, kl_p99, kl_max: Quantiles over single tokens.
        kl_bound: Mean of KL with all tokens that are not stored as one: KL is not below it. Equal
            to ``kl_mean`` where whole distributions were compared.
        top1_agreement: Fraction of tokens with the same most likely next token.
        perplexity, reference_perplexity: Per token, of the candidate and of the float model.
        kl_low, kl_high, top1_low, top1_high, perplexity_low, perplexity_high: 95 % intervals,
            block bootstrap over documents.
        top_k: Likeliest tokens that were stored of the reference; None: all tokens.
    """

    n_documents: int
    n_tokens: int
    kl_mean: float
    kl_low: float
    kl_high: float
    kl_median: float
    kl_p99: float
    kl_max: float
    kl_bound: float
    top1_agreement: float
    top1_low: float
    top1_high: float
    perplexity: float
    perplexity_low: float
    perplexity_high: float
    reference_perplexity: float
    top_k: int | None


@dataclass(frozen=True, slots=True)
class ItemOutcome:
    """One suite item and how it was answered."""

    item_id: str
    is_correct: bool
    reason: str
    answer: str
    meta: Mapping[str, Any] = field(default_factory=dict)
    ttft_s: float | None = None
    e2e_s: float | None = None
    n_output_tokens: int | None = None


@dataclass(frozen=True, slots=True)
class SuiteRecord:
    """A suite as answered by one candidate; ``low`` and ``high`` are the 95 % Wilson interval."""

    suite: str
    n_items: int
    n_correct: int
    rate: float
    low: float
    high: float
    outcomes: tuple[ItemOutcome, ...] = ()


@dataclass(frozen=True, slots=True)
class QualityRecord:
    """Quality of one candidate; ``divergence`` is None for a server without logits."""

    candidate: str
    engine: EngineInfo
    divergence: Divergence | None
    suites: tuple[SuiteRecord, ...]
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class CostPoint:
    """What one way of quantizing a model costs: its size, and what it does to the answers.

    Attributes:
        name: The setting, such as ``int4-g128`` or ``int4-g32:rtn``, or the name of an artifact
            that was given.
        artifact: Name of the artifact that was measured.
        engine: What ran it.
        n_bytes: Size of all its files.
        weight_bits: Bits of a weight, scales included: mean over all weights.
        linear_bits: The same over the matrices of the layers alone.
        divergence: Distance from the float model.
        suites: Task suites, where they were asked for.
    """

    name: str
    artifact: str
    engine: EngineInfo
    n_bytes: int
    weight_bits: float
    linear_bits: float
    divergence: Divergence
    suites: tuple[SuiteRecord, ...] = ()


@dataclass(frozen=True, slots=True)
class CostRecord:
    """What several ways of quantizing one model cost (``edgekit quality-cost``).

    Attributes:
        model: Name of the float model.
        source_sha256: Its hash.
        text: Which text it was measured on.
        n_documents, n_tokens: Of that text.
        text_sha256: Hash of its token ids.
        float_bytes: Size of the float model's weights as stored.
        float_perplexity: Perplexity of the float model, per token.
        reference: What the stored float model loses, in one sentence.
        points: One for each setting, in the order asked for.
        front: Names of the points that no other beats: none is as small or smaller and as near
            or nearer. The smallest first.
    """

    model: str
    source_sha256: str
    text: str
    n_documents: int
    n_tokens: int
    text_sha256: str
    float_bytes: int
    float_perplexity: float
    reference: str
    points: tuple[CostPoint, ...]
    front: tuple[str, ...]
    notes: tuple[str, ...] = ()
    schema_version: int = SCHEMA_VERSION


@dataclass(frozen=True, slots=True)
class PairedRecord:
    """Device against server on the same items.

    ``difference`` is device rate minus server rate (fraction); ``low``/``high`` its 95 %
    interval; ``p_value`` the exact McNemar test on the ``n_only_device``/``n_only_server``
    discordant items.
    """

    suite: str
    n_items: int
    device_rate: float
    server_rate: float
    difference: float
    low: float
    high: float
    n_only_device: int
    n_only_server: int
    p_value: float


class Choice(enum.Enum):
    """The outcome of the decision rule."""

    DEVICE = "ship on the device"
    SERVER = "ship on the server"
    UNDECIDED = "cannot tell yet"


@dataclass(frozen=True, slots=True)
class Criterion:
    """One row of the decision table; ``is_met`` is None when it could not be judged."""

    name: str
    device: str
    server: str
    threshold: str
    is_met: bool | None
    kind: Kind
    note: str = ""


@dataclass(frozen=True, slots=True)
class Verdict:
    """The outcome, the rule that led to it, and every criterion."""

    choice: Choice
    candidate: str
    sentence: str
    rule: str
    criteria: tuple[Criterion, ...]


@dataclass(frozen=True, slots=True)
class ComparisonRecord:
    """A device candidate against a server-hosted model."""

    candidate: str
    server: EngineInfo
    pairs: tuple[PairedRecord, ...]
    metrics: tuple[Metric, ...]
    verdict: Verdict
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class WeightsCheck:
    """The weights of an artifact as its format's own library reads them from disk.

    Attributes:
        library: Which library, with its version.
        weights_sha256: Hash over all integer tensors; empty if there are none.
        n_tensors: Tensors read.
        n_codes: Integer codes among them.
        n_codes_differing, n_scales_differing: Against the first artifact of the same scheme.
        compared_with: Name of that artifact; empty for the first itself.
    """

    library: str
    weights_sha256: str
    n_tensors: int
    n_codes: int
    n_codes_differing: int
    n_scales_differing: int
    compared_with: str = ""

    @property
    def is_met(self) -> bool:
        """True when no code and no scale differs."""
        return self.n_codes_differing == 0 and self.n_scales_differing == 0


@dataclass(frozen=True, slots=True)
class LogitsCheck:
    """How far the logits of a graph are from those of another computation over the same weights.

    Attributes:
        engine: What ran the graph.
        arithmetic: Its number type, such as ``fp32``.
        n_tokens: Tokens whose logits were compared.
        max_error: Largest difference of any logit.
        limit: Largest difference allowed.
        tolerance: Name of the limit.
        reason: Why the limit is what it is.
        top1_agreement: Fraction of tokens with the same most likely next token.
        compared_with: What gave the other logits.
    """

    engine: str
    arithmetic: str
    n_tokens: int
    max_error: float
    limit: float
    tolerance: str
    reason: str
    top1_agreement: float
    compared_with: str

    @property
    def is_met(self) -> bool:
        """True when no logit is further off than the limit."""
        return self.max_error <= self.limit


@dataclass(frozen=True, slots=True)
class Answered:
    """A greedy answer: which prompt, the ids of prompt and answer, its text and why it ended.

    ``finish`` is ``stop`` (an end token, which is the last id), ``length`` or ``tool_calls``.
    """

    prompt: str
    prompt_ids: tuple[int, ...]
    ids: tuple[int, ...]
    text: str
    finish: str


@dataclass(frozen=True, slots=True)
class AnswerDifference:
    """The first token at which two greedy answers to one prompt part.

    Attributes:
        prompt: Name of the prompt.
        index: Which token of the answer, from 0.
        before: The end of the answer up to there, as text.
        wanted, got: The two tokens as text; ``wanted`` is that of the computation compared with.
        margin: How far apart the logits of the two tokens are in the reference: near 0 is a tie.
        limit: Largest margin that the arithmetic of the two explains; None: any.
    """

    prompt: str
    index: int
    before: str
    wanted: str
    got: str
    margin: float
    limit: float | None

    @property
    def is_met(self) -> bool:
        """True when the difference of arithmetic explains that the answers part here."""
        return self.limit is None or self.margin <= self.limit


@dataclass(frozen=True, slots=True)
class RunCheck:
    """An artifact as its default engine runs it, against the reference over the same weights.

    Attributes:
        engine: The engine, with its version.
        arithmetic: Number type of its sums: ``fp32``, ``fp16``, ``bf16`` or ``int8`` activations.
        n_read: Tokens of texts that were read.
        n_written: Tokens of its own greedy answers, each with the reference's logits beside it.
        kl_mean: KL(reference || engine) in nats per token over all of them.
        kl_max: The largest of a single token.
        limit: Largest mean allowed.
        tolerance: Name of the limit.
        reason: Why the limit is what it is.
        top1_agreement: Fraction of tokens with the same most likely next token.
        answers: Its greedy answers.
        differences: Where they part from the reference's.
        problems: One sentence each: a prompt whose ids are not those of the other artifacts.
    """

    engine: str
    arithmetic: str
    n_read: int
    n_written: int
    kl_mean: float
    kl_max: float
    limit: float
    tolerance: str
    reason: str
    top1_agreement: float
    answers: tuple[Answered, ...] = ()
    differences: tuple[AnswerDifference, ...] = ()
    problems: tuple[str, ...] = ()

    @property
    def is_met(self) -> bool:
        """True when the divergence is within its limit, and what must be equal is."""
        is_near = self.kl_mean <= self.limit
        return is_near and not self.problems and all(d.is_met for d in self.differences)


@dataclass(frozen=True, slots=True)
class StockCheck:
    """The same prompts in the runtime that others use for the format.

    Attributes:
        runtime: Its name, with its version where it is installed.
        not_run: Why it was not run; empty if it was.
        failure: How it failed; empty if it did not.
        n_prompts: Prompts asked.
        problems: One sentence each: other prompt ids, other end tokens, another reason to end,
            another text for the same tokens.
        answers: Its answers.
        differences: Where they part from those of edgekit's default engine.
    """

    runtime: str
    not_run: str = ""
    failure: str = ""
    n_prompts: int = 0
    problems: tuple[str, ...] = ()
    answers: tuple[Answered, ...] = ()
    differences: tuple[AnswerDifference, ...] = ()

    @property
    def is_met(self) -> bool | None:
        """None when it was not run: nothing is known then."""
        if self.not_run:
            return None
        return not (self.failure or self.problems) and all(d.is_met for d in self.differences)


@dataclass(frozen=True, slots=True)
class VerifyRecord:
    """What was found about one artifact; a check that was not asked for is None.

    ``not_run`` says why the artifact was not run although that was asked for; empty otherwise.
    """

    artifact: str
    format: str
    scheme: str
    weights: WeightsCheck
    logits: LogitsCheck | None = None
    run: RunCheck | None = None
    stock: StockCheck | None = None
    not_run: str = ""

    @property
    def is_met(self) -> bool:
        """True when no check that was made found a fault."""
        checks = (self.weights, self.logits, self.run, self.stock)
        return not any(check is not None and check.is_met is False for check in checks)


@dataclass(frozen=True, slots=True)
class OracleRecord:
    """One artifact against the graph of another exporter over the same weights."""

    artifact: str
    format: str
    scheme: str
    weights_sha256: str
    logits: LogitsCheck


@dataclass(frozen=True, slots=True)
class ReportData:
    """Everything a report page shows."""

    title: str
    model: str
    created: str
    edgekit_version: str
    host: HostFacts
    profiles: tuple[ProfileRecord, ...] = ()
    qualities: tuple[QualityRecord, ...] = ()
    comparisons: tuple[ComparisonRecord, ...] = ()
    verifications: tuple[VerifyRecord, ...] = ()
    notes: tuple[str, ...] = ()
    schema_version: int = SCHEMA_VERSION


_T = TypeVar("_T")


def to_data(value: Any) -> Any:
    """Turn a record into plain JSON values (enums to their value, tuples to lists)."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {f.name: to_data(getattr(value, f.name)) for f in dataclasses.fields(value)}
    if isinstance(value, enum.Enum):
        return value.value
    if isinstance(value, Mapping):
        return {str(k): to_data(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [to_data(v) for v in value]
    return value


def to_json(value: Any) -> str:
    """Write a record as deterministic JSON; NaN and infinity are refused."""
    return (
        json.dumps(to_data(value), indent=2, sort_keys=True, ensure_ascii=False, allow_nan=False)
        + "\n"
    )


def from_data(cls: type[_T], data: Any) -> _T:
    """Rebuild a record from JSON values; the inverse of ``to_data``.

    Raises:
        UsageError: A field is absent, unknown, or of another type.
    """
    try:
        return from_plain(cls, data)
    except WrongValuesError as error:
        raise UsageError(
            f"not a {cls.__name__} record", got=str(error), do="Write it again with this edgekit."
        ) from error
