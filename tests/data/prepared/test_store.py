from __future__ import annotations

import json
from pathlib import Path

import datasets
import pytest

from ixtune.data.prepared import manifest as manifests
from ixtune.data.prepared import store
from ixtune.data.prepared.manifest import PrepareOptions
from ixtune.data.record import ImageRef, Place, Record, Turn
from ixtune.data.text.template import encode, expand
from ixtune.data.text.tokenizer import Tokenizer
from ixtune.errors import IxtuneError
from ixtune.family import FOUR_KHD
from ixtune.layout import plan


def record(number: int) -> Record:
    turns = (Turn("user", " <ImageHere>What is it? "), Turn("assistant", f"Number {number}."))
    return Record(
        str(number),
        (ImageRef("a.png", "a.png"),),
        turns,
        "source.json",
        Place("line", number + 1),
        references=("x", "y"),
    )


def write(folder: Path, tokenizer: Tokenizer, count: int = 3, **manifest: object) -> Path:
    folder.mkdir()
    with store.Writer(folder) as writer:
        for number in range(count):
            layout = plan(60, 40, 4)
            sample = encode(record(number), [layout.tokens], tokenizer)
            writer.add(store.row_of(record(number), sample, [store.stored_image(1, "a.png", layout)]))
    content = {
        "tokenizer_sha256": tokenizer.sha256,
        "image_roots": [".", str(folder.parent)],
        "records": {"rows": count},
        "sources": [{"path": "source.json"}],
    }
    manifests.write_manifest(folder, PrepareOptions(hd_num=4, corrections=("exif",)), content | manifest)
    return folder


def refusal(folder: Path) -> str:
    with pytest.raises(IxtuneError) as caught:
        store.load(folder)
    assert caught.value.hint
    assert str(folder) in str(caught.value)
    return str(caught.value)


def test_a_set_is_read_back_as_written(tmp_path: Path, tokenizer: Tokenizer):
    prepared = store.load(write(tmp_path / "set", tokenizer))
    row = prepared.dataset[1]
    sample = encode(record(1), [plan(60, 40, 4).tokens], tokenizer)
    assert tuple(row["token_ids"]) == sample.token_ids
    assert tuple(row["picture_slots"]) == sample.image_slots
    assert tuple(zip(row["supervised_starts"], row["supervised_ends"], strict=True)) == sample.supervised
    assert row["length"] == sample.length == len(expand(sample)[0])
    assert row["supervised_tokens"] == sample.supervised_tokens
    assert row["turns"] == [
        {"role": "user", "text": "<ImageHere>What is it?"},
        {"role": "assistant", "text": "Number 1."},
    ]
    (image,) = row["pictures"]
    assert store.layout_of(image) == plan(60, 40, 4)
    assert (image["path"], image["root"], image["tokens"]) == ("a.png", 1, 757)
    assert row["references"] == ["x", "y"]
    assert (row["id"], row["source"], row["place"]) == ("1", "source.json", "line 2")
    assert prepared.image_path(1, 0) == tmp_path / "a.png"
    assert prepared.files.roots[store.OWN_ROOT] == prepared.root
    assert prepared.files.corrections.names() == ("exif",)


@pytest.mark.parametrize("upscale", [True, False])
@pytest.mark.parametrize("size", [(60, 40), (30, 70), (2000, 1000)])
def test_a_layout_is_read_back_as_stored(size: tuple[int, int], upscale: bool):
    layout = plan(*size, 4, upscale=upscale)
    assert store.layout_of(store.stored_image(0, "a.png", layout)) == layout


def test_batches_and_rows_keep_the_order_in_which_they_were_added(tmp_path: Path, tokenizer: Tokenizer):
    layout = plan(60, 40, 4)
    rows = [
        store.row_of(record(n), encode(record(n), [layout.tokens], tokenizer), [store.stored_image(1, "a", layout)])
        for n in range(5)
    ]
    (tmp_path / "set").mkdir()
    with store.Writer(tmp_path / "set") as writer:
        writer.add(rows[0])
        writer.add_batch(store.batch_of(rows[1:3]))
        writer.add_batch(store.batch_of([]))
        writer.add(rows[3])
        writer.add(rows[4])
    assert datasets.load_from_disk(str(tmp_path / "set"))["id"][:] == list("01234")


def test_datasets_opens_a_set_by_itself(tmp_path: Path, tokenizer: Tokenizer):
    dataset = datasets.load_from_disk(str(write(tmp_path / "set", tokenizer, count=2500)))
    assert len(dataset) == 2500
    assert dataset[2499]["id"] == "2499"
    assert not {"image", "images"} & set(dataset.column_names)


def test_equal_rows_give_equal_bytes(tmp_path: Path, tokenizer: Tokenizer):
    first, second = (write(tmp_path / name, tokenizer) for name in ("one", "two"))
    names = sorted(path.name for path in first.iterdir())
    assert names == sorted(path.name for path in second.iterdir())
    assert all((first / name).read_bytes() == (second / name).read_bytes() for name in names)


def test_a_folder_that_is_not_a_prepared_set_reports_missing_files(tmp_path: Path, tokenizer: Tokenizer):
    assert "no such prepared set" in refusal(tmp_path / "none")
    (tmp_path / "empty").mkdir()
    assert "manifest.json, state.json" in refusal(tmp_path / "empty")
    folder = write(tmp_path / "set", tokenizer)
    (folder / "data-00000-of-00001.arrow").unlink()
    assert "data-00000-of-00001.arrow missing" in refusal(folder)


@pytest.mark.parametrize("text", ["", "{}", "[]", "5", '{"kind": 1, "format": 1, "records": 5}'])
def test_an_empty_manifest_is_refused(tmp_path: Path, tokenizer: Tokenizer, text: str):
    folder = write(tmp_path / "set", tokenizer)
    (folder / "manifest.json").write_text(text)
    assert "manifest" in refusal(folder)


@pytest.mark.parametrize("change", [{"kind": "another kind"}, {"format": manifests.FORMAT + 1}])
def test_a_set_of_another_format_is_refused(tmp_path: Path, tokenizer: Tokenizer, change: dict[str, object]):
    folder = write(tmp_path / "set", tokenizer)
    manifest = json.loads((folder / "manifest.json").read_text())
    (folder / "manifest.json").write_text(json.dumps(manifest | change))
    assert str(next(iter(change.values()))) in refusal(folder)


def test_a_truncated_arrow_file_is_refused(tmp_path: Path, tokenizer: Tokenizer):
    folder = write(tmp_path / "set", tokenizer)
    arrow = folder / "data-00000-of-00001.arrow"
    arrow.write_bytes(arrow.read_bytes()[:-200])
    assert "broken" in refusal(folder)


def test_a_manifest_of_another_set_is_refused(tmp_path: Path, tokenizer: Tokenizer):
    assert "counts 9 rows" in refusal(write(tmp_path / "set", tokenizer, records={"rows": 9}))


def test_the_parent_folder_of_a_split_is_refused_with_its_set_names(tmp_path: Path, tokenizer: Tokenizer):
    (tmp_path / "both").mkdir()
    (tmp_path / "both" / "dataset_dict.json").write_text("{}")
    write(tmp_path / "both" / "train", tokenizer)
    with pytest.raises(IxtuneError) as caught:
        store.load(tmp_path / "both")
    assert str(tmp_path / "both" / "train") in caught.value.hint


@pytest.mark.parametrize("broken", [{"options": {"unknown": 1}}, {"image_roots": 5}, {"records": {}}])
def test_a_damaged_manifest_is_refused(tmp_path: Path, tokenizer: Tokenizer, broken: dict[str, object]):
    assert "damaged" in refusal(write(tmp_path / "set", tokenizer, **broken))


def test_a_set_for_this_tokenizer_is_compatible(tmp_path: Path, tokenizer: Tokenizer):
    prepared = store.load(write(tmp_path / "set", tokenizer))
    manifests.check_compatible(prepared.manifest, tokenizer.sha256, FOUR_KHD)


@pytest.mark.parametrize("key", ["tokenizer_sha256", "template_version", "layout_version"])
def test_a_set_with_other_settings_is_refused_with_both_values(tmp_path: Path, tokenizer: Tokenizer, key: str):
    manifest = store.load(write(tmp_path / "set", tokenizer)).manifest | {key: "other"}
    with pytest.raises(IxtuneError) as caught:
        manifests.check_compatible(manifest, tokenizer.sha256, FOUR_KHD)
    (note,) = caught.value.notes
    assert key in note
    assert "the set has other" in note
    assert note.endswith(tokenizer.sha256 if key == "tokenizer_sha256" else "1")
