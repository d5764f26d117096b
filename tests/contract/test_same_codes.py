"""Claims: every method and every preset gives one set of codes, the same in every format."""

from __future__ import annotations

import pytest

from edgekit.exporters import EXPORTERS, open_exporter
from edgekit.pipeline.export import export
from edgekit.quantize.methods import Method
from edgekit.quantize.model import EncodedTensor
from edgekit.scheme import preset_names
from tests.builders import write_tiny_checkpoint

ASKED = [
    *((preset, None) for preset in preset_names()),
    *(("uint4-g64", method.value) for method in Method),
    *(("int4-g32", method.value) for method in Method),
]


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    return write_tiny_checkpoint(tmp_path_factory.mktemp("source") / "tiny", "llama")


@pytest.mark.parametrize(("scheme", "method"), ASKED, ids=lambda value: value or "preset")
def test_all_formats_hold_the_same_codes(checkpoint, tmp_path, scheme, method):
    artifacts = export(
        checkpoint, [form.value for form in EXPORTERS], scheme, tmp_path, method=method
    )
    assert [artifact.format for artifact in artifacts] == list(EXPORTERS)
    first = artifacts[0].manifest
    assert {artifact.manifest.weights_sha256 for artifact in artifacts} == {first.weights_sha256}
    wanted = {entry.name: entry for entry in first.tensors}
    assert any(entry.sha256 for entry in first.tensors)
    for artifact in artifacts:
        found = {tensor.name: tensor for tensor in open_exporter(artifact.format).recover(artifact)}
        assert found.keys() == wanted.keys()
        for name, tensor in found.items():
            assert str(tensor.encoding) == wanted[name].encoding, name
            if isinstance(tensor, EncodedTensor):
                assert tensor.sha256() == wanted[name].sha256, (artifact.format, name)
