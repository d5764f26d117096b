"""The errors that edgekit raises on purpose, and their exit codes.

EdgekitError                  exit 1
├── UsageError                the request contradicts itself             exit 2
├── MissingExtraError         a package is absent or too old             exit 3
├── NoFitError                nothing can run here; has .reasons         exit 4
├── CheckpointError           a model folder is wrong
│   ├── MissingFileError
│   ├── UnknownKeyError
│   └── UnsupportedArchError
├── FormatError               bytes are not what the format says
├── QuantError                shape or scheme impossible
├── ExportError               the format cannot hold this model, or writing it failed
├── ArtifactError             an artifact folder is damaged or not ours
├── ProfileError              a device profile is wrong
├── EngineError
│   ├── EngineLoadError
│   ├── EngineCrashError
│   └── ServerError           has .status when the server answered
└── MeasureError              the numbers would be meaningless
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar, Final

_MAX_PART_CHARS: Final = 8_000


class EdgekitError(Exception):
    """Base of every error that edgekit raises on purpose.

    The parts may quote untrusted text, so they are made safe to print: control characters and lone
    surrogates are escaped, and long text is cut.

    Args:
        what: What failed, with the name of the thing (file, layer, option).
        got: What was found, if it is known.
        wanted: What would have been right.
        do: What the reader can do next.
    """

    exit_code: ClassVar[int] = 1

    def __init__(
        self,
        what: str,
        *,
        got: object | None = None,
        wanted: object | None = None,
        do: str | None = None,
    ) -> None:
        self.what = _shown(what)
        self.got = None if got is None else _shown(str(got))
        self.wanted = None if wanted is None else _shown(str(wanted))
        self.do = None if do is None else _shown(do)
        super().__init__(self._text())

    def _text(self) -> str:
        parts = [self.what]
        if self.got is not None:
            parts.append(f"got {self.got}")
        if self.wanted is not None:
            parts.append(f"wanted {self.wanted}")
        text = "; ".join(parts)
        return f"{text}. {self.do}" if self.do else text

    def as_dict(self) -> dict[str, str | None]:
        """Give the error as JSON-ready fields, for ``--json`` output."""
        return {
            "error": type(self).__name__,
            "what": self.what,
            "got": self.got,
            "wanted": self.wanted,
            "do": self.do,
        }


def _shown(text: str) -> str:
    """Escape characters that a terminal acts on or cannot print, and cut long text."""
    n_more = len(text) - _MAX_PART_CHARS
    if n_more > 0:
        text = f"{text[:_MAX_PART_CHARS]}... and {n_more} characters more"
    if text.isprintable():
        return text
    return "".join(
        c if c.isprintable() or c == "\n" else c.encode("unicode_escape").decode("ascii")
        for c in text
    )


class UsageError(EdgekitError):
    """The request contradicts itself or names something that does not exist."""

    exit_code = 2


class MissingExtraError(EdgekitError):
    """A package that this step needs is absent or too old."""

    exit_code = 3

    def __init__(self, what: str, *, package: str, do: str | None = None) -> None:
        self.package = package
        super().__init__(what, do=do or f"Run: pip install {package}")


class NoFitError(EdgekitError):
    """Nothing can run here; ``reasons`` says why each candidate was refused."""

    exit_code = 4

    def __init__(self, what: str, *, reasons: Mapping[str, str], do: str | None = None) -> None:
        self.reasons = dict(reasons)
        got = "; ".join(f"{name}: {reason}" for name, reason in self.reasons.items()) or None
        super().__init__(what, got=got, do=do)


class CheckpointError(EdgekitError):
    """A model folder is wrong: something is missing, damaged, contradictory or not supported."""


class MissingFileError(CheckpointError):
    """A file that the model needs is not there."""


class UnknownKeyError(CheckpointError):
    """Config keys that may change the result and that edgekit does not use; has ``.keys``.

    Args:
        what: What failed.
        keys: Name of each key -> its value, as the message should show it.
        do: What the reader can do next.
    """

    def __init__(self, what: str, *, keys: Mapping[str, str], do: str | None = None) -> None:
        self.keys = tuple(keys)
        got = ", ".join(f"{key} = {value}" for key, value in keys.items())
        wanted = "keys that the family uses, or that leave the result as it is"
        super().__init__(what, got=got, wanted=wanted, do=do)


class UnsupportedArchError(CheckpointError):
    """The model_type has no family file."""


class FormatError(EdgekitError):
    """Bytes are not what the format says."""


class QuantError(EdgekitError):
    """A shape or scheme is impossible."""


class ExportError(EdgekitError):
    """The format cannot hold this model, or writing it failed."""


class ArtifactError(EdgekitError):
    """An artifact folder is damaged, incomplete, or was not made by edgekit."""


class ProfileError(EdgekitError):
    """A device profile is wrong; the message names the file and the key."""


class EngineError(EdgekitError):
    """A runtime failed."""


class EngineLoadError(EngineError):
    """A runtime refused the artifact."""


class EngineCrashError(EngineError):
    """A runtime failed while running, or its process died."""


class ServerError(EngineError):
    """A server refused, timed out, broke off or sent an invalid response; .status: HTTP."""

    def __init__(
        self,
        what: str,
        *,
        status: int | None = None,
        got: object | None = None,
        wanted: object | None = None,
        do: str | None = None,
    ) -> None:
        self.status = status
        super().__init__(what, got=got, wanted=wanted, do=do)


class MeasureError(EdgekitError):
    """The numbers would be meaningless."""
