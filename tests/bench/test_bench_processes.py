"""Measure averaging gradients once per step against DistributedDataParallel, with two processes on this machine."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import measuring
import pytest

from ixtune.training.processes import launch

pytestmark = [pytest.mark.bench, pytest.mark.timeout(1800)]

LAYERS, ROUNDS = 8, 8
WORKER = """
import json, statistics, sys, time
import torch
from torch.nn.parallel import DistributedDataParallel
from ixtune.training.processes import launch, parallel

parallel.join()
layers, rounds = map(int, sys.argv[1:])
shapes = [(6144, 4096), (4096, 4096), (14336, 4096), (14336, 4096), (4096, 14336)] * layers  # the 7B's linears


class LoRA(torch.nn.Module):
    def __init__(self):
        super().__init__()
        sizes = [size for out, into in shapes for size in ((16, into), (out, 16))]
        self.weights = torch.nn.ParameterList(torch.nn.Parameter(torch.full(size, 0.5)) for size in sizes)
        self.projector = torch.nn.Parameter(torch.zeros(16))

    def forward(self, factor, with_projector):
        summed = sum((weight * factor).sum() for weight in self.weights)
        return summed + self.projector.sum() if with_projector else summed


def spent(step, model):
    model.zero_grad()
    began, clock = time.process_time(), time.perf_counter()
    step()
    return time.process_time() - began, time.perf_counter() - clock


own, plain = LoRA(), LoRA()
wrapped = DistributedDataParallel(plain)
loose = LoRA()
wrapped_loose = DistributedDataParallel(loose, find_unused_parameters=True)
factor = 1.0 + launch.rank()


def averaged():
    own(factor, True).backward()
    parallel.average_gradients(own.parameters())


ways = {
    "alone": (lambda: own(factor, True).backward(), own),
    "averaged": (averaged, own),
    "ddp": (lambda: wrapped(factor, True).backward(), plain),
    "ddp_unused": (lambda: wrapped_loose(factor, launch.rank() == 0).backward(), loose),
}
found = {name: [] for name in ways}
for turn in range(rounds + 1):
    for name, (step, model) in ways.items():
        parallel.barrier()
        measured = spent(step, model)
        if turn:
            found[name].append(measured)
averaged_gradients = [weight.grad.clone() for weight in own.weights] if not own.zero_grad() and not averaged() else []
plain.zero_grad()
wrapped(factor, True).backward()
assert all(torch.equal(one, other.grad) for one, other in zip(averaged_gradients, plain.weights, strict=True))
parallel.barrier()
try:
    for _ in range(2):  # without the flag, a parameter that one process does not use ends the run
        wrapped(factor, False).backward()
    refused = 0
except RuntimeError as error:
    refused = int("finished reduction" in str(error))
medians = {f"{name}_{kind}_s": statistics.median(one[at] for one in times)
           for name, times in found.items() for at, kind in enumerate(("cpu", "wall"))}
print(json.dumps({"parameters": sum(w.numel() for w in own.weights), "unused_refused": refused, **medians}), flush=True)
import os
os._exit(0)
"""


def test_averaging_gradients_once_costs_no_more_than_ddp(tmp_path: Path) -> None:
    variables = {"OMP_NUM_THREADS": "1", "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1"}
    variables["MASTER_PORT"] = str(launch._free_port())
    started = [
        subprocess.Popen(
            [sys.executable, "-W", "ignore", "-c", WORKER, str(LAYERS), str(ROUNDS)],
            env={**os.environ, **variables, "RANK": str(rank), "LOCAL_RANK": str(rank)},
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )
        for rank in range(2)
    ]  # fmt: skip
    said = [process.communicate(timeout=1500) for process in started]
    assert [process.returncode for process in started] == [0, 0], said
    found = json.loads(said[0][0].strip().splitlines()[-1])
    measuring.record("gradient_averaging", {key: float(value) for key, value in found.items()})
    assert found["unused_refused"] == 1
    assert found["averaged_cpu_s"] <= 1.25 * found["ddp_unused_cpu_s"]
