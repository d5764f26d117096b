"""What the tests of Hub models share."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from edgekit.errors import CheckpointError
from edgekit.hub.download import HubRepo, download

OWNER = HubRepo("owner/name")
TOKEN = "hf_" + "s3cret" * 5
SHARD = "model-00001-of-00002.safetensors"
WANTED = {
    "config.json",
    "generation_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "README.md",
    "model.safetensors.index.json",
    SHARD,
    "model-00002-of-00002.safetensors",
}
CHUNK_BYTES = 100  # huggingface_hub writes in pieces of 10 MB; an unfinished piece is lost
DOWNLOAD = f"""
import huggingface_hub.constants
from edgekit.hub.download import *
huggingface_hub.constants.DOWNLOAD_CHUNK_SIZE = {CHUNK_BYTES}
print(download(HubRepo('owner/name')))
"""
_COMMAND = "from edgekit.cli import main; main()"


def blobs(tmp_path) -> Path:
    return tmp_path / "home" / "hub" / "models--owner--name" / "blobs"


def error_of(source: HubRepo = OWNER) -> CheckpointError:
    with pytest.raises(CheckpointError) as caught:
        download(source)
    return caught.value


def run_cli(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run the command in a process of its own, where huggingface_hub reads its settings anew."""
    return subprocess.run(
        [sys.executable, "-c", _COMMAND, *arguments],
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        check=False,
    )


def with_entry(**entry):
    """Change what the listing says about one weight file."""

    def edit(info):
        for sibling in info["siblings"]:
            if sibling["rfilename"] == SHARD:
                sibling.update(entry)
        return info

    return edit
