"""`edgekit serve`: answer an OpenAI-compatible API on this machine with an artifact."""

from __future__ import annotations

from threading import Event
from typing import Annotated

import typer

from edgekit.cli.options import ArtifactArg, DeviceOpt, EngineOpt, ThreadsOpt
from edgekit.cli.output import Output


def command(
    artifact: ArtifactArg,
    host: Annotated[str, typer.Option("--host", help="Address to listen on.")] = "127.0.0.1",
    port: Annotated[
        int, typer.Option("--port", min=0, max=65535, help="0 picks a free one.")
    ] = 8080,
    api_key: Annotated[
        str | None,
        typer.Option("--api-key", envvar="EDGEKIT_API_KEY", help="Key that clients must send."),
    ] = None,
    quiet: Annotated[bool, typer.Option("--quiet", help="No line per request.")] = False,
    is_raw: Annotated[
        bool, typer.Option("--raw", help="Also a model without a chat template: completions only.")
    ] = False,
    device: DeviceOpt = "host",
    engine: EngineOpt = None,
    threads: ThreadsOpt = None,
) -> None:
    """Serve ARTIFACT: chat completions, completions, streaming, usage, logprobs.

    Example: edgekit serve artifacts/pocket-onnx-int4-g32 --port 8080
    """
    from edgekit.artifact import Artifact
    from edgekit.hosted.http_server import ModelServer, ignore_log
    from edgekit.pipeline.run import load
    from edgekit.text.chat import PROBE

    output = Output()
    opened = Artifact.open(artifact)
    with load(opened, device, engine=engine, n_threads=threads) as session:
        if not is_raw:
            # Check the template now, not at the first client's request.
            session.encode_chat(PROBE)
        server = ModelServer(
            session,
            model_name=opened.path.resolve().name,
            host=host,
            port=port,
            api_key=api_key,
            log=ignore_log if quiet else output.message,
        )
        with server:
            output.message(f"serving {opened.name} at {server.url} (stop with Ctrl-C)")
            Event().wait()
