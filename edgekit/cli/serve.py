"""`edgekit serve`: answer an OpenAI-compatible API on this machine with an artifact."""

from __future__ import annotations

from threading import Event
from typing import Annotated

import typer

from edgekit.cli.options import ArtifactArg, DeviceOpt, EngineOpt, ThreadsOpt
from edgekit.cli.output import Output


def command(
    artifact: ArtifactArg,
    host: Annotated[
        str,
        typer.Option(
            "--host",
            metavar="ADDRESS",
            help="Address to listen on; 0.0.0.0 lets other machines connect.",
        ),
    ] = "127.0.0.1",
    port: Annotated[
        int,
        typer.Option(
            "--port",
            min=0,
            max=65535,
            metavar="PORT",
            help="Port to listen on; 0 takes one that is free.",
        ),
    ] = 8080,
    api_key: Annotated[
        str | None,
        typer.Option(
            "--api-key",
            metavar="KEY",
            envvar="EDGEKIT_API_KEY",
            help="Key that clients must send. Other users of this machine can read a key given "
            "here; they cannot read the environment variable.",
            show_default="none",
        ),
    ] = None,
    quiet: Annotated[bool, typer.Option("--quiet", help="Write no line for each request.")] = False,
    is_raw: Annotated[
        bool,
        typer.Option(
            "--raw", help="Also serve a model that has no chat template: completions only."
        ),
    ] = False,
    device: DeviceOpt = "host",
    engine: EngineOpt = None,
    threads: ThreadsOpt = None,
) -> None:
    """Serve an artifact with an OpenAI-compatible HTTP API.

    Chat completions and completions, whole or streamed, with usage and logprobs.

    Example:
      edgekit serve artifacts/pocket-onnx-int4-g32 --port 8080
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
