"""The HTTP interface: routes, and how a request becomes an answer.

GET  /                      the page; its files are under /page/
GET  /v1/models             base and adapters
POST /v1/chat/completions   OpenAI's chat completions, blocking or as server-sent events
POST /v1/layout             crop grid and token counts of an image, see `ixtune.serving.layouts.describe`
GET  /healthz               200 while the engine runs
GET  /metrics               in the text form of Prometheus
"""

from __future__ import annotations

import asyncio
import json
import logging
import secrets
import time
from collections import OrderedDict
from collections.abc import AsyncIterator, Callable, Hashable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, TypeVar

from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse, Response, StreamingResponse
from starlette.exceptions import HTTPException

from ixtune.data.rejects import RecordError
from ixtune.serving import layouts, pages
from ixtune.serving.answers import Responses
from ixtune.serving.engine.engine import Engine
from ixtune.serving.engine.job import Full, Job, Piece, Stopped
from ixtune.serving.errors import ApiError, bad_request, internal, of_record, timed_out, too_busy
from ixtune.serving.grammars import Grammars
from ixtune.serving.images import ImageOpener
from ixtune.serving.metrics import Metrics
from ixtune.serving.middleware import RequestGuard, read_body
from ixtune.serving.prompts import Asked, asked_of, model_named
from ixtune.serving.schema import ChatRequest, LayoutRequest, parse

LOG = logging.getLogger("ixtune.serving")
_THREADS = 16  # most wait for a download, or for their turn to decode
_KNOWN_IMAGES = 4096
_SEED_BITS = 62
_Result = TypeVar("_Result")


@dataclass(frozen=True, slots=True, kw_only=True)
class AppSettings:
    """Settings of the interface.

    Attributes:
        api_key: Key that clients must send; None for none.
        max_context: Maximum tokens of prompt and answer.
        timeout: Maximum seconds for one request.
        max_body: Maximum bytes of a body.
        local_only: Accept requests only under a name of this machine, against DNS rebinding.
    """

    api_key: str | None
    max_context: int
    timeout: float
    max_body: int
    local_only: bool


class Interface:
    """Handlers of the routes.

    Attributes:
        engine: Generates.
        opener: Opens images.
        settings: Settings.
        metrics: Counts.
    """

    def __init__(self, engine: Engine, opener: ImageOpener, settings: AppSettings) -> None:
        self.engine, self.opener, self.settings = engine, opener, settings
        self.metrics = Metrics(engine)
        self._threads = ThreadPoolExecutor(_THREADS, thread_name_prefix="ixtune-images")
        self._grammars = Grammars(engine.models.tokenizer)
        self._known: OrderedDict[Hashable, None] = OrderedDict()  # images that were decoded without an error

    async def models(self) -> JSONResponse:
        """List the models."""
        models = self.engine.models
        data = [
            {
                "id": one.name,
                "object": "model",
                "created": models.created,
                "owned_by": "ixtune",
                "adapter": one.adapter is not None,
                "hd_num": one.view.hd_num,
                "max_context": self.settings.max_context,
            }
            for one in models.by_name.values()
        ]
        return JSONResponse({"object": "list", "data": data})

    async def model(self, name: str) -> JSONResponse:
        """Describe one model."""
        one = model_named(name, self.engine.models)
        return JSONResponse(
            {"id": one.name, "object": "model", "created": self.engine.models.created, "owned_by": "ixtune"}
        )

    async def layout(self, request: Request) -> JSONResponse:
        """Answer `/v1/layout`."""
        body = await read_body(request, self.settings.max_body)

        def made() -> dict[str, Any]:
            asked = parse(body, LayoutRequest)
            return layouts.describe(asked, model_named(asked.model, self.engine.models), self.opener)

        return JSONResponse(await self._in_thread(made, time.monotonic() + self.settings.timeout))

    async def chat(self, request: Request) -> Response:
        """Answer `/v1/chat/completions`."""
        deadline = time.monotonic() + self.settings.timeout
        job = await self._job(request, deadline)
        pieces = _Pieces(self.engine, job.asked, job.stream, deadline, self.settings.timeout, self.metrics)
        pieces.submit()
        responses = Responses(job.asked, self.engine.models.tokenizer)
        # errors before the first token have a status
        piece = await _unless_gone(request, pieces)
        if job.stream:
            return StreamingResponse(
                _events(piece, pieces, responses, job.usage),
                media_type="text/event-stream",
                headers={"Cache-Control": "no-store", "X-Accel-Buffering": "no"},
            )
        responses.add(piece)
        while not responses.finished:
            responses.add(await _unless_gone(request, pieces))
        pieces.close(responses)
        return JSONResponse(responses.whole())

    async def _job(self, request: Request, deadline: float) -> _Wanted:
        """Read a chat request; its body is not kept."""
        body = await read_body(request, self.settings.max_body)

        def made() -> _Wanted:
            parsed = parse(body, ChatRequest)
            seed = secrets.randbits(_SEED_BITS)
            asked = asked_of(parsed, self.engine.models, self.opener, self._grammars, self.settings.max_context, seed)
            if asked.choices > (most := self.engine.limits.rows):
                raise bad_request(f"n is more than this server generates at once ({most})", "n", "invalid_value")
            self._check_images(asked)
            usage = bool(parsed.stream_options and parsed.stream_options.include_usage)
            return _Wanted(asked, bool(parsed.stream), usage)

        return await self._in_thread(made, deadline)

    async def healthz(self) -> JSONResponse:
        """Answer 200 while the engine runs, else 503."""
        return JSONResponse({"status": "ok" if self.engine.alive else "stopped"}, 200 if self.engine.alive else 503)

    async def scrape(self) -> Response:
        """Answer `/metrics`."""
        content, kind = self.metrics.exposition()
        return Response(content, media_type=kind)

    def _check_images(self, asked: Asked) -> None:
        """Decode the images, so that a corrupt one is rejected before anything is computed."""
        for number, picture in enumerate(asked.pictures):
            if picture.key in self._known:
                continue
            try:
                picture.crops()
            except RecordError as error:
                raise of_record(error, f"image {number + 1}") from error
            self._known[picture.key] = None
            if len(self._known) > _KNOWN_IMAGES:
                self._known.popitem(last=False)

    async def _in_thread(self, work: Callable[[], _Result], deadline: float) -> _Result:
        try:
            async with asyncio.timeout(deadline - time.monotonic()):
                return await asyncio.get_running_loop().run_in_executor(self._threads, work)
        except TimeoutError as error:
            raise timed_out(self.settings.timeout) from error


@dataclass(frozen=True, slots=True)
class _Wanted:
    """A chat request: what to answer, and how."""

    asked: Asked
    stream: bool
    usage: bool


class _Pieces:
    """Pieces of one job, from the engine's thread to this loop."""

    def __init__(
        self, engine: Engine, asked: Asked, stream: bool, deadline: float, seconds: float, metrics: Metrics
    ) -> None:
        self.engine, self.deadline, self.seconds, self.metrics = engine, deadline, seconds, metrics
        self._queue: asyncio.Queue[Piece | Exception] = asyncio.Queue()
        loop = asyncio.get_running_loop()

        def emit(event: Piece | Exception) -> None:
            with suppress(RuntimeError):  # the loop is closed: no one is waiting
                loop.call_soon_threadsafe(self._queue.put_nowait, event)

        self.job = Job(asked, emit, stream)
        self._first = True

    def submit(self) -> None:
        try:
            self.engine.submit(self.job)
        except Full as error:
            raise too_busy(self.metrics.retry_after()) from error
        except Stopped as error:
            raise ApiError(503, "the server is stopping", kind="server_error", code="stopping") from error

    async def next(self) -> Piece:
        """Return the next piece.

        Raises:
            ApiError: The time is up, or the engine failed.
        """
        try:
            async with asyncio.timeout(self.deadline - time.monotonic()):
                event = await self._queue.get()
        except TimeoutError as error:
            self.cancel()
            raise timed_out(self.seconds) from error
        except asyncio.CancelledError:
            self.cancel()
            raise
        if isinstance(event, Exception):
            raise of_record(event) if isinstance(event, RecordError) else internal()
        if self._first and self.job.streams:
            self._first = False
            self.metrics.first_token(time.monotonic() - self.job.since)
        return event

    def cancel(self) -> None:
        self.job.cancelled.set()

    def close(self, responses: Responses) -> None:
        """Count a finished request."""
        asked = self.job.asked
        LOG.info("%s: prompt of %d tokens, %d generated", asked.model.name, len(asked.ids), responses.tokens)
        self.metrics.answered(asked.model.name, len(asked.ids), asked.image_tokens, responses.tokens)


class _Gone(Exception):
    """The client has disconnected."""


async def _unless_gone(request: Request, pieces: _Pieces) -> Piece:
    """Return the next piece; cancel the job once the client has disconnected."""
    piece = asyncio.ensure_future(pieces.next())
    left = asyncio.ensure_future(_left(request))
    try:
        await asyncio.wait({piece, left}, return_when=asyncio.FIRST_COMPLETED)
        if piece.done():
            return piece.result()
        raise _Gone
    finally:
        if not piece.done():
            pieces.cancel()
            piece.cancel()
        left.cancel()


async def _left(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass


async def _events(first: Piece, pieces: _Pieces, responses: Responses, usage: bool) -> AsyncIterator[bytes]:
    """Yield server-sent events until all answers have ended."""
    opened: set[int] = set()
    piece = first
    try:
        while True:
            if piece.choice not in opened:
                opened.add(piece.choice)
                yield _event(responses.opening(piece.choice))
            responses.add(piece)
            if piece.text or piece.scores:
                yield _event(responses.chunk(piece))
            if piece.finish:
                yield _event(responses.closing(piece))
            if responses.finished:
                break
            piece = await pieces.next()
        if usage:
            yield _event(responses.usage_chunk())
        yield b"data: [DONE]\n\n"
        pieces.close(responses)
    except ApiError as error:
        yield _event(error.body())
    finally:
        if not responses.finished:
            pieces.cancel()


def _event(content: dict[str, Any]) -> bytes:
    return b"data: " + json.dumps(content, ensure_ascii=False, separators=(",", ":")).encode() + b"\n\n"


def build(engine: Engine, opener: ImageOpener, settings: AppSettings) -> FastAPI:
    """Return the application."""
    interface = Interface(engine, opener, settings)
    app = FastAPI(title="ixtune", docs_url=None, redoc_url=None, openapi_url=None)
    app.state.interface = interface
    app.get("/v1/models")(interface.models)
    app.get("/v1/models/{name:path}")(interface.model)
    app.post("/v1/chat/completions", response_model=None)(interface.chat)
    app.post("/v1/layout")(interface.layout)
    app.get("/healthz")(interface.healthz)
    app.get("/metrics", response_model=None)(interface.scrape)
    app.get("/", response_model=None)(pages.index)
    app.get("/page/{name}", response_model=None)(pages.file)
    app.add_exception_handler(ApiError, _api_error)
    app.add_exception_handler(HTTPException, _http_error)
    app.add_exception_handler(_Gone, _gone)
    app.add_middleware(RequestGuard, settings=settings, metrics=interface.metrics, limits=engine.limits)
    return app


async def _api_error(_: Request, error: Exception) -> Response:
    assert isinstance(error, ApiError)
    return JSONResponse(error.body(), error.status, error.headers)


async def _http_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    found = {404: "there is no such URL", 405: "this URL does not accept this method"}
    message = found.get(error.status_code, "the request cannot be handled")
    code = {404: "not_found", 405: "method_not_allowed"}.get(error.status_code)
    made = ApiError(error.status_code, message, code=code, headers=dict(error.headers or {}))
    return await _api_error(request, made)


async def _gone(_: Request, __: Exception) -> Response:
    return Response(status_code=499)  # the client has disconnected
