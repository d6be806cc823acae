"""Run the server: load, listen, and on Ctrl-C or SIGTERM finish running requests."""

from __future__ import annotations

import asyncio
import logging
import math
import signal
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import uvicorn
from fastapi import FastAPI

from ixtune.errors import IxtuneError
from ixtune.serving.engine.engine import Engine

LOG = logging.getLogger("ixtune.serving")
_BACKLOG = 128


class Server(uvicorn.Server):
    """uvicorn's server that ends normally after a signal, so that the engine can be ended too."""

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Stop on SIGINT or SIGTERM: running requests are finished first; a second Ctrl-C drops them."""
        before = {}
        try:
            for number in (signal.SIGINT, signal.SIGTERM):
                before[number] = signal.signal(number, self.handle_exit)
        except ValueError:  # not the main thread, as in a test: the caller sets `should_exit`
            pass
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)


def listen(host: str, port: int) -> socket.socket:
    """Return a listening socket.

    Raises:
        IxtuneError: The address is in use, or is not one of this machine.
    """
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        made = socket.socket(family, kind, protocol)
        try:
            made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            made.bind(address)
            made.listen(_BACKLOG)
        except OSError:
            made.close()
            raise
    except OSError as error:
        raise IxtuneError(
            f"cannot listen: {error.strerror or error}", where=f"{host}:{port}", hint="pass another --host or --port"
        ) from error
    return made


def config_of(app: FastAPI, timeout: float) -> uvicorn.Config:
    """Return uvicorn's settings.

    Args:
        app: The application.
        timeout: Seconds to wait for running requests at the end.
    """
    logging.getLogger("uvicorn.access").disabled = True  # its lines hold whole addresses
    return uvicorn.Config(
        app,
        log_config=None,
        access_log=False,
        server_header=False,
        timeout_graceful_shutdown=math.ceil(timeout),
        lifespan="off",
        ws="none",
    )


def serve(app: FastAPI, engine: Engine, sock: socket.socket, timeout: float, ready: Callable[[], None]) -> Server:
    """Answer requests until a signal comes; then refuse new ones, finish running ones, and return.

    Args:
        app: The application.
        engine: Its engine; started and stopped here.
        sock: From `listen`.
        timeout: Seconds to wait for running requests at the end.
        ready: Called once the server listens.
    """
    server = Server(config_of(app, timeout))
    engine.start()
    try:
        ready()
        asyncio.run(server.serve([sock]))
    finally:
        engine.stop()
    return server
