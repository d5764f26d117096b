"""Stock onnxruntime-genai, stock mlx-lm, transformers and edgekit read an artifact's text alike.

The same prompt ids, the same end tokens, and the same answer that ends by itself, for models whose
own files say it in different places.
"""

from __future__ import annotations

import json
from pathlib import Path

import ml_dtypes
import numpy as np
import onnxruntime_genai
import pytest
from mlx_lm import load, stream_generate
from safetensors.numpy import load_file, save_file
from transformers import AutoTokenizer

import edgekit
from edgekit.artifact import Artifact
from tests.builders import write_tiny_checkpoint

CHATML = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
NEW = ("<|im_start|>", "<|im_end|>")
CHATS = (
    [{"role": "user", "content": "hello there"}],
    [
        {"role": "user", "content": "the rain"},
        {"role": "assistant", "content": "in  spain\nis"},
        {"role": "user", "content": "and then?"},
    ],
)
FLAGS = dict.fromkeys(("lstrip", "rstrip", "single_word", "normalized"), False)


def edit(path, **changes):
    content = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    path.write_text(json.dumps(content | changes), encoding="utf-8")


def in_tokenizer_json(folder, n, template):
    listed = json.loads((folder / "tokenizer.json").read_text(encoding="utf-8"))["added_tokens"]
    more = [{"id": n + i, "content": text, "special": True, **FLAGS} for i, text in enumerate(NEW)]
    edit(folder / "tokenizer.json", added_tokens=listed + more)
    edit(folder / "tokenizer_config.json", chat_template=template, eos_token="<|im_end|>")


def in_the_config(folder, n, template):
    listed = json.loads((folder / "tokenizer.json").read_text(encoding="utf-8"))["added_tokens"]
    own = {str(t["id"]): {k: v for k, v in t.items() if k != "id"} for t in listed}
    more = {str(n + i): {"content": text, "special": True, **FLAGS} for i, text in enumerate(NEW)}
    edit(folder / "tokenizer_config.json", added_tokens_decoder=own | more, eos_token="<|im_end|>")
    edit(folder / "tokenizer_config.json", chat_template=template)


def in_older_files(folder, n, template):
    edit(folder / "added_tokens.json", **{text: n + i for i, text in enumerate(NEW)})
    edit(folder / "special_tokens_map.json", eos_token="<|im_end|>", pad_token="<pad>")
    edit(folder / "tokenizer_config.json", chat_template=None)
    (folder / "chat_template.jinja").write_bytes(template.encode())


def in_the_template_alone(folder, n, template):
    in_tokenizer_json(folder, n, "")
    edit(folder / "tokenizer_config.json", eos_token="</s>", chat_template="not this one")
    (folder / "chat_template.jinja").write_bytes(template.encode())


def with_named_templates(folder, n, template):
    in_tokenizer_json(folder, n, "")
    named = {"default": template, "tool_use": "{{ tools | tojson }}" + template}
    entry = [{"name": name, "template": text} for name, text in named.items()]
    edit(folder / "tokenizer_config.json", chat_template=entry)


def as_vocabulary_and_merges(folder, n, template):
    model = json.loads((folder / "tokenizer.json").read_text(encoding="utf-8"))["model"]
    (folder / "tokenizer.json").unlink()
    (folder / "vocab.json").write_text(json.dumps(model["vocab"]), encoding="utf-8")
    pairs = [m if isinstance(m, str) else " ".join(m) for m in model["merges"]]
    (folder / "merges.txt").write_text("\n".join(pairs), encoding="utf-8")
    edit(folder / "added_tokens.json", **{text: n + i for i, text in enumerate(NEW)})
    edit(folder / "special_tokens_map.json", eos_token="<|im_end|>")
    edit(folder / "tokenizer_config.json", chat_template=template, tokenizer_class="GPT2Tokenizer")


def with_line_ends(folder, n, template):
    in_tokenizer_json(folder, n, template.replace("\n", "\r\n"))


WAYS = (
    in_tokenizer_json,
    in_the_config,
    in_older_files,
    in_the_template_alone,
    with_named_templates,
    as_vocabulary_and_merges,
    with_line_ends,
)


def write_model(folder: Path, way) -> tuple[Path, int]:
    """Write a model that says one word and then its turn end, which its config does not name."""
    write_tiny_checkpoint(folder, "llama", eos_token_id=2, tie_word_embeddings=False)
    tokenizer = json.loads((folder / "tokenizer.json").read_text(encoding="utf-8"))
    n = len(tokenizer["model"]["vocab"])
    way(folder, n, CHATML)
    tensors = load_file(folder / "model.safetensors")
    for name in tensors:  # layers that add nothing: the next token follows from the last
        if name.endswith(("o_proj.weight", "down_proj.weight")):
            tensors[name] = np.zeros_like(tensors[name])
    embed = np.zeros(tensors["lm_head.weight"].shape, np.float32)
    head = np.zeros_like(embed)
    word, start, end = 270, 0, n + 1
    embed[:, start] = 8
    embed[word, :2] = 0, 8
    head[word, 0] = head[end, 1] = 4
    norm = np.ones_like(tensors["model.norm.weight"], np.float32)
    new = {"model.embed_tokens.weight": embed, "lm_head.weight": head, "model.norm.weight": norm}
    tensors |= {name: values.astype(ml_dtypes.bfloat16) for name, values in new.items()}
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    return folder, end


@pytest.fixture(scope="module", params=WAYS, ids=lambda way: way.__name__)
def case(request, tmp_path_factory):
    """The model, its end token, and its artifacts by format."""
    root = tmp_path_factory.mktemp("stock")
    folder, end = write_model(root / "m", request.param)
    artifacts = edgekit.export(folder, ["onnx", "mlx", "coreml"], "int8", root / "out")
    return folder, end, {artifact.format.value: artifact for artifact in artifacts}


def genai(artifact: Artifact) -> onnxruntime_genai.Model:
    return onnxruntime_genai.Model(str(artifact.path))


def theirs(folder, chat):
    tokenizer = AutoTokenizer.from_pretrained(folder)
    return list(tokenizer.apply_chat_template(chat, add_generation_prompt=True, return_dict=False))


def test_prompts_have_the_same_ids_everywhere(case):
    folder, _, artifacts = case
    genai_tokenizer = onnxruntime_genai.Tokenizer(genai(artifacts["onnx"]))
    _, mlx_tokenizer = load(str(artifacts["mlx"].path))
    for chat in CHATS:
        wanted = theirs(folder, chat)
        text = genai_tokenizer.apply_chat_template(json.dumps(chat), add_generation_prompt=True)
        assert list(genai_tokenizer.encode(text)) == wanted
        assert list(mlx_tokenizer.apply_chat_template(chat, add_generation_prompt=True)) == wanted
        for artifact in artifacts.values():
            assert theirs(artifact.path, chat) == wanted
            with edgekit.load(artifact) as session:
                assert session.encode_chat(chat) == wanted


def test_ends_are_the_same_everywhere(case):
    _, end, artifacts = case
    _, mlx_tokenizer = load(str(artifacts["mlx"].path))
    assert {2, end} <= set(mlx_tokenizer.eos_token_ids)
    config = json.loads((artifacts["onnx"].path / "genai_config.json").read_text())
    assert config["model"]["eos_token_id"] == [2, end]
    for artifact in artifacts.values():
        content = json.loads((artifact.path / "generation_config.json").read_text())
        assert content["eos_token_id"] == [2, end]
        if (artifact.path / "config.json").is_file():
            content = json.loads((artifact.path / "config.json").read_text())
            assert content["eos_token_id"] == [2, end]
        manifest = artifact.manifest
        assert manifest.decoder["eos_token_ids"] == [2, end]
        assert [(token.id, token.text) for token in manifest.end_tokens] == [
            (2, "</s>"), (end, "<|im_end|>")
        ]  # fmt: skip
        assert "chat template after an answer" in manifest.end_tokens[1].origins
        with edgekit.load(artifact) as session:
            assert session.eos_ids == {2, end}


def test_the_answer_and_its_end_are_the_same_everywhere(case):
    _, end, artifacts = case
    with edgekit.load(artifacts["coreml"]) as session:
        wanted = session.chat(CHATS[0], max_tokens=9)
        prompt = session.encode_chat(CHATS[0])
    assert (wanted.finish.value, wanted.n_output_tokens) == ("stop", 2)
    for name in ("onnx", "mlx"):
        with edgekit.load(artifacts[name]) as session:
            answer = session.chat(CHATS[0], max_tokens=9)
        assert (answer.text, answer.finish, answer.n_output_tokens) == (
            wanted.text, wanted.finish, 2
        )  # fmt: skip
    model = genai(artifacts["onnx"])
    generator = onnxruntime_genai.Generator(model, onnxruntime_genai.GeneratorParams(model))
    generator.append_tokens(prompt)
    ids = []
    while not generator.is_done():
        generator.generate_next_token()
        ids.append(int(generator.get_next_tokens()[0]))
    assert [token.token_id for token in wanted.events] == ids
    assert ids[-1] == end
    assert onnxruntime_genai.Tokenizer(model).decode(ids[:1]).strip() == wanted.text.strip()
    mlx_model, mlx_tokenizer = load(str(artifacts["mlx"].path))
    responses = list(stream_generate(mlx_model, mlx_tokenizer, prompt, max_tokens=9))
    assert [response.token for response in responses] == ids
    assert responses[-1].finish_reason == "stop"
    assert "".join(response.text for response in responses) == wanted.text


def test_a_model_without_a_tokenizer_is_exported_as_one(tmp_path):
    folder = write_tiny_checkpoint(tmp_path / "m", "llama")
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (folder / name).unlink()
    artifacts = edgekit.export(folder, "all", "int8", tmp_path / "out")
    for artifact in artifacts:
        (note,) = (note for note in artifact.manifest.notes if "tokenizer" in note)
        assert note.startswith(f"no tokenizer: {folder} has none of tokenizer.json")
        with edgekit.load(artifact) as session:
            assert session.logits([1, 5, 7]).shape == (3, 384)
