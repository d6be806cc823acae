from __future__ import annotations

import json
from pathlib import Path

import datasets
import pytest

from ixtune.data import store
from ixtune.data.record import Record, Turn
from ixtune.data.template import encode, expand
from ixtune.data.tokenizer import Tokenizer
from ixtune.errors import IxtuneError
from ixtune.layout import plan


def record(number: int) -> Record:
    turns = (Turn("user", " <ImageHere>What is it? "), Turn("assistant", f"Number {number}."))
    return Record(str(number), ("a.png",), turns, "source.json", number + 1)


def write(folder: Path, tokenizer: Tokenizer, count: int = 3, **manifest: object) -> Path:
    folder.mkdir()
    with store.Writer(folder) as writer:
        for number in range(count):
            layout = plan(60, 40, 4)
            sample = encode(record(number), [layout.tokens], tokenizer)
            writer.add(store.row_of(record(number), sample, [("a.png", layout)]))
    content = {
        "tokenizer_sha256": tokenizer.sha256,
        "image_root": str(folder.parent),
        "records": {"accepted": count},
        "source": {"path": "source.json"},
    }
    store.write_manifest(folder, content | manifest)
    return folder


def refusal(folder: Path) -> str:
    with pytest.raises(IxtuneError) as caught:
        store.load(folder)
    assert caught.value.mend
    assert str(folder) in str(caught.value)
    return str(caught.value)


def test_a_set_comes_back_as_it_was_written(tmp_path: Path, tokenizer: Tokenizer):
    prepared = store.load(write(tmp_path / "set", tokenizer))
    row = prepared.dataset[1]
    sample = encode(record(1), [plan(60, 40, 4).tokens], tokenizer)
    assert tuple(row["token_ids"]) == sample.token_ids
    assert tuple(row["picture_slots"]) == sample.picture_slots
    assert tuple(zip(row["supervised_starts"], row["supervised_ends"], strict=True)) == sample.supervised
    assert row["length"] == sample.length == len(expand(sample)[0])
    assert row["supervised_tokens"] == sample.supervised_tokens
    assert row["turns"] == [
        {"role": "user", "text": "<ImageHere>What is it?"},
        {"role": "assistant", "text": "Number 1."},
    ]
    assert row["pictures"] == [
        {"path": "a.png", "width": 60, "height": 40, "hd_num": 4, "rows": 2, "cols": 2, "tokens": 757}
    ]
    assert (row["id"], row["source"], row["line"]) == ("1", "source.json", 2)
    assert prepared.picture_path(1, 0) == prepared.image_root / "a.png" == tmp_path / "a.png"


def test_a_set_opens_with_plain_datasets(tmp_path: Path, tokenizer: Tokenizer):
    dataset = datasets.load_from_disk(str(write(tmp_path / "set", tokenizer, count=2500)))
    assert len(dataset) == 2500
    assert dataset[2499]["id"] == "2499"
    assert not {"image", "images"} & set(dataset.column_names)


def test_equal_rows_give_equal_bytes(tmp_path: Path, tokenizer: Tokenizer):
    first, second = (write(tmp_path / name, tokenizer) for name in ("one", "two"))
    names = sorted(path.name for path in first.iterdir())
    assert names == sorted(path.name for path in second.iterdir())
    assert all((first / name).read_bytes() == (second / name).read_bytes() for name in names)


def test_a_folder_that_is_no_prepared_set_is_told_what_it_lacks(tmp_path: Path, tokenizer: Tokenizer):
    assert "no such prepared set" in refusal(tmp_path / "none")
    (tmp_path / "empty").mkdir()
    assert "manifest.json, state.json" in refusal(tmp_path / "empty")
    folder = write(tmp_path / "set", tokenizer)
    (folder / "data-00000-of-00001.arrow").unlink()
    assert "data-00000-of-00001.arrow missing" in refusal(folder)


@pytest.mark.parametrize("text", ["", "{}", "[]", "5", '{"kind": 1, "format": 1, "records": 5}'])
def test_a_manifest_that_says_nothing_is_refused(tmp_path: Path, tokenizer: Tokenizer, text: str):
    folder = write(tmp_path / "set", tokenizer)
    (folder / "manifest.json").write_text(text)
    assert "manifest cannot be read" in refusal(folder)


@pytest.mark.parametrize("change", [{"kind": "another kind"}, {"format": store.FORMAT + 1}])
def test_a_set_of_another_format_is_refused(tmp_path: Path, tokenizer: Tokenizer, change: dict[str, object]):
    folder = write(tmp_path / "set", tokenizer)
    manifest = json.loads((folder / "manifest.json").read_text())
    (folder / "manifest.json").write_text(json.dumps(manifest | change))
    assert str(next(iter(change.values()))) in refusal(folder)


def test_an_arrow_file_cut_short_is_refused(tmp_path: Path, tokenizer: Tokenizer):
    folder = write(tmp_path / "set", tokenizer)
    arrow = folder / "data-00000-of-00001.arrow"
    arrow.write_bytes(arrow.read_bytes()[:-200])
    assert "broken" in refusal(folder)


def test_a_manifest_of_another_set_is_refused(tmp_path: Path, tokenizer: Tokenizer):
    assert "counts 9 records" in refusal(write(tmp_path / "set", tokenizer, records={"accepted": 9}))


def test_a_set_of_this_tokenizer_is_compatible(tmp_path: Path, tokenizer: Tokenizer):
    prepared = store.load(write(tmp_path / "set", tokenizer))
    store.check_compatible(prepared.manifest, tokenizer.sha256)


@pytest.mark.parametrize("key", ["tokenizer_sha256", "template_version", "layout_version"])
def test_a_set_made_otherwise_is_refused_with_both_values(tmp_path: Path, tokenizer: Tokenizer, key: str):
    manifest = store.load(write(tmp_path / "set", tokenizer)).manifest | {key: "other"}
    with pytest.raises(IxtuneError) as caught:
        store.check_compatible(manifest, tokenizer.sha256)
    (note,) = caught.value.notes
    assert key in note
    assert "the set has other" in note
    assert note.endswith(tokenizer.sha256 if key == "tokenizer_sha256" else "1")
