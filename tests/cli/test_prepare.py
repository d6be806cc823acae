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
from records import entry, shown, write_source

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


def test_a_good_source_is_prepared_and_summed_up(run, tmp_path: Path):
    done = run([shown(n) for n in range(3)] + [entry("t", "hi", "yo")])
    assert (done.returncode, done.stderr) == (0, "")
    assert re.search(r"accepted +4 *\n", done.stdout)
    assert "2x2 3" in done.stdout
    assert "read 4 = accepted 4 + rejected 0" in done.stdout
    assert f"written  {tmp_path / 'out'}" in done.stdout
    assert "\x1b" not in done.stdout
    assert (tmp_path / "out" / "manifest.json").is_file()


def test_bad_data_above_the_threshold_exits_with_3_and_says_where_to_look(run, tmp_path: Path):
    done = run([shown(1), shown(2, "none.png"), shown(1)])
    assert done.returncode == 3
    assert re.search(r"picture_missing +1 ", done.stdout)
    assert "2 of 3 records were rejected" in done.stderr
    assert str(tmp_path / "out" / "rejects.jsonl") in done.stderr
    assert "mend:" in done.stderr
    assert "Traceback" not in done.stderr
    rows = [json.loads(line) for line in (tmp_path / "out" / "rejects.jsonl").read_text().splitlines()]
    assert [(row["id"], row["reason"]) for row in rows] == [("2", "picture_missing"), ("1", "duplicate_id")]


def test_the_threshold_can_be_raised(run):
    assert run([shown(1), shown(2, "none.png")], "--max-reject-rate", "0.5").returncode == 0


def test_nothing_accepted_exits_with_3_and_writes_nothing(run, tmp_path: Path):
    done = run([shown(1, "none.png")])
    assert done.returncode == 3
    assert "picture_missing" in done.stderr
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("text", "code", "message"),
    [("[1,", 1, "line 1, column 4"), ("", 1, "empty"), (None, 2, "no such file")],
)
def test_a_source_that_cannot_be_read_is_one_clear_line(
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


def test_an_existing_out_and_a_wrong_base_are_refused(run, tmp_path: Path):
    (tmp_path / "out").mkdir()
    done = run([shown(1)])
    assert done.returncode == 2
    assert "choose another --out" in done.stderr
    (tmp_path / "out").rmdir()
    done = run([shown(1)], "--base", tmp_path / "none")
    assert done.returncode == 1
    assert str(tmp_path / "none") in done.stderr


def test_max_tokens_and_image_root_are_heeded(run, image_root: Path, tmp_path: Path):
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
    deadline = time.monotonic() + 60
    while not list(tmp_path.glob("set/.out.partial-*/*.arrow")) and time.monotonic() < deadline:
        time.sleep(0.01)
    os.kill(process.pid, signal.SIGINT)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "Traceback" not in errors
    assert list((tmp_path / "set").iterdir()) == []
