"""Training state of a stage: optimizers, learning-rate schedule, and a checkpoint that resumes exactly."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn


def orthogonal(matrices_NAB: torch.Tensor) -> torch.Tensor:
    """Return the nearest (semi-)orthogonal matrices, approximately, by five Newton-Schulz steps in float32."""
    a, b, c = 3.4445, -4.7750, 2.0315
    tall = matrices_NAB.shape[1] > matrices_NAB.shape[2]
    x = matrices_NAB.mT if tall else matrices_NAB
    x = x / (x.norm(dim=(1, 2), keepdim=True) + 1e-7)
    for _ in range(5):
        square = x @ x.mT
        x = a * x + (b * square + c * square @ square) @ x
    return x.mT if tall else x


class Muon(torch.optim.Optimizer):
    """Momentum with orthogonalized updates, in float32 and batched by shape.

    torch.optim.Muon runs Newton-Schulz in bfloat16 and one matrix at a time, which is slow on a CPU without bfloat16
    instructions.
    """

    def __init__(self, groups: list[dict[str, Any]], momentum: float = 0.95, decay: float = 0.01) -> None:
        super().__init__(groups, {"lr": 0.02, "momentum": momentum, "decay": decay})

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:
        """Update every matrix that has a gradient."""
        for group in self.param_groups:
            by_shape: dict[torch.Size, list[nn.Parameter]] = defaultdict(list)
            for matrix in group["params"]:
                if matrix.grad is not None:
                    by_shape[matrix.shape].append(matrix)
            for (high, wide), matrices in by_shape.items():
                for matrix in matrices:
                    if "velocity" not in self.state[matrix]:
                        self.state[matrix]["velocity"] = torch.zeros_like(matrix)
                    self.state[matrix]["velocity"].mul_(group["momentum"]).add_(matrix.grad)
                ahead = [m.grad + group["momentum"] * self.state[m]["velocity"] for m in matrices]
                for matrix, update in zip(matrices, orthogonal(torch.stack(ahead)), strict=True):
                    matrix.mul_(1 - group["lr"] * group["decay"])
                    matrix.add_(update, alpha=-group["lr"] * max(1.0, high / wide) ** 0.5)


def schedule(step: int, steps: int, warm: int, decay: int) -> float:
    """Return the factor on the learning rates: linear warmup, constant, then linear decay over the last `decay`."""
    return min(1.0, (step + 1) / warm, max(0.02, (steps - step) / max(1, decay)))


def hidden_matrices(module: nn.Module) -> tuple[list[nn.Parameter], list[nn.Parameter]]:
    """Return the matrices inside the layers, for Muon, and the other parameters, for AdamW."""
    matrices, others = [], []
    for name, parameter in module.named_parameters():
        inside = parameter.ndim == 2 and "layers." in name and "plora" not in name
        (matrices if inside else others).append(parameter)
    return matrices, others


def optimizers(
    muon: Sequence[tuple[list[nn.Parameter], float]], adam: Sequence[tuple[list[nn.Parameter], float]]
) -> list[torch.optim.Optimizer]:
    """Return Muon and AdamW over groups of (parameters, learning rate)."""
    return [
        Muon([{"params": parameters, "lr": rate} for parameters, rate in muon]),
        torch.optim.AdamW(
            [{"params": parameters, "lr": rate} for parameters, rate in adam], betas=(0.9, 0.98), weight_decay=0.01
        ),
    ]


@dataclass(frozen=True)
class Machine:
    """What a stage runs on.

    Attributes:
        device: of the network.
        workers: processes that draw pages.
        times: factor on the pages of a step.
    """

    device: str = "cpu"
    workers: int = 1
    times: int = 1


class Steps(torch.utils.data.Dataset[Any]):
    """What each step from `first` to before `last` is trained on.

    `draw` must depend on the step's number only, so that a stopped run resumes with the same pages.
    """

    def __init__(self, first: int, last: int, draw: Callable[[int], Any], machine: Machine) -> None:
        self.first, self.last, self.draw, self.machine = first, last, draw, machine

    def __len__(self) -> int:
        """Return how many steps are left."""
        return max(0, self.last - self.first)

    def __getitem__(self, at: int) -> Any:
        """Draw the batch of step `first + at`."""
        return self.draw(self.first + at)

    def loader(self) -> torch.utils.data.DataLoader[Any]:
        """Return a loader that draws a few steps ahead in processes of its own."""
        return torch.utils.data.DataLoader(self, batch_size=None, num_workers=self.machine.workers, prefetch_factor=4)


class State:
    """Weights, optimizers and step number of a stage, in one file."""

    def __init__(self, path: Path, module: nn.Module, optimizers: list[torch.optim.Optimizer]) -> None:
        """Load the checkpoint at `path` if there is one."""
        self.path, self.module, self.optimizers, self.step = path, module, optimizers, 0
        self.rates = [[group["lr"] for group in optimizer.param_groups] for optimizer in optimizers]
        if path.exists():
            state = torch.load(path, weights_only=True, map_location="cpu")
            module.load_state_dict(state["weights"])
            for optimizer, saved in zip(optimizers, state["optimizers"], strict=True):
                optimizer.load_state_dict(saved)
            self.step = state["step"]

    def save(self) -> None:
        """Write the checkpoint atomically."""
        temporary = self.path.with_suffix(".part")
        states = [optimizer.state_dict() for optimizer in self.optimizers]
        torch.save({"weights": self.module.state_dict(), "optimizers": states, "step": self.step}, temporary)
        temporary.replace(self.path)

    def update(self, factor: float, largest: float = 1.0) -> float:
        """Take one optimizer step at the rates times `factor`; return the gradient norm before clipping."""
        norm = nn.utils.clip_grad_norm_(self.module.parameters(), largest)
        for optimizer, rates in zip(self.optimizers, self.rates, strict=True):
            for group, rate in zip(optimizer.param_groups, rates, strict=True):
                group["lr"] = rate * factor
            optimizer.step()
            optimizer.zero_grad()
        self.step += 1
        return float(norm)
