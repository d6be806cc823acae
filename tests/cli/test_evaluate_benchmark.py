"""Test `ixtune evaluate --benchmark` on files in their published format."""

from __future__ import annotations

import base64
import io
import json
from pathlib import Path

import pytest
from in_process import call
from main_job import ixtune
from PIL import Image
from records import write_image


def _png(colour: str) -> str:
    buffer = io.BytesIO()
    Image.new("RGB", (60, 40), colour).save(buffer, "PNG")
    return base64.b64encode(buffer.getvalue()).decode()


@pytest.fixture(scope="module")
def asked(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with four questions, one of them with a missing image, and their evaluation."""
    folder = tmp_path_factory.mktemp("questions")
    for name in "ab":
        write_image(folder / "pictures" / f"{name}.png", 80, 60)
    lines = [
        {"id": "one", "question": "Which?", "image": "a.png", "answers": ["7", "seven"], "kind": "number"},
        {"id": "two", "question": "Which?", "image": "b.png", "answers": ["x"], "kind": "letter"},
        {"id": "gone", "question": "Which?", "image": "c.png", "answers": ["y"]},
        {"id": "none", "question": "Hello?", "answers": ["hi"]},
    ]
    (folder / "q.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    done = ixtune(
        "evaluate", folder / "q.jsonl", "--benchmark", "questions", "--image-root", folder / "pictures",
        "--base", "nano", "--hd-num", "1", "--max-new-tokens", "4", "--prompt", "Say in a word: {question}",
        "--out", folder / "found.json",
    )  # fmt: skip
    assert done.returncode == 3, done.stderr
    assert f"1 questions could not be asked: {folder / 'found.json'}.rejects.jsonl" in done.stderr
    return folder


def test_questions_are_asked_verbatim_and_bad_lines_are_rejected(asked: Path):
    found = json.loads((asked / "found.json").read_text(encoding="utf-8"))
    assert [answer["id"] for answer in found["answers"]] == ["one", "two", "none"]
    assert (found["records"], found["rejected"], found["hd_num"], found["benchmark"]) == (3, 1, 1, "questions")
    assert found["answers"][0]["references"] == ["7", "seven"]
    assert [answer["kind"] for answer in found["answers"]] == ["number", "letter", ""]
    assert found["answers"][0]["question"] == "Say in a word: Which?"
    assert found["answers"][0]["pictures"][0]["path"] == str(asked / "pictures" / "a.png")
    assert found["answers"][2]["pictures"] == []
    assert found["scores"] == ["exact_match", "anls"]
    assert found["results"][0]["loss"] > 0
    assert [one["name"] for one in found["results"]] == ["base", "base, images swapped", "majority answer"]
    (reject,) = (asked / "found.json.rejects.jsonl").read_text(encoding="utf-8").splitlines()
    assert (json.loads(reject)["id"], json.loads(reject)["reason"]) == ("gone", "picture_missing")


def test_report_accepts_a_benchmark_evaluation(asked: Path, tmp_path: Path):
    from report_files import write_run

    run = write_run(tmp_path / "run")
    done = ixtune("report", run, "--evaluation", asked / "found.json", "--out", tmp_path / "report")
    assert done.returncode == 0, done.stderr
    assert "kind of question" in (tmp_path / "report" / "report.html").read_text(encoding="utf-8").lower()


def test_multiple_choice_is_asked_in_every_rotation(tmp_path: Path):
    rows = ["index\tquestion\thint\tA\tB\tC\tD\tanswer\tcategory\timage"]
    rows += [
        f"{at}\tWhich colour?\t\tred\tblue\t\t\tA\tcolour\t{_png(colour)}" for at, colour in enumerate(["red", "blue"])
    ]
    (tmp_path / "mm.tsv").write_text("\n".join(rows) + "\n", encoding="utf-8")
    out = tmp_path / "found.json"
    options = ("--base", "nano", "--hd-num", "1", "--max-new-tokens", "2", "--circular", "--prompt", "benchmark")
    done = ixtune("evaluate", tmp_path / "mm.tsv", "--benchmark", "mmbench", *options, "--out", out)
    assert done.returncode == 0, done.stderr
    assert "circular accuracy" in done.stdout
    found = json.loads(out.read_text(encoding="utf-8"))
    assert found["records"] == 4  # two questions in two orders
    assert {tuple(answer["references"]) for answer in found["answers"]} == {("A",), ("B",)}
    assert "Please select the correct answer" in found["answers"][0]["question"]
    base = found["results"][0]["scores"]
    assert base["circular_accuracy"]["value"] <= base["choice_accuracy"]["value"]
    images = {answer["pictures"][0]["path"] for answer in found["answers"]}
    assert {Path(path).parents[1] for path in images} == {tmp_path / "found.json.pictures"}
    assert len(images) == 2


def test_wrong_usage_is_reported_before_any_weight_is_loaded(asked: Path, tmp_path: Path):
    file = asked / "q.jsonl"
    for options, words in (
        (("--benchmark", "docvqua"), "did you mean docvqa?"),
        (("--hd-num", "1"), "--hd-num needs --benchmark"),
        (("--benchmark", "questions", "--prompt", "say it"), "the prompt does not contain {question}"),
        (("--benchmark", "questions", "--image-root", tmp_path / "none"), "there is no such folder"),
        (
            ("--benchmark", "questions", "--image-root", asked / "pictures", "--circular"),
            "no question has options",
        ),
        (("--benchmark", "questions", "--out", tmp_path), "this is a folder"),
        (
            ("--benchmark", "questions", "--image-root", asked / "pictures", "--score", "field_accuracy"),
            "field_accuracy cannot judge answers to 3 of 3 questions",
        ),
    ):
        done = call("evaluate", file, "--base", "nano", *options)
        assert done.returncode == (1 if "cannot judge" in words else 2), (options, done.stderr)
        assert words in done.stderr
        assert "Traceback" not in done.stderr
