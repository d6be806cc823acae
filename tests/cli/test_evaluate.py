"""From a trained adapter to answers: `ixtune evaluate`, `predict` and `merge`, by the real command line."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from main_job import ixtune, prepare, write_recipe

pytestmark = pytest.mark.xdist_group("evaluate")


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a prepared set, a run on it, and its evaluation."""
    folder = tmp_path_factory.mktemp("evaluate")
    prepare(folder, 6)
    recipe = write_recipe(folder / "recipe.yaml", folder / "prepared", folder / "run")
    trained = ixtune(
        "train",
        recipe,
        "training.epochs=8",  # so many that no answer hangs on the last bits, which merging changes
        "training.compute_dtype=bf16",
        f"data.validation={folder}/prepared",
        "training.save_every=6",
        "--no-report",
    )
    assert trained.returncode == 0, trained.stderr
    assert "validation loss" in trained.stdout
    done = ixtune("evaluate", folder / "prepared", "--adapter", folder / "run", "--out", folder / "evaluation.json")
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    (folder / "said.txt").write_text(done.stdout, encoding="utf-8")
    return folder


def _report(folder: Path) -> dict:
    return json.loads((folder / "evaluation.json").read_text(encoding="utf-8"))


def test_base_adapter_and_both_controls_stand_side_by_side(trained: Path) -> None:
    report = _report(trained)
    names = ["base", "adapter", "adapter, pictures swapped", "majority answer"]
    assert [row["name"] for row in report["results"]] == names
    assert all(row["low"] <= row["exact_match"] <= row["high"] for row in report["results"])
    said = (trained / "said.txt").read_text(encoding="utf-8")
    assert all(name in said for name in names)
    assert {"id", "question", "reference", *names} == set(report["answers"][0])


def test_the_loss_of_the_adapter_is_lower_and_equals_that_of_training(trained: Path) -> None:
    base, adapter = _report(trained)["results"][:2]
    assert adapter["loss"] < base["loss"]
    lines = [json.loads(line) for line in (trained / "run" / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    assert abs([line["validation_loss"] for line in lines if "validation_loss" in line][-1] - adapter["loss"]) < 1e-4


def test_the_majority_control_is_computed_from_the_references(trained: Path) -> None:
    # six different numbers under one question: what is commonest among the others is never right
    assert _report(trained)["results"][3]["exact_match"] == 0


def test_a_limit_and_no_controls_are_obeyed(trained: Path) -> None:
    done = ixtune(
        "evaluate",
        trained / "prepared",
        "--base",
        "nano",
        "--limit",
        "2",
        "--no-controls",
        "--out",
        trained / "two.json",
    )
    assert done.returncode == 0, done.stderr
    report = json.loads((trained / "two.json").read_text(encoding="utf-8"))
    assert (report["records"], [row["name"] for row in report["results"]]) == (2, ["base"])


@pytest.fixture(scope="module")
def merged(trained: Path) -> Path:
    done = ixtune("merge", trained / "run", "--onto", "nf4", "--out", trained / "merged")
    assert done.returncode == 0, done.stderr
    return trained / "merged"


def test_the_merged_model_answers_as_the_adapter_does(trained: Path, merged: Path) -> None:
    done = ixtune("evaluate", trained / "prepared", "--base", merged, "--no-controls", "--out", trained / "merged.json")
    assert done.returncode == 0, done.stderr
    of_merged = json.loads((trained / "merged.json").read_text(encoding="utf-8"))
    assert [a["base"] for a in of_merged["answers"]] == [a["adapter"] for a in _report(trained)["answers"]]
    # the sum is rounded to the bf16 that the base is stored in; the adapter stays fp32 beside the quantised weight
    assert abs(of_merged["results"][0]["loss"] - _report(trained)["results"][1]["loss"]) < 0.05


def test_predict_answers_as_evaluate_does(trained: Path, merged: Path) -> None:
    expected = {a["id"]: a["adapter"] for a in _report(trained)["answers"]}
    for model in (("--adapter", trained / "run"), ("--base", merged)):  # both know hd_num from the training
        done = ixtune("predict", "Which number?", "--image", trained / "raw" / "1.png", *model)
        assert (done.returncode, done.stderr) == (0, ""), done.stderr
        assert done.stdout.strip() == expected["r1"]


def test_predict_writes_a_file_of_answers_from_a_set_or_from_questions(trained: Path) -> None:
    expected = {a["id"]: a["adapter"] for a in _report(trained)["answers"]}
    done = ixtune("predict", "--from", trained / "prepared", "--adapter", trained / "run", "--out", trained / "p.jsonl")
    assert done.returncode == 0, done.stderr
    assert f"6 answers in {trained / 'p.jsonl'}" in done.stdout
    assert "tokens/s" in done.stdout
    lines = [json.loads(line) for line in (trained / "p.jsonl").read_text(encoding="utf-8").splitlines()]
    assert {line["id"]: line["answer"] for line in lines} == expected

    asked = [{"id": "r1", "question": "Which number?", "image": "raw/1.png"}, {"id": "bad", "image": "raw/1.png"}]
    (trained / "q.jsonl").write_text("".join(json.dumps(line) + "\n" for line in asked), encoding="utf-8")
    options = ("--adapter", trained / "run", "--out", trained / "a.jsonl")
    done = ixtune("predict", "--from", trained / "q.jsonl", *options)
    assert done.returncode == 3
    assert "1 lines could not be asked" in done.stderr
    assert json.loads((trained / "a.jsonl").read_text(encoding="utf-8"))["answer"] == expected["r1"]
    reject = json.loads((trained / "a.jsonl.rejects.jsonl").read_text(encoding="utf-8"))
    assert (reject["line"], reject["reason"]) == (2, "missing_field")
    for arguments, words in (
        ((), "a question, or --from"),
        (("What?", "--from", trained / "q.jsonl"), "a question, or --from"),
        (("--from", trained / "q.jsonl"), "--from and --out belong together"),
        (("--from", trained / "q.jsonl", *options), "exists already"),
    ):
        wrong = ixtune("predict", *arguments, *([] if "--adapter" in arguments else ["--base", "nano"]))
        assert wrong.returncode in (1, 2)
        assert words in wrong.stderr


def test_a_merge_compares_its_answers_with_the_adapter_s(trained: Path) -> None:
    out = trained / "verified"
    options = ("--onto", "nf4", "--verify-answers", trained / "prepared", "--verify-onto", "both")
    done = ixtune("merge", trained / "run", "--out", out, *options)
    assert done.returncode == 0, done.stderr
    assert "6 of 6 as the adapter on nf4; logits differ by at most" in done.stdout
    assert "closer   to the adapter on nf4" in done.stdout
    answers = json.loads((out / "merge_report.json").read_text(encoding="utf-8"))["answers"]
    assert (answers["questions"], answers["passed"], answers["closer"]) == (6, True, "nf4")


def test_a_chat_streams_compares_and_survives_a_wrong_path(trained: Path) -> None:
    expected = {a["id"]: a for a in _report(trained)["answers"]}["r1"]
    lines = ["/image nowhere.png", f"/image {trained / 'raw' / '1.png'}", "/compare", "Which number?", "/quit", "never"]
    done = ixtune("chat", "--adapter", trained / "run", typed="\n".join(lines))
    assert (done.returncode, done.stderr) == (0, "")
    assert "hd_num 1" in done.stdout.splitlines()[0]
    assert "error: there is no such picture (nowhere.png)" in done.stdout
    assert f"base     {expected['base']}" in done.stdout
    assert f"adapter  {expected['adapter']}\n" in done.stdout
    assert done.stdout.endswith(f"adapter  {expected['adapter']}\n")


def test_mistakes_are_told_with_their_cure(trained: Path, tmp_path: Path) -> None:
    picture = trained / "raw" / "1.png"
    (tmp_path / "text.png").write_text("no picture", encoding="utf-8")
    cases: list[tuple[int, str, tuple[str | Path, ...]]] = [
        (2, "no model is named", ("predict", "Which?", "--image", picture)),
        (1, "there is no adapter", ("predict", "Which?", "--image", picture, "--adapter", tmp_path)),
        (1, "text.png", ("predict", "Which?", "--image", tmp_path / "text.png", "--base", "nano")),
        (1, "none.png", ("predict", "Which?", "--image", tmp_path / "none.png", "--base", "nano")),
        (2, "give nf4 or none", ("predict", "Which?", "--base", "nano", "--quantize", "int8")),
        (1, "ixtune prepare", ("evaluate", tmp_path, "--base", "nano")),
        (1, "exists already", ("merge", trained / "run", "--out", trained / "run")),
        (
            1,
            "trained on another base",
            ("evaluate", trained / "prepared", "--adapter", trained / "run", "--base", "OTHER"),
        ),
    ]
    other = tmp_path / "other"
    import shutil

    from ixtune.base import resolve

    shutil.copytree(resolve("nano"), other)
    shard = other / "model-00001-of-00002.safetensors"
    content = bytearray(shard.read_bytes())
    content[-1] ^= 1
    shard.write_bytes(content)
    for code, said, arguments in cases:
        done = ixtune(*(str(other) if argument == "OTHER" else argument for argument in arguments))
        assert (done.returncode, said in done.stderr) == (code, True), done.stderr
        assert "mend:" in done.stderr
        assert "Traceback" not in done.stderr
