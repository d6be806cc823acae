"""Compare our DoRA forward pass with PEFT's, and check which tensors it does not keep."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from adapters import image_batch, section, stir, text_batch
from peft import PeftModel, get_peft_model
from peft.tuners.lora import LoraLayer
from torch.autograd.graph import saved_tensors_hooks

from ixtune.adapter import attach, dora
from ixtune.model.loading import load_base

KIND = "dora with everything"


def _wrapped(small: Path, dtype: torch.dtype = torch.float32, own: bool = True, **changes: Any) -> PeftModel:
    torch.manual_seed(0)
    model, _ = load_base(small, quantize=True, dtype=dtype)
    if own:
        return attach.attach(model, section(KIND, **changes))
    return get_peft_model(model, attach.lora_config(section(KIND, **changes)))


def _learned(model: PeftModel) -> tuple[float, dict[str, torch.Tensor]]:
    """Return loss and gradients."""
    batch = image_batch()
    loss = model.train()(**batch, labels=batch["input_ids"], use_cache=False).loss
    loss.backward()
    return float(loss.detach()), {name: p.grad.clone() for name, p in attach.trainable(model)}


def test_loss_and_gradients_match_peft(small: Path) -> None:
    own, other = _wrapped(small), _wrapped(small, own=False)
    for model in (own, other):
        stir(model)
    (loss, gradients), (expected, wanted) = _learned(own), _learned(other)
    assert loss == pytest.approx(expected, rel=1e-5)
    assert gradients.keys() == wanted.keys()
    for name, gradient in gradients.items():
        assert float((gradient - wanted[name]).norm()) <= 1e-4 * float(wanted[name].norm()), name


def test_a_new_adapter_changes_nothing_in_bf16(small: Path) -> None:
    """PEFT rounds norms to bf16, which changes the logits of a new adapter by some tenths of a percent."""
    model = _wrapped(small, torch.bfloat16).eval()
    with torch.no_grad():
        answered = model(**text_batch()).logits
        with model.disable_adapter():
            assert torch.equal(model(**text_batch()).logits, answered)


@pytest.mark.parametrize("own", [True, False])
def test_the_backward_pass_keeps_no_float_copy_of_a_weight(small: Path, own: bool) -> None:
    """With dropout, PEFT keeps every 16-bit weight: a whole 7B in 16 bits."""
    model = _wrapped(small, torch.bfloat16, own, dropout=0.1, projector="frozen", separators=False, per_target={})
    shapes = {
        (layer.get_base_layer().out_features, layer.get_base_layer().in_features)
        for layer in model.modules()
        if isinstance(layer, LoraLayer)
    }
    kept: set[tuple[int, ...]] = set()

    def note(tensor: torch.Tensor) -> torch.Tensor:
        if tensor.is_floating_point():
            kept.update({tuple(tensor.shape), tuple(tensor.shape[::-1])})
        return tensor

    ids = {"input_ids": torch.randint(5, 150, (1, 23))}  # a length that is no width of a layer
    with saved_tensors_hooks(note, lambda tensor: tensor), torch.autocast("cpu", torch.bfloat16):
        model.train()(**ids, labels=ids["input_ids"], use_cache=False).loss.backward()
    assert bool(kept & shapes) is not own


def test_norms_are_cached_during_inference_and_never_stale(small: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = _wrapped(small)
    stir(model)
    computed: list[str] = []

    def counted(layer: LoraLayer, name: str) -> torch.Tensor:
        computed.append(name)
        return norms(layer, name)

    norms = dora.row_norms
    monkeypatch.setattr(dora, "row_norms", counted)
    layers = sum(isinstance(module, LoraLayer) for module in model.modules()) - 2  # but for the projector's

    def answer() -> torch.Tensor:
        with torch.no_grad():
            return model.eval()(**text_batch()).logits

    first = answer()
    assert len(computed) == layers
    assert torch.equal(answer(), first)
    assert len(computed) == layers
    with torch.no_grad():
        for name, parameter in attach.trainable(model):
            if ".lora_B." in name:
                parameter.mul_(2)  # as loading a checkpoint does
    changed = answer()
    assert len(computed) == 2 * layers
    assert not torch.equal(changed, first)
    for name, parameter in attach.trainable(model):
        if ".lora_B." in name:
            parameter.data = parameter.data / 2  # unseen by the version, as an optimizer's kernel on a GPU
    _learned(model)
    assert torch.equal(answer(), first)
