"""Claims: entries of an importance matrix find their matrices in every architecture, both ways."""

from __future__ import annotations

import numpy as np
import pytest

from edgekit.checkpoint.gguf.architectures import ARCHITECTURES, name_weight
from edgekit.errors import CheckpointError
from edgekit.families import FAMILIES, open_model
from edgekit.formats.imatrix import Imatrix, ImatrixEntry, gguf_bytes, list_bytes
from edgekit.lazy import load_object
from edgekit.quantize.imatrix import _PARTS, make_imatrix, open_input_power
from tests.builders import write_tiny_checkpoint

MATRICES = ("q", "k", "v", "o", "gate", "up", "down")


@pytest.fixture(scope="module")
def spec(tmp_path_factory):
    source = open_model(write_tiny_checkpoint(tmp_path_factory.mktemp("m") / "tiny"))
    source.close()
    return source.spec


def powers(spec, *, head=False, seed=0):
    rng = np.random.default_rng(seed)
    return {
        name: rng.uniform(0.5, 2, shape[1]).astype(np.float32).astype(np.float64)
        for name, shape in spec.weight_shapes().items()
        if len(shape) == 2 and (head or name not in ("embed", "lm_head"))
    }


def write(path, spec, given, model_type="mistral", n_tokens=1024):
    imatrix = make_imatrix(
        given, spec=spec, model_type=model_type, n_tokens=n_tokens, n_chunk_tokens=256,
        datasets=("chat.txt",),
    )  # fmt: skip
    path.write_bytes(gguf_bytes(imatrix))
    return imatrix


@pytest.mark.parametrize("name", sorted(ARCHITECTURES))
def test_the_names_are_those_of_the_architecture_tables(name):
    """Each tensor of a layer, through Hugging Face's name, is the matrix that _PARTS says."""
    architecture = ARCHITECTURES[name]
    table = load_object(FAMILIES[architecture.model_type]).name_tables[0]
    found = set()
    for theirs in architecture.layer:
        named = name_weight(architecture, f"blk.3.{theirs}.weight")
        canonical = table.to_canonical(named[0]).removeprefix("layers.3.")
        parts = table.fused.get(canonical, (canonical,))
        for part in parts:
            if part in MATRICES:
                assert theirs in _PARTS[part]
                found.add(part)
    assert found == set(MATRICES)


def test_what_is_written_is_read_back(tmp_path, spec):
    given = powers(spec)
    write(tmp_path / "a.gguf", spec, given)
    found = open_input_power(tmp_path / "a.gguf", spec)
    assert found.mean_squares.keys() == given.keys()
    for name, values in given.items():
        np.testing.assert_array_equal(found.mean_squares[name], values)  # 1024 is a power of two
    assert found.n_tokens == 1024
    assert found.read.startswith("imatrix file a.gguf (sha256 ")
    assert found.read.endswith(": 4 chunks of chat.txt")
    assert found.notes == ()


def test_the_older_form_gives_the_same_values(tmp_path, spec):
    given = powers(spec)
    imatrix = write(tmp_path / "a.gguf", spec, given)
    (tmp_path / "a.dat").write_bytes(list_bytes(imatrix))
    found = open_input_power(tmp_path / "a.dat", spec)
    for name, values in given.items():
        np.testing.assert_array_equal(found.mean_squares[name], values)
    assert found.n_tokens == 0  # the file does not say how long a chunk was


def test_usual_names(spec):
    imatrix = make_imatrix(
        powers(spec, head=True), spec=spec, model_type="mistral", n_tokens=1, n_chunk_tokens=1,
        datasets=(),
    )  # fmt: skip
    assert sorted(imatrix.entries) == sorted(
        [
            f"blk.{i}.{part}.weight"
            for i in range(spec.n_layers)
            for part in ("attn_q", "attn_k", "attn_v", "attn_output", "ffn_gate", "ffn_up",
                         "ffn_down")
        ]
        + ["token_embd.weight" if spec.is_tied else "output.weight"]
    )  # fmt: skip


def test_tensors_that_phi3_stores_together(tmp_path, spec):
    given = powers(spec)
    for layer in range(spec.n_layers):
        for first, *others in (("q", "k", "v"), ("gate", "up")):
            for other in others:
                given[f"layers.{layer}.{other}"] = given[f"layers.{layer}.{first}"]
    imatrix = write(tmp_path / "a.gguf", spec, given, "phi3")
    assert sorted(n for n in imatrix.entries if n.startswith("blk.0.")) == [
        f"blk.0.{part}.weight" for part in ("attn_output", "attn_qkv", "ffn_down", "ffn_up")
    ]
    found = open_input_power(tmp_path / "a.gguf", spec)
    assert found.mean_squares.keys() == given.keys()
    for name, values in given.items():
        np.testing.assert_array_equal(found.mean_squares[name], values)


def test_the_output_matrix_may_have_an_entry(tmp_path, spec):
    given = powers(spec, head=True)
    write(tmp_path / "a.gguf", spec, given)
    found = open_input_power(tmp_path / "a.gguf", spec)
    head = "embed" if spec.is_tied else "lm_head"
    np.testing.assert_array_equal(found.mean_squares[head], given[head])


def test_entries_of_nothing_are_noted(tmp_path, spec):
    imatrix = write(tmp_path / "a.gguf", spec, powers(spec))
    more = {**imatrix.entries, "blk.99.attn_q.weight": imatrix.entries["blk.0.attn_q.weight"]}
    (tmp_path / "b.gguf").write_bytes(gguf_bytes(Imatrix(more, (), 4, 256)))
    assert open_input_power(tmp_path / "b.gguf", spec).notes == (
        "imatrix entries of no matrix of the decoder: blk.99.attn_q.weight",
    )


def test_another_models_file_is_refused(tmp_path, spec):
    entries = dict(write(tmp_path / "a.gguf", spec, powers(spec)).entries)

    def refused(changed):
        (tmp_path / "b.gguf").write_bytes(gguf_bytes(Imatrix(changed, (), 1, 1)))
        with pytest.raises(CheckpointError) as caught:
            open_input_power(tmp_path / "b.gguf", spec)
        return str(caught.value)

    without = {n: e for n, e in entries.items() if n != "blk.1.ffn_down.weight"}
    assert "1 matrices of the model have no entry; got none for layers.1.down" in refused(without)
    wide = ImatrixEntry(np.ones((1, 7)), np.ones(1))
    width = spec.weight_shapes()["layers.0.q"][1]
    assert f"blk.0.attn_q.weight: input channels; got 7; wanted {width}" in refused(
        {**entries, "blk.0.attn_q.weight": wide}
    )
    experts = ImatrixEntry(np.ones((2, width)), np.ones(2))
    assert f"got 2 matrices of {width}" in refused({**entries, "blk.0.attn_q.weight": experts})


def test_a_matrix_that_met_no_token_is_refused(tmp_path, spec):
    imatrix = make_imatrix(
        powers(spec), spec=spec, model_type="mistral", n_tokens=512, n_chunk_tokens=512,
        datasets=(),
    )  # fmt: skip
    data = bytearray(list_bytes(imatrix))
    # The chunks of the first entry come after its name.
    name = sorted(imatrix.entries)[0].encode()
    at = 4 + 4 + len(name)
    data[at : at + 4] = bytes(4)
    (tmp_path / "a.dat").write_bytes(data)
    with pytest.raises(CheckpointError, match="tokens that were read; got 0"):
        open_input_power(tmp_path / "a.dat", spec)
