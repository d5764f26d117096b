"""Answer one question: what does the Hub answer to one request?

Every failure leaves here as a ``CheckpointError`` in our words. The settings of huggingface_hub
(HF_ENDPOINT, HF_TOKEN, HF_HUB_OFFLINE) are read anew each time, because that package reads them
only once. What a server says is quoted shortly and never with the access token in it.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Final
from urllib.parse import quote, urlsplit

from edgekit.errors import CheckpointError
from edgekit.lazy import require

# Once packed, a piece read from the network (64 KiB) is at most 64 MiB.
PACKINGS: Final = ("gzip", "deflate")
_TRUE: Final = frozenset({"1", "ON", "YES", "TRUE"})
_MAX_QUOTE: Final = 200
_MAX_RETRY_S: Final = 86_400
_RATE_LIMIT: Final = re.compile(r";\s*t=(\d{1,6})")  # the Hub's own header: "api";r=0;t=55
_CONTENT_RANGE: Final = re.compile(r"bytes (\d{1,18})-(\d{1,18})/(\d{1,18}|\*)")


class HubUnavailableError(CheckpointError):
    """The Hub cannot be reached, broke off, or has no time; .retry_s is how long it asks for."""

    def __init__(self, what: str, *, got: object, do: str, retry_s: int | None = None) -> None:
        self.retry_s = retry_s
        super().__init__(what, got=got, do=do)


class HubNonsenseError(CheckpointError):
    """The answer is not one that a Hub gives; bytes taken from it are worth nothing."""


@dataclass(frozen=True, slots=True)
class Source:
    """A repository on the Hub.

    Attributes:
        repo: ``owner/name``.
        revision: Branch, tag or commit; None is the default branch.
    """

    repo: str
    revision: str | None = None

    def __str__(self) -> str:
        return f"{self.repo}@{self.revision}" if self.revision else self.repo


@dataclass(frozen=True, slots=True)
class Body:
    """The bytes of an answer as they come in.

    Attributes:
        start: Offset in the file of the first byte.
        chunks: The bytes; a broken connection raises ``HubUnavailableError``.
    """

    start: int
    chunks: Iterator[bytes]


def is_offline() -> bool:
    """Tell whether the user forbids requests (HF_HUB_OFFLINE)."""
    value = os.environ.get("HF_HUB_OFFLINE") or os.environ.get("TRANSFORMERS_OFFLINE") or ""
    return value.upper() in _TRUE


class HubClient:
    """Asks the Hub about one repository."""

    def __init__(self, source: Source) -> None:
        """Read the settings.

        Raises:
            CheckpointError: HF_ENDPOINT is no address.
            MissingExtraError: huggingface_hub is not installed.
        """
        self.source = source
        self._endpoint = _endpoint()
        self._token = _token()

    def read(self, path: str, *, max_bytes: int, start: int = 0, stop: int | None = None) -> bytes:
        """Read a whole answer, or bytes ``start:stop`` of a file.

        Raises:
            HubUnavailableError: See ``open``.
            CheckpointError: Refused, longer than ``max_bytes``, or not the bytes asked for.
        """
        wanted = max_bytes if stop is None else stop - start
        data = bytearray()
        with self.open(path, start=start, stop=stop) as body:
            for chunk in body.chunks:
                data += chunk
                if len(data) > wanted:
                    raise self.nonsense(path, f"more than {wanted} bytes", f"at most {wanted}")
        if stop is not None and len(data) != wanted:
            raise self.nonsense(path, f"{len(data)} bytes", f"{wanted}, bytes {start}:{stop}")
        return bytes(data)

    @contextmanager
    def open(self, path: str, *, start: int = 0, stop: int | None = None) -> Iterator[Body]:
        """Ask for a file, from ``start`` on.

        Args:
            path: Below the endpoint.
            start: First byte wanted; the body tells where the server really began.
            stop: End of the part wanted; then nothing but that part is accepted.

        Raises:
            HubUnavailableError: Unreachable, broken off, or asked to come back later.
            CheckpointError: Refused, or nonsense.
        """
        headers = {"accept-encoding": "identity", "user-agent": "edgekit"}
        if self._token:
            headers["authorization"] = f"Bearer {self._token}"
        if start or stop is not None:
            headers["range"] = f"bytes={start}-{'' if stop is None else stop - 1}"
        session = require("huggingface_hub").get_session()
        timeout = require("huggingface_hub.constants").HF_HUB_DOWNLOAD_TIMEOUT
        with (
            self._door(path),
            session.stream(
                "GET", self._endpoint + path, headers=headers, timeout=timeout
            ) as response,
        ):
            status, said = response.status_code, response.headers
            if status not in (200, 206):
                raise self._refusal(path, status, said)
            encoding = said.get("content-encoding", "identity").strip().lower()
            is_packed = encoding != "identity"
            # Plain bytes were asked for; others unpack to a thousand times their size and more.
            if is_packed and (status == 206 or encoding not in PACKINGS):
                raise self.nonsense(path, f"encoding {encoding}", "plain bytes")
            if status == 200 and stop is not None:
                raise self.nonsense(path, "the whole file", f"bytes {start}:{stop} of it")
            first = self._first_byte(path, said) if status == 206 else 0
            if first not in (start, 0) or (first == 0 and stop is not None and start):
                raise self.nonsense(path, f"bytes from {first}", f"bytes from {start}")
            # As they come: gathered into larger pieces, the last piece of a cut answer is lost.
            yield Body(first, response.iter_bytes() if is_packed else response.iter_raw())

    def nonsense(self, path: str, got: object, wanted: object) -> HubNonsenseError:
        """Make the error for an answer that no Hub gives."""
        return HubNonsenseError(
            f"{self.source}: the Hub's answer makes no sense ({_file_of(path)})",
            got=self._clean(str(got)),
            wanted=wanted,
            do="If HF_ENDPOINT is set, check that a Hub answers there; else try again later.",
        )

    def _first_byte(self, path: str, said: Mapping[str, str]) -> int:
        match = _CONTENT_RANGE.fullmatch(said.get("content-range", ""))
        if match is None:
            raise self.nonsense(path, repr(said.get("content-range")), "a Content-Range header")
        return int(match[1])

    @contextmanager
    def _door(self, path: str) -> Iterator[None]:
        errors = require("huggingface_hub.errors")
        try:
            yield
        except CheckpointError:
            raise
        # HTTPError is that of the HTTP package below, whichever it is.
        except (errors.HTTPError, errors.OfflineModeIsEnabled) as error:
            raise HubUnavailableError(
                f"{self.source}: the Hub cannot be reached, or broke off ({_file_of(path)})",
                got=self._clean(f"{type(error).__name__}: {error}"),
                do="Check the connection and run the command again: what was downloaded is kept.",
            ) from error

    def _refusal(self, path: str, status: int, said: Mapping[str, str]) -> CheckpointError:
        """Put a status other than success into our words."""
        code = said.get("x-error-code", "")
        message = said.get("x-error-message", "")
        got = self._clean(f"HTTP {status}: {message}" if message else f"HTTP {status}")
        if status == 429 or status >= 500:
            wait_s = _retry_s(said)
            when = f"in {wait_s} s" if wait_s is not None else "in a few minutes"
            busy = "asks to slow down" if status == 429 else "has a fault"
            token = "" if self._token or status != 429 else " A token in HF_TOKEN may allow more."
            return HubUnavailableError(
                f"{self.source}: the Hub {busy} ({_file_of(path)})",
                got=got,
                do=f"Run the command again {when}: what was downloaded is kept.{token}",
                retry_s=wait_s,
            )
        if status == 416:
            n_bytes = said.get("content-range", "").rpartition("/")[2] or "fewer"
            return self.nonsense(path, f"a file of {n_bytes} bytes", "the size that it lists")
        if code == "GatedRepo":
            return CheckpointError(
                f"{self.source}: access is restricted",
                got=got,
                do="Accept the licence on the model's page, then set HF_TOKEN.",
            )
        if status == 401 and "credentials" in message.lower():
            return CheckpointError(
                f"{self.source}: the Hub does not accept the access token",
                got=got,
                do="Set HF_TOKEN to a valid token, or unset it and log out.",
            )
        if code == "RevisionNotFound":
            return CheckpointError(
                f"{self.source}: no such revision", got=got, wanted="a branch, tag or commit"
            )
        if code == "EntryNotFound":
            return CheckpointError(
                f"{self.source}: the Hub lists {_file_of(path)} but does not have it", got=got
            )
        if status in (401, 404):
            return CheckpointError(
                f"{self.source}: no such repository on the Hub, or it is private",
                got=got,
                do="Check the spelling, or set HF_TOKEN.",
            )
        if status == 403:
            return CheckpointError(
                f"{self.source}: access is refused",
                got=got,
                do="Set HF_TOKEN to a token that may read this repository.",
            )
        return CheckpointError(
            f"{self.source}: the Hub refuses {_file_of(path)}",
            got=got,
            wanted="HTTP 200",
            do="If HF_ENDPOINT is set, check that a Hub answers there.",
        )

    def _clean(self, text: str) -> str:
        """Make a server's words fit to be shown: one short line without the token."""
        if self._token:
            text = text.replace(self._token, "***")
        text = "".join(c if c.isprintable() else " " for c in text).strip()
        return text if len(text) <= _MAX_QUOTE else text[:_MAX_QUOTE] + "..."


def info_path(source: Source) -> str:
    """Path that lists a revision and its files with sizes and hashes."""
    return (
        f"/api/models/{source.repo}/revision/{quote(source.revision or 'main', safe='')}?blobs=true"
    )


def tree_path(source: Source, commit: str) -> str:
    """Path that lists the files at the top of a commit."""
    return f"/api/models/{source.repo}/tree/{commit}"


def file_path(source: Source, commit: str, name: str) -> str:
    """Path of a file's bytes."""
    return f"/{source.repo}/resolve/{commit}/{quote(name)}"


def _file_of(path: str) -> str:
    return "list of files" if path.startswith("/api/") else path.rpartition("/")[2]


def _endpoint() -> str:
    stated = os.environ.get("HF_ENDPOINT")
    text: str = (stated or require("huggingface_hub.constants").ENDPOINT).rstrip("/")
    try:
        parts = urlsplit(text)
        is_address = parts.scheme in ("http", "https") and bool(parts.hostname)
        _ = parts.port
    except ValueError:
        is_address = False
    if not is_address:
        # Not quoted: an address may hold a password.
        raise CheckpointError("HF_ENDPOINT is no address", wanted="https://...", do="Unset it.")
    return text


def _token() -> str | None:
    if os.environ.get("HF_HUB_DISABLE_IMPLICIT_TOKEN", "").upper() in _TRUE:
        return None
    token: str | None = require("huggingface_hub").get_token()
    if token and not (token.isascii() and token.isprintable()):
        raise CheckpointError("HF_TOKEN holds characters that no token has", do="Copy it again.")
    return token


def _retry_s(said: Mapping[str, Any]) -> int | None:
    """Read how long the server asks to wait; a date instead of seconds counts as unknown."""
    stated = str(said.get("retry-after", ""))
    match = _RATE_LIMIT.search(str(said.get("ratelimit", "")))
    if stated.isascii() and stated.isdigit() and len(stated) <= 6:
        return min(int(stated), _MAX_RETRY_S)
    return min(int(match[1]), _MAX_RETRY_S) if match else None
