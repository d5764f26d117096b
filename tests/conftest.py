"""Fixtures that all tests share.

No test reaches the network, and the expensive exports happen once a session.
"""

from __future__ import annotations

import ipaddress
import os
import shutil
import socket
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import huggingface_hub
import huggingface_hub.file_download
import pytest
from hypothesis import HealthCheck, settings

import edgekit
from edgekit.artifact import Artifact
from edgekit.lazy import quiet_variables
from edgekit.optimum.environment import OptimumEnvironment, open_environment
from edgekit.paths import models_dir
from edgekit.pipeline.export_optimum import export_via_optimum
from edgekit.quality import reference_store
from tests.builders import write_tiny_checkpoint
from tests.cli.cli import Edgekit, make_edgekit
from tests.foreign_models import write_foreign_checkpoint
from tests.hub.hub_case import CHUNK_BYTES
from tests.hub.hub_server import add_what_nobody_wants, serve

# Tests import foreign packages by themselves, past edgekit's own way.
os.environ.update(quiet_variables())

# A busy machine is no reason to fail: time is never asserted.
settings.register_profile("patient", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("patient")

_CONNECT = {name: getattr(socket.socket, name) for name in ("connect", "connect_ex")}

# GGUF runs where llama-cpp-python is installed, which is optional.
RUN_EVERYWHERE = ("onnx", "mlx", "coreml")


@pytest.fixture(autouse=True)
def _no_network(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Let sockets connect to this machine only."""
    for name, original in _CONNECT.items():

        def connect(sock, address, original=original):
            if sock.family != socket.AF_UNIX and not _is_loopback(address[0]):
                raise AssertionError(f"a test must not connect to {address!r}")
            return original(sock, address)

        monkeypatch.setattr(socket.socket, name, connect)
    yield


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


@pytest.fixture(scope="session", autouse=True)
def _own_reference_stores(tmp_path_factory) -> Iterator[None]:
    """Keep what float models said out of the user's cache."""
    folder = tmp_path_factory.mktemp("reference-stores")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(reference_store, "cache_dir", lambda: folder)
        yield


@pytest.fixture
def edgekit_cli(capfd, monkeypatch) -> Iterator[Edgekit]:
    """The command line in this process: call it with arguments, get what it said."""
    yield from make_edgekit(capfd, monkeypatch)


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory) -> Path:
    """A random two-layer checkpoint; read only."""
    return write_tiny_checkpoint(tmp_path_factory.mktemp("models") / "tiny")


@pytest.fixture(scope="session")
def tiny_artifacts(tiny_model, tmp_path_factory) -> dict[str, Artifact]:
    """The tiny model as int4 and int8 where it runs everywhere, by ``format-kind``; read only."""
    out = tmp_path_factory.mktemp("tiny-artifacts")
    return _by_name(
        artifact
        for scheme in ("int4", "int8")
        for artifact in edgekit.export(tiny_model, RUN_EVERYWHERE, scheme, out)
    )


@pytest.fixture(scope="session")
def pocket_model(tmp_path_factory) -> Path:
    """A copy of the bundled model, so that it cannot change under a test; read only."""
    folder = tmp_path_factory.mktemp("bundled") / "pocket"
    return Path(shutil.copytree(models_dir() / "pocket", folder))


@pytest.fixture(scope="session")
def pocket_artifacts(pocket_model, tmp_path_factory) -> dict[str, Artifact]:
    """The bundled model as int4 and int8 in the same formats and fp32 ONNX; read only."""
    out = tmp_path_factory.mktemp("pocket-artifacts")
    wanted = ((RUN_EVERYWHERE, "int4"), (RUN_EVERYWHERE, "int8"), ("onnx", "fp32"))
    return _by_name(
        artifact
        for formats, scheme in wanted
        for artifact in edgekit.export(pocket_model, formats, scheme, out)
    )


@pytest.fixture(scope="session")
def optimum_environment() -> OptimumEnvironment:
    """The environment that `make optimum` made; tests never make it, they have no network."""
    return open_environment(print, may_create=False)


@pytest.fixture(scope="session")
def moe_model(tmp_path_factory) -> Path:
    """A random mixture of experts, for which edgekit has no family; read only."""
    return write_foreign_checkpoint(tmp_path_factory.mktemp("foreign models") / "moe", "qwen3_moe")


@pytest.fixture(scope="session")
def moe_artifact(moe_model, optimum_environment, tmp_path_factory) -> Artifact:
    """That mixture by way of optimum, under a path with a space; read only."""
    return export_via_optimum(moe_model, "fp32", tmp_path_factory.mktemp("by optimum"))


def _by_name(artifacts: Iterator[Artifact]) -> dict[str, Artifact]:
    return {f"{a.format.value}-{a.manifest.scheme.partition('-')[0]}": a for a in artifacts}


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """A Hub with a model of two weight files, and an empty cache."""
    folder = write_tiny_checkpoint(tmp_path / "source", shards=2)
    (folder / "README.md").write_text("---\nlicense: apache-2.0\n---\n", encoding="utf-8")
    add_what_nobody_wants(folder)
    monkeypatch.setenv("HF_HOME", str(tmp_path / "home"))
    for name in ("HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE", "HF_HUB_OFFLINE", "HF_TOKEN"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(huggingface_hub.constants, "DOWNLOAD_CHUNK_SIZE", CHUNK_BYTES)
    impatient = SimpleNamespace(**{**vars(time), "sleep": lambda seconds: None})
    monkeypatch.setattr(huggingface_hub.file_download, "time", impatient)
    with serve(folder) as server:
        monkeypatch.setenv("HF_ENDPOINT", server.url)
        yield server
