"""Test `ixtune init`: the files it writes, from options or from answers, run unchanged."""

from __future__ import annotations

import json
import re
import shlex
from pathlib import Path
from types import SimpleNamespace

import pytest
import yaml
from in_process import call
from main_job import command, ixtune, write_records
from records import write_image
from terminal import on_terminal

from ixtune.checkpoint.sizes import Sizes
from ixtune.init_project import first_look, project, tasks
from ixtune.planning.gpus import Machine
from ixtune.planning.plan import make_plan
from ixtune.planning.record_mixes import MIXES, records_of
from ixtune.recipe import recipe as recipes


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return the current folder, which contains `photos/data.json`."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


def commands(shown: str) -> list[list[str]]:
    """Return the commands that the output says to run next."""
    return [shlex.split(line) for line in shown.splitlines() if line.startswith("  ixtune ")]


def test_files_written_by_init_and_commands_it_prints_run_unchanged(here: Path):
    write_records(here / "photos", 24)
    done = ixtune("init", "--data", "photos/data.json", "--gpu-gib", "0", "--task", "charts", "--out", "first")
    assert done.returncode == 0, done.stderr
    assert "found    photos/data.json: JSON list of InternLM-XComposer conversations" in done.stdout
    assert "24 records" in done.stdout
    prepare, plan, dry_run, train, merge = commands(done.stdout)
    assert [line[1] for line in (prepare, plan, dry_run, train, merge)] == [
        "prepare", "plan", "train", "train", "merge",
    ]  # fmt: skip
    for line in (prepare, plan, dry_run):
        run = call(*line[1:])
        assert run.returncode == 0, run.stderr
    trained = call(*train[1:], "training.max_steps=1")
    assert (trained.returncode, trained.stderr) == (0, "")
    found = json.loads(Path("first/run/evaluation.json").read_text(encoding="utf-8"))
    assert found["scores"] == ["relaxed_accuracy", "exact_match"]
    assert "relaxed accuracy" in Path("first/run/report.html").read_text(encoding="utf-8")
    (evaluation,) = json.loads(Path("first/run/report.json").read_text(encoding="utf-8"))["evaluations"]
    assert evaluation["verdicts"]
    for verdict in evaluation["verdicts"]:
        assert trained.stdout.count(verdict["text"]) == 1
    merged = call(*merge[1:])
    assert merged.returncode == 0, merged.stderr


def test_three_questions_are_asked_and_repeated_after_wrong_answers(here: Path):
    write_records(here / "photos", 3)
    code, shown = on_terminal(
        command("init", "--out", "mine"), typed="none.csv\nphotos/data.json\nmuch\n0\nfilms\nreceipts\n", cwd=here
    )
    assert code == 0, shown
    for told in ("there is no such file or folder (none.csv)", "enter a number such as 24, not 'much'",
                 "multi-image, not 'films'", "1 of 3: ", "2 of 3: ", "3 of 3: "):  # fmt: skip
        assert told in shown
    assert sorted(path.name for path in (here / "mine").iterdir()) == ["data.yaml", "recipe.yaml"]
    assert recipes.load(here / "mine" / "recipe.yaml").base == "nano"


def test_given_options_are_not_asked_and_a_missing_answer_exits_2(here: Path):
    write_records(here / "photos", 3)
    done = ixtune("init", "--data", "photos/data.json", "--task", "charts", typed="24\n")
    assert done.returncode == 0, done.stderr
    assert "1 of 3" not in done.stderr
    assert "3 of 3" not in done.stderr
    ended = ixtune("init", "--data", "photos/data.json", "--out", "other", typed="")
    assert ended.returncode == 2
    assert "pass --data, --gpu-gib and --task" in ended.stderr
    assert not (here / "other").exists()


@pytest.mark.parametrize(
    ("options", "told"),
    [
        (["--data", "nowhere"], "there is no such file or folder (nowhere)"),
        (["--task", "films"], "choose one of documents, charts"),
        (["--task", "chart"], "did you mean charts?"),
        (["--columns", "image:photo"], "--columns"),
    ],
)
def test_wrong_flags_are_refused_and_nothing_is_written(here: Path, options: list[str], told: str):
    write_records(here / "photos", 3)
    given = {"--data": "photos/data.json", "--gpu-gib": "24", "--task": "charts"}
    given |= dict([options])
    done = call("init", *(word for pair in given.items() for word in pair))
    assert done.returncode == 2
    assert told in done.stderr
    assert not (here / "mine").exists()


def test_few_images_get_no_validation_split_and_a_note_why(here: Path):
    write_image(here / "one.png", 80, 60)
    rows = [f"one.png,How many are in row {row}?,{row}" for row in range(30)]
    (here / "q.csv").write_text("\n".join(["image,question,answer", *rows]))
    done = call("init", "--data", "q.csv", "--gpu-gib", "0", "--task", "charts")
    assert done.returncode == 0, done.stderr
    assert "note     no validation split: too few images, since 30 of 30 records share one" in done.stdout
    prepare, _, dry_run, *_ = commands(done.stdout)
    assert "--val-fraction" not in prepare
    for line in (prepare, dry_run):
        run = call(*line[1:])
        assert run.returncode == 0, run.stderr


@pytest.mark.parametrize("amount", ["inf", "nan"])
def test_gpu_gib_must_be_finite(here: Path, amount: str):
    write_records(here / "photos", 3)
    done = call("init", "--data", "photos/data.json", "--gpu-gib", amount, "--task", "charts")
    assert (done.returncode, "--gpu-gib" in done.stderr, (here / "mine").exists()) == (2, True, False)


def test_existing_files_are_never_overwritten(here: Path):
    write_records(here / "photos", 3)
    (here / "mine").mkdir()
    (here / "mine" / "recipe.yaml").write_text("precious")
    done = call("init", "--data", "photos/data.json", "--gpu-gib", "24", "--task", "charts")
    assert done.returncode == 2
    assert "mine/recipe.yaml" in done.stderr
    assert (here / "mine" / "recipe.yaml").read_text() == "precious"
    assert not (here / "mine" / "data.yaml").exists()


def test_existing_files_are_reported_before_any_question(here: Path, monkeypatch: pytest.MonkeyPatch):
    (here / "mine").mkdir()
    (here / "mine" / "data.yaml").write_text("precious")
    monkeypatch.setattr("builtins.input", lambda: pytest.fail("a question was asked"))
    done = call("init")
    assert done.returncode == 2
    assert "the file exists already (mine/data.yaml)" in done.stderr
    assert "1 of 3" not in done.stderr


def test_data_config_paths_are_relative_to_its_own_folder(here: Path):
    write_records(here / "photos", 2)
    (here / "tables").mkdir()
    (here / "tables" / "q.csv").write_text("pic,ask,say\n0.png,Which number?,100\n1.png,Which number?,107\n")
    done = call(
        "init", "--data", "tables/q.csv", "--image-root", "photos", "--columns", "image=pic,question=ask,answer=say",
        "--gpu-gib", "0", "--task", "charts", "--out", "deep/er",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    (source,) = yaml.safe_load((here / "deep" / "er" / "data.yaml").read_text(encoding="utf-8"))["sources"]
    assert source == {
        "path": "../../tables/q.csv",
        "image_root": "../../photos",
        "columns": {"image": "pic", "question": "ask", "answer": "say"},
    }
    prepared = call(*commands(done.stdout)[0][1:])
    assert prepared.returncode == 0, prepared.stderr


def test_images_in_subfolders_are_found_and_missing_ones_reported(here: Path):
    write_records(here / "all" / "deep" / "photos", 2)
    (here / "all" / "q.csv").write_text("image,question,answer\n0.png,Which number?,100\n1.png,Which number?,107\n")
    done = call("init", "--data", "all/q.csv", "--gpu-gib", "0", "--task", "charts")
    assert done.returncode == 0, done.stderr
    assert f"images   {here / 'all' / 'deep' / 'photos'}" in done.stdout
    prepared = call(*commands(done.stdout)[0][1:])
    assert prepared.returncode == 0, prepared.stderr
    (here / "all" / "q.csv").write_text("image,question,answer\n7.png,Which number?,100\n")
    lost = call("init", "--data", "all/q.csv", "--gpu-gib", "0", "--task", "charts", "--out", "other")
    assert lost.returncode == 2
    assert 'no image found: "7.png"' in lost.stderr
    assert "--image-root" in lost.stderr


@pytest.mark.parametrize("task", tasks.TASKS)
@pytest.mark.parametrize("gpu_gib", [12.0, 15.6, 22.0, 79.0])
def test_the_recipe_fits_the_given_gpu_memory(here: Path, task: str, gpu_gib: float):
    data = first_look.look(str(write_records(here / "photos", 2)))
    made = project.write_project(data, gpu_gib, task, here / "mine")
    recipe = recipes.load(made.files[1])
    assert recipe.base == "internlm/internlm-xcomposer2-4khd-7b"
    planned = make_plan(recipe, Sizes(), records_of(task), Machine("cuda", round(gpu_gib * 2**30), "as given"))
    assert planned.fits


@pytest.mark.parametrize("gpu_gib", ["4", "8"])
def test_a_gpu_too_small_for_the_7b_is_refused_with_the_shortfall(here: Path, gpu_gib: str):
    write_records(here / "photos", 2)
    done = call("init", "--data", "photos/data.json", "--gpu-gib", gpu_gib, "--task", "documents")
    assert done.returncode == 1
    told = re.search(r"does not fit: it needs ([\d.]+) GiB, ([\d.]+) GiB more than this GPU has", done.stderr)
    assert told, done.stderr
    needed, more = map(float, told.groups())
    assert needed - more == pytest.approx(float(gpu_gib))
    assert commands(done.stdout) == []
    assert not (here / "mine").exists()
    # what it says to take is enough
    enough = re.search(r"\(--gpu-gib (\d+)\)", done.stderr)
    assert enough
    again = call("init", "--data", "photos/data.json", "--gpu-gib", enough[1], "--task", "documents")
    assert again.returncode == 0, again.stderr


def test_a_gpu_that_fits_smaller_images_only_gets_that_advice(here: Path, monkeypatch: pytest.MonkeyPatch):
    write_records(here / "photos", 2)
    change = SimpleNamespace(hd_num=9, overrides={"adapter.rank": 8})
    monkeypatch.setattr(project, "advise", lambda plan, records: (change,))
    done = call("init", "--data", "photos/data.json", "--gpu-gib", "4", "--task", "documents")
    assert done.returncode == 1
    assert "it fits with smaller images: prepare --hd-num 9, and adapter.rank=8 in the recipe" in done.stderr
    assert not (here / "mine").exists()


def test_a_folder_with_one_table_and_images_is_read_as_that_table(here: Path):
    write_records(here / "photos", 2)
    (here / "photos" / "data.json").unlink()
    (here / "photos" / "questions.csv").write_text("image,question,answer\n0.png,Which?,100\n1.png,Which?,107\n")
    done = call("init", "--data", "photos", "--gpu-gib", "0", "--task", "charts")
    assert done.returncode == 0, done.stderr
    assert "questions.csv is the only table in the folder" in done.stdout
    (source,) = yaml.safe_load((here / "mine" / "data.yaml").read_text(encoding="utf-8"))["sources"]
    assert source == {"path": "../photos/questions.csv"}
    prepared = call(*commands(done.stdout)[0][1:])
    assert prepared.returncode == 0, prepared.stderr
    assert "2 records read, 2 accepted, 0 rejected" in prepared.stdout
    assert "source   photos/questions.csv: CSV" in prepared.stdout  # not mine/../photos
    direct = call("prepare", "photos", "--out", "direct", "--base", "nano", "--hd-num", "4")
    assert direct.returncode == 0, direct.stderr
    assert "questions.csv is the only table in the folder" in direct.stdout


def test_every_task_has_a_mix_of_its_name():
    assert set(tasks.TASKS) <= set(MIXES)


@pytest.mark.parametrize(
    "value", ["true", "Null", "1e5", ".5", "-x", "a b", "a: b", "#", "", "./a", "../b/c-1.x", "é", "~"]
)
def test_every_yaml_scalar_is_read_back_unchanged(tmp_path: Path, value: str):
    path = tmp_path / "r.yaml"
    path.write_text(f"base: {project._scalar(value)}\ndata: {{train: x}}\noutput: y\n", encoding="utf-8")
    if value:
        assert recipes.load(path).base == value
    else:
        assert project._scalar(value) == '""'
