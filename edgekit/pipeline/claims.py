"""What a manifest claims about its artifact, computed again from the files of the artifact.

Everything that follows from the files is computed and compared: the tensors, the decoder, the end
tokens, sizes and counts, the list of files, and what a format says of itself. What says where an
artifact comes from (names, the source and its hash, notes, versions of tools) cannot be computed
from the artifact; docs/security.md lists it.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, fields, replace
from math import prod
from pathlib import Path, PurePosixPath
from typing import Any, Final

from edgekit.artifact import MANIFEST_NAME, Artifact, EndToken, Format, Manifest, TensorEntry
from edgekit.checkpoint.assets import read_end_ids
from edgekit.checkpoint.config import RawConfig
from edgekit.decision import Rejected
from edgekit.dtypes import DTYPES
from edgekit.encoding import Encoding
from edgekit.errors import ArtifactError, EdgekitError, QuantError, UsageError
from edgekit.exporters import open_exporter
from edgekit.exporters.coreml.lint import lint_package
from edgekit.exporters.gguf.exporter import FILE_NAME as GGUF_NAME
from edgekit.exporters.gguf.exporter import file_metadata, file_settings
from edgekit.exporters.gguf.modelfile import MODELFILE_NAME, make_modelfile
from edgekit.exporters.gguf.tokenizer import text_metadata
from edgekit.exporters.mlx.config import CONFIG_NAME, TORCH_DTYPES, read_config
from edgekit.exporters.mlx.exporter import WEIGHTS_NAME as MLX_WEIGHTS
from edgekit.exporters.mlx.models import choose_file, make_config
from edgekit.exporters.onnx.activations import (
    EXACT_KEY,
    describe_precision,
    is_exact,
    plan_precision,
    terms_of,
)
from edgekit.exporters.onnx.genai import GENAI_NAME, genai_config
from edgekit.exporters.onnx.recover import read_graph
from edgekit.exporters.onnx.weights import WEIGHTS_NAME as ONNX_WEIGHTS
from edgekit.exporters.onnx.weights import plan_linears
from edgekit.families import FAMILIES
from edgekit.families.base import Family
from edgekit.families.spec import DecoderSpec
from edgekit.formats.gguf import GgufFile
from edgekit.formats.mlpackage import PACKAGE_NAME, read_spec
from edgekit.formats.onnx_io import GRAPH_NAME
from edgekit.formats.safetensors import SafetensorsFile
from edgekit.lazy import load_object
from edgekit.model_files import GENERATION_NAME
from edgekit.quantize.fold import ChannelScales, Site, explain, find_sites
from edgekit.quantize.model import EncodedTensor, combine_hashes, encodings_of
from edgekit.quantize.plan import TensorPlan, plan_tensors
from edgekit.quantize.prequantized import CHANGES_OF_CODES, CODES_KEPT
from edgekit.scheme import Scheme, scheme_of
from edgekit.strict_json import read_object
from edgekit.text.files import TextFiles
from edgekit.text.view import TEMPLATE_ORIGIN, TOKENIZER_ORIGIN, read_text_view

_STATED_ORIGINS: Final = (f"{GENERATION_NAME} eos_token_id", f"{CONFIG_NAME} eos_token_id")
_FOUND_ORIGINS: Final = frozenset({TOKENIZER_ORIGIN, TEMPLATE_ORIGIN})
# What the stored tensors and the text files decide, and not config.json.
_DECIDED_ELSEWHERE: Final = frozenset({"eos_token_ids", "is_tied", "vocab_size"})
_IMPORTED: Final = "imported from "
_LEVEL: Final = "accuracy_level"
_SCALES: Final = "channel_scales"
_MAX_SHOWN: Final = 120
_MAX_TOLD: Final = 8


def false_claims(artifact: Artifact, entries: Sequence[TensorEntry]) -> list[str]:
    """Compare what a manifest claims with what the files of its artifact say.

    Args:
        artifact: An artifact whose files are those that the manifest lists, with these hashes.
        entries: Its tensors as they were read back from the files: name, shape, encoding, and the
            hash of the codes; None for floats. ``reason`` and ``imported`` are not looked at.

    Returns:
        One sentence for each claim that is not true; empty if all are.
    """
    manifest = artifact.manifest
    found = [*_about_files(artifact), *_about_tensors(manifest, entries)]
    try:
        spec = DecoderSpec.from_dict(manifest.decoder)
    except ValueError as error:
        return [*found, f"decoder: {error}"]
    found += _about_decoder(manifest, spec, entries)
    for judge in (_about_plan, _about_config, _about_ends, _OF_FORMAT[artifact.format]):
        try:
            found += judge(artifact, spec)
        except EdgekitError as error:
            found.append(str(error))
    return found


def refuse_false_claims(artifact: Artifact, entries: Sequence[TensorEntry]) -> None:
    """Refuse an artifact whose manifest says what its files do not; see ``false_claims``.

    Raises:
        ArtifactError: There are false claims; the first of them are told.
    """
    found = false_claims(artifact, entries)
    if found:
        more = f"; and {len(found) - _MAX_TOLD} more" if len(found) > _MAX_TOLD else ""
        raise ArtifactError(
            f"{artifact.path / MANIFEST_NAME}: false claims",
            got="; ".join(found[:_MAX_TOLD]) + more,
            wanted="what the files of the artifact say",
            do="Export the model again.",
        )


def _differs(what: str, said: object, found: object) -> Iterator[str]:
    if said != found:
        yield f"{what}: the manifest says {_shown(said)}, the files say {_shown(found)}"


def _shown(value: object) -> str:
    text = str(value) if isinstance(value, str | int) else repr(value)
    return (text if len(text) <= _MAX_SHOWN else f"{text[:_MAX_SHOWN]}...") or "nothing"


def _about_files(artifact: Artifact) -> Iterator[str]:
    """Judge the list of files; that they are as listed is what ``check_files`` says."""
    names = [entry.path for entry in artifact.manifest.files]
    folded = [name.casefold() for name in names]
    twice = sorted({name for name in names if folded.count(name.casefold()) > 1})
    if twice:
        yield f"files: listed twice: {_shown(', '.join(twice))}"
    for name in names:
        if PurePosixPath(name).as_posix() != name or name == MANIFEST_NAME or "\\" in name:
            yield f"files: {_shown(name)} is not the path of a file of an artifact"
    wanted = {
        Format.ONNX: GRAPH_NAME,
        Format.MLX: MLX_WEIGHTS,
        Format.COREML: f"{PACKAGE_NAME}/",
        Format.GGUF: GGUF_NAME,
    }
    if not any(name.startswith(wanted[artifact.format]) for name in names):
        yield f"files: no {wanted[artifact.format]}, which {artifact.format.value} artifacts hold"


def _about_tensors(manifest: Manifest, entries: Sequence[TensorEntry]) -> Iterator[str]:
    """Judge the list of tensors and what is computed of it."""
    claimed = {entry.name: entry for entry in manifest.tensors}
    stored = {entry.name: entry for entry in entries}
    yield from _differs("number of tensors", len(manifest.tensors), len(entries))
    odd = sorted(claimed.keys() ^ stored.keys())
    if odd:
        yield f"tensors: those of the manifest and of the files differ: {_shown(', '.join(odd))}"
    for name in claimed.keys() & stored.keys():
        ours, theirs = claimed[name], stored[name]
        yield from _differs(f"shape of {name}", list(ours.shape), list(theirs.shape))
        yield from _differs(f"encoding of {name}", ours.encoding, theirs.encoding)
        yield from _differs(f"sha256 of {name}", ours.sha256, theirs.sha256)
    yield from _differs("weights_sha256", manifest.weights_sha256, combine_hashes(entries))
    n_parameters = sum(prod(entry.shape) for entry in entries)
    yield from _differs("n_parameters", manifest.n_parameters, n_parameters)


def _about_decoder(
    manifest: Manifest, spec: DecoderSpec, entries: Sequence[TensorEntry]
) -> Iterator[str]:
    """Judge what the manifest says twice, and the decoder against the stored tensors."""
    if manifest.model_type != spec.model_type:
        yield f"model_type: {_shown(manifest.model_type)}, in the decoder {_shown(spec.model_type)}"
    shapes = {entry.name: entry.shape for entry in entries}
    wanted = spec.weight_shapes()
    odd = sorted(name for name in wanted.keys() | shapes if wanted.get(name) != shapes.get(name))
    if odd:
        yield f"decoder: its weights are not those of the files: {_shown(', '.join(odd))}"
    if not 2 <= manifest.context_length <= spec.context_length:
        yield (
            f"context_length: the manifest says {manifest.context_length}, its decoder has "
            f"{spec.context_length} positions"
        )
    if bool(manifest.adapter) != bool(manifest.adapter_sha256):
        yield "adapter: a folder without a hash, or a hash without a folder"


def _about_plan(artifact: Artifact, spec: DecoderSpec) -> Iterator[str]:
    """Judge the scheme, and the encoding and reason of each tensor, by the recipe for them.

    Codes of a source that was quantized already may have another group, and as many bits as were
    asked for where the recipe has more.
    """
    manifest = artifact.manifest
    asked = _scheme_of(manifest)
    try:
        plans = {item.name: item for item in plan_tensors(spec, asked)}
    except QuantError as error:
        yield f"scheme: the model cannot be stored as {asked}: {error}"
        return
    moved = _moved_scales(manifest, spec)
    yield from _about_scales(manifest, moved)
    for entry in manifest.tensors:
        item = plans.get(entry.name)
        if item is None:
            continue
        after = moved.reasons[entry.name]
        item = replace(item, reason=item.reason + after)
        is_kept = entry.imported is not None or entry.reason.endswith(CODES_KEPT)
        yield from _differs(f"keeps_codes of {entry.name}", entry.keeps_codes, is_kept)
        if entry.imported is not None and entry.sha256 is None:
            yield f"imported of {entry.name}: {_shown(entry.imported)}, for a tensor without codes"
        elif entry.imported is not None and entry.reason != _IMPORTED + entry.imported:
            yield f"reason of {entry.name}: {_shown(entry.reason)}, of imported codes"
        was_coded = entry.imported is not None or entry.reason.startswith(CHANGES_OF_CODES)
        if not was_coded or not _may_be_imported(Encoding.parse(entry.encoding), item, asked):
            yield from _differs_from_plan(entry, item)
        elif not entry.reason.endswith(after):
            yield f"reason of {entry.name}: {_shown(entry.reason)}, which ends in {_shown(after)}"
    if asked.is_quantized and not any(entry.sha256 for entry in manifest.tensors):
        yield f"scheme: the manifest says {asked}, and no tensor holds codes"


def _scheme_of(manifest: Manifest) -> Scheme:
    """Give the scheme that the manifest describes, or that its name stands for.

    Raises:
        UsageError: It is no scheme.
    """
    described = manifest.settings.get("scheme")
    if described is None:
        return Scheme.parse(manifest.scheme)
    if not isinstance(described, Mapping):
        raise UsageError("settings.scheme", got=_shown(described), wanted="keys with values")
    return scheme_of(described, name=manifest.scheme, where="settings.scheme")


@dataclass(frozen=True, slots=True)
class _Moved:
    """Where channel scales were moved, and what each tensor's reason ends in because of it."""

    sites: tuple[Site, ...]
    reasons: Mapping[str, str]


def _moved_scales(manifest: Manifest, spec: DecoderSpec) -> _Moved:
    """Tell from the tensors where channel scales can have moved, if the manifest says that any did.

    Whether they did cannot be told from the weights: a decoder with its scales moved computes the
    same.
    """
    plans = [
        TensorPlan(entry.name, entry.shape, Encoding.parse(entry.encoding), "", entry.keeps_codes)
        for entry in manifest.tensors
    ]
    sites = find_sites(spec, plans) if manifest.settings.get(_SCALES) else ()
    return _Moved(sites, {plan.name: plan.reason for plan in explain(spec, sites, plans)})


def _about_scales(manifest: Manifest, moved: _Moved) -> Iterator[str]:
    said = manifest.settings.get(_SCALES)
    text = said.get("measured_on") if isinstance(said, dict) else None
    wanted = ChannelScales(sites=moved.sites, measured_on=text or "").describe()
    yield from _differs(f"settings.{_SCALES}", said, wanted)


def _may_be_imported(encoding: Encoding, item: TensorPlan, asked: Scheme) -> bool:
    """Tell whether a source's own codes may be stored so, where the recipe says otherwise."""
    if encoding.block is None or item.encoding.block is None or item.encoding.has_palette:
        return encoding == item.encoding
    is_kept = encoding.bits in (asked.encoding.bits, item.encoding.bits)
    return is_kept and encoding.block >= item.encoding.block


def _differs_from_plan(entry: TensorEntry, item: TensorPlan) -> Iterator[str]:
    if entry.encoding != str(item.encoding):
        yield (
            f"encoding of {entry.name}: {entry.encoding}, "
            f"which is {item.encoding} in such an artifact"
        )
    if entry.reason != item.reason:
        yield f"reason of {entry.name}: {_shown(entry.reason)}, which is {_shown(item.reason)}"


def _about_config(artifact: Artifact, spec: DecoderSpec) -> Iterator[str]:
    """Judge the decoder by the config of the source, where the artifact carries it."""
    found = _spec_of_config(artifact)
    for field in fields(DecoderSpec) if found is not None else ():
        if field.name not in _DECIDED_ELSEWHERE:
            said = getattr(spec, field.name)
            yield from _differs(f"decoder.{field.name}", said, getattr(found, field.name))


def _spec_of_config(artifact: Artifact) -> DecoderSpec | None:
    """Read config.json as an export does; None where the artifact carries that of mlx-lm or none.

    Raises:
        EdgekitError: It is not the config of a model that edgekit knows.
    """
    path = artifact.listed_path(CONFIG_NAME)
    if path is None or artifact.format is Format.MLX:
        return None
    config = RawConfig.open(path)
    for key in artifact.manifest.ignored_config_keys:
        with suppress(UsageError):  # a key of a GGUF file's metadata
            config.ignore_as_asked([key])
    model_type = config.get("model_type")
    if not isinstance(model_type, str) or model_type not in FAMILIES:
        raise UsageError(f"{path}: model_type", got=model_type, wanted="one that edgekit knows")
    family: Family = load_object(FAMILIES[model_type])
    return family.read_spec(config)


def _about_ends(artifact: Artifact, spec: DecoderSpec) -> Iterator[str]:
    """Judge the end tokens by the tokenizer, the template and the configs in the artifact."""
    manifest = artifact.manifest
    claimed = {end.id: end for end in manifest.end_tokens}
    ids = [end.id for end in manifest.end_tokens]
    if ids != list(spec.eos_token_ids):
        yield f"end_tokens: {_shown(ids)}, in the decoder {_shown(list(spec.eos_token_ids))}"
    files = TextFiles.of_folder(artifact.path, [entry.path for entry in manifest.files])
    config = _spec_of_config(artifact)
    stated = {
        GENERATION_NAME: read_end_ids(files.read_object(GENERATION_NAME), GENERATION_NAME),
        CONFIG_NAME: config.eos_token_ids
        if config is not None
        else read_end_ids(files.read_object(CONFIG_NAME), CONFIG_NAME),
    }
    view = read_text_view(files, spec.vocab_size, stated)
    if files.names():
        yield from _differs("decoder.eos_token_ids", set(spec.eos_token_ids), set(view.end_ids))
    for end in view.ends:
        if end.id in claimed:
            yield from _about_end(claimed[end.id], end)


def _about_end(said: EndToken, found: EndToken) -> Iterator[str]:
    """Judge one end token; config files of an artifact state all of them, those of a source not."""
    yield from _differs(f"text of end token {said.id}", said.text, found.text)
    ours, theirs = (_FOUND_ORIGINS.intersection(end.origins) for end in (said, found))
    yield from _differs(f"origins of end token {said.id}", sorted(ours), sorted(theirs))
    odd = set(said.origins) - _FOUND_ORIGINS - set(_STATED_ORIGINS)
    if odd or not said.origins:
        yield f"origins of end token {said.id}: {_shown(sorted(odd))}, which nothing stands for"


def _about_onnx(artifact: Artifact, spec: DecoderSpec) -> Iterator[str]:
    """Judge the config for onnxruntime-genai and the settings; the graph is judged by recover."""
    manifest = artifact.manifest
    path = artifact.listed_path(GENAI_NAME)
    if path is None:
        yield f"files: no {GENAI_NAME}"
    else:
        wanted = genai_config(spec, GRAPH_NAME, manifest.context_length)
        yield from _about_json(path, wanted)
    graph = read_graph(artifact.path / GRAPH_NAME)
    facts: dict[str, object] = {
        "opset": next((item.version for item in graph.opset_import if not item.domain), None),
        "ir_version": graph.ir_version,
        "weights_file": ONNX_WEIGHTS,
        EXACT_KEY: True if is_exact(manifest) else None,
    }
    encodings = encodings_of(manifest.tensors)
    if encodings.keys() >= spec.weight_shapes().keys():
        precision = plan_precision(spec, manifest.tensors, is_exact=is_exact(manifest))
        linears = plan_linears(spec, encodings, terms_of(precision))
        facts["matmuls"] = describe_precision(precision, linears)
    yield from _about_settings(manifest, facts)
    levels = {a.i for node in graph.graph.node for a in node.attribute if a.name == _LEVEL}
    said = manifest.settings.get(_LEVEL)
    if isinstance(said, int) and levels and said not in levels:
        yield from _differs(f"settings.{_LEVEL}", said, sorted(levels))


def _about_mlx(artifact: Artifact, spec: DecoderSpec) -> Iterator[str]:
    """Judge the config that mlx-lm reads, which the decoder gives whole, and the float type."""
    manifest = artifact.manifest
    name = manifest.settings.get("float_dtype")
    choice = choose_file(spec)
    if isinstance(choice, Rejected):
        yield f"decoder: mlx-lm cannot compute it: {choice.reason}"
        return
    if not isinstance(name, str) or name not in TORCH_DTYPES:
        yield f"settings.float_dtype: {_shown(name)} is none of {', '.join(TORCH_DTYPES)}"
        return
    dtype = TORCH_DTYPES[name]
    yield from _about_json(
        artifact.path / CONFIG_NAME, make_config(choice, spec, manifest.tensors, dtype)
    )
    with SafetensorsFile(artifact.path / MLX_WEIGHTS) as weights:
        stored = {tensor.info.dtype for tensor in weights.tensors.values()}
    floats = {item.value for item in stored if DTYPES[item].is_float}
    yield from _differs("settings.float_dtype", {dtype.value}, floats)
    yield from _about_settings(manifest, {"mode": "affine"})
    if manifest.context_length > choice.n_positions:
        yield (
            f"context_length: {manifest.context_length}, of which mlx-lm computes "
            f"{choice.n_positions}"
        )


def _about_coreml(artifact: Artifact, spec: DecoderSpec) -> Iterator[str]:
    """Judge the package's own metadata, its inputs and states, and the settings."""
    manifest = artifact.manifest
    package = artifact.path / PACKAGE_NAME
    model = read_spec(package)
    own = dict(model.description.metadata.userDefined)
    said = {
        "co.huggingface.exporters.name": manifest.model_name,
        "edgekit.version": manifest.tool_versions.get("edgekit", ""),
        "edgekit.scheme": manifest.scheme,
        "edgekit.context_length": str(manifest.context_length),
        "edgekit.eos_token_ids": ",".join(str(i) for i in spec.eos_token_ids),
        "edgekit.source_sha256": manifest.source_sha256,
        "edgekit.weights_sha256": manifest.weights_sha256,
        "edgekit.compute_units": manifest.settings.get("compute_units"),
    }
    for key, value in said.items():
        yield from _differs(f"{PACKAGE_NAME}: {key}", value, own.get(key))
    yield from _about_settings(
        manifest, {"specification_version": model.specificationVersion, "cache_type": "fp16"}
    )
    encodings = encodings_of(manifest.tensors)
    lint_package(package, encodings, manifest.context_length)


def _about_gguf(artifact: Artifact, spec: DecoderSpec) -> Iterator[str]:
    """Judge the metadata of the file, the Modelfile, and the settings."""
    manifest = artifact.manifest
    files = TextFiles.of_folder(artifact.path, [entry.path for entry in manifest.files])
    text = text_metadata(files, spec)
    wanted = file_metadata(
        manifest.model_name, spec, manifest.tensors, text, manifest.context_length
    )
    with GgufFile(artifact.path / GGUF_NAME) as file:
        for key in sorted(wanted.keys() | file.metadata.keys()):
            yield from _differs(f"{GGUF_NAME}: {key}", wanted.get(key), file.value(key))
    modelfile = make_modelfile(files, spec, GGUF_NAME, manifest.context_length)
    path = artifact.listed_path(MODELFILE_NAME)
    found = "" if path is None else path.read_text(encoding="utf-8")
    yield from _differs(MODELFILE_NAME, modelfile, found)
    yield from _about_settings(manifest, file_settings(spec, manifest.tensors))


_OF_FORMAT: Final[Mapping[Format, Callable[[Artifact, DecoderSpec], Iterator[str]]]] = {
    Format.ONNX: _about_onnx,
    Format.MLX: _about_mlx,
    Format.COREML: _about_coreml,
    Format.GGUF: _about_gguf,
}


def _about_settings(manifest: Manifest, facts: Mapping[str, object]) -> Iterator[str]:
    for key, found in facts.items():
        yield from _differs(f"settings.{key}", manifest.settings.get(key), found)


def _about_json(path: Path, wanted: Mapping[str, Any]) -> Iterator[str]:
    """Compare a JSON file with what the manifest's decoder gives for it."""
    found = read_config(path.parent) if path.name == CONFIG_NAME else read_object(path)
    for key, stored, computed in _unequal(found, json.loads(json.dumps(wanted))):
        yield (
            f"{path.name}: {key} is {_shown(stored)}, by the manifest it would be "
            f"{_shown(computed)}"
        )


def _unequal(one: Any, other: Any, key: str = "") -> Iterator[tuple[str, Any, Any]]:
    """Give the innermost keys under which two JSON values differ, with both values."""
    if isinstance(one, dict) and isinstance(other, dict):
        for name in sorted(one.keys() | other.keys()):
            inner = f"{key}.{name}" if key else name
            yield from _unequal(one.get(name), other.get(name), inner)
    elif one != other:
        yield key, one, other


def recover_entries(artifact: Artifact) -> list[TensorEntry]:
    """Read the tensors of an artifact back from its files, as entries of a manifest.

    Raises:
        FormatError: The files are not what the exporter writes.
    """
    return [
        TensorEntry(
            tensor.name,
            tensor.shape,
            str(tensor.encoding),
            "",
            tensor.sha256() if isinstance(tensor, EncodedTensor) else None,
        )
        for tensor in open_exporter(artifact.format).recover(artifact)
    ]
