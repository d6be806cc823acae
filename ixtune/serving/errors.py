"""Errors of the API, in OpenAI's form."""

from __future__ import annotations

from typing import Any

from ixtune.data.rejects import RecordError


class ApiError(Exception):
    """An error that is sent to the client.

    Attributes:
        status: HTTP status.
        message: What is wrong with which value, and how to fix it.
        kind: OpenAI's `type`, such as `invalid_request_error`.
        param: The field concerned.
        code: Machine-readable name of the error.
        headers: HTTP headers to send with it.
    """

    def __init__(
        self,
        status: int,
        message: str,
        *,
        kind: str = "invalid_request_error",
        param: str | None = None,
        code: str | None = None,
        headers: dict[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.status, self.message, self.kind = status, message, kind
        self.param, self.code, self.headers = param, code, headers or {}

    def body(self) -> dict[str, Any]:
        """Return the JSON object to send."""
        return {"error": {"message": self.message, "type": self.kind, "param": self.param, "code": self.code}}


def bad_request(message: str, param: str | None = None, code: str | None = None) -> ApiError:
    """Return the error for a request that has to be changed."""
    return ApiError(400, message, param=param, code=code)


def of_record(error: RecordError, param: str | None = "messages") -> ApiError:
    """Return the error for an image or a conversation that cannot be used; it names no path on this machine."""
    return bad_request(f"{error.what}. Hint: {error.hint}", param, error.reason.value)


def too_busy(seconds: int) -> ApiError:
    """Return the error for a full queue.

    Args:
        seconds: Time after which the client should try again.
    """
    return ApiError(
        429,
        f"too many requests are waiting; try again in {seconds} s",
        kind="rate_limit_error",
        code="queue_full",
        headers={"Retry-After": str(seconds)},
    )


def timed_out(seconds: float) -> ApiError:
    """Return the error for a request that took too long."""
    return ApiError(
        504,
        f"no answer within {seconds:g} s; ask for fewer tokens, or start the server with a larger --timeout",
        kind="timeout_error",
        code="timeout",
    )


def internal() -> ApiError:
    """Return the error for a bug in the server, without details."""
    return ApiError(500, "internal error; see the server's log", kind="server_error", code="internal_error")


def place_of(error: BaseException) -> str:
    """Return where an exception was raised, for the log: unlike its message, that holds nothing of a request."""
    trace = error.__traceback__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    return "" if trace is None else f" in {trace.tb_frame.f_code.co_filename}, line {trace.tb_lineno}"
