"""Comparison of optimum's graph with the transformers model that it was traced from.

A program that runs inside optimum's environment, never as part of edgekit. It loads the checkpoint
with transformers, reports which weights it did not find (transformers draws those at random and
continues), runs the same tokens in both, whole and in pieces, and writes the result as JSON.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any


def main(checkpoint: str, graph: str, n_tokens: int, result: str) -> None:
    """Compare; write the findings to ``result`` and transformers' logits next to it."""
    import numpy as np
    import torch
    from transformers import AutoModelForCausalLM

    model, loading = AutoModelForCausalLM.from_pretrained(
        checkpoint,
        dtype=torch.float32,
        output_loading_info=True,
        local_files_only=True,
        trust_remote_code=False,
    )
    found: dict[str, Any] = {
        name: sorted(map(str, loading.get(name, ())))
        for name in ("missing_keys", "unexpected_keys", "mismatched_keys")
    }
    if not found["missing_keys"] and not found["mismatched_keys"]:
        n_vocab = model.get_input_embeddings().weight.shape[0]
        ids = spread_ids(n_tokens, n_vocab)
        with torch.no_grad():
            wanted = model.eval()(torch.tensor([ids]), use_cache=False).logits[0].float().numpy()
        del model
        got = _run_graph(graph, ids)
        found |= {
            "n_tokens": n_tokens,
            "max_error": float(np.abs(got - wanted).max()),
            "std": float(wanted.std()),
            "top1": float((got.argmax(-1) == wanted.argmax(-1)).mean()),
        }
        np.save(Path(result).with_suffix(".npy"), wanted)
    Path(result).write_text(json.dumps(found) + "\n", encoding="utf-8")


def spread_ids(n_tokens: int, n_vocab: int) -> list[int]:
    """Give token ids that are spread over the vocabulary and do not repeat early."""
    return [(7919 * i + 13) % n_vocab for i in range(n_tokens)]


def _run_graph(path: str, ids: list[int]) -> Any:
    """Run a third of the tokens from an empty cache, then one, then the rest."""
    import numpy as np
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    floats = {"tensor(float)": np.float32, "tensor(float16)": np.float16}
    inputs = {item.name: item for item in session.get_inputs()}
    cache = {
        name: np.zeros((1, item.shape[1], 0, item.shape[3]), floats[item.type])
        for name, item in inputs.items()
        if name.startswith("past_key_values.")
    }
    outputs = [item.name for item in session.get_outputs()]
    first = max(1, len(ids) // 3)
    rows, start = [], 0
    for stop in sorted({first, min(first + 1, len(ids)), len(ids)}):
        feeds = {
            "input_ids": np.array([ids[start:stop]], np.int64),
            "attention_mask": np.ones((1, stop), np.int64),
            "position_ids": np.arange(start, stop, dtype=np.int64)[None],
        }
        given = {name: value for name, value in feeds.items() if name in inputs}
        values = dict(zip(outputs, session.run(None, given | cache), strict=True))
        rows.append(values.pop("logits")[0].astype(np.float32))
        cache = {name.replace("present", "past_key_values", 1): v for name, v in values.items()}
        start = stop
    return np.concatenate(rows)


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], int(sys.argv[3]), sys.argv[4])
