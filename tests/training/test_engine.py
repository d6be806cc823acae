"""Test the real trainer on real batches: the images change the loss (TRAPS.md 7)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from engine import make_trainer
from main_job import write_records
from PIL import Image

from ixtune.adapter import attach
from ixtune.base import resolve
from ixtune.data.images.pixels import Corrections, crops, open_image, place
from ixtune.data.prepare import prepare
from ixtune.data.prepared import store
from ixtune.data.prepared.manifest import PrepareOptions
from ixtune.data.prepared.training_set import TrainingSet
from ixtune.data.sources.source import Source
from ixtune.errors import IxtuneError
from ixtune.layout import plan
from ixtune.model.loading import load_base
from ixtune.training.batch import ImageSource, PackCollator, make_batch, pack_dataset
from ixtune.training.inputs import images_as_trained
from ixtune.training.step.sampler import EpochPermutation
from ixtune.training.trainer import AdapterTrainer

BASE = resolve("nano")


def _set(folder: Path, multiple: int = 7) -> store.PreparedSet:
    source = Source(path=str(write_records(folder / "raw", 4, multiple)))
    prepare([source], folder / "prepared", base=BASE, options=PrepareOptions(hd_num=1))
    return store.load(folder / "prepared")


def _trainer(folder: Path, prepared: store.PreparedSet, packs: list[list[int]], *changes: str) -> AdapterTrainer:
    return make_trainer(folder, TrainingSet.load([prepared.root]), packs, *changes)


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> store.PreparedSet:
    return _set(tmp_path_factory.mktemp("engine"))


def _loss(trainer: AdapterTrainer) -> float:
    return trainer.train().training_loss


def test_the_loss_changes_when_only_the_image_changes(prepared: store.PreparedSet, tmp_path: Path) -> None:
    """With TRL's fused head, which bypasses the images, both losses would be equal."""
    loss = _loss(_trainer(tmp_path / "one", prepared, [[0]]))
    image = prepared.image_path(0, 0)
    original = image.read_bytes()
    try:
        image.write_bytes(prepared.image_path(3, 0).read_bytes())
        other = _loss(_trainer(tmp_path / "other", prepared, [[0]]))
    finally:
        image.write_bytes(original)
    assert loss != other
    assert loss == _loss(_trainer(tmp_path / "again", prepared, [[0]]))


def test_the_trainer_keeps_fp32_weights_that_trl_would_cast(prepared: store.PreparedSet, tmp_path: Path) -> None:
    trainer = _trainer(tmp_path, prepared, [[0]], "training.compute_dtype=bf16")
    assert {p.dtype for _, p in attach.trainable(trainer.model)} == {torch.float32}
    optimizer = trainer.create_optimizer()
    in_optimizer = sum(p.numel() for group in optimizer.param_groups for p in group["params"])
    assert in_optimizer == sum(p.numel() for _, p in attach.trainable(trainer.model))


def test_parts_have_their_own_learning_rate_and_biases_do_not_decay(
    prepared: store.PreparedSet, tmp_path: Path
) -> None:
    trainer = _trainer(tmp_path, prepared, [[0]], "training.projector_learning_rate=1e-5", "training.weight_decay=0.3")
    groups = {(g["lr"], g["weight_decay"]): len(g["params"]) for g in trainer.create_optimizer().param_groups}
    assert groups == {(1e-3, 0.3): 2 * 5 * 4, (1e-5, 0.3): 2, (1e-5, 0.0): 2}


def test_cached_image_vectors_equal_those_of_crops(prepared: store.PreparedSet) -> None:
    model, _ = load_base(BASE, quantize=False, dtype=torch.bfloat16)
    records = [prepared.dataset[index] for index in range(2)]

    def loss(images: ImageSource) -> float:
        with torch.no_grad():
            return float(model(**make_batch(records, images), use_cache=False).loss)

    plain = loss(ImageSource(prepared.files))
    cache = ImageSource(prepared.files, model)
    assert loss(cache) == pytest.approx(plain, rel=1e-3)
    assert loss(cache) == loss(ImageSource(prepared.files, model))
    assert len(cache.vectors) == 2


def test_a_batch_marks_segments_images_and_targets(prepared: store.PreparedSet) -> None:
    records = [prepared.dataset[index] for index in range(2)]
    batch: dict[str, Any] = make_batch(records, ImageSource(prepared.files))
    lengths = [record["length"] for record in records]
    assert batch["cu_seq_lens_q"].tolist() == [0, lengths[0], sum(lengths)]
    assert batch["position_ids"][0, lengths[0]] == 0
    assert torch.equal((batch["input_ids"][0] == 0).nonzero().squeeze(1), batch["image_rows"])
    rows, targets = batch["supervised"]
    assert torch.equal(batch["input_ids"][0, rows + 1], targets)
    assert len(rows) == sum(record["supervised_tokens"] for record in records)


def test_the_pack_order_depends_only_on_seed_and_epoch() -> None:
    def order(seed: int, epoch: int) -> list[int]:
        sampler = EpochPermutation(20, seed)
        sampler.set_epoch(epoch)
        return list(sampler)

    assert order(1, 0) == order(1, 0)
    assert order(1, 0) != order(1, 1)
    assert order(1, 0) != order(2, 0)
    assert sorted(order(1, 1)) == list(range(20))


def test_a_batch_names_its_records_and_uses_the_images_of_their_sets(tmp_path: Path) -> None:
    sets = TrainingSet.load([_set(tmp_path / "one").root, _set(tmp_path / "other", 8).root])
    model, _ = load_base(BASE, quantize=False, dtype=torch.float32)
    collate = PackCollator(sets, ImageSource(sets.files, model))
    # the second record of each: its image has the same name and layout in both, and shows another number
    batch = collate([{"records": [1, 5]}])
    assert batch["records"] == (1, 5)
    one, other = batch["image_vectors"].chunk(2)
    assert not torch.equal(one, other)
    assert torch.equal(collate([{"records": [5]}])["image_vectors"], other)
    assert len(collate.images.vectors) == 2


def test_an_empty_pack_is_an_empty_batch(prepared: store.PreparedSet) -> None:
    collate = PackCollator(TrainingSet.load([prepared.root]), ImageSource(prepared.files))
    packs = pack_dataset([(0, 1), (2,), (3,)], processes=2)
    assert packs["records"][:] == [[0, 1], [2], [3], []]
    assert collate([packs[3]]) == {"records": ()}


def test_an_image_that_changed_since_prepare_is_refused(prepared: store.PreparedSet, tmp_path: Path) -> None:
    changed = _set(tmp_path)
    # the same grid of crops, the same tokens, and yet another image
    Image.new("RGB", (331, 300)).save(changed.image_path(0, 0))
    with pytest.raises(IxtuneError, match="has changed since it was prepared: it now has 331x300 pixels, not 330x300"):
        make_batch([changed.dataset[0]], ImageSource(changed.files))


def test_images_are_opened_and_laid_out_as_prepared(tmp_path: Path) -> None:
    """Corrections and `upscale` are stored in the set; the crops match those computed step by step."""
    source = write_records(tmp_path / "raw", 1)
    exif = Image.Exif()
    exif[0x0112] = 6
    turned = Image.linear_gradient("L").resize((400, 300)).convert("RGB")
    turned.save(tmp_path / "raw" / "0.png", exif=exif)
    options = PrepareOptions(hd_num=4, upscale=False, corrections=("exif",))
    prepare([Source(path=str(source))], tmp_path / "prepared", base=BASE, options=options)
    prepared = store.load(tmp_path / "prepared")
    batch = make_batch([prepared.dataset[0]], ImageSource(prepared.files))
    assert batch["grids"] == [(2, 1)]
    upright = open_image(tmp_path / "raw" / "0.png", Corrections(exif=True))
    plain = crops(place(upright, plan(300, 400, 4, upscale=False)))
    assert torch.equal(batch["crops"], torch.from_numpy(plain))


def test_vectors_of_equal_paths_below_two_roots_are_separate(tmp_path: Path) -> None:
    files = []
    for multiple in (7, 8):
        folder = tmp_path / str(multiple)
        files.append(Source(path=str(write_records(folder, 2, multiple))))
    prepare(files, tmp_path / "prepared", base=BASE, options=PrepareOptions(hd_num=1))
    prepared = store.load(tmp_path / "prepared")
    model, _ = load_base(BASE, quantize=False, dtype=torch.float32)
    images = ImageSource(prepared.files, model)
    vectors = images.of([prepared.dataset[1], prepared.dataset[3]])["image_vectors"]
    assert len(images.vectors) == 2
    one, other = vectors.chunk(2)
    assert not torch.equal(one, other)


def test_a_bounded_cache_gives_equal_vectors_and_evicts_the_oldest(prepared: store.PreparedSet) -> None:
    model, _ = load_base(BASE, quantize=False, dtype=torch.bfloat16)
    records = [prepared.dataset[index] for index in range(3)]
    unbounded = ImageSource(prepared.files, model)
    whole = unbounded.of(records)["image_vectors"]
    one = next(iter(unbounded.vectors.values())).nbytes
    bounded = ImageSource(prepared.files, model, cache_bytes=2 * one)
    assert torch.equal(bounded.of(records)["image_vectors"], whole)
    assert list(bounded.vectors) == list(unbounded.vectors)[1:]


def test_the_adapter_records_the_image_layout(tmp_path: Path) -> None:
    sources = [
        Source(path=str(write_records(tmp_path / str(hd_num), 1, hd_num)), hd_num=hd_num) for hd_num in (2, 3, 1)
    ]
    prepare(sources, tmp_path / "own", base=BASE, options=PrepareOptions(upscale=False, corrections=("depth", "exif")))
    remembered = images_as_trained([store.load(tmp_path / "own").manifest])
    assert remembered == {"hd_num": 3, "upscale": False, "corrections": ["depth", "exif"]}
    prepare(sources, tmp_path / "given", base=BASE, options=PrepareOptions(hd_num=1))
    assert images_as_trained([store.load(tmp_path / "given").manifest])["hd_num"] == 1
