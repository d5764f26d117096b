"""Checks of the arguments with which an engine opens an artifact.

Every engine's ``open`` checks format, context length, threads and options here, so that all use
the same messages.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from edgekit.artifact import Artifact, Format
from edgekit.errors import UsageError


def check_format(artifact: Artifact, engine: str, wanted: Format, title: str) -> None:
    """Refuse an artifact of another format; ``title`` is the format's name in messages.

    Raises:
        UsageError: See above.
    """
    if artifact.format is not wanted:
        raise UsageError(f"{engine} runs {title} artifacts", got=artifact.format.value)


def chosen_length(artifact: Artifact, context_length: int | None) -> int:
    """Give the positions to use: the artifact's own, or fewer.

    Raises:
        UsageError: None at all, or more than the artifact holds.
    """
    limit = artifact.manifest.context_length
    if context_length is None:
        return limit
    if not 1 <= context_length <= limit:
        raise UsageError(
            "context length",
            got=context_length,
            wanted=f"1 .. {limit}, what the artifact holds",
            do="Export again with a larger --context.",
        )
    return context_length


def refuse_threads(engine: str, n_threads: int | None) -> None:
    """Refuse a number of threads; for engines that choose their own.

    Raises:
        UsageError: A number was given.
    """
    if n_threads is not None:
        raise UsageError(
            f"{engine}: n_threads",
            got=n_threads,
            wanted="none: the engine chooses its own",
            do="Leave --threads out.",
        )


def chosen_options(
    engine: str, options: Mapping[str, Any] | None, defaults: Mapping[str, Any]
) -> dict[str, Any]:
    """Fill in defaults.

    Raises:
        UsageError: An unknown option.
    """
    unknown = sorted(set(options or {}) - set(defaults))
    if unknown:
        raise UsageError(
            f"{engine}: unknown options",
            got=", ".join(unknown),
            wanted=", ".join(defaults) or "none",
        )
    return {**defaults, **(options or {})}
