"""Test `ixtune evaluate`, `predict`, `chat` and `merge` on a trained adapter from the command line."""

from __future__ import annotations

import json
import math
import re
import subprocess
import sys
from pathlib import Path

import pytest
from in_process import call
from main_job import ixtune, prepare, write_recipe


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with a prepared set, a run on it, and its evaluation."""
    folder = tmp_path_factory.mktemp("evaluate")
    prepare(folder, 6)
    recipe = write_recipe(folder / "recipe.yaml", folder / "prepared", folder / "run")
    trained = ixtune(
        "train",
        recipe,
        "training.epochs=8",  # enough that no answer depends on the last bits, which merging changes
        "training.compute_dtype=bf16",
        f"data.validation={folder}/prepared",
        "training.save_every=6",
        "--no-report",
    )
    assert trained.returncode == 0, trained.stderr
    assert "validation loss" in trained.stdout
    scores = ("--score", "exact_match", "--score", "cer")
    out = folder / "evaluation.json"
    done = ixtune("evaluate", folder / "prepared", "--adapter", folder / "run", *scores, "--out", out)
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    (folder / "said.txt").write_text(done.stdout, encoding="utf-8")
    return folder


def _report(folder: Path) -> dict:
    return json.loads((folder / "evaluation.json").read_text(encoding="utf-8"))


def _of(report: dict, name: str) -> dict:
    return next(one for one in report["results"] if one["name"] == name)


def _said_by(report: dict, name: str) -> list[str]:
    return [answer["answers"][name] for answer in report["answers"]]


def _trained_on_it(name: str) -> str:
    return f"{name} was trained on this set: its scores do not show what it does on new data."


NAMES = ["base", "adapter", "adapter, images swapped", "majority answer"]


def test_base_adapter_and_both_controls_are_reported_together(trained: Path) -> None:
    report = _report(trained)
    assert [one["name"] for one in report["results"]] == NAMES
    assert [one["kind"] for one in report["results"]] == ["model", "model", "control", "control"]
    assert [one["name"] for one in report["models"]] == ["base", "adapter"]
    for one in report["results"]:
        assert list(one["scores"]) == ["exact_match", "cer"]
        assert all(found["low"] <= found["value"] <= found["high"] for found in one["scores"].values())
    said = (trained / "said.txt").read_text(encoding="utf-8")
    assert all(name in said for name in NAMES)
    assert "CER" in said
    assert "adapter is better than base: exact match" in said or "No clear difference between adapter and base" in said


def test_every_answer_has_its_scores_its_references_and_its_images(trained: Path) -> None:
    report = _report(trained)
    for answer in report["answers"]:
        assert list(answer["answers"]) == NAMES
        assert answer["references"] == [str(100 + 7 * int(answer["id"][1:]))]
        image = answer["pictures"][0]
        assert Path(image["path"]).is_file()
        assert (image["width"], image["height"], image["rows"], image["columns"]) == (330, 300, 1, 1)
        for name, text in answer["answers"].items():
            assert answer["scores"][name]["exact_match"] == float(text == answer["references"][0])
    for name in NAMES:
        mean = sum(answer["scores"][name]["exact_match"] for answer in report["answers"]) / len(report["answers"])
        assert _of(report, name)["scores"]["exact_match"]["value"] == pytest.approx(mean)


def test_each_model_is_compared_with_base_and_controls_on_every_score(trained: Path) -> None:
    report = _report(trained)
    pairs = [("adapter", than) for than in ("base", "adapter, images swapped", "majority answer")]
    found = [(one["name"], one["than"], one["score"]) for one in report["comparisons"]]
    assert found == [(*pair, score) for pair in pairs for score in ("exact_match", "cer")]
    for one in report["comparisons"]:
        values = [_of(report, name)["scores"][one["score"]]["value"] for name in (one["name"], one["than"])]
        assert one["difference"] == pytest.approx(values[0] - values[1])
        assert one["low"] <= one["difference"] <= one["high"]
        assert 0 < one["p_value"] <= 1


def test_the_adapters_loss_is_lower_and_equals_that_of_training(trained: Path) -> None:
    base, adapter = _report(trained)["results"][:2]
    assert adapter["loss"] < base["loss"]
    assert adapter["perplexity"] == pytest.approx(math.exp(adapter["loss"]))
    lines = [json.loads(line) for line in (trained / "run" / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    assert abs([line["validation_loss"] for line in lines if "validation_loss" in line][-1] - adapter["loss"]) < 1e-4


def test_the_majority_control_comes_from_the_references(trained: Path) -> None:
    # six different numbers under one question: what is commonest among the others is never right
    assert _of(_report(trained), "majority answer")["scores"]["exact_match"]["value"] == 0


def test_limit_no_controls_and_json_are_respected(trained: Path) -> None:
    out = trained / "two.json"
    options = ("--base", "nano", "--limit", "2", "--no-controls", "--json", "--out", out)
    done = call("evaluate", trained / "prepared", *options)
    assert done.returncode == 0, done.stderr
    report = json.loads(out.read_text(encoding="utf-8"))
    assert (report["records"], [one["name"] for one in report["results"]]) == (2, ["base"])
    del report["answers"]
    assert json.loads(done.stdout) == report
    assert report["results"][0]["loss"] > 0
    quiet = call("--quiet", "evaluate", trained / "prepared", *options[:-3], "--no-loss", "--out", out)
    assert (quiet.returncode, quiet.stdout) == (0, f"{out}\n")
    again = json.loads(out.read_text(encoding="utf-8"))
    assert again["results"][0] == {**report["results"][0], "loss": None, "perplexity": None}
    done = call("report", trained / "run", "--evaluation", out, "--out", trained / "without-loss")
    assert done.returncode == 0, done.stderr
    assert "| answers of | exact match |\n" in (trained / "without-loss" / "report.md").read_text(encoding="utf-8")


def test_questions_about_one_image_only_get_a_note_instead_of_the_blind_control(trained: Path) -> None:
    """A report at the end of `train` goes the same way: a note, and no error."""
    out = trained / "one-image.json"
    done = ixtune("evaluate", trained / "prepared", "--adapter", trained / "run", "--limit", 1, "--out", out)
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    note = "The blind control is left out: it needs questions about different images."
    assert note in done.stdout
    found = json.loads(out.read_text(encoding="utf-8"))
    assert found["notes"] == [_trained_on_it("adapter"), note]
    assert [one["name"] for one in found["results"]] == [name for name in NAMES if "swapped" not in name]


def test_any_number_of_named_models_are_evaluated_together(trained: Path, merged: Path) -> None:
    out = trained / "several.json"
    options = ("--adapter", f"first={trained / 'run'}", "--adapter", f"again={trained / 'run'}", "--model", merged)
    done = call("evaluate", trained / "prepared", *options, "--score", "token_f1", "--out", out)
    assert done.returncode == 0, done.stderr
    report = json.loads(out.read_text(encoding="utf-8"))
    controls = ["first, images swapped", "again, images swapped", "majority answer"]
    assert [one["name"] for one in report["results"]] == ["base", "first", "again", "merged", *controls]
    assert _said_by(report, "first") == _said_by(report, "again") == _said_by(_report(trained), "adapter")
    assert _said_by(report, "base") == _said_by(_report(trained), "base")
    assert report["main_score"] == "token_f1"
    read = call("report", trained / "run", "--evaluation", out, "--out", trained / "several-report")
    assert read.returncode == 0, read.stderr
    assert "merged" in (trained / "several-report" / "report.html").read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def merged(trained: Path) -> Path:
    done = call("merge", trained / "run", "--onto", "nf4", "--out", trained / "merged")
    assert done.returncode == 0, done.stderr
    return trained / "merged"


def test_the_merged_model_answers_like_the_adapter(trained: Path, merged: Path) -> None:
    out = trained / "merged.json"
    done = call("evaluate", trained / "prepared", "--model", merged, "--no-controls", "--out", out)
    assert done.returncode == 0, done.stderr
    of_merged = json.loads(out.read_text(encoding="utf-8"))
    assert _said_by(of_merged, "merged") == _said_by(_report(trained), "adapter")
    assert of_merged["notes"] == [_trained_on_it("merged")]
    # the sum is rounded to the bf16 that the base is stored in; the adapter stays fp32 beside the quantised weight
    assert abs(_of(of_merged, "merged")["loss"] - _of(_report(trained), "adapter")["loss"]) < 0.05


def test_predict_answers_like_evaluate(trained: Path, merged: Path) -> None:
    expected = {a["id"]: a["answers"]["adapter"] for a in _report(trained)["answers"]}
    for model in (("--adapter", trained / "run"), ("--base", merged)):  # both know hd_num from the training
        done = call("predict", "Which number?", "--image", trained / "raw" / "1.png", *model)
        assert (done.returncode, done.stderr) == (0, ""), done.stderr
        assert done.stdout.strip() == expected["r1"]


def test_predict_writes_answers_for_a_prepared_set_or_questions(trained: Path) -> None:
    expected = {a["id"]: a["answers"]["adapter"] for a in _report(trained)["answers"]}
    done = call("predict", "--from", trained / "prepared", "--adapter", trained / "run", "--out", trained / "p.jsonl")
    assert done.returncode == 0, done.stderr
    assert f"6 answers in {trained / 'p.jsonl'}" in done.stdout
    assert "tokens/s" in done.stdout
    lines = [json.loads(line) for line in (trained / "p.jsonl").read_text(encoding="utf-8").splitlines()]
    assert {line["id"]: line["answer"] for line in lines} == expected

    asked = [{"id": "r1", "question": "Which number?", "image": "raw/1.png"}, {"id": "bad", "image": "raw/1.png"}]
    (trained / "q.jsonl").write_text("".join(json.dumps(line) + "\n" for line in asked), encoding="utf-8")
    options = ("--adapter", trained / "run", "--out", trained / "a.jsonl")
    done = call("predict", "--from", trained / "q.jsonl", *options)
    assert done.returncode == 3
    assert "1 could not be asked" in done.stderr
    assert "line 2: `question` is null or absent" in done.stderr
    assert json.loads((trained / "a.jsonl").read_text(encoding="utf-8"))["answer"] == expected["r1"]
    reject = json.loads((trained / "a.jsonl.rejects.jsonl").read_text(encoding="utf-8"))
    assert (reject["line"], reject["reason"]) == (2, "missing_field")
    for arguments, words in (
        ((), "there is no question"),
        (("What?", "--from", trained / "q.jsonl"), "--from and --out belong together"),
        (("What?", "--image", trained / "raw"), "add --out answers.jsonl"),
        (("What?", "--image", "https://example.com/a.png"), "images of records are not downloaded"),
        (("--from", trained / "q.jsonl"), "--from and --out belong together"),
        (("--from", trained / "q.jsonl", *options), "exists already"),
    ):
        wrong = call("predict", *arguments, *([] if "--adapter" in arguments else ["--base", "nano"]))
        assert wrong.returncode in (1, 2)
        assert words in wrong.stderr


def test_merge_compares_its_answers_with_the_adapters(trained: Path) -> None:
    out = trained / "verified"
    options = ("--onto", "nf4", "--verify-answers", trained / "prepared", "--verify-onto", "both")
    done = call("merge", trained / "run", "--out", out, *options)
    assert done.returncode == 0, done.stderr
    assert "6 of 6 equal the adapter's on nf4; logits differ by at most" in done.stdout
    assert "closer   to the adapter on nf4" in done.stdout
    answers = json.loads((out / "merge_report.json").read_text(encoding="utf-8"))["answers"]
    assert (answers["questions"], answers["passed"], answers["closer"]) == (6, True, "nf4")


def test_chat_streams_compares_and_survives_a_wrong_path(trained: Path) -> None:
    expected = {a["id"]: a["answers"] for a in _report(trained)["answers"]}["r1"]
    lines = ["/image nowhere.png", f"/image {trained / 'raw' / '1.png'}", "/compare", "Which number?", "/quit", "never"]
    done = ixtune("chat", "--adapter", trained / "run", typed="\n".join(lines))
    assert (done.returncode, done.stderr) == (0, "")
    assert "hd_num 1" in done.stdout.splitlines()[0]
    assert "error: there is no such image (nowhere.png)" in done.stdout
    assert f"base     {expected['base']}" in done.stdout
    assert f"adapter  {expected['adapter']}\n" in done.stdout
    assert done.stdout.endswith(f"adapter  {expected['adapter']}\n")


def test_errors_come_with_a_hint(trained: Path, tmp_path: Path) -> None:
    image = trained / "raw" / "1.png"
    (tmp_path / "text.png").write_text("no image", encoding="utf-8")
    cases: list[tuple[int, str, tuple[str | Path, ...]]] = [
        (2, "no model is named", ("predict", "Which?", "--image", image)),
        (1, "there is no adapter", ("predict", "Which?", "--image", image, "--adapter", tmp_path)),
        (1, "text.png", ("predict", "Which?", "--image", tmp_path / "text.png", "--base", "nano")),
        (1, "none.png", ("predict", "Which?", "--image", tmp_path / "none.png", "--base", "nano")),
        (2, "pass nf4 or none", ("predict", "Which?", "--base", "nano", "--quantize", "int8")),
        (1, "ixtune prepare", ("evaluate", tmp_path, "--base", "nano")),
        (2, "pass --adapter, --base or --model", ("evaluate", trained / "prepared")),
        (2, "did you mean anls?", ("evaluate", trained / "prepared", "--base", "nano", "--score", "anlss")),
        (2, "--benchmark NAME (`questions`", ("evaluate", trained / "evaluation.json", "--base", "nano")),
        (2, "there is no score bleu", ("evaluate", trained / "prepared", "--base", "nano", "--score", "bleu")),
        (2, "named twice", ("evaluate", trained / "prepared", "--base", "nano", "--score", "cer", "--score", "cer")),
        (
            2,
            "the model name 'run' is",
            ("evaluate", trained / "prepared", "--adapter", trained / "run", "--adapter", trained / "run"),
        ),
        (1, "exists already", ("evaluate", trained / "prepared", "--base", "nano", "--out", tmp_path / "text.png")),
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
        # in this process, which has imported everything once
        done = call(*(str(other) if argument == "OTHER" else argument for argument in arguments))
        assert (done.returncode, said in done.stderr) == (code, True), done.stderr
        assert "hint:" in done.stderr
        assert "Traceback" not in done.stderr


def test_wrong_options_are_refused_before_any_tensor_library_loads(tmp_path: Path) -> None:
    (tmp_path / "q.jsonl").write_text('{"question": "Which number?"}\n', encoding="utf-8")
    nowhere, asked, there = str(tmp_path / "nowhere"), str(tmp_path / "q.jsonl"), str(tmp_path)
    empty = str(tmp_path / "empty")
    Path(empty).mkdir()
    cases = [
        (["evaluate", there, "--base", "nano", "--score", "anlss"], 2, "did you mean anls?"),
        (["evaluate", there, "--base", "nano", "--quantize", "int8"], 2, "pass nf4 or none"),
        (["evaluate", there, "--base", "nano"], 1, "not a prepared set"),
        (["evaluate", asked, "--base", "nano"], 2, "--benchmark NAME (`questions`"),
        (["evaluate", asked, "--base", "nano", "--benchmark", "docvqua"], 2, "did you mean docvqa?"),
        (["evaluate", asked, "--benchmark", "questions", "--adapter", nowhere], 1, "there is no adapter"),
        (["evaluate", asked, "--benchmark", "questions", "--base", nowhere], 1, "there is no such base folder"),
        (["predict", "Which?", "--adapter", nowhere], 1, "there is no adapter"),
        (["predict", "Which?", "--base", nowhere], 1, "there is no such base folder"),
        (["predict", "Which?", "--base", "nano", "--quantize", "int8"], 2, "pass nf4 or none"),
        (["predict", "Which?", "--base", "nano", "--top-k", "3"], 2, "--do-sample"),
        (["predict", "--from", asked, "--base", "nano"], 2, "--from and --out belong together"),
        (["predict", "--from", nowhere, "--base", "nano", "--out", f"{nowhere}.jsonl"], 1, "there is no such file"),
        (["predict", "--from", empty, "--base", "nano", "--out", f"{nowhere}.jsonl"], 2, "the folder is empty"),
        (["predict", "--from", asked, "--base", "nano", "--out", asked], 1, "exists already"),
        (["predict", "--from", asked, "--base", "nano", "--out", "a.csv"], 2, "e.g. --out a.jsonl"),
        (["predict", "Which?", "--base", "nano", "--image", f"{nowhere}.png"], 1, "there is no such image"),
        (["chat", "--adapter", nowhere], 1, "there is no adapter"),
        (["chat", "--base", "nano", "--quantize", "int8"], 2, "pass nf4 or none"),
    ]
    # an import of any of these ends in an internal error
    barred = ["torch", "transformers", "peft", "datasets", "accelerate"]
    code = (
        f"import sys\nsys.modules.update(dict.fromkeys({barred}))\nfrom ixtune.cli import main\n"
        f"for words in {[words for words, _, _ in cases]}:\n"
        "    print('code', main(words), file=sys.stderr, flush=True)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    told = re.split(r"code (\d)\n", done.stderr)[:-1]
    assert [int(code) for code in told[1::2]] == [code for _, code, _ in cases], done.stderr
    for (words, _, expected), said in zip(cases, told[::2], strict=True):
        assert expected in said, words
