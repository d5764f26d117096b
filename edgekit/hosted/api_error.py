"""``ApiError``: a refusal of the hosted server in the form of the OpenAI API.

It is raised while a request is read or answered. http_handler.py turns it into a status line and
an error object; it never leaves edgekit/hosted.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from edgekit.errors import EdgekitError, UsageError

INVALID: Final = "invalid_request_error"
_SERVER: Final = "server_error"


class ApiError(EdgekitError):
    """A refusal with its HTTP status and OpenAI's ``type``, ``code`` and ``param``.

    Args:
        status: HTTP status code.
        what: The sentence a client reads; ``got``, ``wanted`` and ``do`` complete it.
        kind: OpenAI's ``error.type``.
        code: OpenAI's ``error.code``, such as ``model_not_found``.
        param: The request field at fault.
        headers: Headers that belong to the status, such as ``Retry-After``.
    """

    def __init__(
        self,
        status: int,
        what: str,
        *,
        got: object | None = None,
        wanted: object | None = None,
        do: str | None = None,
        kind: str = INVALID,
        code: str | None = None,
        param: str | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        self.status = status
        self.kind = kind
        self.code = code
        self.param = param
        self.headers = dict(headers or {})
        super().__init__(what, got=got, wanted=wanted, do=do)

    def body(self) -> dict[str, Any]:
        """Give the error object of the OpenAI API."""
        return {
            "error": {
                "message": str(self),
                "type": self.kind,
                "param": self.param,
                "code": self.code,
            }
        }


def bad_value(param: str, got: object, wanted: str, do: str | None = None) -> ApiError:
    """Make the 400 for a request field with a wrong type or value."""
    shown = repr(got)
    if len(shown) > 80:
        shown = shown[:77] + "..."
    return ApiError(400, f"bad value for {param}", got=shown, wanted=wanted, do=do, param=param)


def unexpected_error() -> ApiError:
    """Make the 500 that tells a client nothing about the server's internals."""
    return ApiError(500, "the server failed", kind=_SERVER, code="internal_error")


def too_many_connections() -> ApiError:
    """Make the 503 for a client beyond the limit of connections."""
    return ApiError(
        503, "too many open connections", do="Close some.", kind=_SERVER, code="overloaded",
        headers={"Retry-After": "1"},
    )  # fmt: skip


def from_model_error(error: EdgekitError) -> ApiError:
    """Turn a failure of the hosted model into what a client may know.

    A ``UsageError`` is about the client's own messages or options and is passed on. The text of any
    other error may name files of this machine and is not passed on.
    """
    if isinstance(error, ApiError):
        return error
    if isinstance(error, UsageError):
        return ApiError(400, error.what, got=error.got, wanted=error.wanted, do=error.do)
    return ApiError(
        500, f"the model failed ({type(error).__name__})", kind=_SERVER, code="model_failed"
    )


class ClientGoneError(EdgekitError):
    """The client has gone, so nobody would read the answer."""

    def __init__(self) -> None:
        super().__init__("the client closed the connection")
