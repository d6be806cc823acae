"""Compare the loss on supervised rows with full logits: value and gradient."""

from __future__ import annotations

import weakref

import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy
from torch.utils._python_dispatch import TorchDispatchMode

from ixtune.model import loss as lossfile
from ixtune.model.loss import supervised_loss, supervised_rows

T, D, V = 40, 16, 70
ROWS = torch.tensor([0, 1, 5, 6, 7, 8, 20, 21, 22, 30, 38])


def problem(dtype: torch.dtype = torch.float32) -> tuple[torch.Tensor, torch.Tensor, nn.Linear]:
    torch.manual_seed(0)
    hidden = torch.randn(T, D, dtype=torch.float64).to(dtype).requires_grad_()
    head = nn.Linear(D, V, bias=False, dtype=dtype).requires_grad_(False)
    return hidden, torch.randint(0, V, (len(ROWS),)), head


def plain(hidden: torch.Tensor, targets: torch.Tensor, head: nn.Module, denominator: float) -> torch.Tensor:
    """Compute the loss from full logits, in fp32 after the head."""
    return cross_entropy(head(hidden).float()[ROWS], targets, reduction="sum") / denominator


@pytest.mark.parametrize("chunk", [1, 3, 4, 11, 512])
@pytest.mark.parametrize("trained", [False, True])
def test_any_chunk_size_gives_loss_and_gradient_of_full_logits(
    chunk: int, trained: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lossfile, "CHUNK_ROWS", chunk)
    hidden, targets, head = problem(torch.float64)
    head.requires_grad_(trained)
    wanted = [hidden, head.weight] if trained else [hidden]
    loss, expected = supervised_loss(hidden, ROWS, targets, head, 7), plain(hidden, targets, head, 7)
    assert loss.dtype == torch.float32
    assert loss.item() == pytest.approx(expected.item(), rel=1e-6)
    # an upstream gradient that is not 1
    for one, other in zip(
        torch.autograd.grad(loss * 3, wanted), torch.autograd.grad(expected * 3, wanted), strict=True
    ):
        assert float((one - other).norm()) <= 1e-6 * float(other.norm())


@pytest.mark.parametrize("autocast", [False, True])
def test_a_bf16_head_rounds_like_the_plain_loss(autocast: bool) -> None:
    hidden, targets, head = problem(torch.float32 if autocast else torch.bfloat16)
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        loss, expected = supervised_loss(hidden, ROWS, targets, head), plain(hidden, targets, head, len(ROWS))
    assert loss.dtype == torch.float32
    assert loss.item() == pytest.approx(expected.item(), rel=1e-6)
    found, wanted = torch.autograd.grad(loss, hidden)[0], torch.autograd.grad(expected, hidden)[0]
    assert found.dtype == wanted.dtype == hidden.dtype
    assert float((found - wanted).norm()) <= 2e-2 * float(wanted.norm())


def test_large_logits_stay_finite() -> None:
    hidden, targets, head = problem()
    loss = supervised_loss(hidden * 1000, ROWS, targets, head)
    assert loss.item() == pytest.approx(plain(hidden * 1000, targets, head, len(ROWS)).item(), rel=1e-5)
    assert torch.isfinite(torch.autograd.grad(loss, hidden)[0]).all()


class _Wide(TorchDispatchMode):
    """Track how many matrices of vocabulary width exist at one time, and their rows."""

    def __init__(self) -> None:
        super().__init__()
        self.alive: list[weakref.ref[torch.Tensor]] = []
        self.most = self.rows = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        out = function(*args, **(kwargs or {}))
        # the weight, seen from its other side, is none of them
        if isinstance(out, torch.Tensor) and out.ndim == 2 and out.shape[1] == V and len(out) != D:
            self.alive.append(weakref.ref(out.untyped_storage()))
            self.rows = max(self.rows, len(out))
            self.most = max(self.most, len({id(s()) for s in self.alive if s() is not None}))
        return out


def test_only_one_chunk_of_logits_exists_and_none_is_kept(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(lossfile, "CHUNK_ROWS", 4)
    hidden, targets, head = problem()
    kept: list[tuple[int, ...]] = []

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        kept.append(tuple(tensor.shape))
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor), _Wide() as wide:
        loss = supervised_loss(hidden, ROWS, targets, head)
    assert (wide.most, wide.rows) == (1, 4)
    assert (len(ROWS), D) in kept
    assert not any(V in shape for shape in kept)
    with _Wide() as wide:
        loss.backward()
    assert wide.most == 0


def test_without_grad_no_gradient_is_computed() -> None:
    hidden, targets, head = problem()
    with torch.no_grad():
        loss = supervised_loss(hidden, ROWS, targets, head)
    assert not loss.requires_grad
    assert loss.item() == pytest.approx(plain(hidden, targets, head, len(ROWS)).item(), rel=1e-6)


def test_a_custom_head_uses_its_own_forward() -> None:
    class Doubled(nn.Linear):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return 2 * super().forward(x)

    hidden, targets, head = problem()
    doubled = Doubled(D, V, bias=False).requires_grad_(False)
    doubled.weight = head.weight
    loss = supervised_loss(hidden, ROWS, targets, doubled)
    assert loss.item() == pytest.approx(plain(hidden, targets, doubled, len(ROWS)).item(), rel=1e-6)


def test_rows_precede_their_targets_and_no_targets_is_an_error() -> None:
    rows, targets = supervised_rows(torch.tensor([[-100, 4, 5, -100], [7, -100, -100, 8]]))
    assert rows.tolist() == [0, 1, 6]
    assert targets.tolist() == [4, 5, 8]
    hidden, _, head = problem()
    with pytest.raises(ValueError, match="no supervised position"):
        supervised_loss(hidden, rows[:0], targets[:0], head)
