"""A small Hub server on the loopback address, with faults that tests choose.

It speaks the part of the Hub's API that the real
huggingface_hub and edgekit use: model info with sizes and hashes, the tree, HEAD and GET of
files with etag, commit and ranges, large files redirected to a second host. Every request is
logged with the number of bytes that were sent for it.
"""

from __future__ import annotations

import hashlib
import http.server
import json
import re
import shutil
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import unquote

COMMIT = "0123456789abcdef0123456789abcdef01234567"
LARGE_SUFFIXES = (".safetensors", "tokenizer.json", ".bin")


@dataclass
class Asked:
    """One request and what was sent for it."""

    method: str
    path: str
    host: str
    range: str | None
    token: str | None
    status: int = 0
    n_sent: int = 0

    @property
    def file(self) -> str:
        """Name of the file asked for; empty for the API."""
        return "" if self.path.startswith("/api/") else unquote(self.path.rpartition("/")[2])


@dataclass
class Answer:
    """A status with headers and a body in place of the right one."""

    status: int
    body: bytes = b""
    headers: dict[str, str] = field(default_factory=dict)


@dataclass
class Faults:
    """What goes wrong.

    Attributes:
        answers: Asked first; an ``Answer`` replaces the right one.
        cuts: File name -> byte counts after which answers to GET break off, one per request.
        stalls: File name -> byte count after which one answer to GET waits for ``released``.
        served: File name -> bytes sent in place of the file's own.
        has_ranges: Whether the Range header is understood.
        edit_info: Changes the model info before it is sent.
    """

    answers: Callable[[Asked], Answer | None] = lambda asked: None
    cuts: dict[str, list[int]] = field(default_factory=dict)
    stalls: dict[str, int] = field(default_factory=dict)
    stalled: threading.Event = field(default_factory=threading.Event)
    released: threading.Event = field(default_factory=threading.Event)
    served: dict[str, bytes] = field(default_factory=dict)
    has_ranges: bool = True
    edit_info: Callable[[dict[str, Any]], Any] = lambda info: info


class HubServer:
    """One repository ``owner/name`` at one commit, on two ports: the Hub and its file store."""

    def __init__(self, folder: Path, commit: str = COMMIT) -> None:
        self.folder = folder
        self.commit = commit
        self.revisions = {"main", "v1.0", "feature/x", commit}
        self.faults = Faults()
        self.log: list[Asked] = []
        self.stated: dict[str, str] = {}
        self._digests: dict[tuple[str, int], str] = {}
        self.url = self.store_url = ""

    def asked(self, file: str, method: str = "GET") -> list[Asked]:
        """Requests for a file that were answered with bytes, not with a redirect."""
        return [
            a for a in self.log if (a.file, a.method) == (file, method) and a.status // 100 != 3
        ]

    def fetched(self) -> set[str]:
        """Names of the files of which bytes were sent."""
        return {a.file for a in self.log if a.file and a.n_sent and a.status in (200, 206)}

    def names(self) -> list[str]:
        """Every file of the repository."""
        found = (p.relative_to(self.folder) for p in self.folder.rglob("*") if p.is_file())
        return sorted(p.as_posix() for p in found)

    def digest(self, name: str) -> str:
        """SHA-256 of a large file, git's SHA-1 of a small one; ``stated`` goes before."""
        if name in self.stated:
            return self.stated[name]
        changed_ns = (self.folder / name).stat().st_mtime_ns
        if (name, changed_ns) not in self._digests:
            self._digests[name, changed_ns] = _digest(self.folder / name)
        return self._digests[name, changed_ns]

    def info(self) -> dict[str, Any]:
        """The model info with sizes and hashes."""
        siblings = []
        for name in self.names():
            size = (self.folder / name).stat().st_size
            sibling: dict[str, Any] = {"rfilename": name, "size": size, "blobId": "a" * 40}
            if name.endswith(LARGE_SUFFIXES):
                sibling["lfs"] = {"sha256": self.digest(name), "size": size, "pointerSize": 134}
            else:
                sibling["blobId"] = self.digest(name)
            siblings.append(sibling)
        return {
            "_id": "1", "id": "owner/name", "modelId": "owner/name", "sha": self.commit,
            "private": False, "gated": False, "tags": [], "downloads": 0, "siblings": siblings,
        }  # fmt: skip

    def tree(self) -> list[dict[str, Any]]:
        """The files of the repository as the tree endpoint lists them."""
        return [
            {
                "type": "file",
                "path": sibling["rfilename"],
                "size": sibling["size"],
                "oid": sibling["blobId"],
                **(
                    {"lfs": {"oid": sibling["lfs"]["sha256"], **sibling["lfs"]}}
                    if "lfs" in sibling
                    else {}
                ),
            }
            for sibling in self.info()["siblings"]
        ]


@contextmanager
def serve(folder: Path, commit: str = COMMIT) -> Iterator[HubServer]:
    """Serve a folder as repository ``owner/name``."""
    hub = HubServer(folder, commit)

    class Handler(_Handler):
        repository = hub

    servers = [_Server(("127.0.0.1", 0), Handler) for _ in range(2)]
    hub.url, hub.store_url = (f"http://127.0.0.1:{s.server_port}" for s in servers)
    threads = [threading.Thread(target=s.serve_forever, args=(0.05,)) for s in servers]
    for thread in threads:
        thread.start()
    try:
        yield hub
    finally:
        for server, thread in zip(servers, threads, strict=True):
            server.shutdown()
            thread.join()
            server.server_close()


class _Server(http.server.ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Report what goes wrong here; a client may leave whenever it has seen enough."""
        if not isinstance(sys.exc_info()[1], ConnectionError):
            super().handle_error(request, client_address)


class _Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    repository: HubServer

    def do_GET(self) -> None:
        hub = self.repository
        authorization = self.headers.get("Authorization")
        asked = Asked(
            self.command, self.path, self.headers["Host"], self.headers.get("Range"), authorization
        )
        hub.log.append(asked)
        answer = hub.faults.answers(asked) or self._answer(asked)
        self._send(asked, answer)

    do_HEAD = do_GET  # noqa: N815 - the name that http.server looks for

    def _answer(self, asked: Asked) -> Answer:
        hub, path = self.repository, asked.path.partition("?")[0]
        if f"http://{asked.host}" == hub.store_url:
            return self._file(path.rpartition("/")[2], asked)
        if match := re.fullmatch(r"/api/models/([^/]+/[^/]+)(?:/(revision|tree)/([^/]+))?", path):
            if match[1] != "owner/name":
                return _refusal(401, "RepoNotFound", "Repository not found")
            if unquote(match[3] or "main") not in hub.revisions:
                return _refusal(404, "RevisionNotFound", f"Invalid rev id: {match[3]}")
            content: Any = hub.tree() if match[2] == "tree" else hub.faults.edit_info(hub.info())
            return Answer(200, json.dumps(content).encode(), {"Content-Type": "application/json"})
        if match := re.fullmatch(r"/owner/name/resolve/([^/]+)/(.+)", path):
            name = unquote(match[2])
            if unquote(match[1]) not in hub.revisions:
                return _refusal(404, "RevisionNotFound", "Invalid rev id")
            if name not in hub.names():
                return _refusal(404, "EntryNotFound", "Entry not found")
            return self._resolve(name, asked)
        return _refusal(404, "RepoNotFound", "Repository not found")

    def _resolve(self, name: str, asked: Asked) -> Answer:
        """Give a small file, or say where a large one lies."""
        hub = self.repository
        if not name.endswith(LARGE_SUFFIXES):
            return self._file(name, asked)
        size = (hub.folder / name).stat().st_size
        headers = {
            "Location": f"{hub.store_url}/store/{name}",
            "X-Linked-Etag": f'"{hub.digest(name)}"',
            "X-Linked-Size": str(size),
            "X-Repo-Commit": hub.commit,
        }
        return Answer(302, b"", headers)

    def _file(self, name: str, asked: Asked) -> Answer:
        hub = self.repository
        data = hub.faults.served.get(name)
        size = (hub.folder / name).stat().st_size if data is None else len(data)
        headers = {
            "ETag": f'"{hub.digest(name)}"',
            "X-Repo-Commit": hub.commit,
            "Accept-Ranges": "bytes",
        }
        match = re.fullmatch(r"bytes=(\d+)-(\d*)", asked.range or "")
        if match is None or not hub.faults.has_ranges:
            return Answer(200, self._bytes(name, 0, size), headers)
        start = int(match[1])
        stop = min(int(match[2]) + 1 if match[2] else size, size)
        if start >= size:
            return Answer(416, b"", {"Content-Range": f"bytes */{size}"})
        headers["Content-Range"] = f"bytes {start}-{stop - 1}/{size}"
        return Answer(206, self._bytes(name, start, stop), headers)

    def _bytes(self, name: str, start: int, stop: int) -> bytes:
        data = self.repository.faults.served.get(name)
        if data is not None:
            return data[start:stop]
        with (self.repository.folder / name).open("rb") as stream:
            stream.seek(start)
            return stream.read(stop - start)

    def _send(self, asked: Asked, answer: Answer) -> None:
        cuts = self.repository.faults.cuts.get(asked.file, [])
        is_data = asked.method == "GET" and answer.status in (200, 206)
        body = answer.body
        if cuts and is_data:
            body = body[: cuts.pop(0)]
            self.close_connection = True
        asked.status = answer.status
        asked.n_sent = len(body) if asked.method == "GET" else 0
        self.send_response(answer.status)
        for key, value in {"Content-Length": str(len(answer.body)), **answer.headers}.items():
            self.send_header(key, value)
        self.end_headers()
        if asked.method == "GET":
            n_first = self.repository.faults.stalls.pop(asked.file, None) if is_data else None
            try:
                if n_first is not None:
                    self.wfile.write(body[:n_first])
                    self.repository.faults.stalled.set()
                    self.repository.faults.released.wait(60)
                    body = body[n_first:]
                self.wfile.write(body)
            except ConnectionError:
                # The other side has seen enough.
                self.close_connection = True

    def log_message(self, format: str, *args: Any) -> None:
        """Say nothing; the log is ``HubServer.log``."""


def _digest(path: Path) -> str:
    data = path.read_bytes()
    if path.name.endswith(LARGE_SUFFIXES):
        return hashlib.sha256(data).hexdigest()
    return hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()  # noqa: S324 - git's


def _refusal(status: int, code: str, message: str) -> Answer:
    return Answer(
        status,
        json.dumps({"error": message}).encode(),
        {"X-Error-Code": code, "X-Error-Message": message},
    )


def add_what_nobody_wants(folder: Path) -> None:
    """Put the usual bystanders into a repository."""
    for name in ("pytorch_model.bin", "modeling_x.py", "consolidated.safetensors", "tekken.json"):
        (folder / name).write_bytes(b"must not be fetched")
    for name in ("onnx", "original"):
        (folder / name).mkdir()
        shutil.copy(folder / "config.json", folder / name / "config.json")
        (folder / name / "model.safetensors").write_bytes(b"must not be fetched")
