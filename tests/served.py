"""Run a real server on loopback in a thread of this process: the nano base with two adapters."""

from __future__ import annotations

import asyncio
import base64
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from adapters import save_on_nano

from ixtune.evaluation.contenders import contenders
from ixtune.serving.app import AppSettings, build
from ixtune.serving.engine.engine import Engine
from ixtune.serving.engine.job import Limits
from ixtune.serving.engine.models import Models
from ixtune.serving.images import ImageOpener
from ixtune.serving.server import Server, config_of, listen

HD_NUM = 2
SETTINGS = AppSettings(api_key=None, max_context=4096, timeout=600, max_body=4 << 20, local_only=True)


@dataclass
class Served:
    """A running server."""

    url: str
    engine: Engine
    server: Server
    image_root: Path

    @cached_property
    def client(self) -> Any:
        import openai

        return openai.OpenAI(base_url=f"{self.url}/v1", api_key="none", max_retries=0, timeout=600)


def save_adapter(folder: Path, kind: str, size: float) -> Path:
    """An adapter on the nano base with random tensors; `size` sets the distance from the base."""
    return save_on_nano(folder, kind, size, 2, recipe={"training": {"compute_dtype": "fp32"}}, hd_num=HD_NUM)


ADAPTERS = {"plain": 0.02, "rslora with everything": 0.01}


def load_models(folder: Path, kinds: Sequence[str] = tuple(ADAPTERS)) -> Models:
    """The nano base with adapters of these kinds, each named by the first word of its kind."""
    adapters = [f"{kind.split()[0]}={save_adapter(folder / kind.split()[0], kind, ADAPTERS[kind])}" for kind in kinds]
    return Models(contenders(None if kinds else "nano", adapters, []), None)


@contextmanager
def running(
    models: Models, image_root: Path, limits: Limits | None = None, allow_http: bool = False, **changes: Any
) -> Iterator[Served]:
    engine = Engine(models, limits or Limits())
    settings = replace(SETTINGS, **changes)
    app = build(engine, ImageOpener(image_root, allow_http, settings.max_body), settings)
    sock = listen("127.0.0.1", 0)
    server = Server(config_of(app, settings.timeout))
    engine.start()
    thread = threading.Thread(target=lambda: asyncio.run(server.serve([sock])), daemon=True)
    thread.start()
    while not server.started:
        time.sleep(0.01)
    made = Served(f"http://127.0.0.1:{sock.getsockname()[1]}", engine, server, image_root)
    try:
        yield made
    finally:
        if "client" in vars(made):
            made.client.close()
        server.should_exit = True
        thread.join(300)
        engine.stop()
    assert not thread.is_alive()


def data_url(content: bytes, kind: str = "image/png") -> str:
    return f"data:{kind};base64,{base64.b64encode(content).decode()}"


def ask(text: str, *urls: str) -> list[dict[str, Any]]:
    """Messages with one question about images."""
    images = [{"type": "image_url", "image_url": {"url": url}} for url in urls]
    return [{"role": "user", "content": [*images, {"type": "text", "text": text}]}]
