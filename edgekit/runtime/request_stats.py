"""Facts about one request to a server: its times, token counts and model id."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class RequestStats:
    """Facts about one answered request; None means unknown or not applicable.

    Attributes:
        model: Model id as the server returned it.
        system_fingerprint: The server's id of its configuration, empty if it gave none.
        finish_reason: As the server writes it.
        n_prompt_tokens, n_output_tokens, n_cached_tokens, n_reasoning_tokens: Its usage counts.
        start_s: Monotonic clock when the request of the answered attempt was handed over.
        ttft_s: Until the first content, reasoning or tool text; the role alone does not count.
        e2e_s: Until the answer was complete.
        connect_s, tls_s: Setting up the connection; None when an open one was used again.
        first_byte_s: Until the answer's headers were read.
        server_ttft_s: The server's own value for its work until the first token.
        n_retries: Attempts that failed before this one.
        unsupported_params: Request fields that this server refused; they were left out.
    """

    model: str
    system_fingerprint: str
    finish_reason: str
    n_prompt_tokens: int | None
    n_output_tokens: int | None
    n_cached_tokens: int | None
    n_reasoning_tokens: int | None
    start_s: float
    ttft_s: float | None
    e2e_s: float
    connect_s: float | None = None
    tls_s: float | None = None
    first_byte_s: float | None = None
    server_ttft_s: float | None = None
    n_retries: int = 0
    unsupported_params: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class NetworkSamples:
    """Times of the network alone, in the order they were taken.

    Attributes:
        connect_s: TCP handshakes of fresh connections.
        tls_s: TLS handshakes of the same connections; empty for plain http.
        round_trip_s: The smallest request on a warm connection.
    """

    connect_s: tuple[float, ...]
    tls_s: tuple[float, ...]
    round_trip_s: tuple[float, ...]
