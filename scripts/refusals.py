"""Write docs/refusals.md: what edgekit refuses, and the messages.

    PYTHONPATH=. python scripts/refusals.py

Every row is a real call on a tiny random checkpoint; only free disk and memory are made up. The
tests compare the file with what this script makes, so that its messages are the current ones.
"""

import dataclasses
import json
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, Final
from unittest import mock

from edgekit.decision import Accepted, Rejected
from edgekit.devices.probe import probe_host
from edgekit.errors import EdgekitError
from edgekit.families import FAMILIES
from edgekit.families.other_types import DIFFERENCES
from edgekit.pipeline.export import export
from edgekit.pipeline.inspect import inspect
from tests.builders import write_tiny_checkpoint

DOC: Final = Path(__file__).resolve().parent.parent / "docs" / "refusals.md"

# model_type of config.json, as published models have it.
OTHER_TYPES: Final = (
    "mixtral", "qwen3_moe", "gpt_oss", "deepseek_v3", "gemma4", "mllama", "internlm2", "chatglm",
    "phi", "gpt2", "bloom", "mamba2", "nemotron_h", "t5", "bert",
)  # fmt: skip

# What a config of a known family asks for -> member of tests/tiny_families.py, keys that say so.
CONFIGS: Final[Mapping[str, tuple[str, Mapping[str, Any]]]] = {
    "a key nobody knows": ("llama", {"residual_gate": True}),
    "another position encoding": (
        "llama",
        {"rope_scaling": {"rope_type": "proportional", "factor": 2.0}},
    ),
    "another activation": ("llama", {"hidden_act": "gelu"}),
    "another activation in Gemma": ("gemma", {"hidden_activation": "gelu"}),
    "softcapped logits": ("gemma3_text", {"final_logit_softcapping": 30.0}),
    "state space layers": ("granitemoehybrid", {"layer_types": ["mamba", "attention"]}),
    "experts": ("granitemoehybrid", {"num_local_experts": 64}),
    "heads that do not divide": ("llama", {"num_key_value_heads": 3}),
    "an odd head width": ("llama", {"head_dim": 33}),
    "a context length of 0": ("llama", {"max_position_embeddings": 0}),
}

# What the decoder has -> member, keys, and which format then says no or holds less.
FORMATS: Final[Mapping[str, tuple[str, Mapping[str, Any]]]] = {
    "fp32 weights": ("llama", {}),
    "heads of 20 channels": ("llama", {"head_dim": 20}),
    "row lengths that no group divides": ("llama", {"intermediate_size": 250}),
    "Gemma 3 with attention biases": ("gemma3_text", {"attention_bias": True}),
    "Gemma, its activation": ("gemma", {}),
    "Gemma 2, its window in every other layer": ("gemma2", {}),
    "Gemma 2 with a head of its own": ("gemma2", {"tie_word_embeddings": False}),
    "Qwen3 with attention biases": ("qwen3", {"attention_bias": True}),
    "Qwen3 with a sliding window": (
        "qwen3",
        {"use_sliding_window": True, "sliding_window": 24, "max_window_layers": 1},
    ),
    "Mistral v0.1, its window in all layers": ("mistral-v0.1", {}),
    "Llama with half of the channels rotated": ("llama", {"partial_rotary_factor": 0.5}),
    "LongRoPE": ("phi3", {}),
}


def main() -> None:
    """Write the file."""
    DOC.write_text(make_text(), encoding="utf-8")


def make_text() -> str:
    """Give the text of docs/refusals.md."""
    with (
        tempfile.TemporaryDirectory() as folder,
        tempfile.TemporaryDirectory() as home,
        # Rates that were measured on this machine would change the memory that is named.
        mock.patch.dict(os.environ, {"EDGEKIT_HOME": home}),
    ):
        return _fill(Path(folder))


def _fill(root: Path) -> str:
    return TEMPLATE.format(
        families=", ".join(f"`{name}`" for name in sorted(FAMILIES)),
        types=_rows(_type_rows(root)),
        configs=_rows(_config_rows(root)),
        formats=_rows(_format_rows(root)),
        preflight=_rows(_preflight_rows(root)),
    )


def _type_rows(root: Path) -> Iterator[tuple[str, ...]]:
    for model_type in OTHER_TYPES:
        folder = write_tiny_checkpoint(root / model_type, "llama")
        _edit_config(folder, model_type=model_type)
        error = _error_of(inspect, folder)
        yield (f"`{model_type}`", _cell(DIFFERENCES[model_type]), _cell(error.do))


def _config_rows(root: Path) -> Iterator[tuple[str, ...]]:
    for what, (member, keys) in CONFIGS.items():
        folder = write_tiny_checkpoint(root / what, member, **keys)
        error = _error_of(inspect, folder)
        yield (what, f"`{json.dumps(dict(keys))}`", _said(error, root), _cell(error.do))


def _format_rows(root: Path) -> Iterator[tuple[str, ...]]:
    for what, (member, keys) in FORMATS.items():
        folder = write_tiny_checkpoint(root / f"f {what}", member, **keys)
        found = inspect(folder)
        for form, by_scheme in found.support.items():
            reasons: dict[str, list[str]] = {}
            for scheme, decision in by_scheme.items():
                if isinstance(decision, Rejected):
                    reasons.setdefault(f"refused: {decision.reason}", []).append(scheme)
                elif isinstance(decision, Accepted):
                    for note in decision.notes:
                        reasons.setdefault(f"limit: {note}", []).append(scheme)
            for reason, schemes in reasons.items():
                # Said of every model; one row is enough.
                is_general = "Neural Engine" in reason or "Core ML keeps" in reason
                if not is_general or what == "fp32 weights":
                    names = "all" if len(schemes) == len(by_scheme) else ", ".join(schemes)
                    yield (what, form.value, names, _cell(reason))
        held = {item.scheme for item in found.predictions}
        for scheme in ("int8", "int4"):
            if f"{scheme}-g32" not in held:
                error = _error_of(export, folder, "mlx", scheme, folder / "out")
                yield (what, "all", f"{scheme}-g32", f"refused: {_said(error, root)}")


def _preflight_rows(root: Path) -> Iterator[tuple[str, ...]]:
    good = write_tiny_checkpoint(root / "good")
    usage = shutil.disk_usage(root)._replace(free=100 << 10)
    host = dataclasses.replace(probe_host(), memory_bytes=64 << 20)
    small_disk = mock.patch.object(shutil, "disk_usage", lambda path: usage)
    small_memory = mock.patch("edgekit.pipeline.preflight.probe_host", lambda: host)
    pickled = write_tiny_checkpoint(root / "pickled")
    (pickled / "model.safetensors").rename(pickled / "pytorch_model.bin")
    sharded = write_tiny_checkpoint(root / "sharded", shards=3)
    (sharded / "model-00002-of-00003.safetensors").unlink()
    cut = write_tiny_checkpoint(root / "cut")
    content = (cut / "model.safetensors").read_bytes()
    (cut / "model.safetensors").write_bytes(content[:-1000])
    other = write_tiny_checkpoint(root / "other")
    _edit_config(other, intermediate_size=128)
    tokens = write_tiny_checkpoint(root / "tokens")
    (tokens / "tokenizer.json").write_text("{}")
    cases: list[tuple[str, Path, Any]] = [
        ("a disk that is too small", good, small_disk),
        ("a machine with too little memory", good, small_memory),
        ("pickled weights", pickled, None),
        ("a weight file that is missing", sharded, None),
        ("a weight file that was cut off", cut, None),
        ("weights of another model", other, None),
        ("a damaged tokenizer", tokens, None),
        ("no such folder or name", root / "absent", None),
    ]
    for what, folder, patch in cases:
        if patch is not None:
            patch.start()
        try:
            error = _error_of(export, folder, "onnx", "int4", root / "out")
        finally:
            if patch is not None:
                patch.stop()
        if (root / "out").exists():
            raise SystemExit(f"{what}: something was written")
        yield (what, _said(error, root), _cell(error.do))


def _edit_config(folder: Path, **keys: Any) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | keys))


def _error_of(call: Callable[..., object], *arguments: object) -> EdgekitError:
    try:
        call(*arguments)
    except EdgekitError as error:
        return error
    raise SystemExit(f"{arguments[0]} was not refused")


def _said(error: EdgekitError, root: Path) -> str:
    parts = [error.what]
    if error.got is not None:
        parts.append(f"got {error.got}")
    if error.wanted is not None:
        parts.append(f"wanted {error.wanted}")
    # Of a path only the file matters here.
    text = "; ".join(parts)
    for folder in sorted((p for p in root.iterdir() if p.is_dir()), key=lambda p: -len(str(p))):
        text = text.replace(f"{folder}/", "").replace(str(folder), "MODEL")
    return _cell(text.replace(f"{root}/out", "OUT").replace(str(root), "."))


def _cell(text: str | None) -> str:
    return (text or "").replace("|", "\\|").replace("\n", " ")


def _rows(rows: Iterator[tuple[str, ...]]) -> str:
    return "\n".join(f"| {' | '.join(cells)} |" for cells in rows)


TEMPLATE: Final = """# What is refused, and what to do then

Made by `PYTHONPATH=. python scripts/refusals.py`; every row shows edgekit's current message. All
errors on this page come before any work, with exit code 1 and nothing written.

## Architectures

Families: {families}. Any other `model_type` is refused; the message says what to do. The results of
`--via optimum` for each architecture are in [oracle.md](oracle.md).

| model_type | differs in | what to do |
|---|---|---|
{types}

## Configs of a known family

A key that is neither used nor ignored by name is an error: it may change the result.

| config asks for | keys | message | what to do |
|---|---|---|---|
{configs}

## Formats

`edgekit inspect` shows the answer of every format before any work. An export prints limits and
keeps them in the manifest.

| decoder | format | schemes | answer |
|---|---|---|---|
{formats}

## Before an export

| fault | message | what to do |
|---|---|---|
{preflight}
"""


if __name__ == "__main__":
    main()
