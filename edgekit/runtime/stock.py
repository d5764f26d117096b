"""The runtimes that others use for the formats, each asked in a process of its own.

The functions here are the jobs of those processes. They use nothing of edgekit's reading of an
artifact: tokenizer, chat template, end tokens, weights and the loop are the runtime's own.
"""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from typing import Any, Final, TypeAlias

from edgekit.artifact import Format
from edgekit.errors import EngineCrashError
from edgekit.lazy import require

Report: TypeAlias = Callable[..., None]
_FOREIGN_ERRORS: Final = (
    RuntimeError,
    ValueError,
    TypeError,
    LookupError,
    AttributeError,
    ArithmeticError,
    ImportError,
    OSError,
)


@dataclass(frozen=True, slots=True)
class StockRuntime:
    """A runtime that is not edgekit's.

    Attributes:
        package: Its distribution.
        job: ``"module:function"``, called with a request and a ``report`` callable.
    """

    package: str
    job: str

    @property
    def title(self) -> str:
        """Name and version, or the name alone where it is not installed."""
        return f"{self.package} {self.installed_version}".rstrip()

    @property
    def installed_version(self) -> str:
        """Its version; empty where it is not installed."""
        try:
            return version(self.package)
        except PackageNotFoundError:
            return ""


STOCK_RUNTIMES: Final[Mapping[Format, StockRuntime]] = {
    Format.ONNX: StockRuntime("onnxruntime-genai", "edgekit.runtime.stock:ask_genai"),
    Format.MLX: StockRuntime("mlx-lm", "edgekit.runtime.stock:ask_mlx_lm"),
}
"""Core ML has none: on a Mac it is the default engine of edgekit, elsewhere it is absent."""


def ask_genai(request: Mapping[str, Any], report: Report) -> dict[str, Any]:
    """Let onnxruntime-genai answer the prompts of a request.

    Args:
        request: ``path`` of the artifact; ``prompts``, each with ``messages`` (or None) and the
            ``ids`` to continue; ``n_new_tokens``.
        report: Called with ``"answer"`` and the index of each prompt.

    Returns:
        ``end_ids``, and ``answers``: for each prompt its own ``prompt_ids`` of the messages (None
        if there are none), the ``ids`` and ``text`` of the answer, and ``finish``.
    """
    with _told("onnxruntime-genai"):
        return _ask_genai(request, report)


def _ask_genai(request: Mapping[str, Any], report: Report) -> dict[str, Any]:
    genai = require("onnxruntime_genai", package="onnxruntime-genai")
    model = genai.Model(str(request["path"]))
    tokenizer = genai.Tokenizer(model)
    end_ids = [int(i) for i in tokenizer.eos_token_ids]
    answers = []
    for index, prompt in enumerate(request["prompts"]):
        report("answer", index=index)
        own = None
        if prompt["messages"] is not None:
            text = tokenizer.apply_chat_template(
                json.dumps(prompt["messages"]), add_generation_prompt=True
            )
            own = [int(i) for i in tokenizer.encode(text)]
        parameters = genai.GeneratorParams(model)
        n_most = len(prompt["ids"]) + int(request["n_new_tokens"])
        parameters.set_search_options(max_length=n_most, do_sample=False)
        generator = genai.Generator(model, parameters)
        generator.append_tokens(prompt["ids"])
        ids: list[int] = []
        while not generator.is_done():
            generator.generate_next_token()
            ids.append(int(generator.get_next_tokens()[0]))
        is_ended = ids[-1] in end_ids
        text = tokenizer.decode(ids[:-1] if is_ended else ids)
        answers.append(_answer(own, ids, str(text), "stop" if is_ended else "length"))
    return {"end_ids": end_ids, "answers": answers}


def ask_mlx_lm(request: Mapping[str, Any], report: Report) -> dict[str, Any]:
    """Let mlx-lm answer the prompts of a request; as ``ask_genai``."""
    with _told("mlx-lm"):
        return _ask_mlx_lm(request, report)


def _ask_mlx_lm(request: Mapping[str, Any], report: Report) -> dict[str, Any]:
    os.environ["HF_HUB_OFFLINE"] = "1"
    mlx_lm = require("mlx_lm", package="mlx-lm")
    model, tokenizer = mlx_lm.load(str(request["path"]))
    answers = []
    for index, prompt in enumerate(request["prompts"]):
        report("answer", index=index)
        own = None
        if prompt["messages"] is not None:
            own = tokenizer.apply_chat_template(prompt["messages"], add_generation_prompt=True)
            own = [int(i) for i in own]
        responses = list(
            mlx_lm.stream_generate(
                model, tokenizer, prompt["ids"], max_tokens=int(request["n_new_tokens"])
            )
        )
        ids = [int(response.token) for response in responses]
        text = "".join(response.text for response in responses)
        answers.append(_answer(own, ids, text, str(responses[-1].finish_reason)))
    return {"end_ids": sorted(int(i) for i in tokenizer.eos_token_ids), "answers": answers}


@contextlib.contextmanager
def _told(runtime: str) -> Iterator[None]:
    """Tell in a line what a runtime raised; its traceback says nothing of the artifact."""
    try:
        yield
    except _FOREIGN_ERRORS as error:
        text = " ".join(str(error).split())
        raise EngineCrashError(runtime, got=f"{type(error).__name__}: {text}") from error


def _answer(
    prompt_ids: Sequence[int] | None, ids: Sequence[int], text: str, finish: str
) -> dict[str, Any]:
    own = None if prompt_ids is None else list(prompt_ids)
    return {"prompt_ids": own, "ids": list(ids), "text": text, "finish": finish}
