"""Claims: every method has a row in docs/imports.md; one that is not read says why."""

from __future__ import annotations

from pathlib import Path

import pytest

import edgekit
from edgekit.checkpoint.config import RawConfig
from edgekit.checkpoint.prequantized.method import (
    METHODS,
    REFUSED,
    account_for_quantization,
    join_parts,
)
from edgekit.errors import CheckpointError
from edgekit.families import open_model
from tests.builders import write_tiny_checkpoint
from tests.checkpoint.prequantized.folders import edit_config

PAGE = Path(edgekit.__file__).parent.parent / "docs" / "imports.md"


def rows(heading: str) -> list[str]:
    """Give the first cells of the table whose heading begins with ``heading``."""
    lines = PAGE.read_text(encoding="utf-8").splitlines()
    start = next(i for i, line in enumerate(lines) if line.startswith(heading))
    table = []
    for line in lines[start + 2 :]:
        if not line.startswith("|"):
            break
        table.append(line)
    return table


def test_the_page_names_every_method_that_is_read():
    first = [row.split("|")[1] for row in rows("| method | layouts that are read |")]
    named = {name for cell in first for name in cell.split("`")[1::2]} - {"quantization"}
    assert named == set(METHODS)


def test_the_page_gives_the_reason_of_every_refusal():
    for name, why in REFUSED.items():
        (row,) = [row for row in rows("| method | why |") if f"`{name}`" in row]
        said = why.removeprefix("its ").removesuffix(", which edgekit does not compute")
        assert said in row


@pytest.mark.parametrize("method", [*REFUSED, "a-method-of-tomorrow", ""])
def test_a_method_that_is_not_read_says_why_and_what_to_take(tmp_path, method):
    folder = write_tiny_checkpoint(tmp_path / "m", "llama")
    section = {"quant_method": method, "anything": {"else": 1}}
    edit_config(
        folder,
        lambda c: c.update(quantization_config=section, _name_or_path="owner/model"),
    )
    with pytest.raises(CheckpointError) as caught:
        open_model(folder)
    why = REFUSED.get(method, "edgekit does not know how it stores weights")
    assert f"{why}. Use the model before quantization (owner/model)" in str(caught.value)


@pytest.mark.parametrize(
    ("section", "method"),
    [
        ({"quant_algo": "FP8"}, "modelopt"),
        ({"producer": {"name": "modelopt"}, "config_groups": {}}, "modelopt"),
        ({"w_bit": 4, "q_group_size": 128}, "awq"),
        ({"load_in_4bit": True}, "bitsandbytes"),
        ({"bits": 4, "group_size": 64}, "mlx"),
        ({"bits": 4, "group_size": 64, "desc_act": False}, "gptq"),
        ({"quant_method": "GPTQ", "bits": 4, "group_size": 64}, "gptq"),
    ],
)
def test_a_section_without_a_name_is_told_by_its_keys(section, method):
    config = RawConfig({"quantization_config": section}, "config.json")
    account_for_quantization(config)
    config.finish()
    assert method in METHODS
    assert join_parts({}, config) == {}
