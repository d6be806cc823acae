"""Test the content of an adapter folder, and that mismatched adapters are refused."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from adapters import KINDS, image_batch, section, stir
from peft import PeftModel
from safetensors.torch import load_file, save_file

from ixtune.adapter import attach, bundle
from ixtune.adapter.folder import RECORD_FILE, WEIGHTS_FILE, read_info
from ixtune.base import resolve
from ixtune.errors import IxtuneError
from ixtune.files import sha256_file
from ixtune.model.loading import load_base
from ixtune.recipe.recipe import AdapterSection

INFO = {"base": "small", "base_identity": "aa" * 32, "steps": 1, "ixtune_version": "0", "data": {"records": 1}}
IDS = torch.tensor([[1, 5, 6, 7, 8]])


def _base(small: Path) -> Any:
    return load_base(small, quantize=False, dtype=torch.float32)[0]


@pytest.fixture(scope="module")
def trained(small: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, torch.Tensor]:
    """Return an adapter folder with non-zero updates, and its logits."""
    model = attach.attach(_base(small), AdapterSection(rank=4, alpha=8, dropout=0.0)).eval()
    torch.manual_seed(0)
    for _, parameter in attach.trainable(model):
        parameter.data += torch.randn_like(parameter) * 0.05
    folder = tmp_path_factory.mktemp("run") / "adapter"
    bundle.save(model, folder, INFO)
    with torch.no_grad():
        return folder, model(input_ids=IDS).logits


def test_a_saved_adapter_gives_the_same_logits_when_loaded(small: Path, trained: tuple[Path, torch.Tensor]) -> None:
    folder, logits = trained
    with torch.no_grad():
        assert torch.equal(bundle.load(_base(small), folder, "aa" * 32)(input_ids=IDS).logits, logits)
        assert not torch.equal(_base(small)(input_ids=IDS).logits, logits)


def test_plain_peft_loads_an_adapter_with_only_our_model_classes(
    small: Path, trained: tuple[Path, torch.Tensor]
) -> None:
    folder, logits = trained
    with torch.no_grad():
        assert torch.equal(PeftModel.from_pretrained(_base(small), str(folder)).eval()(input_ids=IDS).logits, logits)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("quantize", [True, False])
def test_every_adapter_kind_answers_the_same_loaded_by_us_or_by_peft(
    small: Path, tmp_path: Path, kind: str, quantize: bool
) -> None:
    def base() -> Any:
        return load_base(small, quantize=quantize, dtype=torch.float32)[0]

    model = attach.attach(base(), section(kind)).eval()
    stir(model)
    bundle.save(model, tmp_path / "adapter", INFO)
    with torch.no_grad():
        trained = model(**image_batch()).logits
        assert not torch.allclose(trained, base()(**image_batch()).logits, atol=1e-2)
        assert torch.equal(bundle.load(base(), tmp_path / "adapter", "aa" * 32)(**image_batch()).logits, trained)
        peft = PeftModel.from_pretrained(base(), str(tmp_path / "adapter")).eval()(**image_batch()).logits
    torch.testing.assert_close(peft, trained, rtol=0, atol=2e-4 if "dora" in kind else 0)  # norms summed otherwise


@pytest.mark.parametrize(
    ("kind", "gone"),
    [
        ("dora", "model.layers.0.attention.wqkv.lora_magnitude_vector"),
        ("rslora with everything", "separators.sub"),
        ("rslora with everything", "vision_proj.2.lora_A.weight"),
    ],
)
def test_a_missing_tensor_of_any_kind_is_named(small: Path, tmp_path: Path, kind: str, gone: str) -> None:
    """PEFT itself would silently use the tensor of the base."""
    folder = tmp_path / "adapter"
    bundle.save(attach.attach(_base(small), section(kind)), folder, INFO)
    tensors = load_file(folder / WEIGHTS_FILE)
    del tensors[f"base_model.model.{gone}"]
    save_file(tensors, folder / WEIGHTS_FILE)
    _seal(folder)
    with pytest.raises(IxtuneError) as caught:
        bundle.load(_base(small), folder, "aa" * 32)
    assert gone.removesuffix(".lora_magnitude_vector").removesuffix(".lora_A.weight") in "\n".join(
        [str(caught.value), *caught.value.notes]
    )


def test_keys_have_the_original_names_and_include_the_projector(trained: tuple[Path, torch.Tensor]) -> None:
    keys = set(load_file(trained[0] / WEIGHTS_FILE))
    assert "base_model.model.model.layers.0.attention.wqkv.lora_A.weight" in keys
    assert "base_model.model.model.layers.1.feed_forward.w2.lora_B.weight" in keys
    assert {f"base_model.model.vision_proj.{n}.{p}" for n in (0, 2) for p in ("weight", "bias")} <= keys
    assert len(keys) == 2 * 5 * 2 + 4


def test_another_base_is_refused_unless_forced(small: Path, trained: tuple[Path, torch.Tensor]) -> None:
    with pytest.raises(IxtuneError, match="trained on another base: aaaa"):
        bundle.load(_base(small), trained[0], "bb" * 32)
    bundle.load(_base(small), trained[0], "bb" * 32, force=True)


def _seal(folder: Path) -> None:
    """Record the hash of changed weights, so that the change itself is detected and not the hash."""
    info = json.loads((folder / RECORD_FILE).read_text(encoding="utf-8"))
    info["adapter_sha256"] = sha256_file(folder / WEIGHTS_FILE)
    (folder / RECORD_FILE).write_text(json.dumps(info), encoding="utf-8")


def test_corrupted_or_truncated_weights_are_refused(
    small: Path, trained: tuple[Path, torch.Tensor], tmp_path: Path
) -> None:
    folder = tmp_path / "adapter"
    shutil.copytree(trained[0], folder)
    weights = (folder / WEIGHTS_FILE).read_bytes()
    for content in (weights[:-1] + bytes([weights[-1] ^ 1]), weights[:-100]):
        (folder / WEIGHTS_FILE).write_bytes(content)
        with pytest.raises(IxtuneError):
            bundle.load(_base(small), folder, "aa" * 32)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ("missing", "missing in the adapter: base_model.model.model.layers.0.attention.wo.lora_A.weight"),
        ("extra", "not used by the model: base_model.model.model.layers.7.attention.wo.lora_A.weight"),
    ],
)
def test_a_mismatched_key_is_named(
    small: Path, trained: tuple[Path, torch.Tensor], tmp_path: Path, change: str, said: str
) -> None:
    folder = tmp_path / "adapter"
    shutil.copytree(trained[0], folder)
    tensors = load_file(folder / WEIGHTS_FILE)
    for name in [name for name in tensors if "layers.0.attention.wo." in name]:
        tensor = tensors.pop(name) if change == "missing" else tensors[name].clone()
        if change == "extra":
            tensors[name.replace("layers.0", "layers.7")] = tensor
    save_file(tensors, folder / WEIGHTS_FILE)
    _seal(folder)
    with pytest.raises(IxtuneError) as caught:
        bundle.load(_base(small), folder, "aa" * 32)
    assert said in caught.value.notes


def test_a_folder_without_an_adapter_reports_the_missing_files(tmp_path: Path) -> None:
    with pytest.raises(IxtuneError, match="adapter_model.safetensors, adapter_config.json, ixtune.json missing"):
        read_info(tmp_path)


def test_ixtune_json_holds_the_hash_of_the_weights(trained: tuple[Path, torch.Tensor]) -> None:
    info = json.loads((trained[0] / RECORD_FILE).read_text(encoding="utf-8"))
    assert info["adapter_sha256"] == sha256_file(trained[0] / WEIGHTS_FILE)


def test_the_card_states_terms_data_and_recipe(small: Path, tmp_path: Path) -> None:
    info = {**INFO, "terms": "open for research", "hd_num": 16, "loss": 0.25, "recipe": {"adapter": {"rank": 4}}}
    bundle.save(attach.attach(_base(small), section("plain")), tmp_path / "adapter", info)
    card = (tmp_path / "adapter" / "README.md").read_text(encoding="utf-8")
    for said in ("terms it inherits: open for research.", "`hd_num` 16", "- records: 1", "- loss: 0.25", '"rank": 4'):
        assert said in card
    assert "base_model:" not in card  # `small` is no name on the hub


def test_a_wrong_shape_is_reported_with_both_shapes(small: Path, tmp_path: Path) -> None:
    """Use an adapter trained on a wider base whose ixtune.json names this one."""
    folder = tmp_path / "adapter"
    bundle.save(attach.attach(_base(small), section("plain")), folder, INFO)
    tensors = load_file(folder / WEIGHTS_FILE)
    name = "base_model.model.model.layers.0.attention.wo.lora_A.weight"
    tensors[name] = torch.zeros(4, 65)
    save_file(tensors, folder / WEIGHTS_FILE)
    _seal(folder)
    with pytest.raises(IxtuneError, match="does not fit") as caught:
        bundle.load(_base(small), folder, "aa" * 32)
    (note,) = caught.value.notes
    assert "layers.0.attention.wo.lora_A" in note
    assert "[4, 65]" in note
    assert "[4, 64]" in note


@pytest.mark.parametrize(
    "folder", sorted((Path(__file__).parents[1] / "fixtures/adapters").iterdir()), ids=lambda folder: folder.name
)
def test_adapters_of_earlier_versions_load_and_give_the_same_logits(folder: Path) -> None:
    """Load adapters written by the commits that closed issues 2, 3 and 4, and compare logits on the CPU.

    They were trained on the embedded base before 2026-11-29. The logits are theirs on the present one, by code that
    gave those stored by the old commits to 1e-5 on the earlier base.
    """
    nano = resolve("nano")
    model = load_base(nano, quantize=False, dtype=torch.float32)[0]
    crops = torch.randint(0, 256, (1, 3, 336, 336), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))
    batch = {"input_ids": torch.tensor([[1, 5, 6, *[0] * 313, 7, 8, 9]]), "crops": crops, "grids": [(1, 1)]}
    with torch.no_grad():
        of_the_base = model(**batch).logits[0, -2:]
        loaded = bundle.load(model, folder, read_info(folder)["base_identity"])
        logits = loaded(**batch).logits[0, -2:]
    expected = torch.tensor(json.loads((folder / "logits.json").read_text(encoding="utf-8")))
    torch.testing.assert_close(logits, expected, rtol=1e-4, atol=1e-4)
    assert (of_the_base - expected).abs().max() > 0.1
