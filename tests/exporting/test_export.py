"""Test every export profile: content of the folder, detection of damage, and refusals with their reasons."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from adapters import section, stir
from original_base import CODE, write_original_base
from peft import LoraConfig
from safetensors.torch import load_file

from ixtune.adapter import attach, bundle
from ixtune.adapter.folder import WEIGHTS_FILE
from ixtune.adapter.profiles import PROFILES
from ixtune.adapter.weights import read_adapter
from ixtune.checkpoint.identity import base_identity
from ixtune.checkpoint.shards import open_checkpoint
from ixtune.errors import IxtuneError, UsageError
from ixtune.exporting.export import export
from ixtune.exporting.peft_original import KNOWN_KEYS
from ixtune.exporting.profile_check import REPORT_FILE, check_folder
from ixtune.model.loading import load_base

IDS = torch.tensor([[1, 5, 6, 7, 8]])


@pytest.fixture(scope="session")
def original(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_original_base(tmp_path_factory.mktemp("original") / "base")


def _train(original: Path, folder: Path, kind: str, **info: Any) -> Path:
    model = attach.attach(load_base(original, quantize=False, dtype=torch.float32)[0], section(kind)).eval()
    stir(model)
    identity = base_identity(open_checkpoint(original))
    recipe = {"adapter": {"rank": 4}, "training": {"compute_dtype": "fp32"}, "data": {"train": "/home/me/secret"}}
    record = {"base": str(original), "base_identity": identity, "recipe": recipe, "data": {"records": 1234}, **info}
    bundle.save(model, folder, {"ixtune_version": "0", "steps": 3, "quantize": "none", **record})
    return folder


@pytest.fixture(scope="session")
def adapter(original: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return _train(original, tmp_path_factory.mktemp("plain") / "adapter", "plain", hd_num=9)


def test_peft_original_keeps_the_weights_and_only_keys_of_peft_0_10(
    original: Path, adapter: Path, tmp_path: Path
) -> None:
    report = export(adapter, original, tmp_path / "out", "peft-original")
    assert (tmp_path / "out" / WEIGHTS_FILE).read_bytes() == (adapter / WEIGHTS_FILE).read_bytes()
    config = json.loads((tmp_path / "out" / "adapter_config.json").read_text())
    assert config.keys() <= KNOWN_KEYS
    assert not json.loads((adapter / "adapter_config.json").read_text()).keys() <= KNOWN_KEYS, "nothing to leave out"
    assert report.consumer_run == "not run"
    assert report.onto is None


@pytest.mark.parametrize("kind", ["rslora with everything", "decoder only", "dora"])
def test_ranks_and_scales_survive_the_rewritten_configuration(original: Path, tmp_path: Path, kind: str) -> None:
    trained = _train(original, tmp_path / "adapter", kind)
    if "everything" in kind:  # peft cannot load its separators: without them the rest must be right
        with pytest.raises(IxtuneError, match="separators .*which peft does not load"):
            export(trained, original, tmp_path / "out", "peft-original")
        shutil.rmtree(trained)
        model = attach.attach(
            load_base(original, quantize=False, dtype=torch.float32)[0], section(kind, separators=False)
        )
        bundle.save(model, trained, {"base": "b", "base_identity": base_identity(open_checkpoint(original))})
    export(trained, original, tmp_path / "out", "peft-original")
    before, after = read_adapter(trained), read_adapter(tmp_path / "out")
    assert after.low_rank.keys() == before.low_rank.keys()
    for name, pair in before.low_rank.items():
        assert after.low_rank[name].scale == pytest.approx(pair.scale, rel=1e-12)
    # by the rules of peft 0.10: a pattern needs a dot before it, else the whole name is looked up
    config = LoraConfig(**json.loads((tmp_path / "out" / "adapter_config.json").read_text()))
    for name, pair in before.low_rank.items():
        rank = before.file.by_name[pair.a].shape[0]
        assert config.rank_pattern.get(name.removesuffix(".weight"), config.r) == rank


def test_an_adapter_without_lora_is_only_exported_merged(original: Path, tmp_path: Path) -> None:
    trained = _train(original, tmp_path / "adapter", "projector only")
    with pytest.raises(IxtuneError, match="no LoRA"):
        export(trained, original, tmp_path / "out", "peft-original")
    export(trained, original, tmp_path / "model", "original")
    found, before = load_file(tmp_path / "model" / "model.safetensors"), load_file(original / "model.safetensors")
    changed = {name for name in before if not torch.equal(found[name], before[name])}
    assert changed == {f"vision_proj.{layer}.{leaf}" for layer in (0, 2) for leaf in ("weight", "bias")}


def test_original_copies_names_config_and_code_byte_for_byte(original: Path, adapter: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    export(adapter, original, out, "original")
    for name in (*CODE, "config.json", "tokenizer.model", "LICENSE"):
        assert (out / name).read_bytes() == (original / name).read_bytes()
    found, expected = load_file(out / "model.safetensors"), load_file(original / "model.safetensors")
    assert found.keys() == expected.keys()
    wo = "model.layers.0.attention.wo.weight"
    assert not torch.equal(found[wo], expected[wo])
    with torch.no_grad():
        base = load_base(original, quantize=False, dtype=torch.float32)[0]
        logits = bundle.load(base, adapter, base_identity(open_checkpoint(original)))(input_ids=IDS).logits
        merged = load_base(out, quantize=False, dtype=torch.float32)[0](input_ids=IDS).logits
    torch.testing.assert_close(merged, logits, rtol=0, atol=5e-5)


@pytest.mark.parametrize("gone", ["ixc_utils.py", "modeling_internlm_xcomposer2.py"])
def test_a_base_without_its_code_is_refused_before_writing(
    original: Path, adapter: Path, tmp_path: Path, gone: str
) -> None:
    base = tmp_path / "base"
    shutil.copytree(original, base)
    (base / gone).unlink()
    with pytest.raises(IxtuneError, match=f"code that the configuration of the base names is missing: {gone}"):
        export(adapter, base, tmp_path / "out", "original")
    assert sorted(file.name for file in tmp_path.iterdir()) == ["base"]


def test_lmdeploy_warns_about_hd_num_and_checks_what_lmdeploy_reads(
    original: Path, adapter: Path, tmp_path: Path
) -> None:
    report = export(adapter, original, tmp_path / "out", "lmdeploy-0.13")
    assert "lmdeploy 0.13 shows every image at hd_num 25, but the adapter was trained at 9" in report.warnings
    assert {"recognized by lmdeploy", "recognized as 4KHD"} <= {check.what for check in report.checks}
    base = tmp_path / "base"
    shutil.copytree(original, base)
    (base / "ixc_utils.py").write_text("def Image_transform(): ...\n")  # lmdeploy recognizes the 2.5 release by it
    with pytest.raises(IxtuneError) as caught:
        export(adapter, base, tmp_path / "other", "lmdeploy-0.13")
    assert caught.value.notes == ("recognized as 4KHD: ixc_utils.py must define HD_transform and not Image_transform",)


@pytest.mark.parametrize("profile", ["peft-original", "original"])
def test_a_later_check_finds_changed_and_missing_files(
    original: Path, adapter: Path, tmp_path: Path, profile: str
) -> None:
    out = tmp_path / "out"
    export(adapter, original, out, profile)
    name, checks = check_folder(out)
    assert name == profile
    assert all(check.passed for check in checks)
    (out / "README.md").write_text("another")
    (out / "ixtune.json").unlink()
    failed = [check for check in check_folder(out)[1] if not check.passed]
    assert failed[0].what == "hashes"
    assert failed[0].found == "README.md has changed; ixtune.json is missing"
    (out / REPORT_FILE).unlink()
    with pytest.raises(IxtuneError, match="not exported by ixtune"):
        check_folder(out)


def test_the_card_states_terms_counts_and_recipe_but_no_local_path(
    original: Path, adapter: Path, tmp_path: Path
) -> None:
    export(adapter, original, tmp_path / "out", "original")
    card = (tmp_path / "out" / "README.md").read_text()
    for told in ("see its LICENSE", "- records: 1,234", "- steps: 3", '"rank": 4', "`hd_num` 9", "## Loading"):
        assert told in card
    assert str(original.parent) not in card
    assert "secret" not in card


@pytest.mark.parametrize("name", ["gguf", "vllm", "GGUF"])
def test_formats_without_a_consumer_are_refused_with_the_reason(name: str, adapter: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="PLoRA"):
        export(adapter, tmp_path, tmp_path / "out", name)


def test_an_unknown_profile_is_refused_with_the_list_of_profiles(adapter: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError) as caught:
        export(adapter, tmp_path, tmp_path / "out", "onnx")
    assert all(name in caught.value.hint for name in PROFILES)


@pytest.mark.parametrize("profile", ["peft-original", "original"])
def test_another_base_is_refused_and_leaves_no_files(
    original: Path, adapter: Path, tmp_path: Path, profile: str
) -> None:
    trained = tmp_path / "adapter"
    shutil.copytree(adapter, trained)
    record = json.loads((trained / "ixtune.json").read_text())
    (trained / "ixtune.json").write_text(json.dumps({**record, "base_identity": "ab" * 32}))
    with pytest.raises(IxtuneError, match="trained on another base"):
        export(trained, original, tmp_path / "out", profile)
    assert sorted(file.name for file in tmp_path.iterdir()) == ["adapter"]
    export(trained, original, tmp_path / "out", profile, force=True)
