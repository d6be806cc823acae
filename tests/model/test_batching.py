"""Test that padded, packed, cached, multi-image and beam-search runs give the same result."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from small_base import small_model

from ixtune.family import FOUR_KHD
from ixtune.model.loss import supervised_loss, supervised_rows
from ixtune.model.model import IXC2ForCausalLM

RECORDS: list[tuple[list[int], list[tuple[int, int]]]] = [
    ([1, 5, -1, 6, 7, 8], [(1, 1)]),
    ([1, 9, 10, 11, 12], []),
    ([1, -1, 20, -2, 21, 22], [(1, 2), (1, 1)]),
]


@pytest.fixture(scope="module")
def model() -> IXC2ForCausalLM:
    return small_model().requires_grad_(False)


def _record(number: int) -> dict[str, Any]:
    """Return ids with expanded image spans, crops, grids and labels of one record."""
    marks, grids = RECORDS[number]
    ids: list[int] = []
    for mark in marks:
        ids += [0] * FOUR_KHD.tokens(*grids[-mark - 1]) if mark < 0 else [mark]
    generator = torch.Generator().manual_seed(number)
    crops = [torch.randint(0, 256, (r * c, 3, 336, 336), dtype=torch.uint8, generator=generator) for r, c in grids]
    labels = [-100] * (len(ids) - 3) + ids[-3:]
    return {"ids": ids, "labels": labels, "grids": grids, "crops": torch.cat(crops) if crops else None}


def _images(records: list[dict[str, Any]]) -> dict[str, Any]:
    crops = [record["crops"] for record in records if record["crops"] is not None]
    return {"crops": torch.cat(crops), "grids": [g for r in records for g in r["grids"]]} if crops else {}


def _alone(model: IXC2ForCausalLM, record: dict[str, Any]) -> Any:
    return model(input_ids=torch.tensor([record["ids"]]), labels=torch.tensor([record["labels"]]), **_images([record]))


def _padded(records: list[dict[str, Any]], side: str) -> tuple[torch.Tensor, torch.Tensor]:
    longest = max(len(r["ids"]) for r in records)
    rows, masks = [], []
    for record in records:
        pad = [2] * (longest - len(record["ids"]))
        ids, ones, zeros = record["ids"], [1] * len(record["ids"]), [0] * len(pad)
        rows.append(ids + pad if side == "right" else pad + ids)
        masks.append(ones + zeros if side == "right" else zeros + ones)
    return torch.tensor(rows), torch.tensor(masks)


def test_a_padded_batch_equals_single_records(model: IXC2ForCausalLM) -> None:
    records = [_record(n) for n in range(3)]
    ids, mask = _padded(records, "right")
    out = model(input_ids=ids, attention_mask=mask, **_images(records))
    for row, record in enumerate(records):
        assert torch.allclose(out.logits[row, : len(record["ids"])], _alone(model, record).logits[0], atol=5e-5)


def test_packed_segments_equal_single_records(model: IXC2ForCausalLM) -> None:
    records = [_record(n) for n in range(3)]
    model.set_attn_implementation("segments")
    lengths = [len(r["ids"]) for r in records]
    bounds = torch.tensor([0, *torch.tensor(lengths).cumsum(0).tolist()], dtype=torch.int32)
    labels = torch.tensor([[label for r in records for label in r["labels"]]])
    pack = {
        "input_ids": torch.tensor([[i for r in records for i in r["ids"]]]),
        "position_ids": torch.tensor([[p for length in lengths for p in range(length)]]),
        "cu_seq_lens_q": bounds,
        "max_length_q": max(lengths),
        **_images(records),
    }
    logits = model(**pack).logits[0]
    alone = [_alone(model, record) for record in records]
    assert torch.allclose(logits, torch.cat([out.logits[0] for out in alone]), atol=5e-5)
    loss = model(**pack, supervised=supervised_rows(labels)).loss
    weights = torch.tensor([sum(label != -100 for label in r["labels"]) for r in records])
    expected = sum(w * out.loss for w, out in zip(weights, alone, strict=True)) / weights.sum()
    assert abs(float(loss) - float(expected)) < 1e-5


def test_a_segment_does_not_attend_to_its_neighbor(model: IXC2ForCausalLM) -> None:
    model.set_attn_implementation("segments")
    bounds = {"cu_seq_lens_q": torch.tensor([0, 3, 6], dtype=torch.int32), "max_length_q": 3}
    positions = torch.tensor([[0, 1, 2, 0, 1, 2]])
    one = model(input_ids=torch.tensor([[1, 5, 6, 1, 9, 10]]), position_ids=positions, **bounds).logits
    other = model(input_ids=torch.tensor([[1, 30, 31, 1, 9, 10]]), position_ids=positions, **bounds).logits
    assert torch.equal(one[0, 3:], other[0, 3:])
    assert not torch.equal(one[0, :3], other[0, :3])


@pytest.mark.parametrize("number", [0, 1, 2])
def test_generation_with_a_kv_cache_equals_full_forward_passes(model: IXC2ForCausalLM, number: int) -> None:
    record = _record(number)
    ids = torch.tensor([record["ids"]])
    made = model.generate(ids, max_new_tokens=5, do_sample=False, eos_token_id=None, **_images([record]))
    full = ids
    rows = (ids[0] == 0).nonzero().squeeze(1)
    for _ in range(5):
        logits = model(
            input_ids=full, image_rows=rows if len(rows) else None, use_cache=False, **_images([record])
        ).logits
        full = torch.cat((full, logits[:, -1].argmax(-1, keepdim=True)), dim=1)
    assert torch.equal(made, full)


def test_generation_of_a_left_padded_batch_equals_single_records(model: IXC2ForCausalLM) -> None:
    records = [_record(n) for n in range(3)]
    ids, mask = _padded(records, "left")
    made = model.generate(
        ids, attention_mask=mask, max_new_tokens=5, do_sample=False, eos_token_id=None, **_images(records)
    )
    for row, record in enumerate(records):
        alone = model.generate(
            torch.tensor([record["ids"]]), max_new_tokens=5, do_sample=False, eos_token_id=None, **_images([record])
        )
        assert torch.equal(made[row, -5:], alone[0, -5:])


def test_beam_search_keeps_the_images_of_each_row(model: IXC2ForCausalLM) -> None:
    records = [_record(0), _record(2)]
    ids, mask = _padded(records, "left")
    settings = {"max_new_tokens": 4, "num_beams": 3, "do_sample": False, "eos_token_id": None}
    made = model.generate(ids, attention_mask=mask, **settings, **_images(records))
    for row, record in enumerate(records):
        alone = model.generate(torch.tensor([record["ids"]]), **settings, **_images([record]))
        assert torch.equal(made[row, -4:], alone[0, -4:])
    vectors = model.get_image_vectors(**_images(records))
    assert torch.equal(model.generate(ids, attention_mask=mask, **settings, image_vectors=vectors), made)


def test_cached_image_vectors_equal_those_of_crops(model: IXC2ForCausalLM) -> None:
    record = _record(2)
    ids = torch.tensor([record["ids"]])
    vectors = model.get_image_vectors(**_images([record]))
    one_by_one = torch.cat(
        [model.get_image_vectors(c, [g]) for c, g in zip(record["crops"].split([2, 1]), record["grids"], strict=True)]
    )
    assert torch.allclose(vectors, one_by_one, atol=1e-6)
    assert torch.equal(
        model(input_ids=ids, image_vectors=vectors).logits, model(input_ids=ids, **_images([record])).logits
    )


def test_images_that_do_not_match_the_ids_are_refused(model: IXC2ForCausalLM) -> None:
    record = _record(0)
    ids = [i for at, i in enumerate(record["ids"]) if at != 5]
    with pytest.raises(ValueError, match="312 image positions, but the images have 313 tokens"):
        model(input_ids=torch.tensor([ids]), **_images([record]))
    with pytest.raises(ValueError, match="hold 2 crops, but 1 were given"):
        model(input_ids=torch.tensor([record["ids"]]), crops=record["crops"], grids=[(1, 2)])


@pytest.mark.parametrize("settings", [{"use_cache": False}, {"num_beams": 2}, {"num_beams": 2, "use_cache": False}])
def test_generating_without_cache_or_from_embeddings_gives_equal_ids(
    model: IXC2ForCausalLM, settings: dict[str, Any]
) -> None:
    records = [_record(0), _record(0)]
    ids = torch.tensor([record["ids"] for record in records])
    how: dict[str, Any] = {"max_new_tokens": 3, "do_sample": False, "suppress_tokens": [0], "eos_token_id": None}
    plain = {name: value for name, value in settings.items() if name != "use_cache"}
    expected = model.generate(ids, **_images(records), **how, **plain)
    assert torch.equal(model.generate(ids, **_images(records), **how, **settings), expected)
    if settings.get("use_cache", True):
        embeds, rows = model.embed(ids, **_images(records))
        for given in (
            {"inputs_embeds": embeds, "image_rows": rows},
            {"inputs_embeds": model.get_input_embeddings()(ids), **_images(records)},
        ):
            assert torch.equal(model.generate(**given, **how, **settings), expected[:, ids.shape[1] :])


@pytest.mark.parametrize("rows", [3, 600, 1030])
def test_loss_on_supervised_rows_equals_full_logits(rows: int) -> None:
    torch.manual_seed(rows)
    head = torch.nn.Linear(16, 50, bias=False)
    hidden = torch.randn(2 * rows, 16, requires_grad=True)
    chosen = torch.randperm(2 * rows)[:rows]
    targets = torch.randint(0, 50, (rows,))
    loss = supervised_loss(hidden, chosen, targets, head)
    loss.backward()
    ours, hidden.grad, weight_grad = hidden.grad.clone(), None, head.weight.grad.clone()
    head.weight.grad = None
    plain = torch.nn.functional.cross_entropy(head(hidden)[chosen], targets)
    plain.backward()
    assert torch.allclose(loss, plain, atol=1e-6)
    assert torch.allclose(ours, hidden.grad, atol=1e-7)
    assert torch.allclose(weight_grad, head.weight.grad, atol=1e-6)


def test_a_batch_without_supervised_tokens_is_refused_instead_of_nan() -> None:
    empty = torch.tensor([], dtype=torch.int64)
    with pytest.raises(ValueError, match="no supervised position"):
        supervised_loss(torch.randn(4, 8), empty, empty, torch.nn.Linear(8, 9))
