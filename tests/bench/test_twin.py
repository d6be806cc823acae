"""Test that the twin has the 7B's proportions, the mix its described shares, and both trainings equal losses."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from ixtune.bench import compare, full, mix, twin, worker
from ixtune.bench.compare import Way
from ixtune.bench.mix import MixRecord
from ixtune.checkpoint.sizes import Sizes
from ixtune.errors import IxtuneError

SMALL: dict[str, Any] = {
    **twin.CONFIG,
    "vocab_size": 300,
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "plora": {"wqkv": {"rank": 2, "alpha": 4}, "others": {"rank": 4, "alpha": 4}},
    "vision_config": {
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "projection_dim": 32,
    },
}


def test_the_twin_has_the_cost_shares_of_the_7b_within_one_point() -> None:
    full_size = twin.shares(Sizes(), twin.FULL_RANK, scale=1)
    small = twin.shares(Sizes.from_config_json(twin.CONFIG), twin.RANK, scale=mix.SCALE)
    assert set(full_size) == {"linears", "lora", "plora", "attention", "vit", "projector", "head"}
    for part, share in full_size.items():
        assert small[part] == pytest.approx(share, abs=0.01), part


def test_the_mix_is_deterministic_and_has_its_stated_shares() -> None:
    records = mix.records(32)
    assert records == mix.records(32)
    grids = [record.grid for record in records]
    assert (grids.count(None), grids.count((1, 2)), grids.count((2, 3))) == (8, 8, 16)
    assert all(0 < record.supervised < record.text_tokens for record in records)
    tokens = sum(record.tokens for record in records)
    assert 1 / 32 < sum(record.supervised for record in records) / tokens <= 1 / 16


@pytest.mark.parametrize(
    ("name", "count", "questions"), [("pages-hd25", 8, 4), ("pages-hd55", 8, 4), ("docvqa", 39, 3.9)]
)
def test_page_mixes_have_their_number_of_questions_per_page(name: str, count: int, questions: float) -> None:
    records = mix.records(count, name)
    assert count / len({record.page for record in records}) == questions
    prefixes = mix.prefixes(records)
    assert prefixes.tokens[0] == records[0].image_tokens
    shared = sum(record.text_tokens for record in records) + sum(prefixes.tokens)
    assert shared / sum(record.tokens for record in records) < 0.3


def test_twin_and_full_size_have_the_same_padding() -> None:
    for size in (2, 4, 8):
        real, scaled = (mix.padded_share(mix.records(32, scale=scale), size) for scale in (1, mix.SCALE))
        assert scaled == pytest.approx(real, abs=0.02)
    assert mix.padded_share([MixRecord(10, None, 1), MixRecord(30, None, 1)], 2) == 1 - 40 / 60


def test_the_ideal_ratio_of_two_texts_matches_a_hand_calculation(monkeypatch: pytest.MonkeyPatch) -> None:
    """Compare two records of 10 and 30 tokens with one supervised token each to two rows of 30 with full logits."""
    chosen = [MixRecord(10, None, 1), MixRecord(30, None, 1)]
    monkeypatch.setattr(mix, "records", lambda count: chosen)
    sizes = Sizes.from_config_json(SMALL)
    linears = sizes.layers * sizes.layer_linears
    lora = sizes.layers * sum(2 * sum(sizes.linear_shape(name)) for name in ("wqkv", "wo", "w1", "w2", "w3"))
    head = sizes.vocabulary * sizes.hidden

    def causal(lengths: list[int]) -> int:
        return sizes.layers * sum(2 * sizes.hidden * length * (length + 1) for length in lengths)

    needed = 40 * (4 * linears + 6 * lora) + 3 * causal([10, 30]) + 2 * 4 * head
    padded = 60 * (4 * linears + 6 * lora) + 3 * causal([30, 30]) + 60 * 4 * head
    again = 60 * (2 * linears + 2 * lora) + causal([30, 30])
    assert compare.ideal(Way("", 2, False), 2, SMALL, 2) == pytest.approx(needed / padded)
    assert compare.ideal(Way("", 2, True), 2, SMALL, 2) == pytest.approx(needed / (padded + again))


def _case(way: str, *, checkpointed: bool) -> dict[str, Any]:
    shared = {"records": 4, "config": SMALL, "rank": 2, "pack_tokens": 10**6, "batch": 4, "max_steps": 2}
    return {"way": way, "checkpointed": checkpointed, **shared}


@pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::UserWarning")  # of the plain way's own libraries
def test_ixtune_and_plain_training_compute_the_same_losses() -> None:
    """Compare one pack of four records with one padded batch of the same four: both average over the same tokens."""
    found = {
        (way, checkpointed): worker.run(_case(way, checkpointed=checkpointed))
        for way in ("ixtune", "plain")
        for checkpointed in (False, True)
    }
    losses = [figures["losses"][:2] for figures in found.values()]
    for other in losses[1:]:
        assert other == pytest.approx(losses[0], rel=2e-3)  # bf16
    assert all(figures["cpu_s"] > 0 and figures["steps"] == 1 for figures in found.values())


def test_the_full_size_path_runs_with_small_sizes_without_a_gpu() -> None:
    page = MixRecord(20, (1, 1), 5)
    rows = full.measure(config=SMALL, pages=[page], questions=3, device="cpu")
    assert [(row["questions"], row["shared"], row["checkpointed"]) for row in rows] == [
        (questions, shared, checkpointed)
        for questions, shared in ((1, False), (3, False), (3, True))
        for checkpointed in (True, False)
    ]
    assert rows[0]["tokens"] == page.tokens
    assert rows[2]["tokens"] == rows[4]["tokens"] == 3 * (page.image_tokens + 45)
    assert all(row["tokens_per_s"] > 0 and row["limit_share"] > 0 for row in rows)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_the_full_size_is_refused_without_a_gpu() -> None:
    with pytest.raises(IxtuneError, match="torch sees none"):
        full.measure()


@pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::UserWarning")  # of the plain way's own libraries
def test_sharing_pages_computes_the_same_losses() -> None:
    case = {**_case("ixtune", checkpointed=False), "mix": "pages-hd25"}
    apart, shared = worker.run(case), worker.run({**case, "share": True})
    assert shared["losses"][:2] == pytest.approx(apart["losses"][:2], rel=2e-3)  # bf16
    assert shared["tokens"] == apart["tokens"]
