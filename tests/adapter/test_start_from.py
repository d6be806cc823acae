"""Test adapters that start from an older one: copied weights give the same logits, the others are listed."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest
import torch
from adapters import image_batch, section, stir
from huggingface_hub.errors import LocalEntryNotFoundError
from peft import PeftModel

from ixtune.adapter import attach, bundle
from ixtune.adapter.start_from import ancestors, load_start, open_start
from ixtune.errors import IxtuneError, UsageError
from ixtune.model.loading import load_base

INFO = {"base": "small", "base_identity": "aa" * 32, "steps": 7, "ixtune_version": "0", "data": {"records": 1}}


def model(small: Path, **settings: Any) -> PeftModel:
    return attach.attach(load_base(small, quantize=False, dtype=torch.float32)[0], section("plain", **settings)).eval()


def logits(wrapped: PeftModel) -> torch.Tensor:
    with torch.no_grad():
        found: torch.Tensor = wrapped(**image_batch()).logits
    return found


def older(small: Path, folder: Path, **settings: Any) -> tuple[Path, torch.Tensor]:
    """Return an adapter whose tensors are all non-zero, and its logits."""
    wrapped = model(small, **settings)
    stir(wrapped)
    bundle.save(wrapped, folder / "adapter", INFO)
    return folder, logits(wrapped)


@pytest.mark.parametrize(
    ("before", "now", "said"),
    [
        ({}, {}, "LoRA wqkv x2, LoRA wo x2, LoRA w1 x2, LoRA w3 x2, LoRA w2 x2, projector x4"),
        ({}, {"rank": 8, "alpha": 3.0}, "LoRA wqkv x2"),
        ({}, {"variant": "rslora", "rank": 6}, "LoRA wqkv x2"),
        ({"separators": True}, {"separators": True}, "separators x2"),
        ({"variant": "dora"}, {"variant": "dora", "rank": 5}, "LoRA wqkv x2"),
        ({"projector": "lora"}, {"projector": "lora"}, "projector x2"),
        ({"projector": "lora"}, {"projector": "full"}, "projector x2"),
        ({"layers": [1]}, {"layers": [1]}, "LoRA wqkv x1"),
        ({"targets": ["wo"]}, {"targets": ["wo", "w1"]}, "starts new: LoRA w1 (not in the older adapter) x2"),
        ({"layers": [1]}, {}, "starts new: LoRA wqkv (not in the older adapter) x1"),
    ],
    ids=str,
)
def test_an_adapter_started_from_another_gives_the_same_logits(
    small: Path, tmp_path: Path, before: dict[str, Any], now: dict[str, Any], said: str
) -> None:
    run, wanted = older(small, tmp_path, **before)
    fresh = model(small, **now)
    assert not torch.allclose(logits(fresh), wanted, atol=1e-4)
    lines = load_start(fresh, open_start(str(run), "aa" * 32))
    torch.testing.assert_close(logits(fresh), wanted, atol=2e-5, rtol=1e-4)
    assert any(said in line for line in lines), lines
    assert not any("left out" in line for line in lines), lines


@pytest.mark.parametrize(
    ("before", "now", "said"),
    [
        ({"rank": 8}, {"rank": 4}, "starts new: LoRA wqkv (rank 8 there, 4 here) x2"),
        ({"variant": "dora"}, {}, "starts new: LoRA wqkv (DoRA in only one of the two) x2"),
        ({}, {"projector": "frozen"}, "left out of"),
        ({}, {"layers": [0]}, "left out of"),
        ({}, {"projector": "lora"}, "starts new: projector (not in the older adapter) x2"),
    ],
    ids=str,
)
def test_weights_that_have_no_place_are_named(
    small: Path, tmp_path: Path, before: dict[str, Any], now: dict[str, Any], said: str
) -> None:
    run, _ = older(small, tmp_path, **before)
    assert any(said in line for line in load_start(model(small, **now), open_start(str(run), "aa" * 32)))


def test_an_unusable_start_adapter_is_refused(small: Path, tmp_path: Path) -> None:
    run, _ = older(small, tmp_path, targets=["wo"], projector="frozen")
    with pytest.raises(IxtuneError, match="was trained on another base: aaaaaaaaaaaa, this one is bb"):
        open_start(str(run), "bb" * 32)
    with pytest.raises(UsageError, match="there is no such adapter"):
        open_start(str(tmp_path / "nowhere at all"), "aa" * 32)
    with pytest.raises(IxtuneError, match="HF_HUB_OFFLINE is set"):
        open_start("somebody/some-adapter", "aa" * 32)
    with pytest.raises(UsageError, match="none of the weights of the adapter to start from fits"):
        load_start(model(small, targets=["w1"]), open_start(str(run), "aa" * 32))


def test_a_start_may_be_on_the_hub(small: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Three files are fetched once; a stand-in answers in place of the hub."""
    run, wanted = older(small, tmp_path)
    asked: list[list[str]] = []

    def hub(hub_id: str, *, allow_patterns: list[str], local_files_only: bool = False) -> str:
        assert hub_id == "someone/pages"
        cached = tmp_path / "cache"
        if local_files_only and not cached.is_dir():
            raise LocalEntryNotFoundError("not in the cache")
        if not local_files_only:
            cached.mkdir()
            asked.append(allow_patterns)
            for name in allow_patterns:
                shutil.copy(run / "adapter" / name, cached / name)
        return str(cached)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", hub)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    for _ in range(2):
        start = open_start("someone/pages", "aa" * 32)
    assert asked == [["adapter_config.json", "adapter_model.safetensors", "ixtune.json"]]
    fresh = model(small)
    load_start(fresh, start)
    assert torch.allclose(logits(fresh), wanted, atol=1e-6)
    assert [one["adapter"] for one in ancestors(start, "someone/pages")] == ["someone/pages"]


def test_an_adapter_lists_all_its_ancestors(small: Path, tmp_path: Path) -> None:
    first, _ = older(small, tmp_path / "first")
    chain = ancestors(open_start(str(first), "aa" * 32), "runs/first")
    bundle.save(model(small), tmp_path / "second" / "adapter", {**INFO, "ancestors": chain})
    chain = ancestors(open_start(str(tmp_path / "second"), "aa" * 32), "runs/second")
    assert [(one["adapter"], one["steps"], one["data"]) for one in chain] == [
        ("runs/first", 7, {"records": 1}),
        ("runs/second", 7, {"records": 1}),
    ]
    assert "- started from: first (7 steps)" in (tmp_path / "second" / "adapter" / "README.md").read_text()
