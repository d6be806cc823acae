"""Test many clients at once, memory over many requests, and the signals that end the process."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import openai
import pytest
from records import draw_page
from served import ADAPTERS, Served, ask, data_url, load_models, running

from ixtune.serving.engine.job import Limits

pytestmark = [pytest.mark.slow, pytest.mark.timeout(3600)]


def resident_mib() -> float:
    status = Path("/proc/self/status").read_text()
    return int(re.search(r"VmRSS:\s+(\d+)", status)[1]) / 1024  # type: ignore[index]


def question(served: Served, number: int, pages: int, **more: Any) -> tuple[str, str]:
    """Ask one of the models about one of the pages; return the question's name and the answer."""
    model = ("base", *(kind.split()[0] for kind in ADAPTERS))[number % 3]
    page = data_url((served.image_root / f"{number % pages}.png").read_bytes())
    found = served.client.chat.completions.create(
        model=model,
        messages=ask(f"What is in row {number % 5}?", page),
        max_tokens=8,
        extra_body={"hd_num": 1},
        **more,
    )
    return f"{model} {number % pages} {number % 5}", found.choices[0].message.content


def test_many_clients_get_their_own_answers_and_memory_does_not_grow(tmp_path: Path) -> None:
    pages = 6
    for number in range(pages):
        draw_page(number).save(tmp_path / f"{number}.png")
    # caches for a few of the 18 pairs of page and model, so that images come and go
    limits = Limits(rows=8, waiting=64, prefix_bytes=8 << 20, vector_bytes=1 << 20)
    with running(load_models(tmp_path), tmp_path, limits) as served:
        alone = dict(question(served, number, pages) for number in range(15))
        with ThreadPoolExecutor(32) as clients:
            list(clients.map(lambda number: question(served, number, pages), range(100)))
            before = resident_mib()
            found = list(clients.map(lambda number: question(served, number, pages), range(500)))
            after = resident_mib()
        time.sleep(1)
        assert served.engine.counts == (0, 0)
        assert served.engine.prefixes.nbytes <= 8 << 20
        assert served.engine.vectors.nbytes <= 1 << 20
    assert len(found) == 500
    together = dict(found)
    assert all(together[name] == text for name, text in alone.items() if name in together)
    assert after - before < 40


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_lets_the_running_answer_finish(tmp_path: Path, number: int) -> None:
    (tmp_path / "key.txt").write_text("a-key-of-enough-characters\n")
    command = [sys.executable, "-m", "ixtune", "serve", "--base", "nano", "--port", "0"]
    process = subprocess.Popen(
        [*command, "--api-key-file", str(tmp_path / "key.txt")],
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "CUDA_VISIBLE_DEVICES": ""},
    )
    try:
        assert process.stderr is not None
        lines = []
        while not (lines and lines[-1].startswith("serving ")):
            lines.append(process.stderr.readline())
            assert lines[-1], lines
        url = re.search(r"http://\S+?(?=;)", lines[-1])[0]  # type: ignore[index]
        rest: list[str] = []
        reader = threading.Thread(target=lambda: rest.extend(process.stderr))  # type: ignore[arg-type]
        reader.start()
        with openai.OpenAI(base_url=f"{url}/v1", api_key="a-key-of-enough-characters", max_retries=0) as client:
            stream = client.chat.completions.create(
                model="base", messages=ask("Say something."), temperature=2, seed=1, max_tokens=300, stream=True
            )
            chunks = [next(iter(stream))]
            process.send_signal(number)
            chunks += list(stream)
        assert chunks[-1].choices[0].finish_reason in ("stop", "length")
        assert process.wait(200) == 0
        reader.join()
        assert "stopped" in rest[-1]
        assert "Say" not in "".join([*lines, *rest])
    finally:
        end(process)


def end(process: subprocess.Popen[str]) -> None:
    process.kill()
    process.wait()
    assert process.stderr is not None
    process.stderr.close()


def test_answers_of_the_serve_command_match_predict(tmp_path: Path) -> None:
    """Run the real command and query it over plain HTTP."""
    draw_page(3).save(tmp_path / "page.png")
    environment = {**os.environ, "CUDA_VISIBLE_DEVICES": ""}
    run = [sys.executable, "-m", "ixtune"]
    asked = ["predict", "What stands here?", "--image", str(tmp_path / "page.png"), "--base", "nano", "--hd-num", "4"]
    expected = subprocess.run([*run, *asked], capture_output=True, text=True, env=environment, check=True).stdout
    process = subprocess.Popen(
        [*run, "serve", "--base", "nano", "--port", "0", "--image-root", str(tmp_path)],
        stderr=subprocess.PIPE,
        text=True,
        env=environment,
    )
    try:
        assert process.stderr is not None
        while not (line := process.stderr.readline()).startswith("serving "):
            assert line
        url = re.search(r"http://\S+?(?=;)", line)[0]  # type: ignore[index]
        body = {"model": "base", "messages": ask("What stands here?", "page.png"), "hd_num": 4, "max_tokens": 256}
        request = urllib.request.Request(
            f"{url}/v1/chat/completions", json.dumps(body).encode(), {"Content-Type": "application/json"}
        )
        with urllib.request.urlopen(request) as response:
            found = json.load(response)
        assert found["choices"][0]["message"]["content"] == expected.strip()
    finally:
        end(process)
