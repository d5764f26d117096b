"""Claims about the package folder and the door to coremltools."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from edgekit.errors import FormatError
from edgekit.formats.mlpackage import create_package, read_spec, require_coremltools, spec_path


def test_coremltools_comes_in_without_a_word() -> None:
    code = (
        "import warnings; warnings.simplefilter('error')\n"
        "from edgekit.formats.mlpackage import require_coremltools\n"
        "print(require_coremltools().__version__)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stderr == ""
    assert done.stdout == f"{require_coremltools().__version__}\n"


def test_a_missing_spec_is_named(tmp_path: Path) -> None:
    with pytest.raises(FormatError, match=r"model\.mlmodel"):
        read_spec(tmp_path / "model.mlpackage")


@pytest.mark.parametrize("content", [b"\xff\xff\xff\xff", b"not protobuf at all", b""])
def test_garbage_is_no_spec(tmp_path: Path, content: bytes) -> None:
    package = tmp_path / "model.mlpackage"
    create_package(package)
    spec_path(package).write_bytes(content)
    with pytest.raises(FormatError):
        read_spec(package)
