"""Command-line options that several commands share."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, TypeAlias

import typer

ModelArg: TypeAlias = Annotated[
    str,
    typer.Argument(
        metavar="MODEL",
        help="A model: a folder in Hugging Face form, a GGUF file, a name under models/ such as "
        "pocket, or a Hub id (owner/name).",
    ),
]
ArtifactArg: TypeAlias = Annotated[
    Path,
    typer.Argument(metavar="ARTIFACT", help="An artifact: a folder that `edgekit export` wrote."),
]
ArtifactsArg: TypeAlias = Annotated[
    list[Path],
    typer.Argument(metavar="ARTIFACT", help="Artifacts: folders that `edgekit export` wrote."),
]
DeviceOpt: TypeAlias = Annotated[
    str,
    typer.Option(
        "--device",
        metavar="DEVICE",
        help="Device profile: host (this machine), a name that `edgekit devices` lists, or a TOML "
        "file.",
    ),
]
EngineOpt: TypeAlias = Annotated[
    str | None,
    typer.Option(
        "--engine",
        metavar="ENGINE",
        help="Program that runs the artifact: onnxruntime, mlx, coreml (on a Mac), mil (Core ML "
        "packages, emulated) or llama_cpp (GGUF; an optional package).",
        show_default="the first one of the device that can",
    ),
]
ThreadsOpt: TypeAlias = Annotated[
    int | None,
    typer.Option(
        "--threads",
        min=1,
        metavar="N",
        help="CPU threads to run with.",
        show_default="as the device profile says",
    ),
]
AdapterOpt: TypeAlias = Annotated[
    Path | None,
    typer.Option(
        "--adapter",
        metavar="DIR",
        help="Folder of a LoRA adapter (PEFT or mlx-lm) to merge into the model.",
    ),
]
IgnoreKeysOpt: TypeAlias = Annotated[
    list[str] | None,
    typer.Option(
        "--ignore-config-key",
        metavar="KEY",
        help="Accept this key of config.json although edgekit does not know it and it may change "
        "the result; may be repeated.",
    ),
]
JsonOpt: TypeAlias = Annotated[
    bool,
    typer.Option(
        "--json", help="Print the result as one JSON document on stdout; messages go to stderr."
    ),
]
ItemsOpt: TypeAlias = Annotated[
    int, typer.Option("--items", min=1, metavar="N", help="Number of questions of each suite.")
]
SuiteOpt: TypeAlias = Annotated[
    list[str] | None,
    typer.Option(
        "--suite",
        metavar="SUITE",
        help="Ask only this suite: tool_calls, structured_output, long_context or multi_step; may "
        "be repeated.",
        show_default="all",
    ),
]
SeedOpt: TypeAlias = Annotated[
    int,
    typer.Option(
        "--seed",
        metavar="N",
        help="Seed of the questions: the same seed gives the same questions.",
    ),
]
MarginOpt: TypeAlias = Annotated[
    float,
    typer.Option(
        "--margin",
        min=0,
        max=100,
        metavar="POINTS",
        help="Percentage points that the device may be worse than the server in a suite.",
    ),
]
MaxTokensOpt: TypeAlias = Annotated[
    int,
    typer.Option("--max-tokens", min=1, metavar="TOKENS", help="Longest answer, in tokens."),
]
TemperatureOpt: TypeAlias = Annotated[
    float,
    typer.Option(
        "--temperature",
        min=0.0,
        metavar="T",
        help="How much chance decides: 0 always takes the likeliest token.",
    ),
]
TopPOpt: TypeAlias = Annotated[
    float,
    typer.Option(
        "--top-p",
        min=0.0,
        max=1.0,
        metavar="P",
        help="Choose among the likeliest tokens that together have this probability; 1 means all.",
    ),
]
TopKOpt: TypeAlias = Annotated[
    int,
    typer.Option(
        "--top-k",
        min=0,
        metavar="N",
        help="Choose among this many of the likeliest tokens; 0 means all.",
    ),
]
SampleSeedOpt: TypeAlias = Annotated[
    int | None,
    typer.Option(
        "--sample-seed",
        metavar="N",
        help="Seed of the choice, to get the same answer again.",
        show_default="a new one each time",
    ),
]
StopOpt: TypeAlias = Annotated[
    list[str] | None,
    typer.Option(
        "--stop",
        metavar="TEXT",
        help="End the answer where this text would begin; may be repeated.",
    ),
]
