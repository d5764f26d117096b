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
from http import HTTPStatus
from http.client import HTTPConnection
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, Final, TypeAlias

from edgekit.artifact import Format
from edgekit.errors import EngineCrashError
from edgekit.lazy import require

Report: TypeAlias = Callable[..., None]
_ANSWER_S: Final = 600.0
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
    Format.GGUF: StockRuntime("xllamacpp", "edgekit.runtime.stock:ask_llama_cpp"),
}
"""Core ML has none: on a Mac it is the default engine of edgekit, elsewhere it is absent.

xllamacpp is a build of llama.cpp with its server; edgekit's own engine is llama-cpp-python.
"""


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


def ask_llama_cpp(request: Mapping[str, Any], report: Report) -> dict[str, Any]:
    """Let llama.cpp's own server answer the prompts of a request; as ``ask_genai``.

    ``end_ids`` are those of ``end_candidates`` at which an answer ends.
    """
    with _told("llama.cpp"):
        return _ask_llama_cpp(request, report)


def _ask_llama_cpp(request: Mapping[str, Any], report: Report) -> dict[str, Any]:
    xllamacpp = require("xllamacpp")
    params = xllamacpp.CommonParams()
    params.model.path = str(Path(request["path"]) / "model.gguf")
    n_new_tokens = int(request["n_new_tokens"])
    n_longest = max((len(prompt["ids"]) for prompt in request["prompts"]), default=0)
    params.n_ctx = n_longest + n_new_tokens + 1
    params.n_parallel = 1
    params.warmup = False
    params.verbosity = 0
    threads = int(request.get("n_threads") or 1)
    params.cpuparams.n_threads = params.cpuparams_batch.n_threads = threads
    server = xllamacpp.Server(params)
    host = server.listening_address.removeprefix("http://")
    answers = []
    for index, prompt in enumerate(request["prompts"]):
        report("answer", index=index)
        own = None
        if prompt["messages"] is not None:
            text = _post(host, "/apply-template", {"messages": prompt["messages"]})["prompt"]
            asked = {"content": text, "parse_special": True, "add_special": True}
            own = [int(i) for i in _post(host, "/tokenize", asked)["tokens"]]
        said = _post(host, "/completion", _greedy(prompt["ids"], n_new_tokens))
        ids = [int(i) for i in said["tokens"]]
        is_ended = said["stop_type"] == "eos"
        answers.append(_answer(own, ids, said["content"], "stop" if is_ended else "length"))
    ends = [
        token_id
        for token_id in request.get("end_candidates", ())
        if _post(host, "/completion", {**_greedy([1], 2), "logit_bias": [[token_id, 1000.0]]})[
            "stop_type"
        ]
        == "eos"
    ]
    return {"end_ids": ends, "answers": answers}


def _greedy(ids: Sequence[int], n_new_tokens: int) -> dict[str, Any]:
    return {
        "prompt": list(ids), "n_predict": n_new_tokens, "temperature": 0, "return_tokens": True,
        "cache_prompt": False,
    }  # fmt: skip


def _post(host: str, path: str, question: Mapping[str, Any]) -> Any:
    """Ask the server in this process."""
    connection = HTTPConnection(host, timeout=_ANSWER_S)
    headers = {"Content-Type": "application/json"}
    connection.request("POST", path, json.dumps(question), headers)
    answer = connection.getresponse()
    text = answer.read().decode("utf-8", "replace")
    connection.close()
    if answer.status != HTTPStatus.OK:
        raise EngineCrashError(f"llama.cpp: {path}", got=f"{answer.status} {text[:200]}")
    return json.loads(text)


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
