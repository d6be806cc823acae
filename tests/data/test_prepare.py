from __future__ import annotations

import json
import os
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from records import entry, shown, write_picture, write_source

from ixtune.data import prepare as module
from ixtune.data import store
from ixtune.data.prepare import PrepareReport, TooManyRejects, prepare
from ixtune.errors import DataError, IxtuneError, UsageError
from ixtune.layout import plan


def rejects_of(out: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (out / "rejects.jsonl").read_text().splitlines()]


@pytest.fixture
def run(root: Path, tokenizer_base: Path, tmp_path: Path):
    """Prepare entries as a source in the image root, into tmp_path/out."""

    def run(entries: list[Any], **options: Any) -> PrepareReport:
        settings: dict[str, Any] = {"base": tokenizer_base, "hd_num": 4, "max_reject_rate": 1} | options
        return prepare(write_source(root, entries), tmp_path / "out", **settings)

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
        (picture,) = prepared.dataset[index]["pictures"]
        assert (picture["rows"], picture["cols"], picture["tokens"]) == (
            layout.rows,
            layout.cols,
            layout.tokens,
        )
        assert prepared.picture_path(index, 0).is_file()
    assert prepared.dataset[3]["pictures"] == []
    lengths = prepared.dataset["length"][:]
    assert report.length == {"min": min(lengths), "median": sorted(lengths)[2], "max": max(lengths)}
    assert report.tokens["total"] == sum(lengths) == report.tokens["image"] + report.tokens["text"]
    assert report.tokens["supervised"] == sum(prepared.dataset["supervised_tokens"])


def test_the_manifest_says_what_the_set_was_made_from(run, root: Path, tmp_path: Path, tokenizer):
    run([shown(1), shown(2, "none.png")], max_tokens=5000)
    manifest = store.load(tmp_path / "out").manifest
    assert manifest["hd_num"] == 4
    assert manifest["max_tokens"] == 5000
    assert manifest["image_root"] == str(root)
    assert manifest["tokenizer_sha256"] == tokenizer.sha256
    assert manifest["source"]["path"] == str(root / "source.json")
    assert manifest["records"] == {
        "read": 2,
        "accepted": 1,
        "rejected": 1,
        "rejected_by_reason": {"picture_missing": 1},
    }
    assert manifest["grids"] == {"2x2": 1}


def test_every_kind_of_bad_record_is_rejected_with_its_reason(run, root: Path, tmp_path: Path):
    write_picture(tmp_path / "outside.png")
    (root / "link.png").symlink_to(tmp_path / "outside.png")
    (root / "loop.png").symlink_to(root / "loop.png")
    (root / "empty.png").touch()
    (root / "text.png").write_text("hello")
    write_picture(root / "thin.png", 1, 3000)
    bad = {
        "picture_missing": shown("b0", "none.png"),
        "picture_is_folder": shown("b1", "deep"),
        "picture_empty": shown("b2", "empty.png"),
        "no_layout": shown("b3", "thin.png"),
        "duplicate_id": shown("good"),
        "missing_placeholder": entry("b4", "What?", "A cat.", image=["a.png"]),
        "too_long": entry("b5", "x" * 3000, "y"),
        "bad_conversations": {"id": "b6"},
        "not_a_record": 5,
    }
    outside = ["../outside.png", str(tmp_path / "outside.png"), "link.png", "deep/../../outside.png"]
    unreadable = ["text.png", "loop.png", "a\0.png", "n" * 300]
    entries = [
        shown("good"),
        *bad.values(),
        *(shown(f"o{n}", path) for n, path in enumerate(outside)),
        *(shown(f"u{n}", path) for n, path in enumerate(unreadable)),
    ]
    report = run(entries, max_tokens=2000)
    rows = rejects_of(tmp_path / "out")
    assert [row["reason"] for row in rows] == [*bad, *["path_outside_root"] * 4, *["picture_unreadable"] * 4]
    assert [row["record"] for row in rows] == list(range(2, len(entries) + 1))
    assert all(row["found"] and row["mend"] and row["source"] == str(root / "source.json") for row in rows)
    assert report.rejected_by_reason == dict(Counter(row["reason"] for row in rows).most_common()) or (
        Counter(report.rejected_by_reason) == Counter(row["reason"] for row in rows)
    )


def test_paths_that_stay_inside_are_taken_in_any_spelling(run, root: Path, tmp_path: Path):
    (root / "deep" / "link.png").symlink_to(root / "a.png")
    spellings = ["a.png", "./a.png", "deep/../a.png", str(root / "a.png"), "deep/link.png"]
    run([shown(n, spelling) for n, spelling in enumerate(spellings)])
    prepared = store.load(tmp_path / "out")
    assert {prepared.dataset[n]["pictures"][0]["path"] for n in range(len(spellings))} == {"a.png"}


def test_the_image_root_can_be_another_folder(run, root: Path, tmp_path: Path):
    run([shown(1, "square.png")], image_root=root / "deep")
    assert store.load(tmp_path / "out").picture_path(0, 0) == root / "deep" / "square.png"


def test_a_record_too_long_by_one_token_is_rejected_and_none_is_cut(run, tmp_path: Path):
    length = run([shown(1)]).length["max"]
    (tmp_path / "out").rename(tmp_path / "first")
    assert run([shown(1)], max_tokens=length).accepted == 1
    (tmp_path / "out").rename(tmp_path / "second")
    with pytest.raises(DataError) as caught:
        run([shown(1)], max_tokens=length - 1)
    assert "too_long" in caught.value.notes[0]


GOOD = st.integers(0, 6).map(lambda number: entry(number, "hi", "yo"))
BAD = st.sampled_from([5, None, {}, {"id": 1}, entry(9, "hi"), entry(8, "hi", "yo", image=["none.png"])])


@settings(max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(entries=st.lists(GOOD | BAD, max_size=12), as_lines=st.booleans())
def test_accepted_and_rejected_are_what_was_read(
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
    report = prepare(source, out, base=tokenizer_base, hd_num=4, max_reject_rate=1)
    rejects = rejects_of(out)
    assert report.read == len(entries) == report.accepted + report.rejected
    assert len(store.load(out).dataset) == report.accepted
    assert len(rejects) == report.rejected
    assert Counter(row["reason"] for row in rejects) == Counter(report.rejected_by_reason)


def test_too_many_rejects_are_an_error_but_the_good_part_is_written(run, tmp_path: Path):
    entries = [shown(1), shown(2), shown(3), shown(4, "none.png")]
    with pytest.raises(TooManyRejects) as caught:
        run(entries, max_reject_rate=0.24)
    assert caught.value.exit_code == 3
    assert "1 of 4 records" in str(caught.value)
    assert caught.value.report.accepted == 3
    assert len(store.load(tmp_path / "out").dataset) == 3
    (tmp_path / "out").rename(tmp_path / "first")
    assert run(entries, max_reject_rate=0.25).rejected == 1


def test_when_nothing_is_accepted_nothing_is_written(run, tmp_path: Path):
    with pytest.raises(DataError) as caught:
        run([shown(1, "none.png"), 5])
    assert "all 2 records" in str(caught.value)
    assert [note.split()[1] for note in caught.value.notes] == ["not_a_record,", "picture_missing,"]
    with pytest.raises(IxtuneError, match="no record"):
        run([])
    assert sorted(path.name for path in tmp_path.iterdir()) == ["data"]


def test_an_existing_folder_is_never_written_into(run, tmp_path: Path):
    (tmp_path / "out").mkdir()
    with pytest.raises(UsageError) as caught:
        run([shown(1)])
    assert "--out" in caught.value.mend
    assert list((tmp_path / "out").iterdir()) == []


@pytest.mark.parametrize("error", [KeyboardInterrupt(), OSError(28, "No space left on device")])
def test_an_interrupted_preparation_leaves_nothing(
    run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: BaseException
):
    taken = []

    def take_two(path: Path) -> tuple[int, int]:
        taken.append(path)
        if len(taken) > 2:
            raise error
        return 60, 40

    monkeypatch.setattr(module, "read_size", take_two)
    with pytest.raises(type(error)):
        run([shown(n) for n in range(5)])
    assert sorted(path.name for path in tmp_path.iterdir()) == ["data"]


def test_a_source_that_breaks_off_leaves_nothing(run, root: Path, tmp_path: Path, tokenizer_base: Path):
    source = root / "broken.json"
    source.write_text(json.dumps([shown(1)])[:-1])
    with pytest.raises(IxtuneError, match="end of the file"):
        prepare(source, tmp_path / "out", base=tokenizer_base, hd_num=4)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["data"]


@pytest.mark.parametrize(
    "options",
    [{"hd_num": 0}, {"max_tokens": 0}, {"max_reject_rate": 1.1}, {"image_root": Path("/no/such/folder")}],
)
def test_wrong_options_are_wrong_usage(run, options: dict[str, Any]):
    with pytest.raises(UsageError):
        run([shown(1)], **options)


def test_the_same_input_gives_the_same_bytes(run, tmp_path: Path):
    entries = [shown(n) for n in range(30)] + [shown(n) for n in range(3)]
    for name in ("one", "two"):
        run(entries)
        (tmp_path / "out").rename(tmp_path / name)
    for path in (tmp_path / "one").iterdir():
        assert path.read_bytes() == (tmp_path / "two" / path.name).read_bytes(), path.name


def test_progress_ends_at_all_records_and_all_bytes(run, root: Path):
    told: list[tuple[int, int]] = []
    run([shown(n) for n in range(120)], progress=lambda *done: told.append(done))
    assert [records for records, _ in told] == [50, 100, 120]
    assert told[-1][1] == os.path.getsize(root / "source.json")
