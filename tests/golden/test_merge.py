"""Test that a merged model equals its adapter in float32: the reference's LoRA, and one that trains everything."""

from __future__ import annotations

import json
from pathlib import Path
from typing import NamedTuple

import pytest
import torch
from adapters import section, stir
from safetensors.torch import load_file, save_file
from tiny import Tiny, largest

from ixtune.adapter import attach, bundle
from ixtune.checkpoint.identity import base_identity
from ixtune.checkpoint.shards import open_checkpoint
from ixtune.merging.merge import merge
from ixtune.model.model import IXC2ForCausalLM

MERGED = 5e-5
LORA_LOGITS = 3e-4  # of golden/README.md


class Pair(NamedTuple):
    """Hold the base with the adapter, and the merged model loaded from its folder."""

    adapted: torch.nn.Module
    merged: IXC2ForCausalLM


def load_merged(tiny: Tiny, folder: Path) -> IXC2ForCausalLM:
    return IXC2ForCausalLM.from_pretrained(folder, config=tiny.config(), dtype=torch.float32).eval()


@pytest.fixture(scope="module", params=["plain", "rslora with everything", "dora with everything"])
def pair(tiny: Tiny, tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest) -> Pair:
    folder = tmp_path_factory.mktemp("merge")
    identity = base_identity(open_checkpoint(tiny.folder))
    trained = attach.attach(tiny.model(), section(request.param)).eval()
    stir(trained, 0.02)
    record = {"base": "tiny", "base_identity": identity, "ixtune_version": "0", "quantize": "none"}
    bundle.save(trained, folder / "adapter", record)
    merge(folder / "adapter", tiny.folder, folder / "merged")
    return Pair(bundle.load(tiny.model(), folder / "adapter", identity), load_merged(tiny, folder / "merged"))


def test_the_merged_model_has_the_logits_of_the_adapter(tiny: Tiny, pair: Pair, sample: str) -> None:
    images = tiny.images(tiny.samples["samples"][sample]["images"] or [])
    real = tiny.tensors[f"{sample}.attention_mask"].bool()
    batch = {"input_ids": tiny.ids(sample), "attention_mask": real.long(), **images}
    if images and int((batch["input_ids"] == 0).sum()) < sum(rows_of(tiny, sample)):
        pytest.skip("the reference cuts through this image; ixtune never does")
    with torch.no_grad():
        found, expected = pair.merged(**batch).logits[real], pair.adapted(**batch).logits[real]
        without = tiny.model()(**batch).logits[real]
    assert largest(found - expected) <= MERGED
    assert largest(expected - without) > 100 * MERGED, "an adapter without effect shows nothing"


def rows_of(tiny: Tiny, sample: str) -> list[int]:
    names = tiny.samples["samples"][sample]["images"]
    flat = [n for name in names for n in (name if isinstance(name, list) else [name])]
    return [tiny.samples["images"][name]["tokens"] for name in flat]


def test_the_merged_reference_lora_gives_the_reference_logits(tiny: Tiny, tmp_path: Path) -> None:
    entry, expected = tiny.samples["lora"], load_file(tiny.folder / "lora.safetensors")
    adapter = tmp_path / "adapter"
    adapter.mkdir()
    weights = {
        f"base_model.model.{key.removeprefix('weight.')}": value
        for key, value in expected.items()
        if key.startswith("weight.")
    }
    save_file(weights, adapter / "adapter_model.safetensors")
    config = {"peft_type": "LORA", "r": entry["r"], "lora_alpha": entry["alpha"]}
    (adapter / "adapter_config.json").write_text(json.dumps(config))
    report = merge(adapter, tiny.folder, tmp_path / "merged")
    assert report.merged == report.changed == len(weights) // 2
    sample = entry["sample"]
    images = tiny.images(tiny.samples["samples"][sample]["images"])
    with torch.no_grad():
        logits = load_merged(tiny, tmp_path / "merged")(input_ids=tiny.ids(sample), **images).logits
    assert largest(logits - expected["logits"]) <= LORA_LOGITS
