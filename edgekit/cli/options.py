"""Command-line options that several commands share."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, TypeAlias

import typer

ModelArg: TypeAlias = Annotated[
    str,
    typer.Argument(
        metavar="MODEL", help="A folder, a GGUF file, a name under models/, or a Hub id."
    ),
]
ArtifactArg: TypeAlias = Annotated[
    Path, typer.Argument(metavar="ARTIFACT", help="Folder made by `edgekit export`.")
]
ArtifactsArg: TypeAlias = Annotated[
    list[Path], typer.Argument(metavar="ARTIFACT...", help="Folders made by `edgekit export`.")
]
DeviceOpt: TypeAlias = Annotated[
    str, typer.Option("--device", help="Device profile: host, a name, or a TOML file.")
]
EngineOpt: TypeAlias = Annotated[
    str | None, typer.Option("--engine", help="Engine; default the first of the profile that fits.")
]
ThreadsOpt: TypeAlias = Annotated[
    int | None, typer.Option("--threads", min=1, help="Threads; default the profile's figure.")
]
AdapterOpt: TypeAlias = Annotated[
    Path | None,
    typer.Option(
        "--adapter",
        metavar="DIR",
        help="Folder of a LoRA adapter (PEFT or mlx-lm) to merge into MODEL.",
    ),
]
IgnoreKeysOpt: TypeAlias = Annotated[
    list[str] | None,
    typer.Option(
        "--ignore-config-key",
        metavar="KEY",
        help="Let a key of config.json pass that edgekit does not know; may be repeated.",
    ),
]
JsonOpt: TypeAlias = Annotated[
    bool, typer.Option("--json", help="Print one JSON document on stdout; messages go to stderr.")
]
ItemsOpt: TypeAlias = Annotated[int, typer.Option("--items", min=1, help="Items of each suite.")]
SuiteOpt: TypeAlias = Annotated[
    list[str] | None, typer.Option("--suite", help="Only this suite; repeat for several.")
]
SeedOpt: TypeAlias = Annotated[int, typer.Option("--seed", help="Seed of the suite items.")]
MaxTokensOpt: TypeAlias = Annotated[
    int, typer.Option("--max-tokens", min=1, help="Most tokens to write.")
]
TemperatureOpt: TypeAlias = Annotated[
    float, typer.Option("--temperature", min=0.0, help="0 is greedy.")
]
TopPOpt: TypeAlias = Annotated[
    float, typer.Option("--top-p", min=0.0, max=1.0, help="Nucleus mass kept.")
]
TopKOpt: TypeAlias = Annotated[int, typer.Option("--top-k", min=0, help="Candidates kept; 0 all.")]
SampleSeedOpt: TypeAlias = Annotated[
    int | None, typer.Option("--sample-seed", help="Seed of the sampler; default a new one.")
]
StopOpt: TypeAlias = Annotated[
    list[str] | None, typer.Option("--stop", help="Text that ends the answer; may be repeated.")
]
