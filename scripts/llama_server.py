"""llama.cpp itself, reading a GGUF file: token ids, prompts, end tokens and probabilities.

The package xllamacpp (`pip install xllamacpp`, a development aid and no dependency of edgekit)
holds a build of llama.cpp and its server; everything here is a request to that server, in a process
of its own on this machine. Requests: https://github.com/ggml-org/llama.cpp, tools/server/README.md.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from http import HTTPStatus
from http.client import HTTPConnection
from pathlib import Path
from types import TracebackType
from typing import Any, Self

Messages = Sequence[Mapping[str, str]]


@dataclass(frozen=True)
class NextToken:
    """One greedy step.

    Attributes:
        id: The token that was taken.
        log_probs: Natural logarithm of the probability of the likeliest tokens, by id.
    """

    id: int
    log_probs: Mapping[int, float]


class LlamaCpp:
    """A GGUF file as llama.cpp reads it, on one thread."""

    def __init__(self, path: Path, context: int = 2048, *, is_float: bool = False) -> None:
        """Load a file.

        Args:
            path: The file.
            context: Positions of the cache, rounded up to a multiple of 256.
            is_float: Keep keys and values in float32, as the weights of a float32 file are.
        """
        import xllamacpp

        params = xllamacpp.CommonParams()
        params.model.path = str(path)
        params.n_ctx = context
        params.warmup = False
        params.verbosity = 0
        params.cpuparams.n_threads = params.cpuparams_batch.n_threads = 1
        if is_float:
            params.cache_type_k = params.cache_type_v = xllamacpp.ggml_type.GGML_TYPE_F32
            params.flash_attn_type = xllamacpp.llama_flash_attn_type.LLAMA_FLASH_ATTN_TYPE_DISABLED
        self.version: str = xllamacpp.__version__
        self._server: Any = xllamacpp.Server(params)
        self._host: str = self._server.listening_address.removeprefix("http://")
        # A server that is closed before it has answered anything may never end.
        connection = HTTPConnection(self._host, timeout=120)
        connection.request("GET", "/health")
        connection.getresponse().read()
        connection.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._server = None

    def _ask(self, path: str, question: Mapping[str, Any]) -> Any:
        connection = HTTPConnection(self._host, timeout=120)
        connection.request("POST", path, json.dumps(question), {"Content-Type": "application/json"})
        answer = connection.getresponse()
        text = answer.read().decode()
        connection.close()
        if answer.status != HTTPStatus.OK:
            raise RuntimeError(f"llama.cpp {path}: {answer.status} {text[:200]}")
        return json.loads(text)

    def encode(self, text: str, *, allow_special: bool, adds: bool = False) -> list[int]:
        """Give the ids of a text.

        Args:
            text: The text.
            allow_special: Control tokens that the text names count as such.
            adds: Put begin and end tokens around it where the file asks for them.
        """
        question = {"content": text, "parse_special": allow_special, "add_special": adds}
        return [int(i) for i in self._ask("/tokenize", question)["tokens"]]

    def prompt(self, messages: Messages) -> list[int]:
        """Give the ids of a conversation, ready for the next answer."""
        text = self._ask("/apply-template", {"messages": messages})["prompt"]
        return self.encode(text, allow_special=True, adds=True)

    def ends(self, token_id: int) -> bool:
        """Tell whether an answer ends with a token, by having the model say it."""
        question = {
            "prompt": [1], "n_predict": 2, "temperature": 0, "logit_bias": [[token_id, 1000.0]],
        }  # fmt: skip
        return bool(self._ask("/completion", question)["stop_type"] == "eos")

    def greedy(self, ids: Sequence[int], n_tokens: int, n_likeliest: int) -> list[NextToken]:
        """Continue a prompt with the likeliest tokens; at most ``n_tokens``."""
        question = {
            "prompt": list(ids), "n_predict": n_tokens, "temperature": 0, "n_probs": n_likeliest,
            "cache_prompt": False,
        }  # fmt: skip
        # The server leaves out tokens that are parts of a character.
        steps = self._ask("/completion", question).get("completion_probabilities", ())
        return [
            NextToken(
                int(step["id"]),
                {int(top["id"]): float(top["logprob"]) for top in step["top_logprobs"]},
            )
            for step in steps
        ]
