from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import datasets
import pytest
from datasets import ClassLabel, Dataset, DatasetDict, Features, Image, List, Value
from records import write_image

from ixtune.data.containers.datasets_folder import open_arrow, open_hub
from ixtune.data.record import Place
from ixtune.data.rejects import Reason
from ixtune.data.sources.source import Source
from ixtune.errors import IxtuneError, UsageError

TABLE = {"question": ["a?", "b?", "c?"], "answer": ["x", "y", "z"]}


@pytest.fixture
def image(tmp_path: Path) -> Path:
    return write_image(tmp_path / "pictures" / "a.png")


@pytest.fixture
def no_decoding(monkeypatch: pytest.MonkeyPatch):
    """Fail the test if any image is decoded."""

    def fail(*_: Any, **__: Any) -> None:
        raise AssertionError("an image was decoded")

    monkeypatch.setattr("PIL.Image.open", fail)


def saved(folder: Path, table: Any = None, **options: Any) -> Source:
    Dataset.from_dict(TABLE if table is None else table, **options).save_to_disk(folder / "saved")
    return Source(path=str(folder / "saved"))


def test_rows_of_a_saved_dataset_are_read(tmp_path: Path):
    source = saved(tmp_path)
    rows = open_arrow(source)
    first, *_, last = rows.entries()
    assert (rows.columns, rows.total) == (["question", "answer"], 3)
    assert first.value == {"question": "a?", "answer": "x"}
    assert (last.number, last.file, last.place, last.position) == (3, source.path, Place("row", 3), 3)
    assert [entry.value["question"] for entry in rows.entries()] == TABLE["question"]


def test_dataset_files_are_listed_and_the_fingerprint_follows_content(tmp_path: Path):
    rows = open_arrow(saved(tmp_path))
    assert [file.name for file in rows.files] == ["data-00000-of-00001.arrow"]
    assert all(file.is_file() for file in rows.files)
    assert rows.fingerprint == open_arrow(Source(path=str(tmp_path / "saved"))).fingerprint
    other = open_arrow(saved(tmp_path / "other", {"question": ["a?"], "answer": ["y"]}))
    assert rows.fingerprint != other.fingerprint


@pytest.mark.usefixtures("no_decoding")
def test_images_stay_the_encoded_bytes_of_their_files(tmp_path: Path, image: Path):
    features = Features({"image": Image(), "pages": List(Image())})
    content = image.read_bytes()
    table = {"image": [{"bytes": content, "path": None}], "pages": [[{"bytes": content, "path": "p.png"}] * 2]}
    (entry,) = open_arrow(saved(tmp_path, table, features=features)).entries()
    assert entry.value["image"] == {"bytes": content, "path": None}
    assert [page["bytes"] for page in entry.value["pages"]] == [content] * 2


def test_images_given_as_paths_are_saved_with_content_by_datasets(tmp_path: Path, image: Path):
    source = saved(tmp_path, {"image": [str(image)]}, features=Features({"image": Image()}))
    (entry,) = open_arrow(source).entries()
    assert entry.value["image"]["bytes"] == image.read_bytes()


def test_class_labels_are_converted_to_names(tmp_path: Path):
    features = Features({"label": ClassLabel(names=["cat", "dog"]), "all": List(ClassLabel(names=["cat", "dog"]))})
    (entry,) = open_arrow(saved(tmp_path, {"label": [1], "all": [[0, 1]]}, features=features)).entries()
    assert entry.value == {"label": "dog", "all": ["cat", "dog"]}


def test_a_selection_of_rows_is_read_in_its_order(tmp_path: Path):
    Dataset.from_dict(TABLE).select([2, 0]).save_to_disk(tmp_path / "saved")
    rows = open_arrow(Source(path=str(tmp_path / "saved")))
    assert [entry.value["question"] for entry in rows.entries()] == ["c?", "a?"]


def test_a_saved_format_does_not_hide_columns(tmp_path: Path):
    Dataset.from_dict(TABLE).with_format("numpy", columns=["question"]).save_to_disk(tmp_path / "saved")
    (first, *_) = open_arrow(Source(path=str(tmp_path / "saved"))).entries()
    assert first.value == {"question": "a?", "answer": "x"}


def test_with_several_splits_one_must_be_chosen(tmp_path: Path):
    train, test = Dataset.from_dict(TABLE), Dataset.from_dict({"question": ["t?"], "answer": ["t"]})
    DatasetDict(train=train, test=test).save_to_disk(tmp_path / "saved")
    path = str(tmp_path / "saved")
    with pytest.raises(UsageError, match="there are the splits train, test") as caught:
        open_arrow(Source(path=path))
    assert "--split" in caught.value.hint
    with pytest.raises(UsageError, match="no split dev, but train, test"):
        open_arrow(Source(path=path, split="dev"))
    assert open_arrow(Source(path=path, split="test")).total == 1


def test_a_single_split_needs_no_choice_and_no_splits_allow_none(tmp_path: Path):
    DatasetDict(train=Dataset.from_dict(TABLE)).save_to_disk(tmp_path / "one")
    assert open_arrow(Source(path=str(tmp_path / "one"))).total == 3
    with pytest.raises(UsageError, match="without splits"):
        open_arrow(Source(path=saved(tmp_path).path, split="train"))


@pytest.mark.parametrize("listing", [b"", b"[]", b'{"splits": 3}', b'{"splits": ["../../etc"]}', b"\xff"])
def test_a_broken_list_of_splits_is_a_clear_error(tmp_path: Path, listing: bytes):
    (tmp_path / "dataset_dict.json").write_bytes(listing)
    with pytest.raises(IxtuneError, match="the list of splits is broken"):
        open_arrow(Source(path=str(tmp_path), split="../../etc"))


@pytest.mark.parametrize("damage", ["no state", "state", "cut", "no data", "nothing"])
def test_a_damaged_folder_is_a_clear_error(tmp_path: Path, damage: str):
    source = saved(tmp_path)
    folder = Path(source.path)
    data = folder / "data-00000-of-00001.arrow"
    if damage == "cut":
        data.write_bytes(data.read_bytes()[:400])
    elif damage == "no data":
        data.unlink()
    elif damage == "state":
        (folder / "state.json").write_text("{")
    else:
        for path in list(folder.iterdir()) if damage == "nothing" else [folder / "state.json"]:
            path.unlink()
    with pytest.raises(IxtuneError) as caught:
        list(open_arrow(source).entries())
    assert "\n" not in str(caught.value)
    assert source.path in str(caught.value)


@pytest.fixture
def hub_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return a temporary folder that `datasets` uses as its cache."""
    cache = tmp_path / "cache"
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", cache)
    return cache


def in_cache(cache: Path, splits: dict[str, Dataset], config: str = "default") -> Source:
    """Write a dataset to the cache as `datasets` does after loading `someone/receipts` from the hub."""
    folder = cache / "someone___receipts" / config / "0.0.0" / "0123456789abcdef"
    info: dict[str, Any] = {}
    for name, dataset in splits.items():
        dataset.save_to_disk(cache / "tmp" / config / name)
        folder.mkdir(parents=True, exist_ok=True)
        (data,) = (cache / "tmp" / config / name).glob("*.arrow")
        data.rename(folder / f"receipts-{name}.arrow")
        info = info or json.loads((cache / "tmp" / config / name / "dataset_info.json").read_bytes())
        size = {"name": name, "num_bytes": 1, "num_examples": len(dataset), "dataset_name": "receipts"}
        info["splits"] = (info.get("splits") or {}) | {name: size}
    info |= {"builder_name": "parquet", "dataset_name": "receipts", "config_name": config}
    info["version"] = {"version_str": "0.0.0", "major": 0, "minor": 0, "patch": 0}
    (folder / "dataset_info.json").write_text(json.dumps(info))
    return Source(path="someone/receipts")


@pytest.mark.usefixtures("no_decoding")
def test_a_cached_hub_dataset_is_read_offline(hub_cache: Path):
    source = in_cache(hub_cache, {"train": Dataset.from_dict(TABLE)})
    rows = open_hub(source)
    first, *_ = rows.entries()
    assert first.value == {"question": "a?", "answer": "x"}
    assert (first.file, first.place) == ("someone/receipts", Place("row", 1))
    assert (rows.total, rows.files) == (3, ())
    assert rows.fingerprint == open_hub(source).fingerprint


def test_several_hub_splits_are_listed_unless_one_is_chosen(hub_cache: Path):
    source = in_cache(hub_cache, {"train": Dataset.from_dict(TABLE), "test": Dataset.from_dict(TABLE)})
    with pytest.raises(UsageError, match="there are the splits train, test"):
        open_hub(source)
    with pytest.raises(UsageError, match="no split dev"):
        open_hub(Source(path=source.path, split="dev"))
    assert open_hub(Source(path=source.path, split="test")).total == 3


def test_several_hub_configurations_are_listed_unless_one_is_chosen(hub_cache: Path):
    for config in ("en", "fr"):
        source = in_cache(hub_cache, {"train": Dataset.from_dict(TABLE)}, config)
    with pytest.raises(UsageError, match="several configurations") as caught:
        open_hub(source)
    assert any("en" in note and "fr" in note for note in caught.value.notes)
    with pytest.raises(UsageError, match="there is no such configuration") as caught:
        open_hub(Source(path=source.path, config="de"))
    assert any("en" in note and "fr" in note for note in caught.value.notes)
    assert open_hub(Source(path=source.path, config="fr")).total == 3


def test_an_unknown_name_offline_is_one_line_with_a_download_hint(hub_cache: Path):
    with pytest.raises(IxtuneError, match="the dataset could not be loaded from the hub") as caught:
        open_hub(Source(path="nobody/nothing"))
    assert "\n" not in str(caught.value) + caught.value.hint
    assert "datasets.load_dataset('nobody/nothing')" in caught.value.hint


@pytest.mark.parametrize("name", ["a/b/c", "hf://datasets/a/b", "https://example.org/x.csv", "", "a b", "../x"])
def test_an_invalid_hub_name_is_refused_without_a_request(name: str):
    with pytest.raises(UsageError, match=r"not the name of a dataset|a local path"):
        open_hub(Source(path=name))


def test_a_local_folder_is_not_taken_for_a_hub_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    write_image(tmp_path / "someone" / "receipts" / "a.png")
    with pytest.raises(UsageError, match="a local path, not"):
        open_hub(Source(path="someone/receipts"))


def test_image_paths_in_a_table_are_read_only_from_the_cache(
    hub_cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """A downloaded table could name any file on this machine."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    inside, outside = write_image(tmp_path / "hub" / "a.png"), write_image(tmp_path / "private" / "b.png")
    link = tmp_path / "hub" / "c.png"
    link.symlink_to(outside)
    paths = [inside, outside, link, tmp_path / "hub" / "gone.png"]
    features = Features({"image": {"bytes": Value("binary"), "path": Value("string")}})
    images = [{"bytes": None, "path": str(path)} for path in paths]
    rows = open_hub(in_cache(hub_cache, {"train": Dataset.from_dict({"image": images}, features=features)}))
    first, second, third, fourth = rows.entries()
    assert first.value["image"] == {"bytes": inside.read_bytes(), "path": "a.png"}
    assert second.value["image"] == {"bytes": None, "path": str(outside)}
    assert third.value["image"]["bytes"] is None
    assert fourth.fault is not None
    assert fourth.fault.reason is Reason.PICTURE_MISSING


def test_the_guard_against_decoding_images_works(tmp_path: Path, no_decoding: None):
    from PIL import Image as Pillow

    with pytest.raises(AssertionError, match="an image was decoded"):
        Pillow.open(io.BytesIO(b""))
