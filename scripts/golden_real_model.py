"""Write the logits and answers of transformers that the real model's exports are compared with.

    PYTHONPATH=. python scripts/golden_real_model.py

Needs torch and transformers beside the development packages, and the model (`make real-model`).
Computed in float32 from the bfloat16 folder that scripts/real_model.py writes, with transformers'
plain ("eager") attention. The result is tests/golden/real/smollm2-135m-instruct.json.
"""

from __future__ import annotations

import hashlib
import json
import sys
import tempfile
from pathlib import Path
from typing import Any, Final

import torch
import transformers
from real_model import GGUF_NAME, PACKAGE, write_folder

from edgekit.paths import packaged_file

OUT: Final = Path("tests/golden/real/smollm2-135m-instruct.json")
TEXTS: Final = (
    "The capital of France is",
    "def fibonacci(n):\n    if n < 2:\n        return n\n    return",
    "Die größte Stadt in Deutschland heißt Berlin. In 2024 lived 3,897,145 people there.",
    "Once upon a time there was a small robot who lived in a lighthouse. Every evening it "
    "climbed the 199 steps to the lamp, and every morning it climbed down again. One night",
)
QUESTIONS: Final = (
    "What is the capital of France?",
    "Name three primary colors.",
    "What is 2 + 2?",
)
N_TOP: Final = 8
EVERY: Final = 997
"""One logit in so many is stored, beside the largest ones."""
MAX_TOKENS: Final = 48


def main() -> int:
    """Compute and store everything."""
    found = packaged_file(PACKAGE, GGUF_NAME)
    if found is None:
        print("run scripts/real_model.py first", file=sys.stderr)
        return 1
    torch.set_num_threads(2)
    transformers.logging.set_verbosity_error()
    with tempfile.TemporaryDirectory() as temporary:
        folder = write_folder(found, Path(temporary) / "model")
        weights = hashlib.sha256((folder / "model.safetensors").read_bytes()).hexdigest()
        tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
        model = transformers.AutoModelForCausalLM.from_pretrained(
            folder, dtype=torch.float32, attn_implementation="eager"
        ).eval()
        golden = {
            "transformers": transformers.__version__,
            "weights_sha256": weights,
            "texts": [_logits(model, tokenizer, text) for text in TEXTS],
            "chats": [_answer(model, tokenizer, question) for question in QUESTIONS],
        }
    OUT.write_text(json.dumps(golden, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    for chat in golden["chats"]:
        print(repr(chat["answer"]))
    return 0


def _logits(model: Any, tokenizer: Any, text: str) -> dict[str, Any]:
    """Give the token ids of a text, each position's likeliest token, and the last logits."""
    ids = tokenizer(text)["input_ids"]
    with torch.inference_mode():
        logits = model(torch.tensor([ids])).logits[0]
    last = logits[-1]
    top = last.topk(N_TOP)
    return {
        "text": text,
        "ids": ids,
        "argmax": logits.argmax(-1).tolist(),
        "std": round(float(last.std()), 5),
        "top_ids": top.indices.tolist(),
        "top_logits": [round(value, 5) for value in top.values.tolist()],
        "every": [round(value, 5) for value in last[::EVERY].tolist()],
    }


def _answer(model: Any, tokenizer: Any, question: str) -> dict[str, Any]:
    """Give the prompt's ids, and the greedy answer with its end token, if it came."""
    messages = [{"role": "user", "content": question}]
    prompt = tokenizer.apply_chat_template(messages, add_generation_prompt=True)["input_ids"]
    with torch.inference_mode():
        out = model.generate(torch.tensor([prompt]), max_new_tokens=MAX_TOKENS, do_sample=False)
    ids = out[0, len(prompt) :].tolist()
    return {
        "question": question,
        "prompt_ids": prompt,
        "ids": ids,
        "answer": tokenizer.decode(ids, skip_special_tokens=True),
    }


if __name__ == "__main__":
    sys.exit(main())
