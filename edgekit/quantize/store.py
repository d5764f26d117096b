"""Answer one question: where does a quantized model live between quantizing and exporting?

A store is a folder: ``weights.safetensors`` holds ``{name}.codes`` (packed, uint8) with
``{name}.scales`` (fp16, exact), or ``{name}`` itself for floats; ``assets/`` holds tokenizer and
config files; ``index.json`` says what each tensor is and is written last, so a folder with an
index is complete. Nothing in it depends on the export format.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from types import MappingProxyType
from typing import Any, Final, TypeAlias, cast

from edgekit.artifact import EndToken, TensorEntry
from edgekit.checkpoint.assets import copy_assets
from edgekit.dtypes import Bits, DType
from edgekit.errors import ArtifactError, ExportError, FormatError, QuantError, UsageError
from edgekit.families.base import SourceModel
from edgekit.families.spec import DecoderSpec
from edgekit.files import read_inside
from edgekit.formats.packing import unpack_codes
from edgekit.formats.safetensors import SafetensorsFile, SafetensorsWriter
from edgekit.model_files import CONFIG_NAME
from edgekit.quantize.imports import import_codes, plan_source
from edgekit.quantize.methods import Method
from edgekit.quantize.model import FloatTensor, ModelTensor, QuantizedTensor, Source
from edgekit.quantize.recipe import TensorPlan
from edgekit.quantize.slabs import quantize_tensor
from edgekit.scheme import Scheme
from edgekit.strict_json import parse_object, read_object
from edgekit.tensors import TensorInfo
from edgekit.text.view import TextView

INDEX_NAME: Final = "index.json"
WEIGHTS_NAME: Final = "weights.safetensors"
ASSETS_NAME: Final = "assets"
STORE_VERSION: Final = 1
_MAX_INDEX_BYTES: Final = 16 << 20
_FLOAT_DTYPES: Final = {"fp32": DType.FP32, "fp16": DType.FP16}
Progress: TypeAlias = Callable[[str, int, int], None]


@dataclass(frozen=True, slots=True, eq=False)
class StoredModel:
    """A quantized model on disk; satisfies ``QuantizedModel``."""

    folder: Path
    spec: DecoderSpec
    scheme: Scheme
    method: Method
    source: Source
    entries: tuple[TensorEntry, ...]
    assets: Mapping[str, Path]
    _weights: SafetensorsFile

    @classmethod
    def open(cls, store_dir: str | Path) -> StoredModel:
        """Read the index and the header of the weights; no tensor is read.

        Raises:
            ArtifactError: No store there, or its files do not fit together.
        """
        folder = Path(store_dir)
        index_path = folder / INDEX_NAME
        index = _read_index(index_path)
        try:
            weights = SafetensorsFile(folder / WEIGHTS_NAME)
            model = cls(
                folder=folder,
                spec=DecoderSpec.from_dict(index["decoder"]),
                scheme=Scheme.parse(index["scheme"]),
                method=Method(index["method"]),
                source=_read_origin(index["source"]),
                entries=tuple(
                    TensorEntry(**{**entry, "shape": tuple(entry["shape"])})
                    for entry in index["tensors"]
                ),
                assets=MappingProxyType(
                    {name: _asset_path(folder, name) for name in index["assets"]}
                ),
                _weights=weights,
            )
            _check_files(model)
        except (
            FormatError,
            UsageError,
            LookupError,
            TypeError,
            ValueError,
            AttributeError,
            OSError,
        ) as error:
            raise ArtifactError(
                f"{folder} is a damaged store",
                got=str(error) or type(error).__name__,
                do="Delete the folder and quantize the model again.",
            ) from error
        return model

    @property
    def config(self) -> Mapping[str, Any]:
        """The config.json of the source; empty if there is none."""
        path = self.assets.get(CONFIG_NAME)
        return {} if path is None else read_object(path)

    def get(self, name: str) -> ModelTensor:
        """Read one tensor.

        Raises:
            QuantError: No tensor of that name.
        """
        entry = next((entry for entry in self.entries if entry.name == name), None)
        if entry is None:
            raise QuantError("no such tensor", got=name, wanted=f"one of {len(self.entries)}")
        scheme = Scheme.parse(entry.scheme)
        tensors = self._weights.tensors
        if scheme.group is None:
            return FloatTensor(name, scheme, tensors[name].read())
        bits = cast(Bits, scheme.bits)
        codes = unpack_codes(tensors[f"{name}.codes"].raw(), bits)
        return QuantizedTensor(name, bits, scheme.group, codes, tensors[f"{name}.scales"].read())

    def close(self) -> None:
        """Let go of the weights file; safe to call twice."""
        self._weights.close()


def quantize_model(
    source: SourceModel,
    scheme: Scheme,
    store_dir: str | Path,
    *,
    method: Method = Method.SEARCH,
    n_threads: int = 1,
    progress: Progress | None = None,
) -> StoredModel:
    """Quantize a model once, tensor by tensor, into a store.

    Codes that the source holds already are kept where the grid has them (imports.py).
    The same source, scheme and method give the same bytes, whatever ``n_threads`` is.

    Args:
        source: The float model.
        scheme: What was asked for; recipe.py decides what each tensor gets.
        store_dir: Folder of the store; an earlier store there is replaced.
        method: How scales are chosen.
        n_threads: Threads to compute with.
        progress: Called as ``progress(name, n_done, n_total)`` after each tensor.

    Returns:
        The store, open.

    Raises:
        QuantError: The scheme cannot hold the model; the message names the tensors.
        ExportError: The store cannot be written; no index is left behind.
    """
    plans = plan_source(source, scheme)
    folder = Path(store_dir)
    checkpoint = source.checkpoint
    adapter, view = checkpoint.adapter, source.text
    origin = Source(
        checkpoint.name,
        checkpoint.origin,
        checkpoint.sha256(),
        (*checkpoint.notes, *view.notes),
        adapter=str(adapter.folder) if adapter is not None else "",
        adapter_sha256=adapter.sha256() if adapter is not None else "",
        ends=view.ends,
    )
    try:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / INDEX_NAME).unlink(missing_ok=True)
        assets = _copy_assets(view, folder)
        entries: list[TensorEntry] = []
        infos = [
            info for item in plans for info in _stored_infos(item.name, item.shape, item.scheme)
        ]
        with SafetensorsWriter(folder / WEIGHTS_NAME, infos, alignment=4096) as writer:
            for n_done, item in enumerate(plans, start=1):
                weights = source.tensor(item.name)
                if item.keeps_codes and weights.prequantized is not None:
                    tensor: ModelTensor = import_codes(weights.prequantized, item)
                else:
                    tensor = quantize_tensor(weights, item, method, n_threads=n_threads)
                _append(writer, tensor)
                entries.append(_entry(item, tensor))
                if progress is not None:
                    progress(item.name, n_done, len(plans))
        index = {
            "store_version": STORE_VERSION,
            "scheme": str(scheme),
            "method": method.value,
            "source": asdict(origin),
            "decoder": replace(source.spec, eos_token_ids=view.end_ids).as_dict(),
            "tensors": [asdict(entry) for entry in entries],
            "assets": assets,
        }
        _write_index(folder, json.dumps(index, indent=1, sort_keys=True) + "\n")
    except OSError as error:
        raise ExportError(
            f"cannot write the quantized weights to {folder}",
            got=error.strerror or str(error),
            do="Free space, or choose another folder.",
        ) from error
    return StoredModel.open(folder)


def _stored_infos(name: str, shape: tuple[int, ...], scheme: Scheme) -> list[TensorInfo]:
    """Say which tensors of the file hold one tensor of the model."""
    if scheme.group is None:
        return [TensorInfo(name, shape, _FLOAT_DTYPES[scheme.kind])]
    n_rows, n_cols = shape
    return [
        TensorInfo(f"{name}.codes", (n_rows, n_cols * scheme.bits // 8), DType.UINT8),
        TensorInfo(f"{name}.scales", (n_rows, n_cols // scheme.group), DType.FP16),
    ]


def _append(writer: SafetensorsWriter, tensor: ModelTensor) -> None:
    if isinstance(tensor, FloatTensor):
        stored = "<f2" if tensor.scheme.kind == "fp16" else "<f4"
        writer.append(tensor.name, tensor.values.astype(stored, copy=False))
        return
    writer.append(f"{tensor.name}.codes", tensor.packed())
    writer.append(f"{tensor.name}.scales", tensor.scales.astype("<f2"))


def _entry(item: TensorPlan, tensor: ModelTensor) -> TensorEntry:
    sha256 = None if isinstance(tensor, FloatTensor) else tensor.sha256()
    return TensorEntry(item.name, item.shape, str(item.scheme), item.reason, sha256, item.imported)


def _read_origin(data: Mapping[str, Any]) -> Source:
    ends = tuple(EndToken(**{**end, "origins": tuple(end["origins"])}) for end in data["ends"])
    return Source(**{**data, "notes": tuple(data["notes"]), "ends": ends})


def _copy_assets(view: TextView, folder: Path) -> list[str]:
    """Put tokenizer, template and config files into the store; give their names."""
    target = folder / ASSETS_NAME
    shutil.rmtree(target, ignore_errors=True)
    target.mkdir()
    return copy_assets(view, target)


def _asset_path(folder: Path, name: str) -> Path:
    if Path(name).name != name or name in (".", "..") or "\\" in name:
        raise FormatError("asset name", got=repr(name), wanted="a plain file name")
    return folder / ASSETS_NAME / name


def _write_index(folder: Path, text: str) -> None:
    partial = folder / f"{INDEX_NAME}.partial"
    partial.write_text(text, encoding="utf-8")
    partial.replace(folder / INDEX_NAME)


def _read_index(path: Path) -> dict[str, Any]:
    try:
        data = read_inside(path, _MAX_INDEX_BYTES)
    except OSError as error:
        raise ArtifactError(
            f"{path.parent} is no store of quantized weights",
            got=error.strerror or str(error),
            wanted=f"a folder with {INDEX_NAME}",
            do="Quantize the model into it first.",
        ) from error
    try:
        index = parse_object(data, str(path))
    except FormatError as error:
        raise ArtifactError(
            f"{path} is damaged", got=error.got, do="Delete the folder and quantize again."
        ) from error
    if index.get("store_version") != STORE_VERSION:
        raise ArtifactError(
            f"{path}: store version",
            got=index.get("store_version"),
            wanted=STORE_VERSION,
            do="Delete the folder and quantize the model again.",
        )
    return index


def _check_files(model: StoredModel) -> None:
    """Refuse a store whose index, weights and assets do not belong together."""
    texts = [model.source.name, model.source.origin, model.source.sha256]
    texts += [text for entry in model.entries for text in (entry.name, entry.reason)]
    texts += [t for e in model.entries for t in (e.sha256, e.imported) if t is not None]
    if not all(isinstance(text, str) for text in texts):
        raise FormatError("source or tensors", got="values that are no text")
    wanted = [
        info
        for entry in model.entries
        for info in _stored_infos(entry.name, entry.shape, Scheme.parse(entry.scheme))
    ]
    found = [tensor.info for tensor in model._weights.tensors.values()]
    if found != wanted:
        differing = {info.name for info in wanted} ^ {info.name for info in found}
        raise FormatError(
            "index and weights name different tensors",
            got=", ".join(sorted(differing)[:5]) or "shapes differ",
        )
    shapes = {entry.name: entry.shape for entry in model.entries}
    if shapes != model.spec.weight_shapes():
        raise FormatError("tensors are not those of the decoder")
    missing = [name for name, path in model.assets.items() if not path.is_file()]
    if missing:
        raise FormatError("asset files missing", got=", ".join(missing))
