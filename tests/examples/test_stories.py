"""Test short versions of the examples: every command runs, and they fail if nothing was learned."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from datasets import load_from_disk
from main_job import environment

ROOT = Path(__file__).parents[2]
# half a minute alone, several on a machine with other work: each of these starts ixtune seven or eight times
BUSY = pytest.mark.timeout(3600)
STORIES = ("charts", "handwritten-forms", "labels", "multi-page")
# steps that move nothing, so that the story has to end with FAILED
HARDLY = ("training.max_steps=1", "training.learning_rate=1e-9", "training.projector_learning_rate=1e-9")


def tell(name: str, out: Path, *options: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, f"examples/{name}/run.py", "--out", str(out), *options]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, env=environment(), check=False)


def read(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8"))


def manifest(folder: Path) -> dict[str, Any]:
    return read(folder / "manifest.json")


def charts(folder: Path) -> set[str]:
    """Return the charts that a prepared set asks about."""
    return {identifier.rsplit("-", 2)[0] for identifier in load_from_disk(str(folder))["id"]}


def test_a_folder_not_made_by_an_example_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "raw").mkdir()
    (tmp_path / "raw" / "precious.png").write_bytes(b"mine")
    for name in ("charts", "demo"):
        done = tell(name, tmp_path)
        assert (done.returncode, "is not empty, and no example has made it" in done.stderr) == (1, True)
    assert (tmp_path / "raw" / "precious.png").read_bytes() == b"mine"


def check_end(done: subprocess.CompletedProcess[str], out: Path, score: str, questions: int, names: set[str]) -> None:
    """Check that the example failed, and that it scored and wrote a report."""
    assert done.returncode == 1, done.stderr
    assert f"FAILED: {score} at least " in done.stdout
    found = read(out / "evaluation.json")
    assert found["main_score"] == score
    assert {row["name"] for row in found["results"]} == names
    assert len(found["answers"]) == questions
    results = {row["name"]: row for row in found["results"]}
    assert results["adapter"]["loss"] == pytest.approx(results["base"]["loss"], rel=1e-3)
    page = (out / "report" / "report.html").read_text(encoding="utf-8")
    assert found["answers"][0]["question"] in page


EVERYBODY = {"base", "adapter", "adapter, images swapped", "majority answer"}


@BUSY
def test_the_charts_example_runs_and_fails_if_hardly_trained(tmp_path: Path) -> None:
    out = tmp_path / "charts"
    done = tell("charts", out, "--train", "20", "--held-out", "3", *HARDLY)
    check_end(done, out, "relaxed_accuracy", 9, EVERYBODY)
    learned, chosen_by = (charts(out / "prepared" / "learned" / side) for side in ("train", "validation"))
    assert (len(learned), len(chosen_by), learned & chosen_by) == (18, 2, set())
    for kind in ("value", "extreme", "count"):
        assert f"\n{kind:<8}    3 questions: base " in done.stdout
    answers = read(out / "evaluation.json")["answers"]
    counts = [row["references"] for row in answers if row["id"].endswith("-count")]
    assert all(reference in ("3", "4", "5", "6") for (reference,) in counts)


@BUSY
@pytest.mark.slow
def test_the_handwriting_example_runs_and_fails_if_hardly_trained(tmp_path: Path) -> None:
    out = tmp_path / "forms"
    done = tell("handwritten-forms", out, "--train", "4", "--held-out", "2", *HARDLY)
    check_end(done, out, "field_accuracy", 2, {*EVERYBODY, "merged"})
    answers = [json.loads(line) for line in (out / "answers.jsonl").read_text(encoding="utf-8").splitlines()]
    by_merged = {row["id"]: row["answers"]["merged"] for row in read(out / "evaluation.json")["answers"]}
    assert {line["id"]: line["answer"].strip() for line in answers} == {k: v.strip() for k, v in by_merged.items()}
    assert " of 2 answers are JSON with the form's fields" in done.stdout


@BUSY
@pytest.mark.slow
def test_the_multi_page_example_runs_and_fails_if_hardly_trained(tmp_path: Path) -> None:
    out = tmp_path / "pages"
    done = tell("multi-page", out, "--train", "8", "--held-out", "2", *HARDLY)
    check_end(done, out, "anls", 6, EVERYBODY)
    assert set(manifest(out / "prepared" / "train")["grids"]) == {"1x1", "2x1"}  # by each record's own hd_num
    assert all(len(row["pictures"]) == 3 for row in read(out / "evaluation.json")["answers"])
    assert (out / "exported" / "config.json").is_file()
    assert "packs    " in done.stdout


@BUSY
@pytest.mark.slow
def test_the_labels_example_runs_and_fails_if_hardly_trained(tmp_path: Path) -> None:
    out = tmp_path / "labels"
    done = tell("labels", out, "--train", "6", "--held-out", "3", *HARDLY)
    assert done.returncode == 1, done.stderr
    assert "FAILED: mixed on labels at least " in done.stdout
    on_labels, on_sheets = (read(out / name) for name in ("evaluation.json", "old.json"))
    names = {"base", "alone", "mixed"}
    assert {row["name"] for row in on_sheets["results"]} == names
    assert {row["name"] for row in on_labels["results"]} - names == {
        "alone, images swapped", "mixed, images swapped", "majority answer",
    }  # fmt: skip
    assert (len(on_labels["answers"]), len(on_sheets["answers"])) == (6, 100)
    trained = {name: read(out / name / "adapter" / "ixtune.json")["data"]["records"] for name in ("alone", "mixed")}
    assert trained == {"alone": 36, "mixed": 36 + 200 // 2}


def drawn(name: str, code: str) -> str:
    """Return the output of Python code that imports an example's `draw` module."""
    folder = ROOT / "examples" / name
    done = subprocess.run(
        [sys.executable, "-c", f"import draw\n{code}"],
        cwd=folder, capture_output=True, text=True, env=environment() | {"PYTHONPATH": str(folder)}, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.parametrize("name", STORIES)
def test_an_example_draws_the_same_images_each_time(name: str, tmp_path: Path) -> None:
    code = "import pathlib, sys\nfor to in sys.argv[1:]: draw.draw_set(pathlib.Path(to), 'test', 2)"
    folder = ROOT / "examples" / name
    subprocess.run(
        [sys.executable, "-c", f"import draw\n{code}", str(tmp_path / "a"), str(tmp_path / "b")],
        cwd=folder, env=environment() | {"PYTHONPATH": str(folder)}, check=True,
    )  # fmt: skip
    files = sorted(path.relative_to(tmp_path / "a") for path in (tmp_path / "a").rglob("*") if path.is_file())
    assert files
    assert all((tmp_path / "a" / path).read_bytes() == (tmp_path / "b" / path).read_bytes() for path in files)


def test_held_out_airports_have_other_states_and_codes() -> None:
    code = """
sets = {name: set(draw.states(name)) for name in ("train", "validation", "test")}
codes = {name: {code for state in states for code, _ in draw.airports()[state]} for name, states in sets.items()}
print(sum(map(len, sets.values())), len(set.union(*sets.values())), len(draw.airports()))
print(sum(map(len, codes.values())) - len(set.union(*codes.values())))
"""
    counts, twice = drawn("multi-page", code).splitlines()
    assert len(set(counts.split())) == 1  # every state in exactly one set
    assert twice == "0"


def test_held_out_forms_use_other_handwritings() -> None:
    hands = drawn("handwritten-forms", "print(sorted(sum(map(list, draw.HANDS.values()), [])))")
    assert hands.strip() == str(list(range(14)))  # each once


def test_held_out_charts_have_other_years_and_cars() -> None:
    code = """
names = {name: {str(row["Name"]) + str(row["Year"]) for rows in draw.cars(years).values() for row in rows}
         for name, years in draw.YEARS.items()}
print(len(names["train"] & names["test"]), min(map(len, names.values())) > 50)
"""
    assert drawn("charts", code) == "0 True\n"


def test_held_out_labels_show_other_cars() -> None:
    code = """
models = {name: {car["Make"] + car["Model"] + car["Weight"] for car in draw.cars(years)}
          for name, years in draw.YEARS.items()}
print(len(models["train"] & models["test"]), min(map(len, models.values())) > 80)
"""
    assert drawn("labels", code) == "0 True\n"


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("name", STORIES)
def test_a_full_example_passes(name: str, tmp_path: Path) -> None:
    done = tell(name, tmp_path / "story")
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
