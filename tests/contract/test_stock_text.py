"""Stock onnxruntime-genai, stock mlx-lm, transformers and edgekit read an artifact's text alike.

The same prompt ids, the same end tokens, and the same answer that ends by itself, for models whose
own files say it in different places.
"""

from __future__ import annotations

import json
from importlib.metadata import version
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file
from transformers import AutoTokenizer

import edgekit
from edgekit.devices.profile import OPTIONAL_ENGINES
from edgekit.pipeline.verify import VerifyPlan, verify
from edgekit.runtime import default_engine
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
WORD = 270  # the only one that the models here say
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
    # The last tokens are whole words that no merges lead to: those of " t" and "he" come too late
    # for " the". Such a vocabulary is not a trained one; onnxruntime-genai takes the whole words.
    model = tokenizer["model"]
    del model["merges"][-3:]
    for word in ("the", "and", "is"):
        model["vocab"][f"qqq{word}"] = model["vocab"].pop(
            f"\N{LATIN CAPITAL LETTER G WITH DOT ABOVE}{word}"
        )
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer), encoding="utf-8")
    n = len(tokenizer["model"]["vocab"])
    way(folder, n, CHATML)
    tensors = load_file(folder / "model.safetensors")
    for name in tensors:  # layers that add nothing: the next token follows from the last
        if name.endswith(("o_proj.weight", "down_proj.weight")):
            tensors[name] = np.zeros_like(tensors[name])
    embed = np.zeros(tensors["lm_head.weight"].shape, np.float32)
    head = np.zeros_like(embed)
    end = n + 1
    embed[:, 0] = 8
    embed[WORD, :2] = 0, 8
    head[WORD, 0] = head[end, 1] = 4
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


def theirs(folder, chat):
    tokenizer = AutoTokenizer.from_pretrained(folder)
    return list(tokenizer.apply_chat_template(chat, add_generation_prompt=True, return_dict=False))


def test_prompts_have_the_same_ids_everywhere(case):
    folder, _, artifacts = case
    for chat in CHATS:
        wanted = theirs(folder, chat)
        for artifact in artifacts.values():
            assert theirs(artifact.path, chat) == wanted
            with edgekit.load(artifact) as session:
                assert session.encode_chat(chat) == wanted


def test_ends_are_the_same_everywhere(case):
    _, end, artifacts = case
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


def test_the_answer_and_its_end_are_the_same_in_every_format(case):
    _, end, artifacts = case
    for artifact in artifacts.values():
        with edgekit.load(artifact) as session:
            answer = session.chat(CHATS[0], max_tokens=9)
        ids = [event.token_id for event in answer.events]
        assert (answer.finish.value, ids) == ("stop", [WORD, end])


def test_stock_runtimes_read_prompts_ends_and_answers_as_edgekit_does(case):
    _, end, artifacts = case
    plan = VerifyPlan(n_tokens=8, n_prompts=3, n_new_tokens=9, asks_stock=True)
    records = {record.format: record for record in verify(list(artifacts.values()), plan)}
    assert records["coreml"].stock.not_run.startswith("needs macOS")
    for name, package in (("onnx", "onnxruntime-genai"), ("mlx", "mlx-lm")):
        stock = records[name].stock
        assert stock.runtime == f"{package} {version(package)}"
        assert (stock.not_run, stock.failure, stock.problems, stock.differences) == ("", "", (), ())
        assert stock.is_met
        assert [answer.prompt for answer in stock.answers] == [
            answer.prompt for answer in records[name].run.answers
        ]
        for answer in stock.answers:
            assert (answer.ids, answer.finish) == ((WORD, end), "stop")


def test_a_model_without_a_tokenizer_is_exported_as_one(tmp_path):
    folder = write_tiny_checkpoint(tmp_path / "m", "llama")
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (folder / name).unlink()
    artifacts = edgekit.export(folder, "all", "int8", tmp_path / "out")
    for artifact in artifacts:
        (note,) = (note for note in artifact.manifest.notes if "tokenizer" in note)
        assert note.startswith(f"no tokenizer: {folder} has none of tokenizer.json")
        if default_engine(artifact.format, "linux") in OPTIONAL_ENGINES:
            continue
        with edgekit.load(artifact) as session:
            assert session.logits([1, 5, 7]).shape == (3, 384)
