"""Claims about staging: an artifact is there whole or not at all, whatever kills the export."""

from __future__ import annotations

import contextlib
import errno
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from edgekit.artifact import MANIFEST_NAME, Artifact
from edgekit.errors import ExportError, FormatError
from edgekit.exporters import staging
from edgekit.exporters.mlx.exporter import MlxExporter
from edgekit.exporters.staging import staged_folder, write_artifact
from edgekit.exporters.work_folder import PARTIAL_PREFIX, work_folder
from tests.exporters.memory_model import memory_model

A_DAY_S = 86_400


class Failing(MlxExporter):
    """Writes everything and then fails as told."""

    def __init__(self, failure: BaseException) -> None:
        self.failure = failure

    def open(self, model, folder, options):
        sink = super().open(model, folder, options)
        finish = sink.finish

        def fail(entries):
            finish(entries)
            raise self.failure

        sink.finish = fail
        return sink


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def contents(folder: Path) -> dict[str, bytes]:
    return {
        str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()
    }


@pytest.fixture
def target(tmp_path):
    """A whole artifact, to be replaced."""
    write_artifact(MlxExporter(), memory_model(), tmp_path / "a")
    return tmp_path / "a"


@pytest.mark.parametrize(
    ("failure", "seen"),
    [
        (FormatError("odd"), FormatError),
        (OSError(5, "Input/output error"), ExportError),
        (KeyboardInterrupt(), KeyboardInterrupt),
        (SystemExit(143), SystemExit),
    ],
)
def test_a_failed_export_leaves_nothing_and_keeps_the_earlier_artifact(target, failure, seen):
    before = contents(target)
    with pytest.raises(seen):
        write_artifact(Failing(failure), memory_model(seed=1), target)
    assert contents(target) == before
    with pytest.raises(seen):
        write_artifact(Failing(failure), memory_model(), target.parent / "new" / "b")
    assert names(target.parent) == ["a", "new"]
    assert names(target.parent / "new") == []


def test_an_artifact_replaces_the_earlier_one_whole(target):
    (target / "left-over").write_text("x")
    artifact = write_artifact(MlxExporter(), memory_model(seed=1), target)
    assert not (target / "left-over").exists()
    assert names(target.parent) == ["a"]
    assert artifact.manifest == Artifact.open(target).manifest
    assert oct(target.stat().st_mode & 0o777) == "0o755"
    artifact.check_files()


def test_a_folder_that_edgekit_did_not_write_is_refused_untouched(tmp_path):
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "thesis.txt").write_text("years")
    with pytest.raises(ExportError, match="files that edgekit did not write"):
        write_artifact(MlxExporter(), memory_model(), tmp_path / "a")
    assert contents(tmp_path) == {"a/thesis.txt": b"years"}


def test_a_file_or_a_link_in_the_way_is_refused(tmp_path):
    (tmp_path / "file").write_text("x")
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "real")
    for name in ("file", "link"):
        with pytest.raises(ExportError, match="is in the way"):
            write_artifact(MlxExporter(), memory_model(), tmp_path / name)
    with pytest.raises(ExportError, match="Choose another --out"):
        write_artifact(MlxExporter(), memory_model(), tmp_path / "file" / "a")
    assert names(tmp_path) == ["file", "link", "real"]


def test_an_empty_folder_may_be_filled(tmp_path):
    write_artifact(MlxExporter(), memory_model(), tmp_path)
    Artifact.open(tmp_path).check_files()


def test_a_full_disk_is_named_with_the_space_left(target):
    before = contents(target)
    with pytest.raises(ExportError, match="no space left") as caught, staged_folder(target) as new:
        (new / "weights").write_text("half")
        with open("/dev/full", "wb", buffering=0) as full:  # noqa: PTH123 - a device, not a path
            full.write(b"the other half")
    assert caught.value.got.endswith("bytes free")
    assert "nothing was left behind" in caught.value.do
    assert contents(target) == before
    assert names(target.parent) == ["a"]


def test_a_refused_rename_puts_the_earlier_artifact_back(target, monkeypatch):
    before = contents(target)
    real = Path.rename

    def rename(path, to):
        if path.name == "new":
            raise OSError(16, "Device or resource busy")
        return real(path, to)

    monkeypatch.setattr(staging, "_exchange", cannot_exchange)
    monkeypatch.setattr(Path, "rename", rename)
    with pytest.raises(ExportError, match="Device or resource busy"):
        write_artifact(MlxExporter(), memory_model(seed=1), target)
    assert contents(target) == before
    assert names(target.parent) == ["a"]


def cannot_exchange(first: Path, second: Path) -> bool:
    """What a file system says that cannot exchange two names; it then takes two renames."""
    return False


def test_the_answer_of_a_system_that_cannot_exchange_names_means_two_renames(target, monkeypatch):
    for number in (errno.EINVAL, errno.ENOSYS, errno.ENOTSUP):
        monkeypatch.setattr(staging.ctypes, "CDLL", lambda *_, **__: Refusing())
        monkeypatch.setattr(staging.ctypes, "get_errno", lambda number=number: number)
        artifact = write_artifact(MlxExporter(), memory_model(seed=number), target)
        assert artifact.manifest == Artifact.open(target).manifest
        assert names(target.parent) == ["a"]
    monkeypatch.setattr(staging.ctypes, "get_errno", lambda: errno.EACCES)
    with pytest.raises(ExportError, match="Permission denied"):
        write_artifact(MlxExporter(), memory_model(), target)
    assert artifact.manifest == Artifact.open(target).manifest


class Refusing:
    """A C library whose renaming fails."""

    def __getattr__(self, name):
        return lambda *_: -1


EXPORT = """
import os, signal, sys, threading
from pathlib import Path
from edgekit.exporters import staging
from edgekit.exporters.mlx.exporter import MlxExporter
from tests.exporters.memory_model import memory_model

stop = threading.Event()

def end(*_):
    stop.set()
    sys.exit(143)

class Slow(MlxExporter):
    def open(self, model, folder, options):
        sink = super().open(model, folder, options)
        finish = sink.finish
        def wait(entries):
            written = finish(entries)
            if sys.argv[2] == "write":
                print("ready", flush=True)
                stop.wait(60)
            return written
        sink.finish = wait
        return sink

if sys.argv[2] == "swap":
    staging._exchange = lambda first, second: False
    rename = Path.rename
    def cut(path, to):
        if path.name == "new":
            print("ready", flush=True)
            stop.wait(60)
        return rename(path, to)
    Path.rename = cut
if sys.argv[2] == "again":
    print("ready", flush=True)
    for seed in range(1000):
        staging.write_artifact(MlxExporter(), memory_model(seed=seed), Path(sys.argv[1]))
signal.signal(signal.SIGTERM, end)
staging.write_artifact(Slow(), memory_model(seed=1), Path(sys.argv[1]))
"""


@contextlib.contextmanager
def exporting(target: Path, stage: str):
    """Run an export in a child, up to the moment when it is to be killed."""
    child = subprocess.Popen(
        [sys.executable, "-c", EXPORT, str(target), stage],
        stdout=subprocess.PIPE,
        text=True,
        cwd=Path(staging.__file__).parents[2],
    )
    with child:
        try:
            assert child.stdout.readline() == "ready\n"
            yield child
        finally:
            child.kill()


def test_a_killed_export_leaves_the_target_alone_and_the_next_one_sweeps(target):
    before = contents(target)
    with exporting(target, "write") as child:
        child.send_signal(signal.SIGKILL)
        assert child.wait() == -signal.SIGKILL
    assert contents(target) == before
    (left,) = [name for name in names(target.parent) if name != "a"]
    assert left.startswith(f"{PARTIAL_PREFIX}{child.pid}-")
    write_artifact(MlxExporter(), memory_model(), target.parent / "b")
    assert names(target.parent) == ["a", "b"]
    assert contents(target) == before


def test_an_export_killed_between_its_two_renames_loses_nothing(target):
    before = contents(target)
    with exporting(target, "swap") as child:
        child.send_signal(signal.SIGKILL)
        child.wait()
    assert not target.exists()
    write_artifact(MlxExporter(), memory_model(), target.parent / "b")
    assert names(target.parent) == ["a", "b"]
    assert contents(target) == before


def test_a_terminated_export_cleans_up_itself(target):
    before = contents(target)
    with exporting(target, "write") as child:
        child.terminate()
        assert child.wait() == 143
    assert contents(target) == before
    assert names(target.parent) == ["a"]


@pytest.mark.skipif(sys.platform != "linux", reason="asks Linux for the exchange of names")
def test_there_is_a_whole_artifact_at_any_moment_of_a_replacement(target):
    """Each look opens the artifact by its path; one that is being replaced is another's files."""
    manifest = target / MANIFEST_NAME
    seen = set()
    with exporting(target, "again") as child:
        while len(seen) < 12:
            seen.add(manifest.stat().st_ino)  # raises where there is none
            assert child.poll() is None


@pytest.mark.parametrize("delay_s", [0.0, 0.02, 0.05, 0.1, 0.15])
def test_a_kill_at_any_moment_of_a_replacement_leaves_an_artifact(target, delay_s):
    with exporting(target, "again") as child:
        time.sleep(delay_s)
        child.send_signal(signal.SIGKILL)
        child.wait()
    Artifact.open(target).check_files()
    write_artifact(MlxExporter(), memory_model(), target.parent / "b")
    assert names(target.parent) == ["a", "b"]


UNSHARE = ("unshare", "--user", "--map-root-user", "--pid", "--fork")


def has_namespaces() -> bool:
    try:
        return subprocess.run([*UNSHARE, "true"], capture_output=True, check=False).returncode == 0
    except OSError:
        return False


@pytest.mark.skipif(not has_namespaces(), reason="this system gives no process namespaces")
def test_an_export_in_another_container_is_not_swept(target):
    """On a disk that two containers share, the other's process ids mean nothing here."""
    with exporting(target, "write") as child:
        subprocess.run(
            [*UNSHARE, sys.executable, "-c", EXPORT, str(target.parent / "b"), "once"],
            cwd=Path(staging.__file__).parents[2],
            check=True,
        )
        assert any(name.startswith(PARTIAL_PREFIX) for name in names(target.parent))
        child.send_signal(signal.SIGKILL)
        child.wait()
    subprocess.run(
        [*UNSHARE, sys.executable, "-c", EXPORT, str(target.parent / "b"), "once"],
        cwd=Path(staging.__file__).parents[2],
        check=True,
    )
    assert names(target.parent) == ["a", "b"]


def test_sweeping_spares_the_living_and_goes_by_age_where_locks_say_nothing(target):
    bare = target.parent / f"{PARTIAL_PREFIX}note"
    bare.mkdir()
    elsewhere = target.parent / f"{PARTIAL_PREFIX}1-00000000-x"
    elsewhere.mkdir()
    (elsewhere / "lock").touch()
    with work_folder(target.parent) as live:
        write_artifact(MlxExporter(), memory_model(), target.parent / "b")
        others = [bare.name, elsewhere.name]
        assert names(target.parent) == sorted(["a", "b", live.name, *others])
        for folder in (bare, elsewhere, live):
            os.utime(folder, (0, time.time() - A_DAY_S - 60))
        write_artifact(MlxExporter(), memory_model(), target.parent / "b")
        assert names(target.parent) == sorted(["a", "b", live.name])
    assert names(target.parent) == ["a", "b"]


def test_a_half_written_package_with_a_manifest_of_its_own_is_not_taken_for_an_artifact(tmp_path):
    # Core ML packages hold Manifest.json, the same name on a disk that ignores case.
    with work_folder(tmp_path) as left:
        pass
    package = left / "new" / "model.mlpackage"
    package.mkdir(parents=True)
    (package / MANIFEST_NAME).write_text("{}")
    write_artifact(MlxExporter(), memory_model(), tmp_path / "b")
    assert names(tmp_path) == ["b"]


def test_two_exports_to_one_parent_do_not_disturb_each_other(target):
    with exporting(target, "write") as child:
        write_artifact(MlxExporter(), memory_model(), target.parent / "b")
        left = [name for name in names(target.parent) if name.startswith(PARTIAL_PREFIX)]
        assert len(left) == 1
        child.terminate()
        child.wait()
    assert names(target.parent) == ["a", "b"]


LIMITED = """
import resource, sys
from pathlib import Path
from edgekit.artifact import Format
from edgekit.errors import ExportError
from edgekit.exporters import open_exporter
from edgekit.exporters.staging import write_artifact
from tests.exporters.memory_model import memory_model

exporter, model = open_exporter(Format(sys.argv[2])), memory_model(scheme="int8")
write_artifact(exporter, model, Path(sys.argv[1]) / "first")  # its library is loaded by now
resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))
try:
    write_artifact(exporter, model, Path(sys.argv[1]) / "second")
except ExportError as error:
    print(error.got)
"""


@pytest.mark.parametrize("name", ["onnx", "mlx", "coreml"])
def test_a_file_that_does_not_fit_is_an_export_error_in_every_format(name, tmp_path):
    done = subprocess.run(
        [sys.executable, "-c", LIMITED, str(tmp_path), name],
        capture_output=True,
        text=True,
        cwd=Path(staging.__file__).parents[2],
    )
    assert done.returncode == 0, done.stderr
    assert "File too large" in done.stdout
    assert names(tmp_path) == ["first"]
