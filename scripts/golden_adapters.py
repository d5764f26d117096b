"""Write the logits of PEFT that merged adapters are compared with, and docs/adapters.md's table.

    PYTHONPATH=. python scripts/golden_adapters.py                 the goldens and the table
    PYTHONPATH=. python scripts/golden_adapters.py --model FOLDER  print rows for a real model

Needs torch, transformers and peft beside the development packages. The models and adapters are
random and written on the spot (tests/tiny_adapters.py). PEFT must find exactly the tensors that it
would save itself; its logits go to tests/golden/adapters/NAME.npz, in float32, from the model with
the adapter beside the weights ("applied") and after merge_and_unload() ("merged").
"""

import argparse
import tempfile
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import numpy as np
import peft
import safetensors.numpy
import torch
import transformers

from edgekit.families import open_model
from edgekit.runtime.reference import ReferenceDecoder
from tests.golden.tokens import golden_ids
from tests.tiny_adapters import ADAPTERS, write_tiny_adapter

ROOT = Path(__file__).resolve().parent.parent
OUT = ROOT / "tests" / "golden" / "adapters"
DOC = ROOT / "docs" / "adapters.md"
BEGIN, END = "<!-- table -->", "<!-- end of table -->"
ROWS = (0, 1, 17, 40, 63)
N_TOKENS = 64
# Adapters on every linear layer of a real model; what LoraConfig gets beside that.
REAL: Final[Mapping[str, Mapping[str, Any]]] = {
    "LoRA": {},
    "rsLoRA": {"use_rslora": True},
    "DoRA": {"use_dora": True},
    "LoRA, `lm_head` saved": {"modules_to_save": ["lm_head"]},
}


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", type=Path, help="folder of a model that transformers opens")
    model = parser.parse_args().model
    torch.set_num_threads(1)
    transformers.logging.set_verbosity_error()
    warnings.simplefilter("ignore")
    if model is not None:
        for name, options in REAL.items():
            with tempfile.TemporaryDirectory() as folder:
                print(compare_real(model, name, options, Path(folder)))
        return
    OUT.mkdir(parents=True, exist_ok=True)
    rows = []
    for name in ADAPTERS:
        with tempfile.TemporaryDirectory() as folder:
            rows.append(write_golden(name, Path(folder)))
            print(rows[-1])
    text = DOC.read_text(encoding="utf-8")
    before, after = text.partition(BEGIN)[0], text.partition(END)[2]
    head = "| adapter | base | edgekit and applied | edgekit and merged | applied and merged |"
    table = "\n".join([head, "|---|---|---|---|---|", *rows])
    DOC.write_text(f"{before}{BEGIN}\n{table}\n{END}{after}", encoding="utf-8")


def write_golden(name: str, folder: Path) -> str:
    """Compute and store the logits of one adapter; give its row of the table."""
    base, adapter = write_tiny_adapter(folder, name)
    case = ADAPTERS[name]
    model = transformers.AutoModelForCausalLM.from_pretrained(
        base, dtype=torch.float32, attn_implementation="eager"
    )
    if case.added_rows:
        n_rows = model.get_input_embeddings().weight.shape[0] + case.added_rows
        model.resize_token_embeddings(n_rows, mean_resizing=False)
    loaded = peft.PeftModel.from_pretrained(model, adapter).eval()
    check_names(loaded, adapter, is_resized=bool(case.added_rows))
    applied = run(loaded)
    merged = run(loaded.merge_and_unload().eval())
    source = open_model(base, adapter=adapter)
    ours = ReferenceDecoder.from_source(source).forward(
        golden_ids()[:N_TOKENS], n_past=0, n_logits=N_TOKENS
    )
    source.close()
    std = float(applied.std())
    np.savez_compressed(
        OUT / f"{name}.npz",
        applied=applied[list(ROWS)],
        merged=merged[list(ROWS)],
        std=np.float32(std),
    )
    # Rows that no token of the tokenizer has are left out of an export.
    shown, also = (logits[:, : ours.shape[1]] for logits in (applied, merged))
    pairs = ((ours, shown), (ours, also), (shown, also))
    errors = [float(np.abs(one - other).max()) / std for one, other in pairs]
    return f"| `{name}` | {case.base} | " + " | ".join(f"{error:.1g}" for error in errors) + " |"


def compare_real(base: Path, name: str, options: Mapping[str, Any], folder: Path) -> str:
    """Let PEFT make an adapter of a real model, with random numbers; give a row of errors."""
    torch.manual_seed(0)
    model = transformers.AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    config = peft.LoraConfig(
        r=16, lora_alpha=32, target_modules="all-linear", init_lora_weights=False, **options
    )
    adapted = peft.get_peft_model(model, config).eval()
    with torch.no_grad():
        for part, values in adapted.named_parameters():
            if "lora_B" in part:
                values.mul_(0.02)
            if "magnitude" in part:
                values.mul_(1 + 0.05 * torch.randn_like(values))
            if "modules_to_save" in part:
                values.add_(0.01 * torch.randn_like(values))
    adapted.save_pretrained(folder)
    applied = run(adapted)
    merged = run(adapted.merge_and_unload().eval())
    source = open_model(base, adapter=folder)
    ours = ReferenceDecoder.from_source(source).forward(
        golden_ids()[:N_TOKENS], n_past=0, n_logits=N_TOKENS
    )
    source.close()
    pairs = ((ours, applied), (ours, merged), (applied, merged))
    errors = [float(np.abs(one - other).max() / applied.std()) for one, other in pairs]
    return f"| {name} | {base.name} | " + " | ".join(f"{error:.1g}" for error in errors) + " |"


def check_names(loaded: peft.PeftModel, adapter: Path, *, is_resized: bool) -> None:
    """Refuse an adapter whose tensors are not those that PEFT would save."""
    ours = safetensors.numpy.load_file(adapter / "adapter_model.safetensors")
    options = {"save_embedding_layers": True} if is_resized else {}
    theirs = peft.get_peft_model_state_dict(loaded, **options)
    different = ours.keys() ^ theirs.keys()
    different |= {n for n in ours.keys() & theirs.keys() if ours[n].shape != tuple(theirs[n].shape)}
    different |= {
        n for n in ours.keys() & theirs.keys() if not np.array_equal(ours[n], theirs[n].detach())
    }
    if different:
        raise SystemExit(f"{adapter}: PEFT has other tensors: {sorted(different)}")


def run(model: torch.nn.Module) -> np.ndarray:
    """Give the logits of all tokens, (N_TOKENS, V)."""
    with torch.inference_mode():
        logits: np.ndarray = (
            model(torch.tensor([golden_ids()[:N_TOKENS]])).logits[0].float().numpy()
        )
    return logits


if __name__ == "__main__":
    main()
