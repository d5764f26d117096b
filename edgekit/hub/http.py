"""Requests to the Hugging Face Hub, with errors that say what to do.

Session, token and redirects are huggingface_hub's. The settings HF_ENDPOINT and HF_HUB_OFFLINE are
read again each time, because that package reads them only once. Text from a server is quoted in
short form and never with the access token in it.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import IO, Any, Final
from urllib.parse import quote, urlsplit

from edgekit.errors import CheckpointError
from edgekit.lazy import require

# Decompressed, a piece read from the network (64 KiB) is at most 64 MiB.
PACKINGS: Final = ("gzip", "deflate")
_TRUE: Final = frozenset({"1", "ON", "YES", "TRUE"})
_MAX_QUOTE: Final = 200
# Retry-After in seconds, or the Hub's own RateLimit: "api";r=0;t=55
_WAIT: Final = re.compile(r"(?:^|;\s*t=)(\d{1,6})$")
_KEPT: Final = "what was downloaded is kept."


class HubUnavailableError(CheckpointError):
    """The Hub cannot be reached, broke off the connection, or is too busy."""


class HubInvalidResponseError(CheckpointError):
    """The answer is not one that a Hub gives; its bytes are not used."""


@dataclass(frozen=True, slots=True)
class HubRepo:
    """A repository on the Hub.

    Attributes:
        repo: ``owner/name``.
        revision: Branch, tag or commit; None is the default branch.
    """

    repo: str
    revision: str | None = None

    def __str__(self) -> str:
        return f"{self.repo}@{self.revision}" if self.revision else self.repo


def is_offline() -> bool:
    """Tell whether the user forbids requests (HF_HUB_OFFLINE)."""
    value = os.environ.get("HF_HUB_OFFLINE") or os.environ.get("TRANSFORMERS_OFFLINE") or ""
    return value.upper() in _TRUE


class HubClient:
    """Requests about one repository on the Hub."""

    def __init__(self, source: HubRepo) -> None:
        """Read the settings.

        Raises:
            CheckpointError: HF_ENDPOINT is not an address, or the token holds odd characters.
            MissingExtraError: huggingface_hub is not installed.
        """
        self.source = source
        self._endpoint = _endpoint()
        self._token = _token()

    def read(self, path: str, max_bytes: int) -> bytes:
        """Read a whole answer.

        Args:
            path: Below the endpoint.
            max_bytes: The most bytes that are read.

        Raises:
            HubUnavailableError: Unreachable, broken off, or too busy (asked to come back later).
            CheckpointError: Refused, or too long.
        """
        return self._get(path, max_bytes, None)

    def read_part(self, path: str, start: int, stop: int) -> bytes:
        """Read exactly the bytes ``start:stop`` of a file.

        Raises:
            HubUnavailableError: See ``read``.
            CheckpointError: Refused, or not the bytes asked for.
        """
        data = self._get(path, stop - start, (start, stop))
        if len(data) != stop - start:
            raise self.invalid_response(path, f"{len(data)} bytes", f"{stop - start} bytes")
        return data

    def download(self, path: str, stream: IO[bytes], bar: type[Any]) -> None:
        """Append the rest of a file to what is in ``stream``, with huggingface_hub's ``http_get``.

        A connection that breaks off is continued a few times.

        Args:
            path: Below the endpoint.
            stream: The file, at its end.
            bar: Used in place of tqdm; gets each piece's size before the piece is written.

        Raises:
            HubUnavailableError: Unreachable, or broken off too many times.
            CheckpointError: Refused.
        """
        http_get = require("huggingface_hub.file_download").http_get
        with self._session(path):
            try:
                http_get(
                    self._endpoint + path,
                    stream,
                    resume_size=stream.tell(),
                    headers=self._headers(),
                    tqdm_class=bar,
                )
            except require("huggingface_hub.errors").HfHubHTTPError as error:
                answer = error.response
                raise self._refusal(path, answer.status_code, answer.headers) from error

    def _get(self, path: str, max_bytes: int, part: tuple[int, int] | None) -> bytes:
        headers = self._headers()
        if part is not None:
            headers["range"] = f"bytes={part[0]}-{part[1] - 1}"
        timeout = require("huggingface_hub.constants").HF_HUB_DOWNLOAD_TIMEOUT
        data = bytearray()
        with (
            self._session(path) as session,
            session.stream(
                "GET", self._endpoint + path, headers=headers, timeout=timeout
            ) as response,
        ):
            status, said = response.status_code, response.headers
            if status not in (200, 206):
                raise self._refusal(path, status, said)
            stated = said.get("content-range", "")
            if part is not None and status == 200:
                raise self.invalid_response(
                    path, "the whole file", f"bytes {part[0]}:{part[1]} of it"
                )
            if part is not None and not stated.startswith(f"bytes {part[0]}-"):
                raise self.invalid_response(path, repr(stated), f"bytes from {part[0]}")
            for chunk in response.iter_bytes():
                data += chunk
                if len(data) > max_bytes:
                    raise self.invalid_response(
                        path, f"more than {max_bytes} bytes", f"at most {max_bytes}"
                    )
        return bytes(data)

    def invalid_response(self, path: str, got: object, wanted: object) -> HubInvalidResponseError:
        """Make the error for an answer that no Hub gives."""
        return HubInvalidResponseError(
            f"{self.source}: the Hub's answer is not valid ({_file_of(path)})",
            got=self._clean(str(got)),
            wanted=wanted,
            do="If HF_ENDPOINT is set, check that a Hub answers there; else try again later.",
        )

    def _headers(self) -> dict[str, str]:
        # No compression: a compressed answer can expand a thousandfold, and has no byte ranges.
        headers = {"accept-encoding": "identity", "user-agent": "edgekit"}
        return headers | ({"authorization": f"Bearer {self._token}"} if self._token else {})

    @contextmanager
    def _session(self, path: str) -> Iterator[Any]:
        """Give huggingface_hub's session for requests about ``path``.

        Answers compressed twice, or by anything stronger than gzip, are refused before they expand.
        """
        errors = require("huggingface_hub.errors")
        session = require("huggingface_hub").get_session()
        hooks = session.event_hooks

        def refuse_packed(response: Any) -> None:
            packing = response.headers.get("content-encoding", "identity").strip().lower()
            if packing != "identity" and packing not in PACKINGS:
                raise self.invalid_response(path, f"encoding {packing}", "plain bytes")

        session.event_hooks = {**hooks, "response": [*hooks.get("response", ()), refuse_packed]}
        try:
            yield session
        # HTTPError is that of the HTTP package that huggingface_hub uses, whichever it is.
        except (errors.HTTPError, errors.OfflineModeIsEnabled) as error:
            raise HubUnavailableError(
                f"{self.source}: the Hub cannot be reached, or broke off ({_file_of(path)})",
                got=self._clean(f"{type(error).__name__}: {error}"),
                do=f"Check the connection and run the command again: {_KEPT}",
            ) from error
        finally:
            session.event_hooks = hooks

    def _refusal(self, path: str, status: int, said: Mapping[str, str]) -> CheckpointError:
        """Make the error for a status other than success."""
        code, message = said.get("x-error-code", ""), said.get("x-error-message", "")
        got = self._clean(f"HTTP {status}: {message}" if message else f"HTTP {status}")
        file = _file_of(path)
        if status == 429 or status >= 500:
            wait = _WAIT.search(said.get("retry-after", "") or said.get("ratelimit", ""))
            when = f"in {wait[1]} s" if wait else "in a few minutes"
            busy = "asks to slow down" if status == 429 else "has a fault"
            token = "" if self._token or status != 429 else " A token in HF_TOKEN may allow more."
            return HubUnavailableError(
                f"{self.source}: the Hub {busy} ({file})",
                got=got,
                do=f"Run the command again {when}: {_KEPT}{token}",
            )
        if status == 416:
            return self.invalid_response(path, "a shorter file", "the size that it lists")
        if code == "GatedRepo":
            what = "access is restricted"
            do = "Accept the licence on the model's page, then set HF_TOKEN."
        elif status == 401 and "credentials" in message.lower():
            what = "the Hub does not accept the access token"
            do = "Set HF_TOKEN to a valid token, or unset it and log out."
        elif code == "RevisionNotFound":
            what, do = "no such revision", "Name a branch, tag or commit of the repository."
        elif code == "EntryNotFound":
            what, do = f"the Hub lists {file} but does not have it", "Choose another revision."
        elif status in (401, 404):
            what = "no such repository on the Hub, or it is private"
            do = "Check the spelling, or set HF_TOKEN."
        elif status == 403:
            what = "access is refused"
            do = "Set HF_TOKEN to a token that may read this repository."
        else:
            what = f"the Hub refuses {file}"
            do = "If HF_ENDPOINT is set, check that a Hub answers there."
        return CheckpointError(f"{self.source}: {what}", got=got, do=do)

    def _clean(self, text: str) -> str:
        """Make a server's text safe to show: one short line without the token."""
        if self._token:
            text = text.replace(self._token, "***")
        text = "".join(c if c.isprintable() else " " for c in text).strip()
        return text if len(text) <= _MAX_QUOTE else text[:_MAX_QUOTE] + "..."


def info_path(source: HubRepo) -> str:
    """Path that lists a revision and its files with sizes and hashes."""
    return (
        f"/api/models/{source.repo}/revision/{quote(source.revision or 'main', safe='')}?blobs=true"
    )


def tree_path(source: HubRepo, commit: str) -> str:
    """Path that lists the files at the top of a commit."""
    return f"/api/models/{source.repo}/tree/{commit}"


def file_path(source: HubRepo, commit: str, name: str) -> str:
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
        # Not quoted, because an address may hold a password.
        raise CheckpointError("HF_ENDPOINT is not an address", wanted="https://...", do="Unset it.")
    return text


def _token() -> str | None:
    if os.environ.get("HF_HUB_DISABLE_IMPLICIT_TOKEN", "").upper() in _TRUE:
        return None
    token: str | None = require("huggingface_hub").get_token()
    if token and not (token.isascii() and token.isprintable()):
        raise CheckpointError("HF_TOKEN holds characters that no token has", do="Copy it again.")
    return token
