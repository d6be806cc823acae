"""Checks in front of every route: host name, key, number of requests, size of the body; and unexpected errors."""

from __future__ import annotations

import asyncio
import hmac
import logging
import time
from typing import Any

from fastapi import Request
from fastapi.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from ixtune.serving.engine.job import Limits
from ixtune.serving.errors import ApiError, bad_request, internal, place_of, too_busy
from ixtune.serving.metrics import Metrics, route_of

LOG = logging.getLogger("ixtune.serving")
_OPEN = ("/", "/healthz")  # without a key; so are the page's files
_LOCAL_NAMES = ("localhost", "127.0.0.1", "[::1]")
_BODY_SECONDS = 60.0
_DRAINED = 4  # up to this multiple of the limit a body is read and dropped; beyond it, the connection is closed
_SECURITY = [(b"x-content-type-options", b"nosniff"), (b"referrer-policy", b"no-referrer")]


class RequestGuard:
    """ASGI middleware in front of all routes."""

    def __init__(self, app: ASGIApp, settings: Any, metrics: Metrics, limits: Limits) -> None:
        self.app, self.settings, self.metrics = app, settings, metrics
        self.most = limits.waiting + limits.rows
        self.inside = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle a request."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        began, status, started = time.monotonic(), 500, False

        async def watched(message: Message) -> None:
            nonlocal status, started
            if message["type"] == "http.response.start":
                status, started = message["status"], True
                message["headers"] = [*message.get("headers", ()), *_SECURITY]
            await send(message)

        self.inside += 1
        try:
            request = Request(scope)
            self._admit(request)
            await self.app(scope, receive, watched)
        except ApiError as error:
            await JSONResponse(error.body(), error.status, error.headers)(scope, receive, watched)
        except Exception as error:
            # only where it happened: the message may repeat a part of the request
            LOG.error("internal error: %s%s", type(error).__name__, place_of(error))
            if not started:
                await JSONResponse(internal().body(), 500)(scope, receive, watched)
        finally:
            self.inside -= 1
            seconds = time.monotonic() - began
            self.metrics.request(scope["path"], status, seconds)
            LOG.info("%s %s %d, %.3f s", scope["method"], route_of(scope["path"]), status, seconds)

    def _admit(self, request: Request) -> None:
        """Raise unless the request is admitted."""
        if self.settings.local_only and _host_name(request.headers.get("host", "")) not in _LOCAL_NAMES:
            raise ApiError(
                403,
                "this server answers under localhost only; start it with --api-key-file to use another name",
                kind="permission_error",
                code="host_not_allowed",
            )
        path = request.url.path
        if self.settings.api_key is not None and path not in _OPEN and not path.startswith("/page/"):
            self._require_key(request.headers.get("authorization", ""))
        if request.method == "POST":
            if self.inside > self.most:
                raise too_busy(self.metrics.retry_after())
            kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
            if kind != "application/json":  # also blocks forms on other web pages
                raise ApiError(415, "send the body as application/json", code="unsupported_media_type")

    def _require_key(self, header: str) -> None:
        scheme, _, given = header.partition(" ")
        # bytes, since compare_digest accepts only ASCII in texts
        same = hmac.compare_digest(given.strip().encode(), self.settings.api_key.encode())
        if scheme.lower() != "bearer" or not same:
            raise ApiError(
                401,
                "the API key is missing or wrong; send it as `Authorization: Bearer KEY`",
                kind="authentication_error",
                code="invalid_api_key",
                headers={"WWW-Authenticate": "Bearer"},
            )


async def read_body(request: Request, max_bytes: int) -> bytes:
    """Return the body.

    Raises:
        ApiError: It is larger than `max_bytes`, or takes too long to arrive.
    """
    declared = request.headers.get("content-length", "0")
    if declared.isdecimal() and int(declared[:20]) > _DRAINED * max_bytes:
        raise _too_large(max_bytes)
    parts, size = [], 0
    try:
        async with asyncio.timeout(_BODY_SECONDS):
            async for part in request.stream():
                size += len(part)
                if size > _DRAINED * max_bytes:
                    raise _too_large(max_bytes)
                if size <= max_bytes:
                    parts.append(part)
    except TimeoutError as error:
        raise ApiError(408, "the body did not arrive in time", code="timeout") from error
    if size > max_bytes:  # read to its end, since most clients read the answer only after sending everything
        raise _too_large(max_bytes)
    if not size:
        raise bad_request("the body is empty; send a JSON object", code="invalid_json")
    return b"".join(parts)


def _host_name(header: str) -> str:
    """Return the name in a Host header, without its port."""
    name, colon, port = header.rpartition(":")
    return name if colon and port.isdecimal() else header


def _too_large(max_bytes: int) -> ApiError:
    return ApiError(
        413,
        f"the body is larger than {max_bytes >> 20} MiB; scale the images down, or start the server with a larger "
        "--max-body-mib",
        code="body_too_large",
        headers={"Connection": "close"},
    )
