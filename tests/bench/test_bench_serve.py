"""Benchmark the server: clients at once against one after the other, and the second question about a page.

CPU seconds of the whole process, server and clients, one torch thread, both ways in turn.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import measuring
import pytest
from records import draw_page
from served import Served, ask, data_url, running, save_adapter

from ixtune.evaluation.contenders import contenders
from ixtune.model.prefix_cache import PrefixCache
from ixtune.serving.engine.job import Limits
from ixtune.serving.engine.models import Models
from ixtune.serving.engine.vectors import VectorCache

pytestmark = [pytest.mark.bench, pytest.mark.timeout(7200)]

CLIENTS, TOKENS, PAGES, ROUNDS = 8, 64, 4, 3


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    folder = tmp_path_factory.mktemp("served")
    for page in range(max(PAGES, CLIENTS)):
        draw_page(page).resize((1240, 1754)).save(folder / f"{page}.png")
    adapter = save_adapter(folder / "adapter", "plain", 0.02)
    models = Models(contenders(None, [f"plain={adapter}"], []), None)
    with running(models, folder, Limits(rows=CLIENTS), max_context=16_384) as server:
        server.engine.stops = ()  # answers of one length
        yield server


def page(served: Served, number: int) -> str:
    return data_url((served.image_root / f"{number}.png").read_bytes())


def forget(served: Served) -> None:
    served.engine.prefixes = PrefixCache(served.engine.limits.prefix_bytes)
    served.engine.vectors = VectorCache(served.engine.models.base_model, served.engine.limits.vector_bytes)


@pytest.mark.parametrize("kept", [True, False], ids=["kept images", "new images"])
def test_concurrent_clients(served: Served, kept: bool) -> None:
    client = served.client
    made: dict[str, list[Any]] = {}

    def one(number: int) -> Any:
        messages = ask(f"What is in row {number}?", page(served, number))
        found = client.chat.completions.create(
            model="plain", messages=messages, max_tokens=TOKENS, extra_body={"hd_num": 4}
        )
        return found.choices[0].message.content, found.usage.completion_tokens

    def in_turn() -> None:
        if not kept:
            forget(served)
        made["in turn"] = [one(number) for number in range(CLIENTS)]

    def at_once() -> None:
        if not kept:
            forget(served)
        with ThreadPoolExecutor(CLIENTS) as threads:
            made["at once"] = list(threads.map(one, range(CLIENTS)))

    at_once_s, in_turn_s = measuring.interleaved(at_once, in_turn, ROUNDS if kept else 1)
    assert made["at once"] == made["in turn"]
    tokens = sum(count for _, count in made["at once"])
    figures = {
        "clients": CLIENTS, "hd_num": 4, "images_kept": float(kept), "tokens": tokens, "at_once_s": at_once_s,
        "in_turn_s": in_turn_s, "ratio": in_turn_s / at_once_s,
    }  # fmt: skip
    measuring.record("serve_clients", figures)
    assert not kept or in_turn_s >= 2 * at_once_s


def test_the_second_question_about_a_page(served: Served) -> None:
    client = served.client

    def first_token(number: int, question: str) -> tuple[float, float]:
        messages = ask(question, page(served, number))
        began = time.process_time(), time.perf_counter()
        stream = client.chat.completions.create(
            model="plain", messages=messages, max_tokens=TOKENS, stream=True, extra_body={"hd_num": 25}
        )
        next(iter(stream))
        spent = time.process_time() - began[0], time.perf_counter() - began[1]
        for _ in stream:
            pass
        return spent

    forget(served)
    first_token(0, "Warm?")
    times = []
    for number in range(1, PAGES):
        first = first_token(number, "What is in row 1?")
        times.append((*first, *first_token(number, "What is in the last row?")))
    first_s, first_wall_s, second_s, second_wall_s = map(statistics.median, zip(*times, strict=True))
    figures = {
        "hd_num": 25, "first_s": first_s, "second_s": second_s, "ratio": second_s / first_s,
        "first_wall_s": first_wall_s, "second_wall_s": second_wall_s, "ratio_wall": second_wall_s / first_wall_s,
    }  # fmt: skip
    measuring.record("serve_first_token", figures)
    assert second_s <= 0.15 * first_s
