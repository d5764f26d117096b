"""Fuzz targets: the readers of weight files."""

from __future__ import annotations

import json
import struct
from importlib.util import find_spec
from itertools import pairwise
from pathlib import Path
from random import Random

import ml_dtypes
import numpy as np
import safetensors
import safetensors.numpy
from tokenizers import pre_tokenizers

from edgekit.checkpoint.gguf.file import GgufCheckpoint
from edgekit.checkpoint.gguf.tokenizer import has_tokenizer, text_contents
from edgekit.dtypes import DTYPES, DType
from edgekit.errors import CheckpointError, FormatError
from edgekit.families import open_family
from edgekit.formats.gguf import GgufArray, GgufFile
from edgekit.formats.mil_blob import BlobReader, BlobType, BlobWriter
from edgekit.formats.safetensors import SafetensorsFile
from edgekit.text.chat import ChatTemplate
from edgekit.text.files import TextFiles
from edgekit.text.tokenizer import Tokenizer
from tests.formats.gguf_writer import gguf_bytes, q4_0_bytes, q8_0_bytes
from tests.fuzz.contract import Target, promise
from tests.fuzz.mutate import mutate_bytes, mutate_fields, mutate_json


def run_safetensors(data: bytes, folder: Path) -> None:
    """What we accept, the library accepts, with the same names, metadata and bits."""
    path = folder / "x.safetensors"
    path.write_bytes(data)
    with SafetensorsFile(path) as file:
        if any(tensor.info.dtype is DType.OTHER for tensor in file.tensors.values()):
            return  # a type of the future: listed, and refused when read
        with safetensors.safe_open(path, "np") as reference:
            promise(dict(file.metadata) == (reference.metadata() or {}), "other metadata")
        theirs = dict(safetensors.deserialize(data))
        promise(set(theirs) == set(file.tensors), "other names than the library")
        for name, tensor in file.tensors.items():
            info, raw = tensor.info, tensor.raw()
            promise(raw.shape == info.shape, "a view of another shape")
            promise(tuple(theirs[name]["shape"]) == info.shape, "another shape")
            promise(theirs[name]["dtype"] == DTYPES[info.dtype].safetensors, "another type")
            promise(raw.tobytes() == bytes(theirs[name]["data"]), f"other bits in {name[:40]!r}")
            if DTYPES[info.dtype].is_float:
                promise(tensor.read().dtype == np.float32, "read() is not float32")
                if info.shape:
                    tensor.read_rows(0, min(1, info.shape[0]))


def seeds_safetensors() -> list[bytes]:
    plain = {
        "w": np.arange(6, dtype=np.float32).reshape(2, 3),
        "h": np.ones((2, 2), np.float16),
        "b": np.ones(3, ml_dtypes.bfloat16),
        "q": np.arange(4, dtype=np.int32),
        "scalar": np.array(1.5, np.float32),
        "none": np.zeros((0, 4), np.uint8),
    }
    eight = {"e": np.ones((2, 4), ml_dtypes.float8_e4m3fn), "t": np.array([True, False])}
    return [
        safetensors.numpy.save(plain, metadata={"format": "pt", "é": "ü"}),
        safetensors.numpy.save(eight),
        safetensors.numpy.save({}),
    ]


def mutate_safetensors(data: bytes, rng: Random) -> bytes:
    """Change the header as JSON and put its length right again; now and then the bytes."""
    if len(data) < 8 or rng.random() < 0.15:
        return mutate_bytes(data, rng)
    (n_header,) = struct.unpack("<Q", data[:8])
    header, body = data[8 : 8 + n_header], data[8 + n_header :]
    header = _shift_offsets(header, rng) if rng.random() < 0.2 else mutate_json(header, rng)
    if rng.random() < 0.1:
        body = mutate_bytes(body, rng)
    n_stated = len(header) + rng.choice((0,) * 30 + (1, -1, 1 << 32, 1 << 63))
    return struct.pack("<Q", n_stated & (1 << 64) - 1) + header + body


def _shift_offsets(header: bytes, rng: Random) -> bytes:
    """Move or stretch a tensor so that its own size stays right."""
    try:
        entries = json.loads(header)
        name = rng.choice([n for n in entries if n != "__metadata__"])
        by = rng.choice((-8, -4, -1, 1, 4, 8))
        entries[name]["data_offsets"] = [n + by for n in entries[name]["data_offsets"]]
        entries[name]["shape"] = rng.choice(
            (
                entries[name]["shape"][::-1],
                [0, 1 << 62],
                [1 << 32, 1 << 32, 0],
                [*entries[name]["shape"], 1],
            )
        )
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError):
        return mutate_json(header, rng)
    return json.dumps(entries).encode()


def run_gguf(data: bytes, folder: Path) -> None:
    """Header, tensors and the checkpoint made of them; the reference package agrees."""
    path = folder / "x.gguf"
    path.write_bytes(data)
    with GgufFile(path) as file:
        taken = sorted((t.begin, t.n_bytes) for t in file.tensors.values())
        for begin, n_bytes in taken:
            promise(n_bytes > 0 and begin + n_bytes <= len(data), "a tensor outside the file")
        for (begin, n_bytes), (after, _) in pairwise(taken):
            promise(begin + n_bytes <= after, "tensors overlap")
        for tensor in file.tensors.values():
            promise(tensor.raw().size == tensor.n_bytes, "a view of another size")
        if find_spec("gguf") is not None:
            _compare_with_reference(file, path)
    with GgufCheckpoint(path) as checkpoint:
        for weight in checkpoint.weights().values():
            try:
                values = weight.read()
            except CheckpointError:
                continue  # scales that are not finite
            promise(values.shape == weight.info.shape, "read() has another shape")
        checkpoint.sha256()
        open_family(checkpoint).spec.weight_shapes()


def run_gguf_tokenizer(data: bytes, folder: Path) -> None:
    """A vocabulary that is taken makes a tokenizer that keeps every id below its number."""
    path = folder / "x.gguf"
    path.write_bytes(data)
    with GgufFile(path) as file:
        if not has_tokenizer(file):
            return
        contents = text_contents(file)
        n_tokens = len(file.texts("tokenizer.ggml.tokens"))
    files = TextFiles.of_contents(path, contents)
    tokenizer = Tokenizer.open(files)
    for text in ("", "Hello, wörld 12", "<s> a </s>", "  the\n"):
        for allow_special in (True, False):
            try:
                ids = tokenizer.encode(text, allow_special=allow_special)
            except CheckpointError:
                continue  # a name of a special token that cannot be written as text
            promise(all(0 <= i < n_tokens for i in ids), "an id without a token")
            tokenizer.decode(ids, skip_special=False).encode("utf-8")
    ends = json.loads(contents["generation_config.json"]).get("eos_token_id", [])
    ends = ends if isinstance(ends, list) else [ends]
    promise(all(0 <= i < n_tokens for i in ends), "an end id without a token")
    ChatTemplate.open(files)


def seeds_gguf_tokenizer() -> list[bytes]:
    byte_level = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokens = ["<|bos|>", "<|im_end|>", *byte_level, "th", "the", "<|tool|>", "<think>"]
    types = [3, 3, *[1] * 256, 1, 1, 3, 4]
    bpe = {
        "general.architecture": "llama",
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": "smollm",
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.token_type": types,
        "tokenizer.ggml.merges": ["t h", "th e"],
        "tokenizer.ggml.bos_token_id": 0,
        "tokenizer.ggml.eos_token_id": 1,
        "tokenizer.ggml.add_bos_token": True,
        "tokenizer.chat_template": "{{ messages[0].content }}",
    }
    pieces = ["<unk>", "<s>", "</s>", "<0x0A>", "▁", "a", "t", "h", "▁t", "th", "▁th", "  "]
    sentencepiece = {
        "general.architecture": "gemma2",
        "tokenizer.ggml.model": "llama",
        "tokenizer.ggml.tokens": pieces,
        "tokenizer.ggml.scores": [-float(i) for i in range(len(pieces))],
        "tokenizer.ggml.token_type": [2, 3, 3, 6, 1, 1, 1, 1, 1, 1, 1, 4],
        "tokenizer.ggml.eos_token_id": 2,
    }
    llama = {**sentencepiece, "general.architecture": "llama"}
    return [gguf_bytes(keys, {}) for keys in (bpe, sentencepiece, llama)]


def mutate_gguf_tokenizer(data: bytes, rng: Random) -> bytes:
    """Change numbers of the header, or a few bytes: of texts, types and scores."""
    if rng.random() < 0.5:
        return mutate_gguf(data, rng)
    return mutate_bytes(data, rng)


def _compare_with_reference(file: GgufFile, path: Path) -> None:
    import gguf

    try:
        reference = gguf.GGUFReader(path)
    except Exception as error:  # noqa: BLE001 - the package raises whatever numpy raises
        # It takes no arrays of bool or of nothing, and no alignment but its own idea of one.
        promise(False, f"the gguf package refuses it: {type(error).__name__}: {error}"[:160])
        return
    theirs = {t.name: t for t in reference.tensors}
    promise(set(theirs) == set(file.tensors), "other tensors than the gguf package")
    for name, tensor in file.tensors.items():
        shape = tuple(int(n) for n in reversed(theirs[name].shape))
        promise(shape == tensor.shape, f"other shape of {name[:40]!r}")
        promise(theirs[name].data.tobytes() == tensor.raw().tobytes(), "other bits")
    for key, value in file.metadata.items():
        if not isinstance(value, GgufArray):
            found = reference.get_field(key)
            same = found is not None and (found.contents() == value or value != value)
            promise(same, f"other value of {key[:40]!r}")


def seeds_gguf() -> list[bytes]:
    rng = np.random.default_rng(0)
    width, ffn, vocab = 32, 32, 8

    def floats(*shape: int) -> tuple[str, tuple[int, ...], bytes]:
        return "F32", shape, rng.standard_normal(shape, dtype=np.float32).tobytes()

    def coded(kind: str, n: int, m: int) -> tuple[str, tuple[int, ...], bytes]:
        codes = rng.integers(0, 16, (n, m)).astype(np.uint8)
        scales = np.ones((n, m // 32), np.float16)
        return kind, (n, m), (q4_0_bytes if kind == "Q4_0" else q8_0_bytes)(codes, scales)

    metadata = {
        "general.architecture": "llama",
        "general.alignment": 32,
        "llama.block_count": 1,
        "llama.context_length": 64,
        "llama.embedding_length": width,
        "llama.feed_forward_length": ffn,
        "llama.attention.head_count": 2,
        "llama.attention.head_count_kv": 1,
        "llama.attention.layer_norm_rms_epsilon": 1e-5,
        "llama.rope.freq_base": 10000.0,
        "tokenizer.ggml.tokens": ["a", "b"],
        "tokenizer.ggml.scores": [0.5, 1.5],
    }
    tensors = {"token_embd.weight": coded("Q8_0", vocab, width)}
    for part, n, m in (
        ("attn_q", 32, width), ("attn_k", 16, width), ("attn_v", 16, width),
        ("attn_output", width, 32), ("ffn_gate", ffn, width), ("ffn_up", ffn, width),
        ("ffn_down", width, ffn),
    ):  # fmt: skip
        tensors[f"blk.0.{part}.weight"] = coded("Q4_0", n, m)
    tensors["blk.0.attn_norm.weight"] = floats(width)
    tensors["blk.0.ffn_norm.weight"] = floats(width)
    tensors["output_norm.weight"] = floats(width)
    small = {"general.architecture": "llama", "is_it": True, "n": 3, "t": ["é", ""]}
    q6_k = ("Q6_K", (2, 256), bytes(range(210)) * 2)
    half = ("F16", (2, 3), np.arange(6, dtype="<f2").tobytes())
    more = {
        name: (name, (2, 256), rng.integers(0, 256, 2 * size).astype(np.uint8).tobytes())
        for name, size in (("Q4_1", 160), ("Q4_K", 144), ("IQ2_XS", 74), ("MXFP4", 136))
    }
    ropes = {f"rope_factors_{length}.weight": floats(8) for length in ("long", "short")}
    gemma = {key.replace("llama.", "gemma3."): value for key, value in metadata.items()} | {
        "general.architecture": "gemma3",
        "gemma3.attention.sliding_window": 16,
        "gemma3.rope.scaling.type": "yarn",
        "gemma3.rope.scaling.factor": 4.0,
        "split.count": 0,
    }
    return [
        gguf_bytes(metadata, tensors),
        gguf_bytes(small, {"output.weight": q6_k, "half": half, "rope_freqs.weight": floats(16)}),
        gguf_bytes({"general.architecture": "phi3"}, {**more, **ropes}),
        gguf_bytes(gemma, tensors),
        gguf_bytes({}, {}, version=2),
    ]


def mutate_gguf(data: bytes, rng: Random) -> bytes:
    return mutate_fields(data, rng, gguf_places(data))


def gguf_places(data: bytes) -> list[tuple[int, str]]:
    """Find the numbers of a header; a parser of its own that gives up where it must."""
    places: list[tuple[int, str]] = [(4, "I"), (8, "Q"), (16, "Q")]
    position = 24

    def take(code: str) -> int:
        nonlocal position
        if position > len(data):
            raise struct.error("the header ends here")
        (value,) = struct.unpack_from(f"<{code}", data, position)
        places.append((position, code))
        position += struct.calcsize(f"<{code}")
        return int(value)

    def text() -> None:
        nonlocal position
        position += take("Q")

    sizes = {
        0: "B",
        1: "B",
        2: "H",
        3: "H",
        4: "I",
        5: "I",
        6: "I",
        7: "B",
        10: "Q",
        11: "Q",
        12: "Q",
    }
    try:
        n_tensors, n_keys = struct.unpack_from("<QQ", data, 8)
        for _ in range(n_keys):
            text()
            kind = take("I")
            n_items = 1
            if kind == 9:
                kind, n_items = take("I"), take("Q")
            for _ in range(min(n_items, 8)):
                text() if kind == 8 else take(sizes[kind])
        for _ in range(n_tensors):
            text()
            for _ in range(take("I")):
                take("Q")
            take("I")
            take("Q")
    except (struct.error, KeyError, OverflowError):
        pass
    return places if len(data) >= 24 else []


def run_blob(data: bytes, folder: Path) -> None:
    """Walk a Core ML weight file and read what it says it holds."""
    path = folder / "weight.bin"
    path.write_bytes(data)
    reader = BlobReader(path)
    offset = 64
    for record in reader.walk():
        promise(record.data_offset + record.n_bytes <= len(data), "data outside the file")
        promise(record.offset >= offset, "records run backwards")
        offset = record.offset
        values = reader.read(record.offset, record.type, (record.n_values,))
        promise(values.shape == (record.n_values,), "another shape than asked for")
    for shape in ((4, 8), (0, 1 << 40), (1 << 62, 4), (1 << 63, 2), (0,), ()):
        for kind in (BlobType.FP16, BlobType.INT4, BlobType.INT32):
            try:
                values = reader.read(64, kind, shape)
            except FormatError:
                continue
            promise(values.shape == shape, "another shape than asked for")


def seeds_blob() -> list[bytes]:
    import tempfile

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "weight.bin"
        with BlobWriter(path) as writer:
            writer.write(np.arange(8, dtype=np.float32))
            writer.write_codes(np.arange(32, dtype=np.uint8).reshape(4, 8) % 16, 4)
            writer.write(np.arange(3, dtype=np.int32))
        full = path.read_bytes()
        with BlobWriter(path):
            pass
        return [full, path.read_bytes()]


def mutate_blob(data: bytes, rng: Random) -> bytes:
    words = [(i, code) for i in range(0, min(len(data), 512) - 8, 8) for code in "IQ"]
    return mutate_fields(data, rng, words)


TARGETS = (
    Target("safetensors", run_safetensors, seeds_safetensors, mutate_safetensors),
    Target("gguf", run_gguf, seeds_gguf, mutate_gguf),
    Target(
        "gguf-tokenizer",
        run_gguf_tokenizer,
        seeds_gguf_tokenizer,
        mutate_gguf_tokenizer,
        memory_bytes=64 << 20,
    ),
    Target("coreml-weights", run_blob, seeds_blob, mutate_blob),
)
