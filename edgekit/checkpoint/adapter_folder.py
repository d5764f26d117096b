"""A folder that holds an adapter alone: which model it belongs to, for the refusal."""

from __future__ import annotations

from pathlib import Path
from typing import Final

from edgekit.errors import CheckpointError
from edgekit.model_files import CONFIG_NAME
from edgekit.strict_json import read_object

ADAPTER_CONFIG_NAME: Final = "adapter_config.json"
# Where PEFT and mlx-lm write the model that an adapter was trained on.
_BASE_KEYS: Final = ("base_model_name_or_path", "model")


def refuse_adapter_folder(folder: Path) -> None:
    """Refuse a folder with an adapter's config and none of a model.

    Raises:
        CheckpointError: It is one; the message names the base model if the adapter does.
    """
    path = folder / ADAPTER_CONFIG_NAME
    if (folder / CONFIG_NAME).is_file() or not path.is_file():
        return
    values = read_object(path)
    named = (values[key] for key in _BASE_KEYS if isinstance(values.get(key), str) and values[key])
    base = next(named, None)
    kind = values.get("peft_type")
    maker = f"PEFT ({kind})" if isinstance(kind, str) else "mlx-lm" if base else "PEFT or mlx-lm"
    raise CheckpointError(
        f"{folder}: an adapter of {maker}, not a model",
        got=f"changes to {base}" if base else f"{ADAPTER_CONFIG_NAME}, which names no base model",
        wanted="a model folder; an adapter goes with --adapter",
        do=f"Run: edgekit export {base or 'BASE'} --adapter {folder}",
    )
