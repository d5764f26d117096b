"""`edgekit run`: one prompt, one answer."""

from __future__ import annotations

from typing import Annotated

import typer

from edgekit.cli.options import (
    ArtifactArg,
    DeviceOpt,
    EngineOpt,
    JsonOpt,
    MaxTokensOpt,
    SampleSeedOpt,
    StopOpt,
    TemperatureOpt,
    ThreadsOpt,
    TopKOpt,
    TopPOpt,
)
from edgekit.cli.output import Output


def command(
    artifact: ArtifactArg,
    prompt: Annotated[str, typer.Argument(metavar="PROMPT", help="The question or instruction.")],
    raw: Annotated[
        bool,
        typer.Option(
            "--raw", help="Continue PROMPT as plain text, without the model's chat template."
        ),
    ] = False,
    device: DeviceOpt = "host",
    engine: EngineOpt = None,
    threads: ThreadsOpt = None,
    max_tokens: MaxTokensOpt = 256,
    temperature: TemperatureOpt = 0.0,
    top_p: TopPOpt = 1.0,
    top_k: TopKOpt = 0,
    sample_seed: SampleSeedOpt = None,
    stop: StopOpt = None,
    as_json: JsonOpt = False,
) -> None:
    """Ask an artifact one question and print its answer.

    Example:
      edgekit run artifacts/pocket-onnx-int4-g32 "Set a timer for 5 minutes"
    """
    from edgekit.pipeline.run import load
    from edgekit.records import to_data
    from edgekit.runtime.base import GenerateOptions

    output = Output(is_json=as_json)
    options = GenerateOptions(
        max_tokens=max_tokens,
        temperature=temperature,
        top_p=top_p,
        top_k=top_k,
        seed=sample_seed,
        stop=tuple(stop or ()),
    )
    with load(artifact, device, engine=engine, n_threads=threads) as session:
        messages = [{"role": "user", "content": prompt}]
        events = (
            session.generate(prompt, options) if raw else session.stream_chat(messages, options)
        )
        parts, finish, n_tokens = [], "", 0
        for event in events:
            output.write(event.text)
            parts.append(event.text)
            n_tokens += event.token_id is not None
            finish = event.finish.value if event.finish else finish
        output.write("\n")
        data = {
            "text": "".join(parts),
            "finish": finish,
            "n_tokens": n_tokens,
            "engine": to_data(session.info),
        }
    output.result(data, lambda _: None)
