"""Test that memory options change memory and time, and nothing else."""

from __future__ import annotations

import sys
import weakref
from subprocess import run
from typing import Any

import pytest
import torch
from peft import PeftModel
from small_base import small_model
from small_pack import RECORDS, gradients, small_adapter, small_pack, take_step

from ixtune.model.vision import VisionTower
from ixtune.planning import memory_options
from ixtune.planning.memory_options import MemoryOptions

PLAIN = MemoryOptions(checkpointed_layers=0, vision_chunk=64, offload_layer_inputs=False)


@pytest.fixture(scope="module")
def adapter() -> PeftModel:
    return small_adapter(dropout=0.3)


@pytest.fixture(scope="module")
def pack() -> dict[str, Any]:
    return small_pack()


def _result(model: PeftModel, pack: dict[str, Any], wanted: MemoryOptions) -> dict[str, torch.Tensor]:
    memory_options.apply(model.get_base_model(), wanted)
    loss = take_step(model, pack)
    return {"loss": loss, **gradients(model)}


@pytest.fixture(scope="module")
def plain(adapter: PeftModel, pack: dict[str, Any]) -> dict[str, torch.Tensor]:
    return _result(adapter, pack, PLAIN)


@pytest.mark.parametrize("layers", [1, 2])
@pytest.mark.parametrize("offload", [False, True])
def test_recomputed_layers_with_dropout_change_no_bit(
    adapter: PeftModel, pack: dict[str, Any], plain: dict[str, torch.Tensor], layers: int, offload: bool
) -> None:
    found = _result(adapter, pack, MemoryOptions(layers, 64, offload))
    assert found.keys() == plain.keys()
    assert len(found) == 1 + 2 * 5 * 2 + 4
    for name, value in plain.items():
        assert torch.equal(found[name], value), name


def test_another_dropout_seed_changes_the_loss(
    adapter: PeftModel, pack: dict[str, Any], plain: dict[str, torch.Tensor]
) -> None:
    memory_options.apply(adapter.get_base_model(), PLAIN)
    other = take_step(adapter, pack, seed=3)
    gradients(adapter)
    assert other != plain["loss"]


@pytest.mark.parametrize("chunk", [1, 2, 3])
def test_any_vision_chunk_gives_the_same_gradients(
    adapter: PeftModel, pack: dict[str, Any], plain: dict[str, torch.Tensor], chunk: int
) -> None:
    found = _result(adapter, pack, MemoryOptions(0, chunk, False))
    for name, value in plain.items():
        assert torch.allclose(found[name], value, rtol=1e-5, atol=1e-6 * float(value.abs().max())), name


def test_the_vision_tower_processes_at_most_one_chunk_of_views_at_once() -> None:
    model = small_model()
    pack = small_pack()
    seen: list[int] = []
    alive: list[weakref.ref[torch.Tensor]] = []

    def look(module: VisionTower, inputs: tuple[torch.Tensor]) -> None:
        assert not any(views() is not None for views in alive)
        alive.append(weakref.ref(inputs[0]))
        seen.append(len(inputs[0]))

    model.vit.register_forward_pre_hook(look)
    memory_options.apply(model, MemoryOptions(0, 2, False))
    with torch.no_grad():
        model.get_image_vectors(pack["crops"], pack["grids"])
    views = sum(1 + r * c for _, grids in RECORDS for r, c in grids)
    assert max(seen) == 2
    assert sum(seen) == views == 9


@pytest.mark.parametrize("offload", [False, True])
def test_layer_inputs_are_freed_while_offloaded_to_main_memory(
    adapter: PeftModel, pack: dict[str, Any], offload: bool
) -> None:
    model = adapter.get_base_model()
    memory_options.apply(model, MemoryOptions(2, 64, offload))
    inputs: list[weakref.ref[torch.UntypedStorage]] = []

    def look(module: torch.nn.Module, arguments: tuple[torch.Tensor, ...]) -> None:
        inputs.append(weakref.ref(arguments[0].untyped_storage()))

    handle = model.model.layers[1].register_forward_pre_hook(look)
    loss = adapter(**pack, use_cache=False).loss
    handle.remove()
    assert (inputs[0]() is None) is offload
    del loss


@pytest.mark.parametrize(("layers", "chunk", "message"), [(3, 1, "decoder has 2"), (-1, 1, "decoder"), (1, 0, "chunk")])
def test_invalid_memory_options_are_refused(layers: int, chunk: int, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        memory_options.apply(small_model(), MemoryOptions(layers, chunk, False))


def test_memory_options_of_a_plan_do_not_import_torch() -> None:
    code = "import sys, ixtune.planning.memory_options; sys.exit('torch' in sys.modules)"
    assert run([sys.executable, "-c", code], check=False).returncode == 0
