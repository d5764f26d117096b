"""Write docs/integrity.md: what becomes of an artifact that was changed after its export.

    PYTHONPATH=. python scripts/integrity.py [MODEL]

Artifacts of the bundled model, one of each format, are changed in every way that the page lists;
a seed decides which bytes. Each change is judged twice: by what ``edgekit verify`` begins with
(files, then claims), and by a load, as ``run``, ``chat``, ``serve``, ``evaluate``, ``compare`` and
``profile`` do it.
"""

from __future__ import annotations

import os
import random
import shutil
import socket
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Final

import edgekit
from edgekit.artifact import MANIFEST_NAME, Artifact, Format, Manifest
from edgekit.errors import EdgekitError
from edgekit.pipeline.claims import recover_entries, refuse_false_claims

DOC: Final = Path(__file__).resolve().parent.parent / "docs" / "integrity.md"
SEED: Final = 9
N_FLIPS: Final = 500
# Each is also loaded; the engine of GGUF is an optional package.
ALL: Final = (Format.ONNX, Format.MLX, Format.COREML)
ZEROS: Final = "0" * 64


@dataclass(frozen=True, slots=True)
class Row:
    """How many changes of a kind were tried, found by verify, and refused at a load."""

    kind: str
    formats: str
    n_tried: int
    n_found: int
    n_refused: int


def is_found(folder: Path) -> bool:
    """Tell whether the checks of files and claims, with which ``verify`` begins, find a change."""
    try:
        artifact = Artifact.open(folder)
        artifact.check_files()
        refuse_false_claims(artifact, recover_entries(artifact))
    except EdgekitError:
        return True
    return False


def is_refused(folder: Path) -> bool:
    """Tell whether a load refuses an artifact."""
    try:
        edgekit.load(folder).close()
    except EdgekitError:
        return True
    return False


def try_flips(artifacts: Sequence[Artifact], n_flips: int, seed: int) -> Iterator[Row]:
    """Flip one bit at a time: the file, the byte and the bit are drawn, each file alike often."""
    for at, artifact in enumerate(artifacts):
        draw = random.Random(f"{seed} {artifact.format.value}")
        n = n_flips // len(artifacts) + (at < n_flips % len(artifacts))
        with copied(artifact) as folder:
            names = sorted(str(p.relative_to(folder)) for p in folder.rglob("*") if p.is_file())
            counts: dict[str, list[int]] = {}
            for _ in range(n):
                path = folder / draw.choice(names)
                place, bit = draw.randrange(path.stat().st_size), draw.randrange(8)
                with flipped(path, place, bit):
                    seen = counts.setdefault(path.name, [0, 0, 0])
                    for i, is_so in enumerate((True, is_found(folder), is_refused(folder))):
                        seen[i] += is_so
        for name, (n_tried, n_found, n_refused) in sorted(counts.items()):
            yield Row(f"a bit of {name}", artifact.format.value, n_tried, n_found, n_refused)


def try_remembered(artifacts: Sequence[Artifact], n_each: int) -> Iterator[Row]:
    """Flip a bit of the weights after a load that remembered their hash, and hide when."""
    for artifact in artifacts:
        counts = [0, 0, 0]
        for _ in range(n_each):
            with copied(artifact) as folder:
                weights = max(artifact.manifest.files, key=lambda entry: entry.n_bytes).path
                time.sleep(2.1)  # a hash of younger files is not remembered
                edgekit.load(folder).close()
                status = (folder / weights).stat()
                with flipped(folder / weights, status.st_size - 9, 3):
                    os.utime(folder / weights, ns=(status.st_atime_ns, status.st_mtime_ns))
                    for i, is_so in enumerate((True, is_found(folder), is_refused(folder))):
                        counts[i] += is_so
        yield Row(
            "a bit of the weights, time of writing set back",
            artifact.format.value,
            *counts,
        )


@contextmanager
def flipped(path: Path, place: int, bit: int) -> Iterator[None]:
    """Have one bit of a file flipped while the block runs."""
    _flip(path, place, bit)
    try:
        yield
    finally:
        _flip(path, place, bit)


def _flip(path: Path, place: int, bit: int) -> None:
    with path.open("r+b") as stream:
        stream.seek(place)
        byte = stream.read(1)[0]
        stream.seek(place)
        stream.write(bytes([byte ^ (1 << bit)]))


@contextmanager
def copied(artifact: Artifact) -> Iterator[Path]:
    """Give a copy of an artifact while the block runs."""
    with tempfile.TemporaryDirectory() as place:
        yield Path(shutil.copytree(artifact.path, Path(place) / "artifact"))


def _pipe(path: Path) -> None:
    os.mkfifo(path)


def _socket(path: Path) -> None:
    # A socket's path must be short.
    with socket.socket(socket.AF_UNIX) as made, tempfile.TemporaryDirectory(dir="/tmp") as short:
        made.bind(f"{short}/s")
        shutil.move(f"{short}/s", path)


def _link(path: Path) -> None:
    path.symlink_to("/etc/hostname")


def _text(text: str) -> Callable[[Path], None]:
    def write(path: Path) -> None:
        path.parent.mkdir(exist_ok=True)
        path.write_text(text, encoding="utf-8")

    return write


# Name of what is planted -> how; every name is one that some program opens in a model folder.
READ_NAMES: Final[dict[str, Callable[[Path], None]]] = {
    "chat_template.jinja": _text("{{ messages }}"),
    "Chat_Template.JINJA": _text("{{ messages }}"),
    "chat_template.json": _text("{}"),
    "additional_chat_templates/tool_use.jinja": _text("{{ messages }}"),
    "added_tokens.json": _text('{"<x>": 7}'),
    "special_tokens_map.json": _text('{"eos_token": "<x>"}'),
    "preprocessor_config.json": _text("{}"),
    "tokenizer.model": _text("x"),
    "vocab.json": _text("{}"),
    "merges.txt": _text("a b"),
    "tekken.json": _text("{}"),
    "model-00002-of-00002.safetensors": _text("x"),
    "model_extra.safetensors": _text("x"),
    "model.safetensors.index.json": _text("{}"),
    "model.onnx.data": _text("x"),
    "decoder.onnx": _text("x"),
    "modeling_pocket.py": _text("raise SystemExit"),
    "model.mlmodelc/weights.bin": _text("x"),
    "other.mlpackage/Manifest.json": _text("{}"),
    "adapters.safetensors": _text("x"),
    "pipe, named notes": _pipe,
    "vocab.json, a pipe": _pipe,
    "socket": _socket,
    "tokenizer.model, a link": _link,
    "merges.txt, a link": _link,
}
UNREAD_NAMES: Final[dict[str, Callable[[Path], None]]] = {
    "README.md": _text("x"),
    "LICENSE": _text("x"),
    "notes.txt": _text("x"),
    "report.json": _text("{}"),
    "demo.py": _text("x"),
    "picture.png": _text("x"),
    "pictures/one.png": _text("x"),
}
IGNORED_NAMES: Final[dict[str, Callable[[Path], None]]] = {
    ".DS_Store": _text("x"),
    "._config.json": _text("x"),
    "Thumbs.db": _text("x"),
    "desktop.ini": _text("x"),
    ".gitattributes": _text("x"),
    ".git/config": _text("x"),
    ".cache/huggingface": _text("x"),
}


def try_planted(artifacts: Sequence[Artifact]) -> Iterator[Row]:
    """Put files into copies of artifacts, take files away, and put other things in their place."""
    for kind, names in (
        ("planted, under a name that programs read", READ_NAMES),
        ("planted, under a name that nothing reads", UNREAD_NAMES),
        ("kept by file managers, git and downloads", IGNORED_NAMES),
    ):
        yield _judge(
            kind,
            artifacts,
            [partial(_plant, name=name.split(", ")[0], make=make) for name, make in names.items()],
        )
    for artifact in artifacts:
        listed = [entry.path for entry in artifact.manifest.files]
        ways = (("removed", None), ("replaced by a pipe", _pipe), ("replaced by a link", _link))
        for kind, make in ways:
            chosen = listed if make is None else listed[:2]
            changes = [partial(_replace, name=name, make=make) for name in chosen]
            yield _judge(f"a listed file {kind}", [artifact], changes)


def _plant(folder: Path, name: str, make: Callable[[Path], None]) -> None:
    make(folder / name)


def _replace(folder: Path, name: str, make: Callable[[Path], None] | None) -> None:
    (folder / name).unlink()
    if make is not None:
        make(folder / name)


def _judge(
    kind: str, artifacts: Sequence[Artifact], changes: Sequence[Callable[[Path], Any]]
) -> Row:
    """Make each change to a copy of one of the artifacts, in turn."""
    n_found = n_refused = 0
    for i, change in enumerate(changes):
        with copied(artifacts[i % len(artifacts)]) as folder:
            change(folder)
            n_found += is_found(folder)
            n_refused += is_refused(folder)
    formats = ", ".join(artifact.format.value for artifact in artifacts)
    return Row(kind, formats, len(changes), n_found, n_refused)


Change = Callable[[Manifest], Manifest]


@dataclass(frozen=True, slots=True)
class Claim:
    """A false claim: what is claimed, how a manifest comes to claim it, in which formats."""

    field: str
    change: Change
    formats: tuple[Format, ...] = ALL


def _says(**fields: Any) -> Change:
    return lambda manifest: replace(manifest, **fields)


def _decoder(**fields: Any) -> Change:
    return lambda manifest: replace(manifest, decoder={**manifest.decoder, **fields})


def _first(part: str, **fields: Any) -> Change:
    """Change the first item of a list of the manifest."""

    def change(manifest: Manifest) -> Manifest:
        first, *rest = getattr(manifest, part)
        changed: dict[str, Any] = {part: (replace(first, **fields), *rest)}
        return replace(manifest, **changed)

    return change


def _setting(**fields: Any) -> Change:
    return lambda manifest: replace(manifest, settings={**manifest.settings, **fields})


def _other_ends(manifest: Manifest) -> Manifest:
    ends = (replace(manifest.end_tokens[0], id=17),)
    return replace(_decoder(eos_token_ids=[17])(manifest), end_tokens=ends)


def _without_tokenizer(manifest: Manifest) -> Manifest:
    kept = tuple(entry for entry in manifest.files if entry.path != "tokenizer.json")
    return replace(manifest, files=kept)


FALSE_CLAIMS: Final = (
    Claim("scheme: another number of bits", _says(scheme="int8-g32")),
    Claim("scheme: another block", _says(scheme="int4-g64")),
    Claim("scheme: floats", _says(scheme="fp16")),
    Claim("format", lambda m: replace(m, format=ALL[(ALL.index(m.format) + 1) % 3])),
    Claim("model_type", _says(model_type="qwen3")),
    Claim(
        "decoder.model_type", lambda m: _decoder(model_type="qwen3")(_says(model_type="qwen3")(m))
    ),
    Claim("decoder.eos_token_ids", _decoder(eos_token_ids=[17])),
    Claim("decoder.eos_token_ids and end_tokens alike", _other_ends),
    Claim("text of an end token", _first("end_tokens", text="<end>")),
    Claim("origins of an end token", _first("end_tokens", origins=("config.json eos_token_id",))),
    Claim("no end_tokens", _says(end_tokens=())),
    Claim("decoder.bos_token_id", _decoder(bos_token_id=5)),
    Claim("decoder.pad_token_id", _decoder(pad_token_id=9)),
    Claim("decoder.context_length", _decoder(context_length=2560)),
    Claim("context_length: fewer", _says(context_length=640), (Format.ONNX, Format.COREML)),
    Claim("context_length: more", _says(context_length=2560)),
    Claim("decoder.rope", lambda m: _decoder(rope={**m.decoder["rope"], "theta": 20000.0})(m)),
    Claim("decoder.norm_eps", _decoder(norm_eps=1e-6)),
    Claim("decoder.sliding_window", _decoder(sliding_window=1024)),
    Claim("decoder.activation", _decoder(activation="gelu_tanh")),
    Claim("decoder.vocab_size", _decoder(vocab_size=2047)),
    Claim("decoder.is_tied", _decoder(is_tied=False)),
    Claim("sha256 of a tensor", _first("tensors", sha256=ZEROS)),
    Claim("shape of a tensor", _first("tensors", shape=(1, 1))),
    Claim("encoding of a tensor", _first("tensors", encoding="int4-g32")),
    Claim("name of a tensor", _first("tensors", name="embed2")),
    Claim("reason of a tensor", _first("tensors", reason="as asked")),
    Claim("imported of a tensor", lambda m: _last(m, imported="gguf q4_0")),
    Claim("a tensor twice", lambda m: replace(m, tensors=(*m.tensors, m.tensors[0]))),
    Claim("a tensor left out", lambda m: replace(m, tensors=m.tensors[:-1])),
    Claim("weights_sha256", _says(weights_sha256=ZEROS)),
    Claim("n_parameters", lambda m: replace(m, n_parameters=m.n_parameters + 1)),
    Claim("tokenizer.json not listed", _without_tokenizer),
    Claim("a file twice", lambda m: replace(m, files=(*m.files, m.files[0]))),
    Claim("sha256 of a file", _first("files", sha256=ZEROS)),
    Claim("size of a file", _first("files", n_bytes=1)),
    Claim("settings.opset", _setting(opset=20), (Format.ONNX,)),
    Claim("settings.float_dtype", _setting(float_dtype="float16"), (Format.MLX,)),
    Claim("settings.specification_version", _setting(specification_version=8), (Format.COREML,)),
    Claim("model_name", _says(model_name="other"), (Format.COREML,)),
    Claim("source_sha256", _says(source_sha256=ZEROS), (Format.COREML,)),
    Claim("adapter without its hash", _says(adapter="lora")),
)


def _last(manifest: Manifest, **fields: Any) -> Manifest:
    *rest, last = manifest.tensors
    return replace(manifest, tensors=(*rest, replace(last, **fields)))


_NAMED: Final = (Format.ONNX, Format.MLX)
# What no file of the artifact says a second time; docs/security.md says so too.
UNCHECKED: Final = (
    Claim("model_name", _says(model_name="other"), _NAMED),
    Claim("source", _says(source="elsewhere")),
    Claim("source_sha256", _says(source_sha256=ZEROS), _NAMED),
    Claim("adapter with a hash", _says(adapter="lora", adapter_sha256=ZEROS)),
    Claim("notes", _says(notes=("all is well",))),
    Claim("tool_versions", lambda m: replace(m, tool_versions={**m.tool_versions, "python": "2"})),
    Claim("context_length: fewer", _says(context_length=640), (Format.MLX,)),
)


def try_claims(artifacts: Sequence[Artifact], claims: Sequence[Claim]) -> Iterator[Row]:
    """Have manifests say what is false.

    ``verify`` gets the manifest sealed again, as somebody would leave it who means to deceive; a
    load gets it with the old seal, as an accident or a careless hand leaves it.
    """
    for claim in claims:
        chosen = [artifact for artifact in artifacts if artifact.format in claim.formats]
        n_found = n_refused = 0
        for artifact in chosen:
            with copied(artifact) as folder:
                path = folder / MANIFEST_NAME
                before = path.read_text(encoding="utf-8")
                after = claim.change(artifact.manifest).to_json()
                path.write_text(after, encoding="utf-8")
                n_found += is_found(folder)
                path.write_text(after.replace(_seal(after), _seal(before)), encoding="utf-8")
                n_refused += is_refused(folder)
        formats = ", ".join(artifact.format.value for artifact in chosen)
        yield Row(claim.field, formats, len(chosen), n_found, n_refused)


def _seal(text: str) -> str:
    (line,) = (line for line in text.splitlines() if line.startswith('  "manifest_sha256"'))
    return line.split('"')[3]


def main() -> None:
    """Export the model, try everything, write the page."""
    model = sys.argv[1] if len(sys.argv) > 1 else "pocket"
    with tempfile.TemporaryDirectory() as place:
        # The record of hashes is this script's own.
        os.environ["EDGEKIT_HOME"] = str(Path(place) / "home")
        artifacts = edgekit.export(model, ALL, "int4", Path(place) / "artifacts")
        DOC.write_text(make_text(artifacts), encoding="utf-8")


def make_text(artifacts: Sequence[Artifact]) -> str:
    """Give the text of docs/integrity.md."""
    flips = list(try_flips(artifacts, N_FLIPS, SEED))
    remembered = list(try_remembered(artifacts, 5))
    planted = list(try_planted(artifacts))
    claims = list(try_claims(artifacts, FALSE_CLAIMS))
    unchecked = list(try_claims(artifacts, UNCHECKED))
    return _PAGE.format(
        seed=SEED,
        n_flips=sum(row.n_tried for row in flips),
        n_claims=len(FALSE_CLAIMS),
        flips=_table(flips),
        remembered=_table(remembered),
        planted=_table(planted),
        claims=_table(claims),
        unchecked=_table(unchecked),
    )


def _table(rows: Sequence[Row]) -> str:
    lines = ["| what | formats | tried | found by verify | refused at load |"]
    lines.append("| --- | --- | ---: | ---: | ---: |")
    lines += [
        f"| {row.kind} | {row.formats} | {row.n_tried} | {row.n_found} of {row.n_tried} "
        f"| {row.n_refused} of {row.n_tried} |"
        for row in rows
    ]
    n_tried, n_found, n_refused = (
        sum(getattr(row, name) for row in rows) for name in ("n_tried", "n_found", "n_refused")
    )
    lines.append(f"| all | | {n_tried} | {n_found} of {n_tried} | {n_refused} of {n_tried} |")
    return "\n".join(lines)


_PAGE: Final = """\
# Artifacts that were changed after their export

Written by `scripts/integrity.py` (seed {seed}) from artifacts of the bundled model, int4, one of
each format. *Found by verify*: by the checks with which `edgekit verify` begins, files and claims;
what it computes after them is not needed for any row. *Refused at load*: by `edgekit.load`, the way
into `run`, `chat`, `serve`, `evaluate` and `compare`; `profile` makes the same check.

## {n_flips} flipped bits

File, byte and bit are drawn; every file of an artifact is drawn alike often, `manifest.json` too.

{flips}

## Flipped bits behind a remembered hash

The artifact is loaded once, so that its hashes are remembered; then a bit is flipped in place, and
the time of writing is set back to what it was. Size and time are the same; the time of the last
change of any kind, which no program can set, is not.

{remembered}

## Planted, removed and replaced files

What programs read under its name is refused by both. What nothing reads is found by `verify` only:
a README beside a model does no harm. What file managers, git and downloads keep there is passed
over.

{planted}

## {n_claims} false claims

For `verify` the manifest was sealed again after the change, as somebody leaves it who means to
deceive. For the load it has its old seal, as an accident leaves it. A load does not compute claims
again: a false manifest with a new seal is found by `verify` alone.

{claims}

## Claims that cannot be checked

Nothing in the artifact says these a second time, so `verify` cannot find them when the manifest was
sealed again. They say where an artifact comes from, and none changes what its weights compute.

{unchecked}
"""


if __name__ == "__main__":
    main()
