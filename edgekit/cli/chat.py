"""`edgekit chat`: a conversation in the terminal."""

from __future__ import annotations

import sys
from typing import Annotated

import typer

from edgekit.cli.options import (
    ArtifactArg,
    DeviceOpt,
    EngineOpt,
    MaxTokensOpt,
    SampleSeedOpt,
    TemperatureOpt,
    ThreadsOpt,
)
from edgekit.cli.output import Output


def command(
    artifact: ArtifactArg,
    system: Annotated[
        str | None,
        typer.Option(
            "--system",
            metavar="TEXT",
            help="Instructions that the model gets before your messages.",
        ),
    ] = None,
    device: DeviceOpt = "host",
    engine: EngineOpt = None,
    threads: ThreadsOpt = None,
    max_tokens: MaxTokensOpt = 256,
    temperature: TemperatureOpt = 0.0,
    sample_seed: SampleSeedOpt = None,
) -> None:
    """Talk with an artifact in the terminal.

    An empty line, or the end of the input, ends the conversation.

    Example:
      edgekit chat artifacts/pocket-onnx-int4-g32
    """
    from edgekit.pipeline.run import load
    from edgekit.runtime.base import GenerateOptions, Message

    output = Output()
    options = GenerateOptions(max_tokens=max_tokens, temperature=temperature, seed=sample_seed)
    messages: list[Message] = [{"role": "system", "content": system}] if system else []
    with load(artifact, device, engine=engine, n_threads=threads) as session:
        output.message(f"{session.info.model} on {session.info.engine}; an empty line ends.")
        while question := _ask(output):
            messages.append({"role": "user", "content": question})
            parts = []
            for event in session.stream_chat(messages, options):
                output.write(event.text)
                parts.append(event.text)
            output.write("\n")
            messages.append({"role": "assistant", "content": "".join(parts)})


def _ask(output: Output) -> str:
    output.write("> " if sys.stdin.isatty() else "")
    return sys.stdin.readline().strip()
