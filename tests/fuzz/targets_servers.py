"""Fuzz targets: the answers of servers."""

from __future__ import annotations

import json
import math
from pathlib import Path
from random import Random
from typing import Any

from edgekit.errors import ServerError
from edgekit.hub.http import HubClient, HubRepo
from edgekit.hub.listing import COMMIT, fetch_listing
from edgekit.runtime.server_chunks import ChunkReader
from edgekit.runtime.server_sse import iter_data
from tests.fuzz.contract import Target, join_parts, mutate_part, promise, split_parts
from tests.fuzz.mutate import mutate_bytes, mutate_json


def run_stream(data: bytes, folder: Path) -> None:
    """Events are the same however the bytes come in, and each is text with sound numbers."""
    events = _events([data])
    promise(events == _events([data[i : i + 1] for i in range(len(data))]), "chunks change events")
    promise(events == _events([data[i : i + 7] for i in range(0, len(data), 7)]), "chunks of 7")
    if isinstance(events, ServerError):
        raise events
    reader = ChunkReader()
    texts = []
    for number, event in enumerate(events):
        for token in reader.feed(event, float(number)):
            texts.append(token.text)
            token.text.encode("utf-8")
            promise(token.logprob is None or not math.isnan(token.logprob), "a logprob NaN")
            for other in token.top:
                other.text.encode("utf-8")
                promise(math.isfinite(other.logprob) or other.logprob < 0, "a logprob")
        if reader.is_done:
            break
    for text in (reader.model, reader.system_fingerprint, reader.finish_reason):
        text.encode("utf-8")
    for name in ("prompt_tokens", "completion_tokens"):
        count = reader.count(name)
        promise(count is None or 0 <= count < 1 << 63, f"a count of {name}")
    last = reader.finish()
    last.text.encode("utf-8")
    promise(sum(map(len, texts)) <= 2 * len(data) + 100, "more text than was sent")


def _events(chunks: list[bytes]) -> Any:
    try:
        return list(iter_data(chunks))
    except ServerError as error:
        return _SameError(error)


class _SameError(ServerError):
    """A ServerError that equals another with the same words."""

    def __init__(self, error: ServerError) -> None:
        super().__init__(error.what, got=error.got, wanted=error.wanted)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _SameError) and self.what == other.what

    __hash__ = None  # type: ignore[assignment]


def seeds_stream() -> list[bytes]:
    def chunk(**choice: Any) -> dict[str, Any]:
        return {"id": "1", "model": "m", "choices": [{"index": 0, **choice}]}

    top = [{"token": "He", "logprob": -0.5}, {"token": "x", "logprob": -9.0}]
    described = {"content": [{"token": "He", "logprob": -0.5, "top_logprobs": top}]}
    call = {"index": 0, "id": "c", "function": {"name": "f", "arguments": '{"a": 1}'}}
    usage = {
        "prompt_tokens": 3,
        "completion_tokens": 2,
        "prompt_tokens_details": {"cached_tokens": 0},
    }
    chat = [
        chunk(delta={"role": "assistant", "content": ""}),
        chunk(delta={"content": "He"}, logprobs=described),
        chunk(delta={"reasoning_content": "hm"}),
        chunk(delta={}, finish_reason="stop"),
        {"choices": [], "usage": usage, "timings": {"prompt_ms": 1.5}},
    ]
    tools = [chunk(delta={"tool_calls": [call]}), chunk(delta={}, finish_reason="tool_calls")]
    broken = [{"error": {"message": "no", "code": 500}}]
    return [
        b"".join(b"data: %b\n\n" % json.dumps(c).encode() for c in chunks) + b"data: [DONE]\n\n"
        for chunks in (chat, tools, broken)
    ] + [b": keep-alive\r\n\r\nevent: x\ndata: {}\n\n"]


def mutate_stream(data: bytes, rng: Random) -> bytes:
    if rng.random() < 0.3:
        return mutate_bytes(data, rng)
    lines = data.split(b"\n")
    number = rng.randrange(len(lines))
    if lines[number].startswith(b"data: {"):
        lines[number] = b"data: " + mutate_json(lines[number][6:], rng)
    elif rng.random() < 0.5:
        lines[number] = rng.choice((b"", b"data", b"data:", b"data: 1", b"\r", b":", b"id: 1"))
    return b"\n".join(lines)


class FixedHub(HubClient):
    """A Hub whose answers are fixed: the model info, then the listing of the tree."""

    def __init__(self, *answers: bytes) -> None:
        self.source = HubRepo("owner/name", "main")
        self._token = None
        self._answers = iter(answers)

    def read(self, path: str, max_bytes: int) -> bytes:
        data = next(self._answers)
        if len(data) > max_bytes:
            raise self.invalid_response(path, f"{len(data)} bytes", max_bytes)
        return data


def run_listing(data: bytes, folder: Path) -> None:
    """Names stay in the folder, hashes are hashes, sizes are sizes."""
    listing = fetch_listing(FixedHub(*split_parts(data, 2)))
    promise(COMMIT.fullmatch(listing.commit), "a commit that is none")
    for name, file in listing.files.items():
        promise(file.name == name and "/" not in name and name not in (".", ".."), "a name")
        promise((folder / name).resolve().parent == folder.resolve(), "leaves the folder")
        promise(name.isprintable(), "a name that cannot be shown")
        promise(type(file.n_bytes) is int and 0 <= file.n_bytes <= 1 << 50, "a size")
        promise(len(file.digest) in (40, 64) and file.digest.isascii(), "a hash")
        promise(file.digest.isalnum() and file.digest.lower() == file.digest, "a hash")
    listing.assets(), listing.small_files()
    for name in listing.pickles:
        name.encode("utf-8")


def seeds_listing() -> list[bytes]:
    names = ("config.json", "tokenizer.json", "README.md", "pytorch_model.bin", "onnx/x.onnx")
    plain = [{"rfilename": n, "size": 10, "blobId": "a" * 40} for n in names]
    weights = {"sha256": "b" * 64, "size": 1000, "pointerSize": 134}
    large = {"rfilename": "model.safetensors", "size": 1000, "blobId": "c" * 40, "lfs": weights}
    info = {"sha": "0" * 40, "siblings": [*plain, large]}
    bare = {"sha": "0" * 40, "siblings": [{"rfilename": s["rfilename"]} for s in info["siblings"]]}
    tree: list[dict[str, Any]] = [
        {"type": "file", "path": s["rfilename"], "size": 10, "oid": "a" * 40} for s in plain
    ]
    tree.append(
        {
            "path": "model.safetensors",
            "size": 1000,
            "oid": "c" * 40,
            "lfs": {"oid": "b" * 64, "size": 1000},
        }
    )
    return [
        join_parts(json.dumps(info).encode(), b"[]"),
        join_parts(json.dumps(bare).encode(), json.dumps(tree).encode()),
    ]


def mutate_listing(data: bytes, rng: Random) -> bytes:
    return mutate_part(data, rng, [mutate_json, mutate_json])


TARGETS = (
    Target("stream", run_stream, seeds_stream, mutate_stream),
    Target("listing", run_listing, seeds_listing, mutate_listing),
)
