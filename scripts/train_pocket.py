"""Train the bundled model, models/pocket, from nothing but this repository.

    PYTHONPATH=. python scripts/train_pocket.py --minutes 100     train, export, evaluate, card
    PYTHONPATH=. python scripts/train_pocket.py --minutes 30 --resume    go on from there
    PYTHONPATH=. python scripts/train_pocket.py --evaluate        evaluate what is exported

Needs torch, tokenizers, safetensors, jinja2 and numpy. The learning rate is constant and then
falls to zero over the last part of the wall budget, so a shorter budget only means an earlier fall.
"""

import argparse
import json
import logging
import multiprocessing
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from pocket.card import write_card
from pocket.chat import Chat, train_tokenizer
from pocket.evaluate import Tally, evaluate, rounded_copy
from pocket.export import export_weights, replace_file, write_tokenizer_files
from pocket.model import Config, Pocket
from pocket.muon import Muon
from pocket.start import set_copying_heads
from pocket.stream import Stage, sample_texts, start_stream
from safetensors.torch import load_file

ROOT = Path(__file__).resolve().parent.parent
MODEL_DIR = ROOT / "models" / "pocket"
WORK_DIR = ROOT / "build" / "pocket"
SEED = 20261122
QUICK_SEED, FINAL_SEED = 11, 2026
# Batches are small, so a larger matrix rate is mostly noise: 3e-3 learned half as fast.
MUON_RATE, ADAM_RATE = 6e-4, 2e-3
WEIGHT_DECAY = 0.05
N_WARMUP_STEPS = 20
DECAY_SHARE = 0.6
EXPORT_EVERY_S, QUICK_EVERY_S = 300.0, 600.0

# weights: tool_calls, structured_output, long_context, multi_step, drill
STAGES = (
    Stage(0.20, (24, 20, 14, 22, 20), (64, 96, 128), 3, 4, 3072, 0.1),
    Stage(0.55, (14, 18, 8, 56, 4), (64, 128, 192, 256, 384), 3, 5, 4096),
    Stage(1.01, (15, 23, 7, 45, 10), (64, 128, 192, 256, 384, 512, 768, 1000), 5, 5, 4096),
)
log = logging.getLogger("pocket")


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--minutes", type=float, default=100.0, help="wall budget of training")
    parser.add_argument("--resume", action="store_true", help="go on from the last checkpoint")
    parser.add_argument("--evaluate", action="store_true", help="only evaluate and write the card")
    parser.add_argument(
        "--n", type=int, default=300, help="items per suite in the final evaluation"
    )
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--folder", type=Path, default=MODEL_DIR, help="where the model goes")
    parser.add_argument(
        "--compile", action="store_true", help="use torch.compile (needs a C++ compiler)"
    )
    options = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s", datefmt="%H:%M:%S")
    torch.set_num_threads(options.threads)
    WORK_DIR.mkdir(parents=True, exist_ok=True)
    config = Config()
    if not options.evaluate:
        if not (options.folder / "tokenizer.json").exists():
            write_tokenizer_files(options.folder, known_or_new_chat(config), config)
        train(config, options.folder, options.minutes * 60, options.resume, options.compile)
    chat = Chat.open(options.folder / "tokenizer.json")
    model = rounded_copy(load_file(options.folder / "model.safetensors"), config)
    tallies = evaluate(model, chat, options.n, FINAL_SEED)
    report(tallies, n_examples=3)
    record = json.loads((WORK_DIR / "record.json").read_text())
    write_card(options.folder, config, tallies, record, FINAL_SEED)


def known_or_new_chat(config: Config) -> Chat:
    """Give the bundled tokenizer, or train it when there is none."""
    if (MODEL_DIR / "tokenizer.json").exists():
        return Chat.open(MODEL_DIR / "tokenizer.json")
    return Chat(train_tokenizer(sample_texts(12000, SEED), config.vocab_size))


def rate_at(step: int, progress: float) -> float:
    """Give the learning rate factor, 0..1: warm-up by step, decay by share of the wall budget."""
    warm = min(1.0, (step + 1) / N_WARMUP_STEPS)
    return warm * min(1.0, max(0.0, 1.0 - progress) / DECAY_SHARE)


def train(
    config: Config, folder: Path, budget_s: float, is_resumed: bool, is_compiled: bool
) -> None:
    """Train for `budget_s` seconds of wall time and export along the way."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    torch.manual_seed(SEED)
    tokenizer_path = folder / "tokenizer.json"
    chat = Chat.open(tokenizer_path)
    model = Pocket(config)
    set_copying_heads(model, config, SEED)
    model.to(device)
    matrices = [p for n, p in model.named_parameters() if p.ndim == 2 and "embed" not in n]
    others = [p for n, p in model.named_parameters() if p.ndim == 1 or "embed" in n]
    muon = Muon(matrices, WEIGHT_DECAY)
    adam = torch.optim.AdamW(others, lr=ADAM_RATE, betas=(0.9, 0.95), weight_decay=0.0)
    record: dict[str, Any] = {"seed": SEED, "n_steps": 0, "n_tokens": 0, "wall_s": 0.0, "runs": 0}
    if is_resumed:
        state = torch.load(WORK_DIR / "checkpoint.pt", map_location=device)
        model.load_state_dict(state["model"])
        muon.load_state_dict(state["muon"])
        adam.load_state_dict(state["adam"])
        record = state["record"]
    stream_seed = SEED + record["runs"]
    record["runs"] += 1
    shared = multiprocessing.Value("d", 0.0)
    stream = start_stream(tokenizer_path, STAGES, stream_seed, shared)
    loss_of = torch.compile(model.loss, dynamic=True) if is_compiled else model.loss

    done_s, started = record["wall_s"], time.monotonic()
    total_s = done_s + budget_s
    next_export, next_quick, smooth = done_s + 60.0, done_s + QUICK_EVERY_S, 0.0
    log.info("training: %s, %.1f min of %.1f min left", device, budget_s / 60, total_s / 60)
    while True:
        wall_s = done_s + time.monotonic() - started
        progress = wall_s / total_s
        shared.value = progress
        record["wall_s"] = wall_s
        if wall_s >= next_export or progress >= 1.0:
            next_export = wall_s + EXPORT_EVERY_S
            save(folder, model, muon, adam, record)
        if progress >= 1.0:
            break
        if wall_s >= next_quick:
            next_quick = wall_s + QUICK_EVERY_S
            quick = rounded_copy({k: v.cpu() for k, v in model.state_dict().items()}, config)
            report(evaluate(quick, chat, 40, QUICK_SEED), n_examples=0)
        batch = stream.get()
        ids = torch.from_numpy(batch.ids).to(device)
        at = np.flatnonzero(batch.weights)
        weights = torch.from_numpy(batch.weights.flatten()[at]).to(device)
        loss = loss_of(ids, torch.from_numpy(at).to(device), weights)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(others, 1.0)
        rate = rate_at(record["n_steps"], progress)
        muon.step(MUON_RATE * rate)
        for group in adam.param_groups:
            group["lr"] = ADAM_RATE * rate
        adam.step()
        model.zero_grad(set_to_none=True)
        record["n_steps"] += 1
        record["n_tokens"] += batch.n_used
        smooth = loss.item() if not smooth else 0.97 * smooth + 0.03 * loss.item()
        if record["n_steps"] % 25 == 0:
            log.info(
                "step %d loss %.3f rate %.2f tokens %.2fM tok/s %.0f row %s waiting %d",
                record["n_steps"], smooth, rate, record["n_tokens"] / 1e6,
                record["n_tokens"] / max(wall_s, 1.0), tuple(batch.weights.shape), stream.qsize(),
            )  # fmt: skip


def save(
    folder: Path,
    model: Pocket,
    muon: Muon,
    adam: torch.optim.Optimizer,
    record: dict[str, Any],
) -> None:
    """Write the checkpoint, the record and the exported weights."""
    state = {
        "model": model.state_dict(),
        "muon": muon.state_dict(),
        "adam": adam.state_dict(),
        "record": record,
    }
    part = WORK_DIR / "checkpoint.part"
    torch.save(state, part)
    part.replace(WORK_DIR / "checkpoint.pt")
    replace_file(WORK_DIR / "record.json", json.dumps(record).encode())
    export_weights(folder, model.state_dict())
    log.info("saved at step %d", record["n_steps"])


def report(tallies: dict[str, Tally], n_examples: int) -> None:
    """Log shares of right answers and failure classes."""
    for key, tally in tallies.items():
        reasons = dict(tally.reasons.most_common(4)) if "/" not in key else ""
        log.info("eval %s %d/%d %s", key, tally.n_right, tally.n, reasons)
        if "/" not in key:
            for question, wanted, got in tally.wrong[:n_examples]:
                log.info("  wrong: %r wanted %r got %r", question[-160:], wanted, got)


if __name__ == "__main__":
    main()
