"""Test that a shared prefix gives the logits and greedy ids of separate prompts, within its memory bound."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from typing import Any

import pytest
import torch
from adapters import section, stir
from gpu import NEEDS_GPU
from small_base import small_model, stretched

from ixtune.adapter import attach
from ixtune.family import FOUR_KHD
from ixtune.model import shared_prefix
from ixtune.model.generation import generate
from ixtune.model.prefix_cache import PrefixCache, prefix_length
from ixtune.model.shared_prefix import Prefix

DEVICES = [
    (device, dtype) if device == "cpu" else pytest.param(device, dtype, marks=NEEDS_GPU)
    for device in ("cpu", "cuda")
    for dtype in (torch.float32, torch.bfloat16)
]
SETTINGS: dict[str, Any] = {"stops": (2,), "pad_id": 2, "max_new_tokens": 10, "do_sample": False}
# text before, grids of the images, text after: two pages with several questions of unequal length, and text only
PROMPTS: list[tuple[list[int], list[tuple[int, int]], list[int]]] = [
    ([1, 5], [(1, 1)], [6, 7]),
    ([1, 5], [(1, 1)], [9, 10, 11, 12, 13, 14, 15]),
    ([1], [(1, 2), (2, 1)], [3]),
    ([1], [(1, 2), (2, 1)], [30, 31, 32, 33]),
    ([1, 40, 41, 42, 43, 44], [], []),
    ([1, 50], [], []),
]


def ids_of(number: int) -> list[int]:
    before, grids, after = PROMPTS[number]
    return [*before, *[0] * sum(FOUR_KHD.tokens(*grid) for grid in grids), *after]


def images_of(number: int, first: int = 0) -> dict[str, Any]:
    """Return random crops, equal for equal grids."""
    grids = PROMPTS[number][1][first:]
    if not grids:
        return {}
    crops = [
        torch.randint(0, 256, (r * c, 3, 336, 336), dtype=torch.uint8, generator=torch.Generator().manual_seed(r))
        for r, c in grids
    ]
    return {"crops": torch.cat(crops), "grids": grids}


def prefixes_of(model: Any, numbers: Sequence[int], cache: PrefixCache) -> list[Prefix | None]:
    found: list[Prefix | None] = []
    for number in numbers:
        length = prefix_length(ids_of(number), 0)
        load = lambda first, number=number: images_of(number, first)  # noqa: E731
        ids, grids = ids_of(number), PROMPTS[number][1]
        found.append(cache.get(model, ids[:length], grids, load, prompt_tokens=len(ids)) if length else None)
    return found


def separately(model: Any, number: int) -> list[int]:
    ids = torch.tensor([ids_of(number)])
    settings = {"max_new_tokens": 10, "do_sample": False, "eos_token_id": [2], "pad_token_id": 2}
    with torch.no_grad():
        made = model.generate(input_ids=ids, attention_mask=torch.ones_like(ids), **settings, **images_of(number))
    found: list[int] = made[0, ids.shape[1] :].tolist()
    return found + [2] * (10 - len(found))


def adapted(kind: str, **changes: Any) -> Any:
    model = attach.attach(small_model(), section(kind, **changes))
    stir(model)
    return model.eval()


@pytest.mark.parametrize(
    ("kind", "changes"),
    [
        (None, {}),
        ("plain", {"projector": "full"}),
        ("decoder only", {}),
        ("rslora with everything", {}),
        ("dora", {}),
    ],
)
def test_greedy_ids_match_separate_prompts_in_fp32(kind: str | None, changes: Mapping[str, Any]):
    model = small_model() if kind is None else adapted(kind, **changes)
    cache = PrefixCache(1 << 30)
    numbers = range(len(PROMPTS))
    made = generate(model, [ids_of(n) for n in numbers], prefixes_of(model, numbers, cache), **SETTINGS)
    expected = [separately(model, number) for number in numbers]
    longest = max(map(len, made))
    assert made == [ids[:longest] for ids in expected]
    assert len({tuple(ids) for ids in expected}) >= 3, "the model says the same to everything"
    assert (cache.computed, cache.reused) == (2, 2)


@pytest.mark.parametrize(("device", "dtype"), DEVICES)
@pytest.mark.parametrize("portable", [False, True], ids=["kernel", "matrix products"])
@pytest.mark.parametrize("above", [None, 318], ids=["default angles", "dynamic angles"])
def test_logits_after_a_prefix_match_those_of_the_whole_prompt(
    device: str, dtype: torch.dtype, portable: bool, above: int | None, monkeypatch: pytest.MonkeyPatch
):
    """With dynamic angles, those of three of the four prompts depend on their length; the fourth has 317 tokens."""
    if portable:  # the path of other devices, in several parts
        monkeypatch.setattr(shared_prefix, "has_kernel", lambda _: False)
        monkeypatch.setattr(shared_prefix, "_SCORE_BYTES", 20_000)
    model = small_model() if above is None else stretched(small_model(), above)
    model.requires_grad_(False).to(device)
    ids = [ids_of(number) for number in range(4)]
    autocast = torch.autocast(device, dtype) if dtype != torch.float32 else nullcontext()
    with torch.no_grad(), autocast:
        counted = PrefixCache(1 << 30)
        prefixes = prefixes_of(model, range(4), counted)
        assert (counted.computed, counted.reused) == ((2, 2) if above is None else (4, 0))
        own = [len(row) - prefix.length for row, prefix in zip(ids, prefixes, strict=True) if prefix]
        cache = shared_prefix.SharedPrefixCache(prefixes, own, max(map(len, ids)))
        pads = [max(own) - count for count in own]
        padded = [[2] * pad + row[-count:] for row, count, pad in zip(ids, own, pads, strict=True)]
        positions = [
            [0] * pad + list(range(len(row) - count, len(row))) for row, count, pad in zip(ids, own, pads, strict=True)
        ]
        shared = model(
            input_ids=torch.tensor(padded, device=device),
            position_ids=torch.tensor(positions, device=device),
            past_key_values=cache,
            use_cache=True,
        ).logits
        for number, pad in enumerate(pads):
            images = images_of(number)
            images["crops"] = images["crops"].to(device)
            alone = model(input_ids=torch.tensor([ids[number]], device=device), **images).logits[0, -own[number] :]
            scale = alone.abs().max()
            allowed = 2e-5 if dtype == torch.float32 else 4e-2
            assert (shared[number, pad:].float() - alone.float()).abs().max() < allowed * scale


def test_penalties_see_the_whole_prompt():
    model = small_model().requires_grad_(False)
    prompts = [ids_of(number) for number in (0, 1)]
    prefixes = prefixes_of(model, (0, 1), PrefixCache(1 << 30))
    plain = generate(model, prompts, prefixes, **SETTINGS)
    penalized = generate(model, prompts, prefixes, **SETTINGS, repetition_penalty=1.5)
    ids = torch.tensor([prompts[1]])
    expected = model.generate(
        input_ids=ids, attention_mask=torch.ones_like(ids), max_new_tokens=10, do_sample=False, eos_token_id=[2],
        repetition_penalty=1.5, **images_of(1),
    )[0, ids.shape[1] :].tolist()  # fmt: skip
    assert penalized[1][: len(expected)] == expected
    assert penalized != plain


def test_a_prefix_that_extends_a_cached_one_continues_from_it():
    """This happens in a conversation that shows a second image."""
    model = small_model().requires_grad_(False)
    ids, cache, loaded = ids_of(2), PrefixCache(1 << 30, continues=True), []
    first, whole = 1 + FOUR_KHD.tokens(1, 2), prefix_length(ids_of(2), 0)

    def load(start: int) -> dict[str, Any]:
        loaded.append(start)
        return images_of(2, start)

    def load_first(start: int) -> dict[str, Any]:
        return {key: value[:2] if key == "crops" else value[:1] for key, value in images_of(2).items()}

    cache.get(model, ids[:first], [(1, 2)], load_first)
    continued = cache.get(model, ids[:whole], [(1, 2), (2, 1)], load)
    at_once = PrefixCache(0).get(model, ids[:whole], [(1, 2), (2, 1)], lambda _: images_of(2))
    assert loaded == [1], "the first image is not read again"
    for one, other in zip(continued.values, at_once.values, strict=True):
        assert torch.allclose(one, other, atol=1e-5)
    cache.get(model, ids[:whole], [(9, 9), (2, 1)], lambda start: loaded.append(start) or images_of(2))
    assert loaded[-1] == 0, "another image of the same size is not continued"
    plain = PrefixCache(1 << 30)
    plain.get(model, ids[:first], [(1, 2)], load_first)
    plain.get(model, ids[:whole], [(1, 2), (2, 1)], load)
    assert loaded[-1] == 0, "only where asked for: the values would depend on what is kept"
    plain.count_in_use([continued, None])
    assert plain.peak_bytes == plain.nbytes + continued.nbytes, "a running batch may hold what is not kept"


def test_the_least_recently_used_prefix_is_evicted_to_bound_memory():
    model = small_model().requires_grad_(False)
    ids = ids_of(0)[: prefix_length(ids_of(0), 0)]
    one = PrefixCache(0).get(model, ids, ["x"], lambda _: images_of(0)).nbytes
    assert one == 2 * 2 * 2 * 16 * 4 * len(ids)  # keys and values, layers, heads, width, fp32
    cache = PrefixCache(2 * one)
    for name in ("a", "b", "a", "c", "a", "b"):
        cache.get(model, ids, [name], lambda _: images_of(0))
        assert cache.nbytes <= 2 * one
    assert (cache.computed, cache.reused, cache.peak_bytes) == (4, 2, 2 * one)
    cache.get(model, ids, ["b"], lambda _: images_of(0), "another adapter")
    assert cache.computed == 5
    small = PrefixCache(0)
    small.get(model, ids, ["a"], lambda _: images_of(0))
    small.get(model, ids, ["a"], lambda _: images_of(0))
    assert (small.computed, small.reused) == (1, 1), "the last one is kept whatever its size"
