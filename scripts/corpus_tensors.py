"""Write tests/corpus/TENSORS.json: the tensors that transformers saves for each published config.

    PYTHONPATH=. python scripts/corpus_tensors.py            all configs that transformers knows
    PYTHONPATH=. python scripts/corpus_tensors.py NAME ...   print these

transformers builds the model of each config of tests/corpus without memory (torch's meta device)
and says which tensors it would save, under which names, with which shapes and types. What a
quantizer makes of them, and models whose code is not part of transformers, are written down in
tests/corpus/tensors.py. It needs torch, transformers and
peft (for the adapters), and no network.
"""

from __future__ import annotations

import dataclasses
import json
import math
import re
import sys
from collections import defaultdict
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Final

import torch
import transformers
from transformers.core_model_loading import revert_weight_conversion

ROOT: Final = Path(__file__).resolve().parent.parent
CONFIGS: Final = ROOT / "tests" / "corpus" / "configs"
DATA: Final = ROOT / "tests" / "corpus" / "TENSORS.json"
_TYPES: Final = {torch.float32: "F32", torch.float16: "F16", torch.bfloat16: "BF16",
                 torch.int64: "I64", torch.bool: "BOOL"}  # fmt: skip
_NUMBER: Final = r"(?<=\.)\d+(?=\.)"
_QUANTIZED: Final = ("quantization_config", "quantization", "compression_config")
# Bases of the adapters, which lie in other repositories: the sizes that their configs give.
_BASES: Final[Mapping[str, Mapping[str, Any]]] = {
    "adapter-gemma-llamafactory": {  # google/gemma-2b
        "model_type": "gemma", "hidden_size": 2048, "intermediate_size": 16384,
        "num_hidden_layers": 18, "num_attention_heads": 8, "num_key_value_heads": 1,
        "head_dim": 256, "vocab_size": 256000,
    },
    "adapter-llama3.2-unsloth": {  # meta-llama/Llama-3.2-1B
        "model_type": "llama", "hidden_size": 2048, "intermediate_size": 8192,
        "num_hidden_layers": 16, "num_attention_heads": 32, "num_key_value_heads": 8,
        "head_dim": 64, "vocab_size": 128256,
    },
    "adapter-mlx-lora": {  # Qwen/Qwen2.5-3B-Instruct
        "model_type": "qwen2", "hidden_size": 2048, "intermediate_size": 11008,
        "num_hidden_layers": 36, "num_attention_heads": 16, "num_key_value_heads": 2,
        "vocab_size": 151936,
    },
    "adapter-phi3-unsloth": {  # unsloth/phi-3-mini-4k-instruct, Phi-3 with q, k and v apart
        "model_type": "mistral", "hidden_size": 3072, "intermediate_size": 8192,
        "num_hidden_layers": 32, "num_attention_heads": 32, "num_key_value_heads": 32,
        "vocab_size": 32064,
    },
}  # fmt: skip
Tensors = dict[str, tuple[str, tuple[int, ...]]]


def main() -> None:
    """Run the command line."""
    transformers.logging.set_verbosity_error()
    models = {}
    for name in sys.argv[1:] or sorted(path.name for path in CONFIGS.iterdir()):
        try:
            if (CONFIGS / name / "config.json").is_file():
                made_by, tensors = build(_read(name, "config.json"))
            else:
                made_by, tensors = build_adapter(name, _read(name, "adapter_config.json"))
        except Exception as error:  # noqa: BLE001  whatever stops transformers is told and left
            print(f"{name}: not built: {type(error).__name__}: {str(error)[:160]}", file=sys.stderr)
            continue
        print(f"{name}: {made_by}, {len(tensors)} tensors", file=sys.stderr)
        models[name] = {"class": made_by, "tensors": compact(tensors)}
    text = to_json(models)
    if sys.argv[1:]:
        print(text)
    else:
        DATA.write_text(text, encoding="utf-8")


def _read(name: str, file_name: str) -> Any:
    return json.loads((CONFIGS / name / file_name).read_text(encoding="utf-8"))


def build(config: Mapping[str, Any]) -> tuple[str, Tensors]:
    """Give the class that transformers takes for a config, and the tensors that it would save."""
    plain = {k: v for k, v in config.items() if k not in (*_QUANTIZED, "auto_map")}
    if isinstance(plain.get("text_config"), Mapping):
        plain["text_config"] = {
            k: v for k, v in plain["text_config"].items() if k not in _QUANTIZED
        }
    read = transformers.AutoConfig.for_model(plain.pop("model_type"), **plain)
    text = config.get("text_config") or {}
    dtype = next(
        (c[k] for c in (text, config) for k in ("torch_dtype", "dtype") if c.get(k)), "bfloat16"
    )
    factory = _factory(read, config)
    with torch.device("meta"):
        make = getattr(factory, "from_config", None) or factory._from_config
        model = make(read, dtype=getattr(torch, str(dtype)))
    left_out = set(getattr(model, "all_tied_weights_keys", {}) or {})
    state = {key: value for key, value in model.state_dict().items() if key not in left_out}
    saved = revert_weight_conversion(model, state)
    made = {key: (_TYPES[t.dtype], tuple(t.shape)) for key, t in saved.items()}
    return type(model).__name__, made


def _factory(read: Any, config: Mapping[str, Any]) -> Any:
    """Take the class that saved the checkpoint, or else one that holds the whole model."""
    named = getattr(transformers, (config.get("architectures") or ["?"])[0], None)
    if named is not None:
        return named
    for factory in (
        transformers.AutoModelForImageTextToText,
        transformers.AutoModelForCausalLM,
        transformers.AutoModel,
    ):
        if type(read) in factory._model_mapping:
            return factory
    raise LookupError(f"no model for {type(read).__name__}")


def build_adapter(name: str, adapter: Mapping[str, Any]) -> tuple[str, Tensors]:
    """Give the class of an adapter's base, and the tensors that peft would save."""
    import peft

    base = {**_BASES[name]}
    read = transformers.AutoConfig.for_model(base.pop("model_type"), **base)
    known = {field.name for field in dataclasses.fields(peft.LoraConfig)}
    with torch.device("meta"):
        model = transformers.AutoModelForCausalLM.from_config(read, dtype=torch.float32)
        wrapped = peft.get_peft_model(
            model, peft.LoraConfig(**{k: v for k, v in adapter.items() if k in known})
        )
    saved = peft.get_peft_model_state_dict(wrapped, save_embedding_layers=False)
    made = {key: (_TYPES[t.dtype], tuple(t.shape)) for key, t in saved.items()}
    return type(model).__name__, made


def compact(tensors: Tensors) -> list[list[Any]]:
    """Put tensors that differ in numbers alone together.

    Returns:
        A row each: ``model.layers.{}.mlp.up_proj.weight``, its type, its shape and, for each place
        of a number, the numbers there, such as ``0-31``; every combination of them is a tensor.
    """
    groups: dict[tuple[str, str, tuple[int, ...]], set[tuple[int, ...]]] = defaultdict(set)
    for name, (dtype, shape) in tensors.items():
        numbers = tuple(map(int, re.findall(_NUMBER, name)))
        groups[re.sub(_NUMBER, "{}", name), dtype, shape].add(numbers)
    rows = []
    for (pattern, dtype, shape), found in groups.items():
        places = [sorted(set(place)) for place in zip(*found, strict=True)]
        if math.prod(map(len, places)) != len(found):
            raise ValueError(f"{pattern}: not every combination of its numbers is there")
        rows.append([pattern, dtype, list(shape), *map(_ranges, places)])
    return rows


def _ranges(numbers: Iterable[int]) -> str:
    parts: list[list[int]] = []
    for number in numbers:
        if parts and parts[-1][-1] == number - 1:
            parts[-1] = [parts[-1][0], number]
        else:
            parts.append([number])
    return ",".join("-".join(map(str, part)) for part in parts)


def to_json(models: Mapping[str, Any]) -> str:
    """Write one tensor a line."""
    source = f"transformers {transformers.__version__}, torch {torch.__version__.split('+')[0]}"
    lines = ["{", f' "source": {json.dumps(source)},', ' "models": {']
    for i, (name, model) in enumerate(models.items()):
        lines.append(f'  {json.dumps(name)}: {{"class": {json.dumps(model["class"])}, "tensors": [')
        rows = [f"   {json.dumps(row)}" for row in model["tensors"]]
        lines.append(",\n".join(rows))
        lines.append("  ]}" + ("," if i + 1 < len(models) else ""))
    return "\n".join([*lines, " }", "}"]) + "\n"


if __name__ == "__main__":
    main()
