"""Errors of a server, turned into edgekit's own.

All exceptions of the ``openai`` package and of the HTTP library below it are converted here. No
message holds the API key or a URL's path and query.
"""

from __future__ import annotations

import json
import socket
import ssl
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Final

from edgekit.errors import ServerError
from edgekit.lazy import require

_MAX_REPLY_CHARS: Final = 300
_TRANSIENT: Final = frozenset({408, 409, 425, 429})
_ADVICE: Final[Mapping[int, str]] = {
    400: "Check the model and the options.",
    401: "Set the API key in OPENAI_API_KEY.",
    403: "Check that this key may use this model.",
    404: "Check the URL (most servers want one that ends in /v1) and the model's name.",
    422: "Check the model and the options.",
    429: "Wait, or lower the number of requests.",
}


class FaultError(Exception):
    """A ``ServerError`` with the facts that decide what to do next.

    Attributes:
        error: The error for the caller if nothing helps.
        reply: The server's own text, for finding a refused field; not to be shown.
        is_transient: The same request may succeed later.
        retry_after_s: How long the server asked to wait, if it said so.
    """

    def __init__(
        self,
        error: ServerError,
        *,
        reply: str = "",
        is_transient: bool = False,
        retry_after_s: float | None = None,
    ) -> None:
        self.error = error
        self.reply = reply
        self.is_transient = is_transient
        self.retry_after_s = retry_after_s
        super().__init__(str(error))


@dataclass(frozen=True, slots=True)
class ErrorMapper:
    """Converts exceptions of other packages into ours.

    Attributes:
        host: ``HOST:PORT`` of the server, for messages.
        secret: The API key, which is removed from text of the server.
        timeout_s: For messages.
    """

    host: str
    secret: str
    timeout_s: float

    def __repr__(self) -> str:
        return f"ErrorMapper({self.host!r})"

    @contextmanager
    def mapped(self) -> Iterator[None]:
        """Raise ``FaultError`` instead of any exception of another package.

        Raises:
            FaultError: With the ``ServerError`` inside.
        """
        openai = require("openai")
        http = http_library()
        foreign = (
            openai.OpenAIError, http.HTTPError, http.StreamError, http.InvalidURL, ssl.SSLError,
            OSError, json.JSONDecodeError, UnicodeError,
        )  # fmt: skip
        try:
            yield
        except ServerError as error:
            raise FaultError(error, is_transient=_is_transient(error.status)) from None
        except openai.APIStatusError as error:
            raise self._status(error) from error
        except foreign as error:
            raise self._transport(error) from error

    def _status(self, error: Any) -> FaultError:
        status = int(error.status_code)
        reply = _words(error)
        if 300 <= status < 400:
            return FaultError(
                ServerError(
                    f"{self.host} redirects elsewhere", status=status, got=_target(error.response),
                    do="Give the final URL yourself, if you trust it.",
                )
            )  # fmt: skip
        is_html = "html" in error.response.headers.get("content-type", "").lower()
        got = (
            f"HTTP {status}: {'a web page' if is_html else self._clean(reply) or 'no reason given'}"
        )
        advice = "Try again later." if status >= 500 else _ADVICE.get(status)
        return FaultError(
            ServerError(f"{self.host} refused the request", status=status, got=got, do=advice),
            reply=reply,
            is_transient=_is_transient(status),
            retry_after_s=_retry_after(error.response.headers.get("retry-after")),
        )

    def _transport(self, error: BaseException) -> FaultError:
        chain = list(_causes(error))
        names = " ".join(type(cause).__name__ for cause in chain)
        if any(isinstance(cause, socket.gaierror) for cause in chain) or "Name or " in str(chain):
            what, wanted, do = "has no address", "a host name that resolves", "Check the URL."
        elif "Timeout" in names:
            what, wanted = "did not answer in time", f"an answer within {self.timeout_s:g} s"
            do = "Raise the time limit, or check whether the server is busy."
        elif "ConnectionRefusedError" in names:
            what, wanted, do = "refused the connection", "a server", "Start it, or check the port."
        elif "SSL" in names or "certificate" in str(chain[-1]).lower():
            what, wanted, do = "failed the TLS handshake", "a trusted certificate", "Check the URL."
        elif "ConnectError" in names:
            what, wanted, do = "cannot be reached", "a connection", "Check the URL and the network."
        elif "UnsupportedProtocol" in names or "InvalidURL" in names:
            what, wanted, do = "is not a usable URL", "http://HOST/v1", "Check the URL."
        else:
            what, wanted = "broke off the connection", "a whole answer"
            do = "Try again; if it persists, look at the server's log."
        got = self._clean(str(chain[-1])) or type(chain[-1]).__name__
        return FaultError(
            ServerError(f"{self.host} {what}", got=got, wanted=wanted, do=do), is_transient=True
        )

    def _clean(self, text: str) -> str:
        if self.secret:
            text = text.replace(self.secret, "***")
        text = " ".join(text.split())
        return text if len(text) <= _MAX_REPLY_CHARS else text[: _MAX_REPLY_CHARS - 3] + "..."


def http_library() -> Any:
    """Give the HTTP library that the installed ``openai`` is built on (httpx, or httpx2)."""
    base = require("openai").DefaultHttpxClient.__mro__[1]
    return require(base.__module__.partition(".")[0])


def _is_transient(status: int | None) -> bool:
    return status is not None and (status in _TRANSIENT or status >= 500)


def _words(error: Any) -> str:
    """Give what the server said about a refusal."""
    body = error.body
    if isinstance(body, dict):
        message = body.get("message")
        words = message if isinstance(message, str) else json.dumps(body, default=str)
        param = body.get("param")
        return f"{words} ({param})" if isinstance(param, str) and param not in words else words
    return str(body) if body else ""


def _target(response: Any) -> str:
    """Give the host that a redirect points at, and nothing else of its URL."""
    location = response.headers.get("location", "")
    authority = location.partition("//")[2].partition("/")[0].partition("?")[0]
    return authority.rpartition("@")[2] or "another path of the same host"


def _retry_after(text: str | None) -> float | None:
    try:
        seconds = float(text or "")
    except ValueError:
        return None
    return seconds if 0 <= seconds < float("inf") else None


def _causes(error: BaseException) -> Iterator[BaseException]:
    """Walk from an exception to the ones that caused it."""
    seen: list[BaseException] = []
    cause: BaseException | None = error
    while cause is not None and cause not in seen:
        seen.append(cause)
        yield cause
        cause = cause.__cause__ or cause.__context__
