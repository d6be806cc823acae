from __future__ import annotations

from pathlib import Path

import pytest
from records import entry, shown, write_image, write_source

from ixtune.data.prepare import prepare
from ixtune.data.prepared import store
from ixtune.data.prepared.manifest import PrepareOptions
from ixtune.data.prepared.training_set import TrainingSet
from ixtune.data.sources.source import Source
from ixtune.data.text.tokenizer import Tokenizer
from ixtune.errors import IxtuneError, UsageError
from ixtune.family import FOUR_KHD


def make_set(folder: Path, base: Path, words: list[str], **options: object) -> Path:
    """Return a prepared set with one image record and one text record per word."""
    entries = [e for word in words for e in (shown(f"{word} shown"), entry(f"{word} told", "Which word?", word))]
    write_image(folder / "raw" / "a.png")
    source = Source(path=str(write_source(folder / "raw", entries)))
    prepare([source], folder / "set", base=base, options=PrepareOptions(**{"hd_num": 1, **options}))
    return folder / "set"


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from small_tokenizer import train

    return train(tmp_path_factory.mktemp("base")).parent


@pytest.fixture(scope="module")
def two(base: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    folder = tmp_path_factory.mktemp("sets")
    return make_set(folder / "one", base, ["red", "blue"]), make_set(folder / "other", base, ["one", "two", "three"])


def ids(training_set: TrainingSet) -> list[str]:
    return [training_set.record(index)["id"] for index in range(len(training_set))]


def test_several_sets_are_read_as_one_list_of_records(two: tuple[Path, Path]) -> None:
    both = TrainingSet.load(two)
    assert ids(both)[:4] == ["red shown", "red told", "blue shown", "blue told"]
    assert len(both) == len(set(ids(both))) == 10
    rows = [both.record(index) for index in range(10)]
    assert both.lengths == [row["length"] for row in rows]
    assert both.supervised == [row["supervised_tokens"] for row in rows]
    assert [described["records"]["rows"] for described in both.manifests] == [4, 6]


def test_images_with_one_name_in_two_sets_are_two_files(two: tuple[Path, Path]) -> None:
    both = TrainingSet.load(two)
    first, other = both.record(0)["pictures"][0], both.record(4)["pictures"][0]
    assert (first["path"], first["hd_num"]) == (other["path"], other["hd_num"])
    assert first["root"] != other["root"]  # what a cache tells them apart by
    assert both.files.path(first) == store.load(two[0]).image_path(0, 0)
    assert both.files_of(4).path(other) == store.load(two[1]).image_path(0, 0)


def test_a_record_is_repeated_according_to_its_weight(two: tuple[Path, Path]) -> None:
    weighted = TrainingSet.load(two, weights=(2.5, 0.5), seed=3)
    times = {name: ids(weighted).count(name) for name in ids(weighted)}
    assert sorted(count for name, count in times.items() if name.split()[0] in ("red", "blue")) == [2, 2, 3, 3]
    assert sorted(count for name, count in times.items() if name.split()[0] not in ("red", "blue")) == [1, 1, 1]
    assert ids(TrainingSet.load(two, weights=(2.5, 0.5), seed=3)) == ids(weighted)
    drawn = {tuple(ids(TrainingSet.load(two, weights=(2.5, 0.5), seed=seed))) for seed in range(4)}
    assert len(drawn) > 1


def test_a_weight_that_leaves_no_records_is_refused(two: tuple[Path, Path]) -> None:
    with pytest.raises(UsageError, match=r"weight 0\.1 of 4 records leaves none") as caught:
        TrainingSet.load(two, weights=(0.1, 1))
    assert caught.value.where == str(two[0])


def test_a_record_is_identified_by_set_id_and_place(two: tuple[Path, Path]) -> None:
    named = TrainingSet.load(two).identity(5)
    assert named.startswith(f"{two[1]}: record one told (")
    assert "source.json" in named


def test_loading_the_same_records_twice_is_refused(two: tuple[Path, Path], tmp_path: Path) -> None:
    link = tmp_path / "link"
    link.symlink_to(two[0])
    with pytest.raises(UsageError, match="the same records as in") as caught:
        TrainingSet.load([two[0], two[1], link])
    assert caught.value.where == str(link)


def test_sets_with_different_image_corrections_are_refused(two: tuple[Path, Path], base: Path, tmp_path: Path) -> None:
    turned = make_set(tmp_path, base, ["green"], corrections=("exif",))
    with pytest.raises(IxtuneError, match="different ways") as caught:
        TrainingSet.load([two[0], turned])
    assert any(str(turned) in note and "exif" in note for note in caught.value.notes)


def test_a_set_for_another_tokenizer_is_named(two: tuple[Path, Path], base: Path) -> None:
    both = TrainingSet.load(two)
    both.check_compatible(Tokenizer.from_base(base).sha256, FOUR_KHD)
    both.sets[1].manifest["tokenizer_sha256"] = "00"
    with pytest.raises(IxtuneError, match="another tokenizer") as caught:
        both.check_compatible(Tokenizer.from_base(base).sha256, FOUR_KHD)
    assert caught.value.where == str(two[1])
