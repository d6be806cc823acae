"""Compare computed sizes and flops with the released checkpoint's tensors and with torch's counts."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from small_base import RELEASED_CONFIG, SMALL, small_model
from torch.utils.flop_counter import FlopCounterMode

from ixtune.adapter import attach
from ixtune.checkpoint.sizes import DECODER_LINEARS, Sizes, Trained, nf4_bytes
from ixtune.model.configuration import IXC2Config
from ixtune.planning.flops import PackShape, flops
from ixtune.recipe.recipe import AdapterSection

INDEX = Path(__file__).resolve().parents[1] / "fixtures" / "golden" / "full_7b_tensor_index.json"
GIB = 2**30


def family(name: str) -> str:
    if "Plora_" in name:
        return "plora"
    if name.startswith("vit."):
        return "vit"
    if name.startswith("vision_proj."):
        return "projector"
    if name.startswith("plora_"):
        return "separators"
    if "norm" in name:
        return "norms"
    return {"model.tok_embeddings.weight": "embeddings", "output.weight": "head"}.get(name, "linears")


def test_parameter_counts_match_the_released_checkpoint_by_part():
    counted: dict[str, int] = {}
    for name, shape in json.loads(INDEX.read_text()).items():
        counted[family(name)] = counted.get(family(name), 0) + math.prod(shape)
    assert Sizes().parameters() == counted
    assert sum(counted.values()) == 8_597_499_904
    assert counted["linears"] + counted["norms"] == 6_979_588_096
    assert Sizes.from_config_json(RELEASED_CONFIG) == Sizes()
    assert Sizes.from_config_json(RELEASED_CONFIG).dynamic_above is None
    for scaling in ({"type": "dynamic", "factor": 2.0}, {"rope_type": "dynamic"}):
        scaled = RELEASED_CONFIG | {"rope_scaling": scaling, "max_position_embeddings": 24576}
        assert Sizes.from_config_json(scaled).dynamic_above == 24576
    assert sum(Sizes().weight_bytes(nf4=False, float_bytes=2).values()) == 17_194_999_808


def test_parameter_counts_match_a_small_model():
    model = small_model()
    sizes = Sizes.from_config_json({**RELEASED_CONFIG, **SMALL})
    assert sum(sizes.parameters().values()) == sum(p.numel() for p in model.parameters())
    assert model.config.sizes == sizes


def test_the_default_config_has_the_released_sizes():
    assert IXC2Config().sizes == Sizes()


@pytest.mark.parametrize(
    "section",
    [
        AdapterSection(rank=4),
        AdapterSection(rank=4, targets=("wqkv", "w2"), projector="frozen"),
    ],
    ids=["all", "two without the projector"],
)
def test_trained_parameters_match_those_of_the_adapter(section: AdapterSection):
    model = small_model()
    sizes = model.config.sizes
    wrapped = attach.attach(model, section)
    trained = sum(p.numel() for _, p in attach.trainable(wrapped))
    assert sum(Trained.of(section).parameters(sizes).values()) == trained


def test_a_per_target_rank_overrides_the_global_rank():
    section = AdapterSection.model_validate({"rank": 64, "per_target": {"w2": {"rank": 16}, "wo": {"dropout": 0.1}}})
    assert Trained.of(section).ranks == {"wqkv": 64, "wo": 64, "w1": 64, "w2": 16, "w3": 64}


@pytest.mark.parametrize("shape", [(512, 512), (768, 512), (100, 3)])
def test_nf4_bytes_match_bitsandbytes(shape: tuple[int, int]):
    from bitsandbytes.functional import quantize_4bit

    packed, state = quantize_4bit(torch.randn(shape), quant_type="nf4", compress_statistics=True)
    tensors = [packed, state.absmax, state.code, state.offset, state.state2.absmax, state.state2.code]
    assert nf4_bytes(math.prod(shape)) == sum(tensor.nbytes for tensor in tensors)


def test_the_decoder_linears_of_the_7b_take_3_6_gib_in_nf4():
    found = Sizes().weight_bytes(nf4=True, float_bytes=2)
    assert found["linears"] / GIB == pytest.approx(6.979321856e9 * (0.5 + 1 / 64 + 4 / 64 / 256) / GIB, rel=1e-4)


def test_flops_of_a_text_match_torchs_count():
    """torch counts every matrix product of both passes, except those of attention on a CPU."""
    model = small_model()
    section = AdapterSection(rank=4, dropout=0.0)
    wrapped = attach.attach(model, section)
    sizes, length, asked = model.config.sizes, 48, 11
    ids = torch.randint(3, 100, (1, length))
    batch = {
        "input_ids": ids,
        "position_ids": torch.arange(length)[None],
        "supervised": (torch.arange(asked), torch.arange(asked)),
    }
    with FlopCounterMode(display=False) as counter:
        wrapped(**batch, use_cache=False).loss.backward()
    found = flops(sizes, Trained.of(section), PackShape((length,), supervised=asked))
    by_products = found.linears + found.lora + found.head
    # nothing asks for the gradient of a text's embeddings, so the first layer's wqkv has no backward pass to its input
    out, into = sizes.linear_shape("wqkv")
    spared = 2 * length * (out * into + 4 * into)
    assert counter.get_total_flops() == by_products - spared


def test_flops_of_images_match_torchs_count():
    model = small_model()
    sizes = model.config.sizes
    views = torch.zeros(2, 3, 336, 336)
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model.vit(views)
    alone = PackShape((10,), image_tokens=0, supervised=1, crops=(1,))
    trained = Trained.of(AdapterSection(rank=4))
    vision = sizes.vision
    scores = 2 * vision.layers * 4 * vision.tokens**2 * vision.width  # which torch does not count on a CPU
    assert flops(sizes, trained, alone).vit == counter.get_total_flops() + scores
    with FlopCounterMode(display=False) as counter:
        vectors = torch.randn(7, sizes.merged)
        model.vision_proj.requires_grad_(True)
        model.vision_proj(vectors).sum().backward()
    assert flops(sizes, trained, PackShape((10,), image_tokens=7)).projector == counter.get_total_flops()


def test_attention_is_counted_as_causal_within_segments():
    sizes, trained = Sizes(), Trained({"wqkv": 8})
    one, two = (flops(sizes, trained, PackShape(lengths)).attention for lengths in ((4000,), (2000, 2000)))
    assert two / one == pytest.approx(0.5, rel=1e-3)
    assert one == 3 * 32 * 2 * 4096 * 4000 * 4001


def test_checkpointing_all_layers_recomputes_half_of_their_flops():
    found = flops(Sizes(), Trained({}), PackShape((4096,), image_tokens=1000), checkpointed_layers=32)
    assert found.recompute == found.linears // 2 + found.plora // 2 + found.attention // 3
    assert found.total == found.needed + found.recompute


@given(
    st.lists(st.integers(1, 5000), min_size=1, max_size=5),
    st.lists(st.integers(1, 5000), min_size=1, max_size=5),
)
def test_flops_of_packs_add_up(first: list[int], second: list[int]):
    sizes, trained = Sizes(), Trained(dict.fromkeys(DECODER_LINEARS, 64))
    parts = [flops(sizes, trained, PackShape(tuple(lengths)), 5).total for lengths in (first, second)]
    both = flops(sizes, trained, PackShape((*first, *second), supervised=2), 5)
    assert both.total == sum(parts)


def test_sizes_import_no_tensor_library():
    code = "import sys, ixtune.planning.flops; print(sorted({'torch', 'transformers', 'numpy'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout == "[]\n"
