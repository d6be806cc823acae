from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from in_process import call
from records import draw_page, entry, shown, write_image, write_source

from ixtune.data.prepared.store import load

ROOT = Path(__file__).resolve().parents[2]


def ixtune(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "ixtune", *map(str, arguments)]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)


@pytest.fixture
def run(image_root: Path, tokenizer_base: Path, tmp_path: Path):
    def run(entries: list[Any], *options: str | Path) -> subprocess.CompletedProcess[str]:
        source = write_source(image_root, entries)
        return ixtune("prepare", source, "--out", tmp_path / "out", "--base", tokenizer_base, "--hd-num", 4, *options)

    return run


def test_a_good_source_is_prepared_and_summarized(run, tmp_path: Path):
    done = run([shown(n) for n in range(3)] + [entry("t", "hi", "yo")])
    assert (done.returncode, done.stderr) == (0, "")
    assert "JSON list of InternLM-XComposer conversations" in done.stdout.splitlines()[0]
    assert re.search(r"accepted +4 *\n", done.stdout)
    assert re.search(r"^4 .*<- chosen *$", done.stdout, re.MULTILINE)
    assert "tokens per record" in done.stdout
    assert "2x2 3" in done.stdout
    assert "4 records read, 4 accepted, 0 rejected" in done.stdout
    assert f"written  {tmp_path / 'out'}" in done.stdout
    assert "\x1b" not in done.stdout
    assert (tmp_path / "out" / "manifest.json").is_file()


def test_rejects_above_the_threshold_exit_with_3_and_say_where_to_look(run, tmp_path: Path):
    done = run([shown(1), shown(2, "none.png"), shown(1)])
    assert done.returncode == 3
    assert re.search(r"picture_missing +1 ", done.stdout)
    assert "2 of 3 records were rejected" in done.stderr
    assert str(tmp_path / "out" / "rejects.jsonl") in done.stderr
    assert "hint:" in done.stderr
    assert "Traceback" not in done.stderr
    rows = [json.loads(line) for line in (tmp_path / "out" / "rejects.jsonl").read_text().splitlines()]
    assert [(row["id"], row["reason"]) for row in rows] == [("2", "picture_missing"), ("1", "duplicate_id")]


def test_the_threshold_can_be_raised(run):
    assert run([shown(1), shown(2, "none.png")], "--max-reject-rate", "0.5").returncode == 0


def test_if_no_record_is_accepted_prepare_exits_3_and_writes_nothing(run, tmp_path: Path):
    done = run([shown(1, "none.png")])
    assert done.returncode == 3
    assert "picture_missing" in done.stderr
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("text", "code", "message"),
    [("[1,", 1, "line 1, column 4"), ("", 1, "empty"), (None, 2, "no such file")],
)
def test_an_unreadable_source_is_a_one_line_error(
    tmp_path: Path, tokenizer_base: Path, text: str | None, code: int, message: str
):
    source = tmp_path / "source.json"
    if text is not None:
        source.write_text(text)
    done = ixtune("prepare", source, "--out", tmp_path / "out", "--base", tokenizer_base, "--hd-num", 4)
    assert done.returncode == code
    assert len(done.stderr.splitlines()) == 2
    assert message in done.stderr
    assert not (tmp_path / "out").exists()


def test_an_existing_out_folder_and_a_wrong_base_are_refused(run, tmp_path: Path):
    (tmp_path / "out").mkdir()
    done = run([shown(1)])
    assert done.returncode == 2
    assert "choose another --out" in done.stderr
    (tmp_path / "out").rmdir()
    done = run([shown(1)], "--base", tmp_path / "none")
    assert done.returncode == 1
    assert str(tmp_path / "none") in done.stderr


def test_max_tokens_and_image_root_are_respected(run, image_root: Path, tmp_path: Path):
    (image_root / "deep").mkdir()
    (image_root / "a.png").rename(image_root / "deep" / "a.png")
    assert run([shown(1)], "--image-root", image_root / "deep").returncode == 0
    (tmp_path / "out").rename(tmp_path / "first")
    done = run([shown(1)], "--image-root", image_root / "deep", "--max-tokens", "100")
    assert done.returncode == 3
    assert "too_long" in done.stderr


def test_ctrl_c_leaves_nothing_behind(image_root: Path, tokenizer_base: Path, tmp_path: Path):
    source = image_root / "source.jsonl"
    line = json.dumps(entry("ID", "x" * 2000, "y" * 2000))
    source.write_text("\n".join(line.replace("ID", str(number)) for number in range(20_000)))
    command = [sys.executable, "-m", "ixtune", "prepare", str(source), "--out", str(tmp_path / "set" / "out")]
    process = subprocess.Popen(
        [*command, "--base", str(tokenizer_base), "--hd-num", "4"],
        cwd=ROOT,
        stderr=subprocess.PIPE,
        text=True,
        # a shell starts background jobs with Ctrl-C ignored, and a test run may be one
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    deadline = time.monotonic() + 600
    while not list(tmp_path.glob("set/.out.partial-*/*.arrow")) and time.monotonic() < deadline:
        time.sleep(0.01)
    os.kill(process.pid, signal.SIGINT)
    _, errors = process.communicate(timeout=600)
    assert process.returncode == 130
    assert errors.splitlines()[-1] == f"interrupted: {tmp_path / 'set' / 'out'} was not written"
    assert "Traceback" not in errors
    assert list((tmp_path / "set").iterdir()) == []


def test_a_folder_of_photos_and_a_csv_of_questions_is_enough(image_root: Path, tokenizer_base: Path, tmp_path: Path):
    table = tmp_path / "questions.csv"
    table.write_text('image,question,answer\na.png,How many?,4\n,No image?,Right\na.png,Which?,"one, two"\n')
    common = ("--base", tokenizer_base, "--hd-num", 4)
    done = ixtune("prepare", table, "--image-root", image_root, "--out", tmp_path / "out", *common)
    assert (done.returncode, done.stderr) == (0, "")
    assert "CSV of questions and answers" in done.stdout
    rows = load(tmp_path / "out").dataset
    assert rows[0]["turns"] == [{"role": "user", "text": "<ImageHere>How many?"}, {"role": "assistant", "text": "4"}]
    assert [len(row["pictures"]) for row in rows] == [1, 0, 1]
    assert rows[2]["turns"][1]["text"] == "one, two"


def test_renamed_columns_are_mapped_by_option_or_listed_in_the_error(
    image_root: Path, tokenizer_base: Path, tmp_path: Path
):
    table = image_root / "t.tsv"
    table.write_text("photo\tq\treply\na.png\tHow many?\t4\n")
    common = (table, "--out", tmp_path / "out", "--base", tokenizer_base, "--hd-num", 4)
    done = ixtune("prepare", *common)
    assert done.returncode == 2
    assert "columns found: 'photo', 'q', 'reply'" in done.stderr
    assert "--columns image=photo" in done.stderr
    done = ixtune("prepare", *common, "--columns", "image=photo,question=q,answer=reply")
    assert done.returncode == 0, done.stderr
    assert "question from q" in done.stdout


def test_a_yaml_file_lists_sources_with_individual_settings(image_root: Path, tokenizer_base: Path, tmp_path: Path):
    write_source(image_root, [shown(n) for n in range(4)], "first.json")
    (image_root / "second.csv").write_text("image,question,answer\n" + "a.png,What?,this\n" * 10)
    config = image_root / "mix.yaml"
    config.write_text("sources:\n  - {path: first.json, hd_num: 1, weight: 3}\n  - {path: second.csv, count: 5}\n")
    done = ixtune("prepare", config, "--out", tmp_path / "out", "--base", tokenizer_base, "--hd-num", 4)
    assert (done.returncode, done.stderr) == (0, "")
    prepared = load(tmp_path / "out")
    assert [source["rows"] for source in prepared.manifest["sources"]] == [12, 5]
    assert {row["pictures"][0]["hd_num"] for row in prepared.dataset} == {1, 4}
    config.write_text("sources:\n  - path: first.json\n    hd: 1\n    weight: heavy\n")
    done = ixtune("prepare", config, "--out", tmp_path / "other", "--base", tokenizer_base, "--hd-num", 4)
    assert done.returncode == 2
    assert f"{config}:3" in done.stderr
    assert f"{config}:4" in done.stderr


def test_the_official_mixture_file_is_read(image_root: Path, tokenizer_base: Path, tmp_path: Path):
    write_source(image_root, [shown(n) for n in range(8)], "first.json")
    (image_root / "data.txt").write_text("first.json 0.25\n")
    common = ("--base", tokenizer_base, "--hd-num", 4)
    done = ixtune("prepare", image_root / "data.txt", "--out", tmp_path / "thousands", *common)
    assert done.returncode == 0, done.stderr
    assert "250 records of it" in done.stdout
    assert len(load(tmp_path / "thousands").dataset) == 250
    done = ixtune("prepare", image_root / "data.txt", "--ratios", "--out", tmp_path / "ratios", *common)
    assert len(load(tmp_path / "ratios").dataset) == 2


def test_every_option_takes_effect_in_the_set(run, image_root: Path, tmp_path: Path):
    write_image(image_root / "b.png", 400, 300)
    entries = [shown(n, f"{'ab'[n % 2]}.png") for n in range(20)]
    done = run(
        entries, "--no-upscale", "--correct", "exif,alpha", "--verify", "--embed-images", "--val-fraction", "0.5",
        "--seed", "7", "--max-tokens", "700", "--over-length", "lower", "--system", "Be brief.", "--workers", "2",
        "--pages", "all", "--dpi", "100",
    )  # fmt: skip
    assert (done.returncode, done.stderr) == (0, "")
    prepared = load(tmp_path / "out" / "train")
    assert prepared.manifest["options"] == {
        "hd_num": 4, "upscale": False, "corrections": ["exif", "alpha"], "max_tokens": 700, "over_length": "lower",
        "verify": True, "embed_images": True, "val_fraction": 0.5, "seed": 7,
        "pages": "all", "dpi": 100, "exclude": [], "near_duplicates": False,
    }  # fmt: skip
    assert prepared.dataset[0]["turns"][0] == {"role": "system", "text": "Be brief."}
    assert len(load(tmp_path / "out" / "validation").dataset) == 10
    assert max(prepared.dataset["length"]) <= 700


def turns_of(folder: Path) -> list[str]:
    return [row["turns"][0]["text"] for row in load(folder).dataset]


def test_options_for_images_and_texts_reach_the_reader(image_root: Path, tokenizer_base: Path, tmp_path: Path):
    def prepared(name: str, records: list[Any], *options: str) -> Any:
        source = write_source(image_root, records, f"{name}.json")
        return call(
            "prepare", source, "--out", tmp_path / name, "--base", tokenizer_base, "--hd-num", 1,
            "--max-reject-rate", "1", *options,
        )  # fmt: skip

    write_image(image_root / "b.png", 61, 40)
    bare = [{"role": "user", "content": "Alike?"}, {"role": "assistant", "content": "No."}]
    two = {"messages": bare, "images": ["a.png", "b.png"]}
    assert "missing_placeholder" in prepared("two", [two]).stderr
    assert prepared("front", [two], "--missing-placeholder", "front").returncode == 0
    assert turns_of(tmp_path / "front") == ["<ImageHere><ImageHere>Alike?"]
    one = {"messages": bare, "images": ["a.png"]}
    assert "missing_placeholder" in prepared("reject", [one], "--missing-placeholder", "reject").stderr
    assert "one of front, reject" in prepared("wrong", [one], "--missing-placeholder", "back").stderr

    marked = {"question": "What does <|image_pad|> mean?", "answer": "An image."}
    assert "looks_like_image" in prepared("mark", [marked]).stderr
    assert prepared("text", [marked], "--allow-image-text").returncode == 0
    assert turns_of(tmp_path / "text") == ["What does <|image_pad|> mean?"]

    (image_root / "deep").mkdir()
    write_image(image_root / "deep" / "scan_007.png")
    numbered = {"number": 7, "question": "What?", "answer": "A scan."}
    done = prepared("pattern", [numbered], "--image-pattern", "deep/scan_{number:03d}.png")
    assert done.returncode == 0, done.stderr
    assert "image at deep/scan_{number:03d}.png" in done.stdout
    assert [image["path"] for image in load(tmp_path / "pattern").dataset[0]["pictures"]] == ["deep/scan_007.png"]


def test_near_duplicates_are_left_out_with_exclude(image_root: Path, tokenizer_base: Path, tmp_path: Path):
    pytest.importorskip("imagehash")
    draw_page(1).save(image_root / "page.png")
    draw_page(1).resize((250, 350)).save(image_root / "page.jpg", quality=60)
    draw_page(2).save(image_root / "other.png")
    for name, images in (("held-out", ["page.png"]), ("train", ["page.jpg", "other.png"])):
        write_source(image_root, [shown(image, image) for image in images], f"{name}.json")
    common = ("--base", tokenizer_base, "--hd-num", 1)
    assert call("prepare", image_root / "held-out.json", "--out", tmp_path / "held-out", *common).returncode == 0
    exclude = (image_root / "train.json", *common, "--exclude", tmp_path / "held-out")
    for name, option, accepted in (("same", (), 2), ("near", ("--near-duplicates",), 1)):
        done = call("prepare", *exclude, "--out", tmp_path / name, *option)
        assert done.returncode == 0, done.stderr
        assert len(load(tmp_path / name).dataset) == accepted


def test_a_source_without_an_accepted_record_and_empty_image_fields_are_counted(
    image_root: Path, tokenizer_base: Path, tmp_path: Path
):
    for name, text in (
        ("held-out.csv", "image,question,answer\na.png,q,a\n"),
        ("train.csv", "image,question,answer\nb.png,q,a\n,q,b\n"),
    ):
        (image_root / name).write_text(text)
    draw_page(3).save(image_root / "b.png")
    common = ("--base", tokenizer_base, "--hd-num", 1)
    assert call("prepare", image_root / "held-out.csv", "--out", tmp_path / "held-out", *common).returncode == 0
    sources = (image_root / "train.csv", image_root / "held-out.csv")
    exclude = ("--exclude", tmp_path / "held-out", "--max-reject-rate", 1)
    done = call("prepare", *sources, "--out", tmp_path / "train", *common, *exclude)
    assert done.returncode == 0, done.stderr
    assert len(load(tmp_path / "train").dataset) == 2
    assert re.search(r"in_excluded_set +1 ", done.stdout)
    assert re.search(r"no_image +1 ", done.stdout)


def test_the_format_can_be_specified(run, image_root: Path, tmp_path: Path, tokenizer_base: Path):
    assert "as --format says" in run([shown(1)], "--format", "ixc").stdout
    done = ixtune("prepare", image_root, "--out", tmp_path / "x", "--hd-num", 4, "--format", "lava")
    assert done.returncode == 2
    assert "did you mean llava" in done.stderr


def test_a_hub_name_without_network_is_a_one_line_error(tokenizer_base: Path, tmp_path: Path):
    done = ixtune("prepare", "someone/receipts", "--out", tmp_path / "out", "--base", tokenizer_base, "--hd-num", 4)
    assert done.returncode == 1
    assert "someone/receipts" in done.stderr
    assert "Traceback" not in done.stderr
    assert "hint:" in done.stderr
