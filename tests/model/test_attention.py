"""Test that segments attend to themselves and their parent only, with every attention implementation."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from gpu import NEEDS_GPU
from small_base import small_model
from small_pack import small_pack
from torch.nn.functional import scaled_dot_product_attention
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from ixtune.errors import IxtuneError
from ixtune.model import attention, flash_segments
from ixtune.model.attention import NAME, attention_of, segment_attention
from ixtune.model.flash_segments import Parents

BOUNDS = [0, 5, 6, 19, 32]
FAMILIES = [
    pytest.param(None, id="no parents"),
    pytest.param((-1, 0, 0, -1), id="two suffixes and a segment alone"),
    pytest.param((-1, -1, 1, 1), id="a prefix of one token behind a segment alone"),
    pytest.param((-1, 0, -1, 2), id="two families"),
]
DEVICES = [
    ("cpu", torch.float32),
    ("cpu", torch.bfloat16),
    *[pytest.param("cuda", dtype, marks=NEEDS_GPU) for dtype in (torch.float32, torch.bfloat16)],
]


def qkv(device: str, dtype: torch.dtype, kv_heads: int) -> list[torch.Tensor]:
    """Lay tensors out in memory like the network: [B, L, heads, d], viewed as [B, heads, L, d]."""
    torch.manual_seed(0)
    shapes = [(1, BOUNDS[-1], count, 16) for count in (4, kv_heads, kv_heads)]
    return [torch.randn(shape, dtype=dtype, device=device).transpose(1, 2).requires_grad_() for shape in shapes]


def plain(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, parents: Parents | None = None) -> torch.Tensor:
    """Compute attention with one mask over the whole pack."""
    owner = torch.bucketize(torch.arange(BOUNDS[-1]), torch.tensor(BOUNDS[1:]), right=True)
    seen = owner[:, None] == owner[None]
    if parents:
        seen |= torch.tensor(parents)[owner][:, None] == owner[None]
    mask = seen & torch.ones(BOUNDS[-1], BOUNDS[-1], dtype=torch.bool).tril()
    return scaled_dot_product_attention(query, key, value, mask.to(query.device), enable_gqa=True).transpose(1, 2)


def segments(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, parents: Parents | None = None
) -> torch.Tensor:
    bounds = {
        "cu_seq_lens_q": torch.tensor(BOUNDS, dtype=torch.int32, device=query.device),
        "max_length_q": 13,
        "parents": parents,
    }
    return segment_attention(torch.nn.Module(), query, key, value, None, **bounds)[0]


def by_segment(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, parents: Parents | None = None
) -> torch.Tensor:
    """Compute attention on the path of devices without a fused kernel."""
    return attention._by_segment(query, key, value, None, tuple(BOUNDS), parents)


@pytest.mark.parametrize(("device", "dtype"), DEVICES)
@pytest.mark.parametrize("kv_heads", [4, 2])
@pytest.mark.parametrize("parents", FAMILIES)
@pytest.mark.parametrize("way", [segments, by_segment])
def test_segments_match_a_masked_pack(
    device: str, dtype: torch.dtype, kv_heads: int, parents: Parents | None, way: Callable[..., torch.Tensor]
) -> None:
    """Check the same contract for the kernels of both devices."""
    inputs = qkv(device, dtype, kv_heads)
    out, wanted = way(*inputs, parents), plain(*inputs, parents)
    assert out.shape == (1, BOUNDS[-1], 4, 16)
    weights = torch.randn(out.shape, generator=torch.Generator().manual_seed(1)).to(out)
    found = torch.autograd.grad(out, inputs, weights)
    gradients = torch.autograd.grad(wanted, inputs, weights)
    for one, other in zip((out, *found), (wanted, *gradients), strict=True):
        difference, bound = (one - other).detach().norm(), 2e-6 if dtype == torch.float32 else 1e-2
        assert float(difference) <= bound * float(other.detach().norm())


@pytest.mark.parametrize(("device", "dtype"), DEVICES)
def test_long_segments_match_a_masked_pack(device: str, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    """Use the kernel for long segments, which on Hopper is another one."""
    monkeypatch.setattr(flash_segments, "LONG", 2)
    assert attention._are_long(tuple(BOUNDS))
    for parents in (None, (-1, 0, 0, -1)):
        test_segments_match_a_masked_pack(device, dtype, 2, parents, segments)


def test_segments_are_long_by_the_position_of_an_average_token() -> None:
    assert attention._are_long((0, 2048))
    assert attention._are_long((0, 4096, 4596, 5096))
    assert not attention._are_long((0, 2047))
    assert not attention._are_long(tuple(range(0, 20_000, 2000)))


def test_a_cpu_keeps_the_joined_output_only_once() -> None:
    inputs = qkv("cpu", torch.bfloat16, 2)
    alive: dict[int, int] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        alive[tensor.data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        out = segments(*inputs)
    sums = 4 * 4 * BOUNDS[-1]  # fp32, a number a head and position
    assert sum(alive.values()) == sum(tensor.nbytes for tensor in (*inputs, out)) + sums
    assert out.data_ptr() in alive


FAMILY = (-1, -1, 0)  # of three segments the last one sees the first


def _loss(implementation: str, **changes: Any) -> torch.Tensor:
    model = small_model()
    model.config._attn_implementation = implementation
    model.config.vision_config._attn_implementation = "sdpa"
    pack = small_pack([(9, []), (6, [(1, 1)]), (14, [])])
    with torch.no_grad():
        return model(**{**pack, **changes}, use_cache=False).loss


@pytest.mark.parametrize("implementation", ["sdpa", "eager"])
def test_transformers_implementations_without_segments_use_ours(implementation: str) -> None:
    assert torch.equal(_loss(implementation), _loss(NAME))
    assert torch.equal(_loss(implementation, parents=FAMILY), _loss(NAME, parents=FAMILY))
    assert _loss(NAME, parents=FAMILY) != _loss(NAME)
    whole = small_pack([(9, []), (6, [(1, 1)]), (14, [])])["cu_seq_lens_q"][[0, -1]]
    assert _loss(NAME, cu_seq_lens_q=whole) != _loss(NAME)


def test_flash_attention_gets_the_boundaries_of_queries_and_keys(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []

    def flash(*args: Any, cu_seq_lens_k: torch.Tensor, max_length_k: int, **kwargs: Any) -> Any:
        calls.append(cu_seq_lens_k)
        assert torch.equal(cu_seq_lens_k, kwargs["cu_seq_lens_q"])
        assert max_length_k == kwargs["max_length_q"]
        assert args[4] is None  # no mask
        return segment_attention(*args, **kwargs)

    monkeypatch.setitem(ALL_ATTENTION_FUNCTIONS._local_mapping, "flash_attention_2", flash)
    assert torch.equal(_loss("flash_attention_2"), _loss(NAME))
    assert len(calls) == 2
    with pytest.raises(IxtuneError, match="cannot share the prefixes of records"):
        _loss("flash_attention_2", parents=FAMILY)


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # torch's compiler warns of itself
def test_flex_attention_gets_a_block_mask() -> None:
    """Test the forward pass only: flex has no backward pass on a CPU. Compiling it takes half a minute."""
    assert float(_loss("flex_attention")) == pytest.approx(float(_loss(NAME)), rel=1e-5)
    shared = float(_loss("flex_attention", parents=FAMILY))
    assert shared == pytest.approx(float(_loss(NAME, parents=FAMILY)), rel=1e-5)


def test_an_attention_that_cannot_separate_records_is_refused() -> None:
    with pytest.raises(IxtuneError, match="'paged|eager' cannot keep the records of a pack apart") as caught:
        attention_of("paged|eager", packed=True)
    assert "flex_attention" in caught.value.hint
    assert callable(attention_of("eager", packed=False))
