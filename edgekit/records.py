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
    """Distance of a candidate from the float model on the same tokens.

    ``kl_*`` in nats per token, reference || candidate; intervals are 95 % block bootstrap over
    documents. ``top1_agreement`` is a fraction. Perplexities are per token.
    """

    n_documents: int
    n_tokens: int
    kl_mean: float
    kl_low: float
    kl_high: float
    kl_p99: float
    kl_max: float
    top1_agreement: float
    perplexity: float
    reference_perplexity: float


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
class VerifyRecord:
    """Whether artifacts hold the same weights, and how far their logits lie apart.

    ``n_codes_differing`` and ``n_scales_differing`` count against the first artifact.
    """

    artifact: str
    format: str
    scheme: str
    weights_sha256: str
    n_tensors: int
    n_codes: int
    n_codes_differing: int
    n_scales_differing: int
    max_logit_error: float | None = None
    logit_tolerance: float | None = None
    tolerance_name: str = ""
    top1_agreement: float | None = None
    note: str = ""

    @property
    def is_identical(self) -> bool:
        """True when no code and no scale differs."""
        return self.n_codes_differing == 0 and self.n_scales_differing == 0


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
