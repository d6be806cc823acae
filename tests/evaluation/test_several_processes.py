"""Test that processes split the questions of `evaluate` and `predict` and give the same answers and bytes as one."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time
from pathlib import Path
from typing import Any

import pytest
from in_process import call
from main_job import command, environment, ixtune
from records import write_image

from ixtune.base import resolve
from ixtune.data.prepare import prepare
from ixtune.data.prepared.manifest import PrepareOptions
from ixtune.data.sources.source import Source

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]

PAGES, QUESTIONS = 4, 3
SPENT = {"generate_s", "prefixes"}  # of a model: seconds, and counters that are sums over the processes


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with `rows.jsonl` of questions about a few pages, one that cannot be asked, and the prepared set."""
    folder = tmp_path_factory.mktemp("pages")
    rows: list[dict[str, Any]] = []
    for number in range(PAGES):
        write_image(folder / f"{number}.png", 60 + 10 * number, 40)
        rows += [
            {"id": f"{number}-{at}", "image": f"{number}.png", "question": f"What is in row {at}?", "answer": str(at)}
            for at in range(QUESTIONS)
        ]
    rows.append({"id": "text", "question": "What is 1 and 1?", "answer": "2"})
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    prepare(
        [Source(path=str(folder / "rows.jsonl"))],
        folder / "set",
        base=resolve("nano"),
        options=PrepareOptions(hd_num=1),
    )
    with (folder / "rows.jsonl").open("a") as file:
        file.write('{"id": "lost", "question": "What?", "image": "absent.png"}\n')
    return folder


def scored(path: Path) -> str:
    """Return the text of an evaluation without what depends on the clock."""
    content = json.loads(path.read_text(encoding="utf-8"))
    for model in content["models"]:
        for name in SPENT:
            del model[name]
    return json.dumps(content)


def test_an_evaluation_with_two_processes_equals_one_with_one(data: Path, tmp_path: Path) -> None:
    arguments = ("evaluate", data / "set", "--base", "nano", "--score", "anls", "--batch-size", "2")
    code, said, complaints = call(*arguments, "--out", tmp_path / "one.json")
    assert code == 0, complaints
    for name, options in (("two", ("--processes", "2")), ("three", ("--processes=3",))):
        done = ixtune(*arguments, "--out", tmp_path / f"{name}.json", *options)
        assert (done.returncode, done.stderr) == (0, "")
        assert done.stdout.replace(f"{name}.json", "one.json") == said
        assert scored(tmp_path / f"{name}.json") == scored(tmp_path / "one.json")


def predict(data: Path, out: Path, *options: str) -> list[str]:
    words = ["predict", "--from", data / "rows.jsonl", "--base", "nano", "--hd-num", "1", "--out", out]
    return [*map(str, words), "--batch-size", "2", "--max-new-tokens", "8", *options]


def test_predictions_with_two_processes_equal_those_with_one(data: Path, tmp_path: Path) -> None:
    code, _, complaints = call(*predict(data, tmp_path / "one.jsonl"))
    assert code == 3, complaints
    done = ixtune(*predict(data, tmp_path / "two.jsonl", "--processes", "2"))
    assert done.returncode == 3, done.stderr
    assert done.stdout.splitlines()[0] == f"13 answers in {tmp_path / 'two.jsonl'}"
    assert done.stderr.startswith("1 could not be asked")
    for end in ("", ".rejects.jsonl"):
        assert (tmp_path / f"two.jsonl{end}").read_bytes() == (tmp_path / f"one.jsonl{end}").read_bytes()


def test_a_prediction_killed_with_two_processes_resumes_with_one(data: Path, tmp_path: Path) -> None:
    call(*predict(data, tmp_path / "straight.jsonl"))
    out, folder = tmp_path / "out.jsonl", tmp_path
    started = subprocess.Popen(
        command(*predict(data, out, "--processes", "2")),
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env=environment(),
    )  # fmt: skip
    journals = [folder / ".out.jsonl.unfinished", folder / ".out.jsonl.unfinished.1"]
    deadline = time.monotonic() + 300
    while not all(path.exists() and path.read_bytes().count(b"\n") > 2 for path in journals):
        assert started.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.002)
    os.kill(started.pid, signal.SIGKILL)  # its processes end with it
    started.wait()
    code, said, _ = call(*predict(data, out))
    assert code == 3
    assert "of them from an earlier run" in said
    assert out.read_bytes() == (tmp_path / "straight.jsonl").read_bytes()
    assert not list(folder.glob(".out*"))


@pytest.mark.parametrize("launcher", ["torchrun", "accelerate"])
def test_other_launchers_split_the_work_too(data: Path, tmp_path: Path, launcher: str) -> None:
    import sys

    call(*predict(data, tmp_path / "one.jsonl"))
    started = {
        "torchrun": ["torch.distributed.run", "--standalone", "--nproc-per-node", "2"],
        "accelerate": [
            "accelerate.commands.launch", "--multi_gpu", "--num_processes", "2", "--num_machines", "1",
            "--mixed_precision", "no", "--dynamo_backend", "no",
        ],
    }[launcher]  # fmt: skip
    words = [sys.executable, "-m", *started, "-m", "ixtune", *predict(data, tmp_path / "two.jsonl")]
    done = subprocess.run(words, capture_output=True, text=True, env=environment(), check=False)
    assert "13 answers in" in done.stdout, done.stderr
    assert done.stdout.count("answers in") == 1
    assert (tmp_path / "two.jsonl").read_bytes() == (tmp_path / "one.jsonl").read_bytes()
