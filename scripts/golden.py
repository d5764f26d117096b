"""Write the logits of Hugging Face transformers that every family is compared with.

    PYTHONPATH=. python scripts/golden.py            all tiny checkpoints of tests/tiny_families.py
    PYTHONPATH=. python scripts/golden.py qwen3      one of them

Needs torch and transformers beside the development packages. The checkpoints are random and
written on the spot; the logits of some rows go to tests/golden/families/NAME.npz, with the hash
of the weights they belong to. Those are bfloat16, so that fp16 and fp32 exports hold the same.
Computed in float32 with transformers' plain ("eager") attention.
"""

import argparse
import hashlib
import json
import re
import tempfile
from pathlib import Path
from typing import Any, Final

import numpy as np
import safetensors.numpy
import torch
import transformers

from tests.builders import write_tiny_checkpoint
from tests.golden.tokens import CHUNKS, N_SHORT, ROWS, golden_ids
from tests.tiny_families import TINY_CONFIGS

OUT = Path(__file__).resolve().parent.parent / "tests" / "golden" / "families"
SAME = 1e-4
Tensors = dict[str, np.ndarray[Any, np.dtype[Any]]]


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("names", nargs="*", help="members of TINY_CONFIGS; all by default")
    names = parser.parse_args().names or list(TINY_CONFIGS)
    torch.set_num_threads(1)
    transformers.logging.set_verbosity_error()
    for name in names:
        with tempfile.TemporaryDirectory() as folder:
            write_golden(name, Path(folder))


def write_golden(name: str, folder: Path) -> None:
    """Compute and store the logits of one member."""
    checkpoint = write_tiny_checkpoint(folder / "model", name)
    weights = hashlib.sha256((checkpoint / "model.safetensors").read_bytes()).hexdigest()
    model = open_text_model(checkpoint, folder / "text")
    whole, chunked = run(model, [len(golden_ids())]), run(model, CHUNKS)
    drift = np.abs(whole - chunked).max() / whole.std()
    # LongRoPE alone depends on the pieces; elsewhere a second copy would be the first again.
    kept: dict[str, Any] = {"whole": whole[list(ROWS)]}
    if drift > SAME:
        short = run(model, [N_SHORT])
        kept |= {"chunked": chunked[list(ROWS)], "short": short[[r for r in ROWS if r < N_SHORT]]}
    np.savez_compressed(
        OUT / f"{name}.npz",
        **kept,
        std=np.float32(whole.std()),
        weights_sha256=weights,
        transformers=transformers.__version__,
    )
    print(f"{name}: std {whole.std():.3f}, chunks differ by {drift:.1e} of it")


def open_text_model(checkpoint: Path, text_folder: Path) -> Any:
    """Open a checkpoint; of a multimodal one, the text decoder as a model of its own.

    Models whose code transformers does not hold are opened as what their own code computes:
    restated in the keys and names of a model that it does hold.
    """
    config = json.loads((checkpoint / "config.json").read_text())
    if config["model_type"] in RESTATED:
        checkpoint = restate(checkpoint, config, text_folder)
        config = json.loads((checkpoint / "config.json").read_text())
    if config["model_type"].endswith("_vl"):
        # The towers are drawn at random where the checkpoint lacks them; a text needs none.
        return transformers.AutoModelForImageTextToText.from_pretrained(
            checkpoint, dtype=torch.float32, attn_implementation="eager"
        ).eval()
    if "text_config" in config:
        text_folder.mkdir()
        (text_folder / "config.json").write_text(json.dumps(config["text_config"]))
        tensors = safetensors.numpy.load_file(checkpoint / "model.safetensors")
        prefix = "language_model."
        inner = {k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)}
        path = text_folder / "model.safetensors"
        safetensors.numpy.save_file(inner, path, metadata={"format": "pt"})
        checkpoint = text_folder
    model = transformers.AutoModelForCausalLM.from_pretrained(
        checkpoint, dtype=torch.float32, attn_implementation="eager"
    )
    embedding = model.get_input_embeddings()
    if hasattr(embedding, "embed_scale"):
        # Gemma's factor has the type of the weights; these are bfloat16, only the sums are not.
        embedding.embed_scale = embedding.embed_scale.bfloat16().float()
    return model.eval()


def restate(checkpoint: Path, config: dict[str, Any], folder: Path) -> Path:
    """Write a checkpoint in the keys and names of a model that transformers holds."""
    folder.mkdir()
    tensors = safetensors.numpy.load_file(checkpoint / "model.safetensors")
    config, tensors = RESTATED[config["model_type"]](config, tensors)
    (folder / "config.json").write_text(json.dumps(config))
    safetensors.numpy.save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


def restate_mimo(config: dict[str, Any], tensors: Tensors) -> tuple[dict[str, Any], Tensors]:
    """MiMo's class is Qwen2's with layers beside it that predict a second token."""
    kept = {k: v for k, v in tensors.items() if ".mtp_layers." not in k}
    return {**config, "model_type": "qwen2", "architectures": ["Qwen2ForCausalLM"]}, kept


def restate_minicpm(config: dict[str, Any], tensors: Tensors) -> tuple[dict[str, Any], Tensors]:
    """MiniCPM's code multiplies what Granite's does, by numbers that follow from its own keys."""
    width, n_layers = config["hidden_size"], config["num_hidden_layers"]
    return {
        **config,
        "model_type": "granite",
        "architectures": ["GraniteForCausalLM"],
        "embedding_multiplier": config["scale_emb"],
        "residual_multiplier": config["scale_depth"] / n_layers**0.5,
        "logits_scaling": width / config["dim_model_base"],
        "attention_multiplier": (width // config["num_attention_heads"]) ** -0.5,
    }, tensors


def restate_exaone(config: dict[str, Any], tensors: Tensors) -> tuple[dict[str, Any], Tensors]:
    """EXAONE 3's code is Llama's under other names."""
    names = {
        r"^transformer\.h\.": "model.layers.",
        r"^transformer\.wte": "model.embed_tokens",
        r"^transformer\.ln_f": "model.norm",
        r"\.ln_1\.": ".input_layernorm.",
        r"\.ln_2\.": ".post_attention_layernorm.",
        r"\.attn\.attention\.out_proj": ".self_attn.o_proj",
        r"\.attn\.attention\.": ".self_attn.",
        r"\.c_fc_0\.": ".gate_proj.",
        r"\.c_fc_1\.": ".up_proj.",
        r"\.c_proj\.": ".down_proj.",
    }
    made = {}
    for name, values in tensors.items():
        for theirs, ours in names.items():
            name = re.sub(theirs, ours, name)
        made[name] = values
    return {
        **config,
        "model_type": "llama",
        "architectures": ["LlamaForCausalLM"],
        "num_hidden_layers": config["num_layers"],
        "rms_norm_eps": config["layer_norm_epsilon"],
        "hidden_act": config["activation_function"],
    }, made


def restate_xverse(config: dict[str, Any], tensors: Tensors) -> tuple[dict[str, Any], Tensors]:
    """XVERSE's code is Llama's."""
    return {**config, "model_type": "llama", "architectures": ["LlamaForCausalLM"]}, tensors


RESTATED: Final = {
    "exaone": restate_exaone,
    "mimo": restate_mimo,
    "minicpm": restate_minicpm,
    "xverse": restate_xverse,
}


def run(model: Any, lengths: list[int]) -> np.ndarray[Any, np.dtype[np.float32]]:
    """Feed the tokens in pieces of the given lengths; give all logits, (T, V)."""
    ids, cache, start, parts = golden_ids(), None, 0, []
    with torch.inference_mode():
        for length in lengths:
            piece = torch.tensor([ids[start : start + length]])
            out = model(piece, past_key_values=cache, use_cache=True)
            cache, start = out.past_key_values, start + length
            parts.append(out.logits[0].numpy())
    return np.concatenate(parts)


if __name__ == "__main__":
    main()
