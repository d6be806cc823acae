from __future__ import annotations

import hashlib
import json
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

import datasets
import measuring
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image
from records import entry, shown, write_image, write_source

from ixtune.data import worker
from ixtune.data.images.content_hash import hash_of_file
from ixtune.data.prepare import PrepareReport, TooManyRejects, prepare
from ixtune.data.prepared import store
from ixtune.data.prepared.manifest import PrepareOptions
from ixtune.data.sources.source import Schema, Source
from ixtune.errors import DataError, IxtuneError, UsageError
from ixtune.layout import plan


def rejects_of(out: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (out / "rejects.jsonl").read_text().splitlines()]


def manifest_of(out: Path) -> dict[str, Any]:
    return json.loads((out / "manifest.json").read_text())


def size_of(file: Path) -> tuple[int, int]:
    with Image.open(file) as image:
        return image.size


def tree(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.fixture
def run(root: Path, tokenizer_base: Path, tmp_path: Path):
    """Return a function that prepares entries into tmp_path/out, with source fields and options by name."""

    def run(entries: list[Any], out: str = "out", **given: Any) -> PrepareReport:
        source = {
            name: given.pop(name) for name in list(given) if name in Source.__dataclass_fields__ and name != "hd_num"
        }
        options = {name: given.pop(name) for name in list(given) if name in PrepareOptions.__dataclass_fields__}
        return prepare(
            [Source(path=str(write_source(root, entries)), **source)],
            tmp_path / out,
            base=tokenizer_base,
            options=PrepareOptions(**{"hd_num": 4} | options),
            **{"max_reject_rate": 1} | given,
        )

    return run


def test_a_good_source_becomes_samples_with_their_layouts(run, root: Path, tmp_path: Path):
    report = run(
        [
            shown("land"),
            shown("port", "portrait.png"),
            shown("square", "deep/square.png"),
            entry("text", "hi", "yo"),
        ]
    )
    prepared = store.load(tmp_path / "out")
    assert (report.read, report.accepted, report.rejected) == (4, 4, 0)
    assert rejects_of(tmp_path / "out") == []
    assert prepared.dataset["id"][:] == ["land", "port", "square", "text"]
    for index, (width, height) in enumerate([(60, 40), (30, 70), (20, 20)]):
        layout = plan(width, height, 4)
        (image,) = prepared.dataset[index]["pictures"]
        assert (image["rows"], image["cols"], image["tokens"]) == (
            layout.rows,
            layout.cols,
            layout.tokens,
        )
        assert prepared.image_path(index, 0).is_file()
    assert prepared.dataset[3]["pictures"] == []
    lengths = prepared.dataset["length"][:]
    manifest = prepared.manifest
    assert manifest["length"] == {"min": min(lengths), "median": sorted(lengths)[2], "max": max(lengths)}
    assert manifest["tokens"]["total"] == sum(lengths) == manifest["tokens"]["image"] + manifest["tokens"]["text"]
    assert manifest["tokens"]["supervised"] == sum(prepared.dataset["supervised_tokens"])


def test_the_manifest_records_sources_and_options(run, root: Path, tmp_path: Path, tokenizer):
    run([shown(1), shown(2, "none.png")], max_tokens=5000, system="Be brief.")
    manifest = store.load(tmp_path / "out").manifest
    assert manifest["options"]["hd_num"] == 4
    assert manifest["options"]["max_tokens"] == 5000
    example = {"example": "a.png", "example_bytes": (root / "a.png").stat().st_size}
    example |= {"example_content": hash_of_file(root / "a.png")}
    assert manifest["image_roots"] == [".", {"absolute": str(root), "relative": "../data", **example}]
    assert manifest["tokenizer_sha256"] == tokenizer.sha256
    (source,) = manifest["sources"]
    assert source["path"] == str(root / "source.json")
    assert source["sha256"] == hashlib.sha256((root / "source.json").read_bytes()).hexdigest()
    assert (source["format"], source["system"]) == (["json", "ixc"], "Be brief.")
    assert (source["read"], source["accepted"], source["rejected"], source["rows"]) == (2, 1, 1, 1)
    assert manifest["records"] == {
        "read": 2,
        "accepted": 1,
        "rejected": 1,
        "rejected_by_reason": {"picture_missing": 1},
        "rows": 1,
    }
    assert manifest["grids"] == {"2x2": 1}
    assert manifest["split"] is None


def test_every_kind_of_bad_record_is_rejected_with_its_reason(run, root: Path, tmp_path: Path):
    write_image(tmp_path / "outside.png")
    (root / "link.png").symlink_to(tmp_path / "outside.png")
    (root / "loop.png").symlink_to(root / "loop.png")
    (root / "empty.png").touch()
    Image.new("CMYK", (30, 20)).save(root / "print.jpg")
    (root / "cut.png").write_bytes((root / "a.png").read_bytes()[:-30])
    Image.new("I;16", (30, 20)).save(root / "deep16.png")
    frames = [Image.new("L", (30, 20), grey) for grey in (0, 255)]
    frames[0].save(root / "moving.gif", save_all=True, append_images=frames[1:])
    (root / "text.png").write_text("hello")
    write_image(root / "thin.png", 1, 3000)
    bad = {
        "picture_missing": shown("b0", "none.png"),
        "picture_is_folder": shown("b1", "deep"),
        "picture_empty": shown("b2", "empty.png"),
        "no_layout": shown("b3", "thin.png"),
        "duplicate_id": shown("good"),
        "missing_placeholder": entry("b4", "What?", "A cat.", image=["a.png", "a.png"]),
        "too_long": entry("b5", "x" * 3000, "y"),
        "missing_field": {"id": "b6"},
        "bad_conversations": {"id": "b6", "conversations": "hello"},
        "null_character": shown("b10", "a\0.png"),
        "not_a_record": 5,
        "picture_broken": shown("b7", "cut.png"),
        "picture_16_bit": shown("b8", "deep16.png"),
        "picture_animated": shown("b9", "moving.gif"),
    }
    outside = ["../outside.png", str(tmp_path / "outside.png"), "link.png", "deep/../../outside.png"]
    unreadable = ["text.png", "loop.png", "n" * 300]
    entries = [
        shown("good", "print.jpg"),
        *bad.values(),
        *(shown(f"o{n}", path) for n, path in enumerate(outside)),
        *(shown(f"u{n}", path) for n, path in enumerate(unreadable)),
    ]
    report = run(entries, max_tokens=2000)
    rows = rejects_of(tmp_path / "out")
    assert [row["reason"] for row in rows] == [*bad, *["path_outside_root"] * 4, *["picture_unreadable"] * 3]
    assert [row["record"] for row in rows] == list(range(2, len(entries) + 1))
    assert all(row["found"] and row["mend"] and row["source"] == str(root / "source.json") for row in rows)
    assert report.rejected_by_reason == dict(Counter(row["reason"] for row in rows).most_common()) or (
        Counter(report.rejected_by_reason) == Counter(row["reason"] for row in rows)
    )


def test_paths_inside_the_root_are_accepted_in_any_spelling(run, root: Path, tmp_path: Path):
    (root / "deep" / "link.png").symlink_to(root / "a.png")
    spellings = ["a.png", "./a.png", "deep/../a.png", str(root / "a.png"), "deep/link.png"]
    run([shown(n, spelling) for n, spelling in enumerate(spellings)])
    prepared = store.load(tmp_path / "out")
    assert {prepared.dataset[n]["pictures"][0]["path"] for n in range(len(spellings))} == {"a.png"}


def test_the_image_root_can_be_another_folder(run, root: Path, tmp_path: Path):
    run([shown(1, "square.png")], image_root=root / "deep")
    assert store.load(tmp_path / "out").image_path(0, 0) == root / "deep" / "square.png"


def test_a_record_one_token_too_long_is_rejected_not_truncated(run, tmp_path: Path):
    run([shown(1)], "first")
    length = manifest_of(tmp_path / "first")["length"]["max"]
    assert run([shown(1)], "second", max_tokens=length).accepted == 1
    with pytest.raises(DataError) as caught:
        run([shown(1)], max_tokens=length - 1)
    assert "too_long" in caught.value.notes[0]


GOOD = st.integers(0, 6).map(lambda number: entry(number, "hi", "yo"))
BAD = st.sampled_from([5, None, {}, {"id": 1}, entry(9, "hi"), entry(8, "hi", "yo", image=["none.png"])])


@settings(
    max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow], deadline=None
)
@given(entries=st.lists(GOOD | BAD, max_size=12), as_lines=st.booleans())
def test_accepted_and_rejected_add_up_to_read(
    root: Path,
    tmp_path_factory: pytest.TempPathFactory,
    tokenizer_base: Path,
    entries: list[Any],
    as_lines: bool,
):
    entries = [entry("first", "hi", "yo"), *entries]
    source = root / "source.json"
    lines = "\n".join(json.dumps(value) for value in entries)
    source.write_text(lines if as_lines else json.dumps(entries))
    out = tmp_path_factory.mktemp("set") / "out"
    given_source = Source(path=str(source), container=None, schema=Schema.IXC)
    report = prepare([given_source], out, base=tokenizer_base, options=PrepareOptions(hd_num=4), max_reject_rate=1)
    rejects = rejects_of(out)
    assert report.read == len(entries) == report.accepted + report.rejected
    assert len(store.load(out).dataset) == report.accepted
    assert len(rejects) == report.rejected
    assert Counter(row["reason"] for row in rejects) == Counter(report.rejected_by_reason)


def test_too_many_rejects_are_an_error_but_good_records_are_written(run, tmp_path: Path):
    entries = [shown(1), shown(2), shown(3), shown(4, "none.png")]
    with pytest.raises(TooManyRejects) as caught:
        run(entries, max_reject_rate=0.24)
    assert caught.value.exit_code == 3
    assert "1 of 4 records" in str(caught.value)
    assert caught.value.report.accepted == 3
    assert len(store.load(tmp_path / "out").dataset) == 3
    assert run(entries, "other", max_reject_rate=0.25).rejected == 1


def test_if_no_record_is_accepted_nothing_is_written(run, tmp_path: Path):
    with pytest.raises(DataError) as caught:
        run([shown(1, "none.png"), 5])
    assert "all 2 records" in str(caught.value)
    assert [note.split()[1] for note in caught.value.notes] == ["not_a_record,", "picture_missing,"]
    with pytest.raises(IxtuneError, match="no record"):
        run([])
    assert sorted(path.name for path in tmp_path.iterdir()) == ["data"]


def test_an_existing_folder_is_never_written_to(run, tmp_path: Path):
    (tmp_path / "out").mkdir()
    with pytest.raises(UsageError) as caught:
        run([shown(1)])
    assert "--out" in caught.value.hint
    assert list((tmp_path / "out").iterdir()) == []


@pytest.mark.parametrize("error", [KeyboardInterrupt(), OSError(28, "No space left on device")])
def test_an_interrupted_prepare_leaves_nothing(
    run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: BaseException
):
    taken = []

    def take_two(*args: Any, **kwargs: Any) -> Any:
        taken.append(args)
        if len(taken) > 2:
            raise error
        return real(*args, **kwargs)

    real = worker.encode
    monkeypatch.setattr(worker, "encode", take_two)
    with pytest.raises(type(error)):
        run([shown(n) for n in range(5)])
    assert sorted(path.name for path in tmp_path.iterdir()) == ["data"]


def test_a_truncated_source_leaves_nothing(root: Path, tmp_path: Path, tokenizer_base: Path):
    source = root / "broken.json"
    source.write_text(json.dumps([shown(1)])[:-1])
    with pytest.raises(IxtuneError, match="end of the file"):
        prepare([Source(path=str(source))], tmp_path / "out", base=tokenizer_base, options=PrepareOptions(hd_num=4))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["data"]


@pytest.mark.parametrize(
    "options",
    [
        {"hd_num": 0},
        {"hd_num": None},
        {"max_tokens": 0},
        {"over_length": "cut", "max_tokens": 5},
        {"over_length": "lower"},
        {"max_reject_rate": 1.1},
        {"val_fraction": 1.0},
        {"workers": 0},
        {"pages": "some"},
    ],
)
def test_wrong_options_are_usage_errors_with_their_name_on_the_command_line(run, options: dict[str, Any]):
    (name, *_) = options
    with pytest.raises(UsageError, match=f"^{name}.*--{name.replace('_', '-')}"):
        run([shown(1)], **options)


@pytest.mark.parametrize(
    ("options", "said"),
    [({"corrections": ("sharpness",)}, "--correct"), ({"image_root": Path("/no/such/folder")}, "/no/such/folder")],
)
def test_wrong_corrections_and_image_roots_are_usage_errors(run, options: dict[str, Any], said: str):
    with pytest.raises(UsageError, match=said):
        run([shown(1)], **options)


@pytest.mark.parametrize(
    "options", [{}, {"val_fraction": 0.2}, {"embed_images": True}, {"weight": 1.5, "verify": True}]
)
def test_one_and_three_workers_give_the_same_bytes(run, root: Path, tmp_path: Path, options: dict[str, Any]):
    for number in range(20):
        write_image(root / f"{number}.png", 40 + number, 40)
    entries = [shown(n, f"{n % 25}.png") for n in range(600)] + [shown(n) for n in range(3)]
    run(entries, "one", **options)
    run(entries, "three", workers=3, **options)
    run(entries, "again", **options)
    assert tree(tmp_path / "one") == tree(tmp_path / "three") == tree(tmp_path / "again")
    assert manifest_of(tmp_path / "one")["records"]["rejected_by_reason"] == {"picture_missing": 120, "duplicate_id": 3}


def test_progress_ends_at_the_total_of_records_and_bytes(run, root: Path):
    told: list[tuple[int, int, int]] = []
    run([shown(n) for n in range(299)] + [5], progress=lambda *done: told.append(done))
    assert [done[:2] for done in told] == [(256, 0), (300, 1)]
    assert told[-1][2] == os.path.getsize(root / "source.json")


def test_a_record_too_long_gets_a_lower_hd_num_if_requested(run, tmp_path: Path):
    entries = [shown("one"), entry("two", "<ImageHere><ImageHere>Same?", "No.", image=["a.png", "portrait.png"])]
    run(entries, "free", hd_num=16)
    limit = store.load(tmp_path / "free").dataset[1]["length"] - 1
    run(entries, "lowered", hd_num=16, max_tokens=limit, over_length="lower")
    free, lowered = store.load(tmp_path / "free"), store.load(tmp_path / "lowered")
    assert lowered.dataset[0] == free.dataset[0]
    assert lowered.dataset[1]["token_ids"] == free.dataset[1]["token_ids"]
    assert lowered.dataset[1]["length"] <= limit
    before, after = free.dataset[1]["pictures"], lowered.dataset[1]["pictures"]
    changed = [index for index in (0, 1) if before[index] != after[index]]
    assert changed == [max((0, 1), key=lambda index: before[index]["tokens"])]
    for image in after:
        assert store.layout_of(image) == plan(image["width"], image["height"], image["hd_num"])
    assert lowered.manifest["statistics"]["lowered"] == 1


def test_a_record_too_long_at_the_lowest_hd_num_is_rejected(run, tmp_path: Path):
    run([entry("text", "hi", "yo"), shown("one")], max_tokens=312, over_length="lower")
    (reject,) = rejects_of(tmp_path / "out")
    assert (reject["id"], reject["reason"]) == ("one", "too_long")
    assert "at the lowest hd_num" in reject["found"]


def test_small_images_are_not_enlarged_if_requested(run, tmp_path: Path):
    run([shown("one")], upscale=False)
    prepared = store.load(tmp_path / "out")
    (image,) = prepared.dataset[0]["pictures"]
    assert store.layout_of(image) == plan(60, 40, 4, upscale=False)
    assert (image["resized_width"], image["resized_height"]) == (60, 40)
    assert prepared.manifest["options"]["upscale"] is False


def test_hd_num_comes_from_the_record_then_the_source_then_the_run(root: Path, tmp_path: Path, tokenizer_base: Path):
    first = write_source(root, [shown("own") | {"hd_num": 1}, shown("source")], "first.json")
    second = write_source(root, [shown("run")], "second.json")
    sources = [Source(path=str(first), hd_num=9), Source(path=str(second))]
    prepare(sources, tmp_path / "out", base=tokenizer_base, options=PrepareOptions(hd_num=4))
    rows = store.load(tmp_path / "out").dataset
    assert {row["id"]: row["pictures"][0]["hd_num"] for row in rows} == {"own": 1, "source": 9, "run": 4}


def test_sources_may_repeat_ids_and_keep_the_given_order(root: Path, tmp_path: Path, tokenizer_base: Path):
    paths = [write_source(root, [shown(n) for n in range(2)], f"{name}.json") for name in "ba"]
    sources = [Source(path=str(path)) for path in paths]
    report = prepare(sources, tmp_path / "out", base=tokenizer_base, options=PrepareOptions(hd_num=4))
    rows = store.load(tmp_path / "out").dataset
    assert [(Path(row["source"]).name, row["id"]) for row in rows] == [
        ("b.json", "0"), ("b.json", "1"), ("a.json", "0"), ("a.json", "1")
    ]  # fmt: skip
    assert [one.accepted for one in report.sources] == [2, 2]


def test_duplicate_ids_are_refused_except_in_llava(run, root: Path, tmp_path: Path):
    entries = [
        {
            "id": "000123",
            "image": "a.png",
            "conversations": [{"from": "human", "value": f"<image>\nWhat {n}?"}, {"from": "gpt", "value": "A."}],
        }
        for n in range(3)
    ]
    assert run(entries, "llava").accepted == 3
    assert run(entries, "sharegpt", schema=Schema.SHAREGPT).rejected_by_reason == {"duplicate_id": 2}


def test_weights_and_counts_set_how_often_records_are_repeated(root: Path, tmp_path: Path, tokenizer_base: Path):
    paths = [write_source(root, [shown(f"{name}{n}") for n in range(20)], f"{name}.json") for name in "abcd"]
    choices = [{"weight": 2.5}, {"weight": 0.25}, {"count": 7}, {}]
    sources = [Source(path=str(path), **choice) for path, choice in zip(paths, choices, strict=True)]
    prepare(sources, tmp_path / "out", base=tokenizer_base, options=PrepareOptions(hd_num=4, seed=3))
    prepared = store.load(tmp_path / "out")
    times = Counter(prepared.dataset["id"])
    per_source = Counter(Path(source).stem for source in prepared.dataset["source"])
    assert per_source == {"a": 50, "b": 5, "c": 7, "d": 20}
    assert set(Counter(times[f"a{n}"] for n in range(20))) == {2, 3}
    assert max(times[f"b{n}"] for n in range(20)) == 1
    assert [source["rows"] for source in prepared.manifest["sources"]] == [50, 5, 7, 20]
    assert prepared.manifest["records"] == {
        "read": 80, "accepted": 80, "rejected": 0, "rejected_by_reason": {}, "rows": 82
    }  # fmt: skip
    assert prepared.manifest["tokens"]["total"] == sum(prepared.dataset["length"])


def test_a_weight_that_draws_no_record_is_refused(run):
    with pytest.raises(UsageError, match="would be drawn"):
        run([shown(n) for n in range(3)], weight=0.1)


def test_a_split_makes_two_sets_that_share_no_image(run, root: Path, tmp_path: Path):
    for number in range(10):
        write_image(root / f"{number}.png", 40 + number, 40)
    report = run([shown(n, f"{n % 10}.png") for n in range(40)] + [shown("bad", "none.png")], val_fraction=0.2)
    assert {name: one.rows for name, one in report.sets.items()} == {"train": 32, "validation": 8}
    sets = [store.load(tmp_path / "out" / name) for name in ("train", "validation")]
    shown_images = [{row["pictures"][0]["path"] for row in one.dataset} for one in sets]
    assert not shown_images[0] & shown_images[1]
    assert len(shown_images[1]) == 2
    assert {one.manifest["split"] for one in sets} == {"train", "validation"}
    both = datasets.load_from_disk(str(tmp_path / "out"))
    assert {name: len(one) for name, one in both.items()} == {"train": 32, "validation": 8}
    assert [row["id"] for row in rejects_of(tmp_path / "out")] == ["bad"]
    with pytest.raises(IxtuneError, match="several sets"):
        store.load(tmp_path / "out")


def test_a_set_with_embedded_images_needs_no_other_file(run, root: Path, tmp_path: Path):
    entries = [shown("a"), shown("same"), shown("deep", "deep/square.png"), shown("a"), shown("long", "portrait.png")]
    entries[4]["conversations"][0]["value"] += "x" * 5000
    run(entries, embed_images=True, max_tokens=3000)
    for path in root.rglob("*.png"):
        path.unlink()
    (tmp_path / "out").rename(tmp_path / "moved")
    prepared = store.load(tmp_path / "moved")
    files = [prepared.image_path(index, 0) for index in range(3)]
    assert files[0] == files[1] != files[2]
    assert all(file.is_relative_to(tmp_path / "moved" / "images") for file in files)
    assert [size_of(file) for file in files] == [(60, 40), (60, 40), (20, 20)]
    assert len(list((tmp_path / "moved" / "images").rglob("*.*"))) == 2  # the rejected record's is not there


def test_a_split_stores_each_embedded_image_with_its_rows(run, root: Path, tmp_path: Path):
    for number in range(10):
        write_image(root / f"{number}.png", 40 + number, 40)
    run([shown(n, f"{n}.png") for n in range(10)], val_fraction=0.3, embed_images=True)
    for name, count in (("train", 7), ("validation", 3)):
        prepared = store.load(tmp_path / "out" / name)
        assert all(prepared.image_path(index, 0).is_file() for index in range(count))
        assert len(list((tmp_path / "out" / name / "images").rglob("*.png"))) == count
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [
        "dataset_dict.json", "manifest.json", "rejects.jsonl", "train", "validation"
    ]  # fmt: skip


def test_verify_finds_damage_that_headers_hide(run, root: Path, tmp_path: Path):
    image = bytearray((root / "a.png").read_bytes())
    at = image.index(b"IDAT") + 10
    image[at : at + 8] = b"\0" * 8  # the end of the file is as it should be
    (root / "lying.png").write_bytes(image)
    assert run([shown(1), shown(2, "lying.png")], "quick").rejected == 0
    assert run([shown(1), shown(2, "lying.png")], "slow", verify=True).rejected_by_reason == {"picture_broken": 1}


@pytest.mark.parametrize("workers", [1, 2])
def test_records_with_an_empty_image_field_are_counted(
    run, root: Path, tokenizer_base: Path, tmp_path: Path, workers: int
):
    plain = {name: value for name, value in entry(1, "hi", "yo").items() if name != "image"}
    entries = [shown(0), plain, *(plain | {"id": at, "image": empty} for at, empty in enumerate((None, "", []), 2))]
    run(entries, "conversations", workers=workers)
    assert manifest_of(tmp_path / "conversations")["statistics"]["notes"] == {"no_image": 3}
    run(entries[1:], "ignored", columns=(("image", ""),), workers=workers)
    assert manifest_of(tmp_path / "ignored")["statistics"]["notes"] == {}
    (root / "table.csv").write_text("scan,page,question,answer\na.png,,q,a\n,,q,b\n , ,q,c\n")
    rows = [Source(path=str(root / "table.csv"), columns=(("image", "scan,page"),))]
    prepare(rows, tmp_path / "table", base=tokenizer_base, options=PrepareOptions(hd_num=4), workers=workers)
    assert manifest_of(tmp_path / "table")["statistics"]["notes"] == {"no_image": 2}


def test_image_corrections_are_counted(run, root: Path, tmp_path: Path):
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", (30, 20)).save(root / "turned.jpg", exif=exif)
    entries = [shown(1, "turned.jpg"), shown(2)]
    run(entries, "reference")
    run(entries, "corrected", corrections=("exif",))
    reference, corrected = store.load(tmp_path / "reference"), store.load(tmp_path / "corrected")
    assert reference.manifest["statistics"]["notes"] == {"exif_ignored": 1}
    assert corrected.manifest["statistics"]["notes"] == {"exif_applied": 1}
    sizes = [
        (s.dataset[0]["pictures"][0]["width"], s.dataset[0]["pictures"][0]["height"]) for s in (reference, corrected)
    ]
    assert sizes == [(30, 20), (20, 30)]
    assert corrected.files.corrections.exif


LOOP = """
import sys
from pathlib import Path
from ixtune.data.prepared.manifest import PrepareOptions
from ixtune.data.prepare import prepare
from ixtune.data.sources.source import Source
if __name__ == "__main__":
    source, out, base = sys.argv[1:]
    prepare([Source(path=source)], Path(out), base=Path(base), options=PrepareOptions(hd_num=4, verify=True), workers=2)
"""


def test_a_killed_prepare_leaves_no_set_and_no_worker(root: Path, tmp_path: Path, tokenizer_base: Path):
    Image.effect_noise((1500, 1500), 50).save(root / "large.png")
    source = write_source(root, [shown(n, "large.png") for n in range(3000)])
    script = tmp_path / "loop.py"
    script.write_text(LOOP)
    command = [sys.executable, str(script), str(source), str(tmp_path / "out"), str(tokenizer_base)]
    package = str(Path(store.__file__).parents[3])
    process = subprocess.Popen(command, env={**os.environ, "PYTHONPATH": package})
    workers: list[str] = []
    deadline = time.monotonic() + 600
    while len(workers) < 3 and time.monotonic() < deadline:  # two workers and the tracker of their resources
        time.sleep(0.05)
        listed = Path(f"/proc/{process.pid}/task/{process.pid}/children")
        workers = listed.read_text().split() if listed.exists() else []
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    assert len(workers) >= 2
    assert not (tmp_path / "out").exists()
    deadline = time.monotonic() + 300
    while any(_alive(worker) for worker in workers) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not [worker for worker in workers if _alive(worker)]


def _alive(process: str) -> bool:
    status = Path(f"/proc/{process}/stat")
    return status.exists() and status.read_text().rpartition(")")[2].split()[0] != "Z"


MEMORY = """
from pathlib import Path
from ixtune.data.prepared.manifest import PrepareOptions
from ixtune.data.prepare import prepare
from ixtune.data.sources.source import Source
import datasets, pyarrow, PIL.Image, sentencepiece
source, out, base = {arguments}
prepare([Source(path=source)], Path(out + "-first"), base=Path(base), options=PrepareOptions(hd_num=4))
# measured
prepare([Source(path=source)] * 10, Path(out), base=Path(base), options=PrepareOptions(hd_num=4))
"""


def test_memory_does_not_grow_with_fifty_thousand_records(root: Path, tmp_path: Path, tokenizer_base: Path):
    source = root / "text.jsonl"
    source.write_text("\n".join(json.dumps(entry(n, f"What is {n}?", f"It is {n}.")) for n in range(5_000)))
    arguments = (str(source), str(tmp_path / "out"), str(tokenizer_base))
    # ids and lengths of 45,000 more records, and nothing else: well below what their rows would take
    assert measuring.peak_mib(MEMORY.format(arguments=arguments)) < 40
    assert manifest_of(tmp_path / "out")["records"]["accepted"] == 50_000
