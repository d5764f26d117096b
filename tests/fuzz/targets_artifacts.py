"""Fuzz targets: artifacts, stores and device profiles."""

from __future__ import annotations

import functools
import json
import math
import tempfile
from dataclasses import replace
from pathlib import Path
from random import Random
from typing import Any

import numpy as np

from edgekit.artifact import Artifact, FileEntry, Format, Manifest, TensorEntry
from edgekit.devices.profile import load_profile, parse_profile
from edgekit.errors import FormatError
from edgekit.families.rope_spec import LongRopeScaling, RopeSpec
from edgekit.families.spec import DecoderSpec
from edgekit.formats.mil_blob import BlobType, BlobWriter
from edgekit.formats.mlpackage import (
    BLOB_FILE_NAME,
    create_package,
    require_coremltools,
    spec_path,
    weights_path,
)
from edgekit.formats.packing import pack_codes
from edgekit.paths import device_profiles_dir
from edgekit.runtime.mil_program import StoredWeight, read_program
from edgekit.strict_json import parse_object
from tests.fuzz.contract import Target, join_parts, mutate_part, promise, split_parts
from tests.fuzz.mutate import mutate_bytes, mutate_json, mutate_words
from tests.fuzz.targets_formats import mutate_blob
from tests.fuzz.targets_models import check_spec


def run_manifest(data: bytes, folder: Path) -> None:
    """An artifact that opens has sound numbers and no file outside its folder."""
    (folder / "manifest.json").write_bytes(data)
    (folder / "model.onnx").write_bytes(b"12345")
    artifact = Artifact.open(folder)
    manifest = artifact.manifest
    promise(isinstance(manifest.format, Format), "a format that is none")
    for entry in manifest.files:
        inside = (folder / entry.path).resolve().is_relative_to(folder.resolve())
        promise(inside, "a file outside the artifact")
    for name in ("model_name", "model_type", "source", "scheme", "weights_sha256"):
        getattr(manifest, name).encode("utf-8")
    promise(artifact.name and artifact.n_bytes >= 0, "name")
    again = Manifest.from_json(manifest.to_json(), where="again")
    promise(again == manifest, "a manifest that does not survive writing")
    json.dumps(json.loads(manifest.to_json()), allow_nan=False)
    for tensor in manifest.tensors:
        promise(all(type(n) is int and n >= 0 for n in tensor.shape), "a shape")
        promise(isinstance(tensor.reason, str), "a reason that is no text")
        promise(isinstance(tensor.sha256, str | None), "a hash that is no text")
    artifact.check_files()


def seeds_manifest() -> list[bytes]:
    digest = "5994471abb01112afcc18159f6cc74b4f511b99806da59b3caf5a9c173cacfc5"
    manifest = Manifest(
        format=Format.ONNX,
        scheme="int4-g32",
        model_name="tiny",
        model_type="llama",
        source="tiny",
        source_sha256="0" * 64,
        weights_sha256="1" * 64,
        n_parameters=10,
        context_length=64,
        decoder={"n_layers": 1},
        tensors=(TensorEntry("embed", (8, 32), "int4-g32", "asked for", "2" * 64),),
        files=(FileEntry("model.onnx", 5, digest),),
        tool_versions={"edgekit": "0"},
        settings={"x": 1},
    )
    return [manifest.to_json().encode()]


def run_profile(data: bytes, folder: Path) -> None:
    """A profile's numbers are finite and not negative; its file is read the same way."""
    path = folder / "device.toml"
    path.write_bytes(data)
    profile = load_profile(path)
    promise(parse_profile(data.decode(), where="x") == profile, "text and file differ")
    _check_sourced_values(profile)


def _check_sourced_values(value: Any) -> None:
    for name in getattr(type(value), "__dataclass_fields__", ()):
        item = getattr(value, name)
        if isinstance(item, int | float):
            promise(math.isfinite(item), f"{name} is {item}")
            promise(not isinstance(item, int) or item.bit_length() < 64, f"{name} has many bits")
        for inner in item if isinstance(item, tuple) else (item,):
            _check_sourced_values(inner)


def seeds_profile() -> list[bytes]:
    return [
        (device_profiles_dir() / f"{name}.toml").read_bytes()
        for name in ("raspberry-pi-5", "iphone-16-pro")
        if (device_profiles_dir() / f"{name}.toml").is_file()
    ]


_TOML = (
    "nan", "inf", "-inf", "-1", "1e999", "9" * 400, "true", '""', "[]", "{}", "[[]]", "[" * 200,
    "0x7fffffffffffffff", "1_000", "1979-05-27", "'unknown'", '"unknown"', '"\\ud800"',
    "{a={a={a=1}}}",
    "a.b.c=1", "[cpu]", "[[engines]]", '"""', "#", "value", "kind", "source", "9" * 5000, "1e-320",
)  # fmt: skip


def mutate_profile(data: bytes, rng: Random) -> bytes:
    return mutate_words(data, rng, _TOML)


def run_decoder(data: bytes, folder: Path) -> None:
    """The decoder of a manifest, where one is read, makes sense whatever was written down."""
    try:
        spec = DecoderSpec.from_dict(parse_object(data, "manifest.json"))
    except ValueError as error:
        raise FormatError("decoder", got=error) from error
    check_spec(spec)
    promise(DecoderSpec.from_dict(json.loads(json.dumps(spec.as_dict()))) == spec, "not kept")


def seeds_decoder() -> list[bytes]:
    base = DecoderSpec("llama", 2, 64, 4, 2, 16, 128, 320, 256, 1e-5, RopeSpec(1e4), True)
    long = LongRopeScaling((1.0,) * 8, (2.0,) * 8, 64, 1.1)
    longer = replace(base, rope=RopeSpec(1e4, long), local_rope=RopeSpec(1e5), sliding_window=8)
    return [json.dumps(spec.as_dict()).encode() for spec in (base, longer)]


def run_package(data: bytes, folder: Path) -> None:
    """A package that parses names only values that are there, with the shapes it declares."""
    spec_data, blob_data = split_parts(data, 2)
    package = folder / "model.mlpackage"
    if not package.exists():
        create_package(package)
    spec_path(package).write_bytes(spec_data)
    weights_path(package).write_bytes(blob_data)
    program = read_program(package, rounds=True)
    for value in program.constants.values():
        if isinstance(value, StoredWeight) and value.n_bytes < 1 << 20:
            promise(value.array().shape == value.shape, "a weight of another shape")
            if value.shape and value.shape[0]:
                value.rows(np.array([0]))
    for node in program.nodes:
        promise(isinstance(node.name, str) and isinstance(node.type, str), "a node without name")


@functools.cache
def seeds_package() -> list[bytes]:
    """Build a program of one product by hand: floats, codes with scales, and constants."""
    model_pb = require_coremltools("coremltools.proto.Model_pb2")
    mil_pb = require_coremltools("coremltools.proto.MIL_pb2")
    with tempfile.TemporaryDirectory() as name:
        path = Path(name) / "weight.bin"
        with BlobWriter(path) as writer:
            packed = pack_codes(np.arange(128, dtype=np.uint8).reshape(2, 64) % 16, 4)
            codes = writer.write_codes(packed, BlobType.INT4)
            scales = writer.write_fp16(np.ones((2, 2), np.float32))
            floats = writer.write_fp16(np.ones((2, 8), np.float32))
            ones = writer.write_fp16(np.ones(4, np.float32))
        blob = path.read_bytes()
    spec = model_pb.Model()
    spec.specificationVersion = 9
    function = spec.mlProgram.functions["main"]
    function.opset = "CoreML8"
    block = function.block_specializations["CoreML8"]
    kinds = mil_pb.DataType

    def set_type(value_type: Any, kind: str, *shape: int) -> None:
        value_type.tensorType.dataType = kinds.Value(kind)
        value_type.tensorType.rank = len(shape)
        for size in shape:
            value_type.tensorType.dimensions.add().constant.size = size

    def stored(value: Any, kind: str, offset: int, *shape: int) -> None:
        set_type(value.type, kind, *shape)
        value.blobFileValue.fileName = BLOB_FILE_NAME
        value.blobFileValue.offset = offset

    def output(op: Any, name: str, kind: str, *shape: int) -> None:
        out = op.outputs.add()
        out.name = name
        set_type(out.type, kind, *shape)

    x = function.inputs.add()
    x.name = "x"
    set_type(x.type, "INT32", 1, 4)
    state = function.inputs.add()
    state.name = "keyCache"
    set_type(state.type.stateType.wrappedType, "FLOAT16", 1, 2)
    for name_, offset, shape in (("w", floats, (2, 8)), ("v", ones, (4,))):
        op = block.operations.add()
        op.type = "const"
        stored(op.attributes["val"], "FLOAT16", offset, *shape)
        output(op, name_, "FLOAT16", *shape)
    op = block.operations.add()
    op.type = "constexpr_blockwise_shift_scale"
    for key, kind, offset, shape in (
        ("data", "INT4", codes, (2, 64)),
        ("scale", "FLOAT16", scales, (2, 2)),
    ):
        stored(op.inputs[key].arguments.add().value, kind, offset, *shape)
    output(op, "q", "FLOAT16", 2, 64)
    op = block.operations.add()
    op.type = "const"
    value = op.attributes["val"]
    set_type(value.type, "INT32", 2)
    value.immediateValue.tensor.ints.values.extend([1, 2])
    output(op, "axes", "INT32", 2)
    op = block.operations.add()
    op.type = "matmul"
    for key, named in (("x", "x"), ("y", "q")):
        op.inputs[key].arguments.add().name = named
    flag = op.inputs["transpose_x"].arguments.add().value
    set_type(flag.type, "BOOL")
    flag.immediateValue.tensor.bools.values.append(False)
    output(op, "y", "FLOAT16", 1, 2)
    block.outputs.append("y")
    return [join_parts(spec.SerializeToString(deterministic=True), blob)]


def mutate_spec(data: bytes, rng: Random) -> bytes:
    """Change a field of the protobuf message somewhere in the tree; now and then the bytes."""
    spec = require_coremltools("coremltools.proto.Model_pb2").Model()
    decode_error = __import__("google.protobuf.message", fromlist=["DecodeError"]).DecodeError
    try:
        spec.ParseFromString(data)
    except decode_error:
        return mutate_bytes(data, rng)
    if rng.random() < 0.1:
        return mutate_bytes(data, rng)
    for _ in range(rng.choice((1, 1, 2, 3))):
        message, field, value = rng.choice(_fields(spec) or [(spec, None, None)])
        if field is None:
            return mutate_bytes(data, rng)
        _change(message, field, value, rng)
    return bytes(spec.SerializeToString(deterministic=True))


def _fields(message: Any) -> list[tuple[Any, Any, Any]]:
    found, waiting = [], [message]
    while waiting:
        current = waiting.pop()
        for field, value in current.ListFields():
            found.append((current, field, value))
            if field.message_type is None:
                continue
            if hasattr(value, "items"):
                items = list(value.values())
            else:
                items = list(value) if hasattr(value, "add") else [value]
            waiting += [item for item in items if hasattr(item, "ListFields")]
    return found


def _change(message: Any, field: Any, value: Any, rng: Random) -> None:
    numbers = (
        0,
        1,
        2,
        3,
        63,
        64,
        128,
        255,
        1 << 20,
        1 << 31,
        1 << 40,
        (1 << 63) - 1,
        (1 << 64) - 1,
        -1,
    )
    texts = ("", "main", "const", "x", "w", "q", "../weight.bin", "constexpr_blockwise_shift_scale")
    try:
        if hasattr(value, "append") and not hasattr(value, "add") and rng.random() < 0.5:
            value.append(rng.choice(numbers if not isinstance(value[0], str) else texts))
        elif hasattr(value, "add") and rng.random() < 0.5:
            value.add().CopyFrom(rng.choice(list(value)))
        elif isinstance(value, bool):
            setattr(message, field.name, not value)
        elif isinstance(value, int):
            setattr(message, field.name, rng.choice((*numbers, value + 1, max(0, value - 1))))
        elif isinstance(value, str):
            setattr(message, field.name, rng.choice(texts))
        elif isinstance(value, bytes):
            setattr(message, field.name, mutate_bytes(value, rng))
        else:
            message.ClearField(field.name)
    except (ValueError, TypeError, IndexError):
        message.ClearField(field.name)


def mutate_package(data: bytes, rng: Random) -> bytes:
    return mutate_part(data, rng, [mutate_spec, mutate_blob])


TARGETS = (
    Target("manifest", run_manifest, seeds_manifest, mutate_json),
    Target("profile", run_profile, seeds_profile, mutate_profile),
    Target("decoder", run_decoder, seeds_decoder, mutate_json),
    Target("coreml-package", run_package, seeds_package, mutate_package),
)
