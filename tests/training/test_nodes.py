"""Test two torchrun nodes on one machine: they train one run, and both end when one dies."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from main_job import environment
from safetensors.torch import load_file
from text_run import losses, prepare_texts, text_recipe

from ixtune.training.processes import launch

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]

CHANGES = ("training.max_steps=24", "training.save_every=4", "adapter.dropout=0.1", "resume=auto", "--no-report")


def start_node(number: int, port: int, recipe: Path, *changes: str) -> subprocess.Popen[str]:
    """Start one of two nodes, as an administrator would on each machine."""
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--nnodes", "2", "--node-rank", str(number)]
    torchrun += ["--nproc-per-node", "1", "--master-addr", "127.0.0.1", "--master-port", str(port), "-m", "ixtune"]
    return subprocess.Popen(
        [*torchrun, "train", str(recipe), *CHANGES, *changes],
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=environment(),
    )  # fmt: skip


def train(recipe: Path, *changes: str) -> list[tuple[int, str]]:
    """Train in two nodes to the end: exit code and output of each."""
    port = launch._free_port()
    nodes = [start_node(number, port, recipe, *changes) for number in range(2)]
    said = [node.communicate(timeout=600)[0] for node in nodes]
    return [(node.returncode, text) for node, text in zip(nodes, said, strict=True)]


def weights(run: Path) -> dict[str, bytes]:
    return {k: v.numpy().tobytes() for k, v in load_file(run / "adapter" / "adapter_model.safetensors").items()}


def below(parent: int) -> list[int]:
    """Return all descendants of a process."""
    listed = Path(f"/proc/{parent}/task/{parent}/children").read_text(encoding="utf-8")
    children = [int(child) for child in listed.split()]
    return [*children, *(grandchild for child in children for grandchild in below(child))]


def test_a_dead_node_ends_the_run_and_the_resumed_run_is_equal(tmp_path: Path) -> None:
    data = prepare_texts(tmp_path / "texts")
    for name in ("straight", "killed"):
        text_recipe(tmp_path / name, data)
    straight, run = tmp_path / "straight" / "run", tmp_path / "killed" / "run"
    ended = train(tmp_path / "straight" / "recipe.yaml")
    assert [code for code, _ in ended] == [0, 0], ended
    assert "done     24 steps" in ended[0][1]
    assert "done" not in ended[1][1], "only the first process speaks"

    port = launch._free_port()
    nodes = [start_node(number, port, tmp_path / "killed" / "recipe.yaml") for number in range(2)]
    deadline = time.monotonic() + 900
    while not (run / "checkpoint-8").exists():
        assert time.monotonic() < deadline
        assert nodes[1].poll() is None, nodes[1].communicate()
        time.sleep(0.05)
    for process in (nodes[1].pid, *below(nodes[1].pid)):
        os.kill(process, signal.SIGKILL)
    began = time.monotonic()
    nodes[1].communicate()
    said = nodes[0].communicate(timeout=300)[0]
    assert time.monotonic() - began < 60
    assert nodes[0].returncode != 0
    assert "another process of this run has failed" in said
    assert "Traceback" not in said.split("another process of this run has failed")[0]
    assert not (run / "adapter").exists()

    ended = train(tmp_path / "killed" / "recipe.yaml")
    assert [code for code, _ in ended] == [0, 0], ended
    assert losses(run) == losses(straight)
    assert weights(run) == weights(straight)
