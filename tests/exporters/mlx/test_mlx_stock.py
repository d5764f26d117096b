"""Claims about stock mlx-lm: it opens the folder as it is and writes the same tokens as edgekit."""

from __future__ import annotations

import pytest
from mlx_lm import generate, load, stream_generate

from edgekit.artifact import Artifact
from edgekit.exporters.mlx.exporter import MlxExporter
from edgekit.exporters.staging import write_artifact
from edgekit.families import open_model
from edgekit.paths import models_dir
from edgekit.quantize.encoded_model import quantize_model
from edgekit.quantize.methods import Method
from edgekit.runtime.session import open_session
from edgekit.scheme import Scheme
from edgekit.text.tokenizer import Tokenizer
from tests.builders import write_tiny_tokenizer
from tests.exporters.memory_model import memory_model, tiny_spec

SCHEMES = ["fp32", "fp16", "int8", "int4", "int4-g64"]
PROMPT = "the rain in spain"
N_TOKENS = 12


@pytest.fixture
def artifact_of(tmp_path):
    def make(scheme) -> Artifact:
        source = tmp_path / "source"
        source.mkdir(exist_ok=True)
        write_tiny_tokenizer(source, 384)
        # Weights of float32 keep stock arithmetic in float32 here; half precision on the CPU
        # backend would decide near ties differently from the fp32 check.
        (source / "config.json").write_text('{"torch_dtype": "float32"}')
        model = memory_model(
            tiny_spec(vocab_size=384),
            scheme,
            schemes=None if scheme.startswith("fp") else {"embed": "int8"},
            assets={path.name: path for path in source.iterdir()},
        )
        return write_artifact(MlxExporter(), model, tmp_path / scheme)

    return make


@pytest.mark.parametrize("scheme", SCHEMES)
def test_stock_greedy_tokens_are_ours(artifact_of, scheme):
    artifact = artifact_of(scheme)
    model, tokenizer = load(str(artifact.path))
    prompt = Tokenizer.open(artifact.path).encode(PROMPT, allow_special=False)
    assert tokenizer.encode(PROMPT, add_special_tokens=False) == prompt
    theirs = [r.token for r in stream_generate(model, tokenizer, prompt, max_tokens=N_TOKENS)]
    activation = "native" if scheme == "fp16" else "fp32"
    with open_session(artifact, options={"activation": activation}) as session:
        ours = [e.token_id for e in session.generate(prompt, max_tokens=N_TOKENS)]
    assert theirs == ours


def test_stock_generate_writes_text(artifact_of):
    artifact = artifact_of("int4")
    model, tokenizer = load(str(artifact.path))
    theirs = generate(model, tokenizer, PROMPT, max_tokens=N_TOKENS)
    with open_session(artifact) as session:
        prompt = tokenizer.encode(PROMPT)
        ours = "".join(e.text for e in session.generate(prompt, max_tokens=N_TOKENS))
    assert theirs == ours


def test_stock_chat_template_and_end_tokens_are_ours(artifact_of):
    artifact = artifact_of("int8")
    _, tokenizer = load(str(artifact.path))
    messages = [{"role": "user", "content": "hello there"}]
    with open_session(artifact, engine="fake") as session:
        assert tokenizer.apply_chat_template(
            messages, add_generation_prompt=True
        ) == session.encode_chat(messages)
        assert set(tokenizer.eos_token_ids) == session.eos_ids


def test_the_bundled_model_answers_alike_in_its_own_bf16(tmp_path):
    source = open_model(models_dir() / "pocket")
    store = quantize_model(source, Scheme.parse("int4"), tmp_path / "q", method=Method.RTN)
    artifact = write_artifact(MlxExporter(), store, tmp_path / "a")
    store.close()
    assert artifact.manifest.settings["float_dtype"] == "bfloat16"
    assert artifact.manifest.settings["n_rounded_float_tensors"] == 0
    model, tokenizer = load(str(artifact.path))
    with open_session(artifact, options={"activation": "native"}) as session:
        for text in ("set a timer for 7 minutes", "hello"):
            prompt = session.encode_chat([{"role": "user", "content": text}])
            theirs = [r.token for r in stream_generate(model, tokenizer, prompt, max_tokens=12)]
            ours = [e.token_id for e in session.generate(prompt, max_tokens=12)]
            assert theirs == ours
