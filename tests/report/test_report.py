"""Test the figures of a report, and that HTML and Markdown agree."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from in_process import call
from records import write_image
from report_files import HOSTILE, evaluation, write_evaluation, write_run

from ixtune.errors import UsageError
from ixtune.report import report, sections
from ixtune.report.figures import figures
from ixtune.report.groups import breakdown
from ixtune.report.images import Album, Drawn
from ixtune.report.markdown import plain
from ixtune.report.run_reader import read_run
from ixtune.report.verdict import verdicts


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = write_run(tmp_path_factory.mktemp("runs") / "one")
    write_evaluation(folder / "evaluation.json")
    return folder


@pytest.fixture(scope="module")
def out(run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return report([run], tmp_path_factory.mktemp("out") / "report").out


@pytest.fixture(scope="module")
def told(out: Path) -> dict[str, Any]:
    return dict(json.loads((out / "report.json").read_text(encoding="utf-8")))


def test_html_and_markdown_show_the_figures_of_the_json(out: Path, told: dict[str, Any]):
    html, words = ((out / f"report.{kind}").read_text(encoding="utf-8") for kind in ("html", "md"))
    for result in told["evaluations"][0]["results"]:
        found = result["scores"]["exact_match"]
        told_so = f"{found['value']:.3f} [{found['low']:.3f}, {found['high']:.3f}]"
        assert told_so in html
        assert plain(told_so) in words
    for dimension in told["evaluations"][0]["breakdown"]:
        for group in dimension["groups"]:
            assert f"{group['results']['adapter']['value']:.3f} [" in html
            assert f"n = {group['n']:,}" in html
    assert "+0.625 (95 % interval +0.450 to +0.775, p &lt; 0.001)" in html
    assert "10,000" in html  # tokens trained on


def test_questions_with_kinds_are_scored_by_kind():
    answers = [
        {
            "id": str(at), "question": "q", "form": "q", "kind": kind, "references": ["x"], "pictures": [],
            "answers": {"base": "x"}, "scores": {"base": {"exact_match": score}},
        }
        for at, (kind, score) in enumerate([("human", 1.0), ("human", 0.0), ("augmented", 1.0)])
    ]  # fmt: skip
    (found,) = breakdown(answers, ["base"], "exact_match")
    assert found["dimension"] == "kind of question"
    means = {group["group"]: group["results"]["base"]["value"] for group in found["groups"]}
    assert means == {"human": 0.5, "augmented": 1.0}


def test_groups_are_complete_and_their_means_match_their_answers(told: dict[str, Any]):
    by = {one["dimension"]: one["groups"] for one in told["evaluations"][0]["breakdown"]}
    assert set(by) == {"form of the question", "size of the image", "number of crops", "length of the answer"}
    assert all(sum(group["n"] for group in groups) == 40 for groups in by.values())
    row = next(group for group in by["form of the question"] if group["group"] == "What is in row #?")
    assert (row["n"], row["results"]["adapter"]["value"]) == (20, 0.75)  # 1, 3, … 29 of 1, 3, … 39
    assert row["results"]["base"]["value"] == pytest.approx(0.1)  # 1 and 3
    assert row["results"]["base"]["low"] <= 0.1 <= row["results"]["base"]["high"]
    assert [(group["group"], group["n"]) for group in by["number of crops"]] == [("1", 20), ("2", 20)]
    assert [(group["group"], group["n"]) for group in by["length of the answer"]] == [("1 word", 30), ("2 words", 10)]


def test_rare_question_forms_are_combined_as_others(tmp_path: Path):
    answers = evaluation(tmp_path)["answers"]
    for at, answer in enumerate(answers):
        answer["form"] = f"form {min(at, 15)}"
    groups = breakdown(answers, ["adapter"], "exact_match")[0]["groups"]
    assert len(groups) == 8
    assert groups[0] == groups[0] | {"group": "form 15", "n": 25}
    assert groups[-1]["group"] == "9 others"
    assert sum(group["n"] for group in groups) == 40


def test_regressions_and_gains_list_the_changed_answers(told: dict[str, Any]):
    judged = told["evaluations"][0]
    assert [one["id"] for one in judged["regressions"]] == ["r0"]
    assert (judged["worse"], judged["better"]) == (1, 26)
    assert [one["id"] for one in judged["gains"]] == ["r5", "r6", "r7", "r8", "r9", "r10"]


def test_the_report_title_names_run_and_base(out: Path, run: Path, told: dict[str, Any]):
    title = f"{run.parent.name}/one on nano"
    assert told["runs"][0]["title"] == title
    html, words = ((out / f"report.{kind}").read_text(encoding="utf-8") for kind in ("html", "md"))
    assert f"<title>{title}: report</title>" in html
    assert f">{title}</h1>" in html
    assert f"recipe {run / 'recipe.yaml'}; trained on {run / 'no-set'}" in html
    assert words.startswith(f"# {plain(title)}\n\n{plain(told['runs'][0]['about'])}\n")


def test_with_three_models_each_list_names_its_model(tmp_path: Path, out: Path):
    folder = write_run(tmp_path / "run")
    content = evaluation(tmp_path / "pictures")
    for key in ("results", "models"):
        content[key].insert(1, content[key][1] | {"name": "other"})
    for answer in content["answers"]:
        answer["answers"]["other"], answer["scores"]["other"] = "7", {"exact_match": 0.0}
    (folder / "evaluation.json").write_text(json.dumps(content), encoding="utf-8")
    said = "Of adapter against base only: other is not in this list."
    three = report([folder], tmp_path / "out").out
    for kind in ("html", "md"):
        assert (three / f"report.{kind}").read_text(encoding="utf-8").count(said) == 2
        assert "not in this list" not in (out / f"report.{kind}").read_text(encoding="utf-8")


def test_an_image_shown_by_several_records_counts_once(tmp_path: Path):
    write_image(tmp_path / "a.png", 80, 60)
    write_image(tmp_path / "b.png", 60, 80)
    rows = [f"{name}.png,Which row?,{row}" for row, name in enumerate("aaab")]
    (tmp_path / "q.csv").write_text("\n".join(["image,question,answer", *rows]), encoding="utf-8")
    done = call("prepare", tmp_path / "q.csv", "--out", tmp_path / "set", "--base", "nano", "--hd-num", "4")
    assert done.returncode == 0, done.stderr
    folder = write_run(tmp_path / "run")
    recipe = (folder / "recipe.yaml").read_text(encoding="utf-8")
    (folder / "recipe.yaml").write_text(recipe.replace(str(folder / "no-set"), str(tmp_path / "set")), encoding="utf-8")
    report([folder], tmp_path / "out")
    (told,) = json.loads((tmp_path / "out" / "report.json").read_text(encoding="utf-8"))["runs"]
    (data,) = told["data"].values()
    assert (data["records"], data["pictures"], data["pictures_shown"]) == (4, 2, 4)
    assert "2, shown 4 times" in (tmp_path / "out" / "report.html").read_text(encoding="utf-8")
    (tmp_path / "set" / "data-00000-of-00001.arrow").write_bytes(b"no Arrow")
    written = report([folder], tmp_path / "out")
    assert any("are not counted: the Arrow part of the prepared set is broken" in one for one in written.missing)
    assert ">shown 4 times<" in (tmp_path / "out" / "report.html").read_text(encoding="utf-8")


def test_curves_and_cost_match_the_metrics(run: Path, told: dict[str, Any]):
    curves = told["runs"][0]["curves"]
    assert list(curves) == ["loss", "validation_loss", "learning_rate"]
    assert curves["validation_loss"] == [[10, 1.0], [20, 0.8]]
    assert told["runs"][0]["cost"] == {
        "steps": 20, "seconds": 30.0, "tokens": 10000, "computed_tokens": 4000, "supervised_tokens": 400,
        "tokens_per_s": 1011.0, "computed_tokens_per_s": 411.0, "peak_memory_gib": 1.25, "resumed": 0,
        "out_of_memory": 0,
    }  # fmt: skip
    lines = dict(sections.cost_lines(told["runs"][0]["cost"]))
    assert lines["tokens computed for them"] == "4,000 (40%): common prefixes once"
    assert lines["computed tokens per second"] == "411.0 (median)"


def test_scores_measured_during_training_become_curves(tmp_path: Path):
    folder = write_run(tmp_path / "run")
    with (folder / "metrics.jsonl").open("a", encoding="utf-8") as file:
        file.write('{"step": 20, "validation_anls": 0.5, "validation": {"cer": 0.25}}\n{"step": 21, "lo')
    read = read_run(folder, "run")
    curves = figures([read], [])["runs"][0]["curves"]
    assert (curves["validation_anls"], curves["validation cer"]) == ([(20, 0.5)], [(20, 0.25)])
    assert any("1 lines of" in one for one in read.missing)


def test_score_curves_follow_the_losses_and_name_the_chosen_step(tmp_path: Path):
    folder = write_run(tmp_path / "run")
    lines = [
        json.dumps({"step": step, "validation_loss": 0.9, "validation_anls": step / 50, "validation_exact_match": 0.1})
        for step in (5, 15)
    ]
    with (folder / "metrics.jsonl").open("a", encoding="utf-8") as file:
        file.write("\n".join(lines))
    record = json.loads((folder / "adapter" / "ixtune.json").read_text(encoding="utf-8"))
    record |= {"steps": 15, "best_by": "anls", "validation_scores": {"anls": 0.3, "exact_match": 0.1}}
    (folder / "adapter" / "ixtune.json").write_text(json.dumps(record), encoding="utf-8")
    report([folder], tmp_path / "out")
    told = json.loads((tmp_path / "out" / "report.json").read_text(encoding="utf-8"))["runs"][0]
    order = ["loss", "validation_loss", "validation_exact_match", "validation_anls", "learning_rate"]
    assert list(told["curves"]) == order
    assert told["curves"]["validation_anls"] == [[5, 0.1], [15, 0.3]]
    assert told["adapter"]["validation_scores"] == {"anls": 0.3, "exact_match": 0.1}
    html = (tmp_path / "out" / "report.html").read_text(encoding="utf-8")
    for caption in ("Exact match on validation", "ANLS on validation"):
        assert f"<figcaption>{caption}</figcaption>" in html
    assert "The adapter is from step 15, the best by ANLS on validation." in html


def test_a_model_that_beats_its_controls_gets_that_verdict(tmp_path: Path):
    found = verdicts(evaluation(tmp_path))
    assert [one["kind"] for one in found] == ["good", "good", "good"]
    assert found[0]["text"].startswith("adapter is better than base: exact match +0.625")
    assert "uses the images" in found[1]["text"]


def test_a_model_that_does_not_beat_the_blind_control_is_reported(tmp_path: Path):
    found = verdicts(evaluation(tmp_path, blind=0.74))
    assert found[1]["kind"] == "bad"
    assert "adapter is not shown to use the images" in found[1]["text"]


@pytest.mark.parametrize(
    ("low", "high", "p", "kind", "words"),
    [
        (-0.1, 0.2, 0.0001, "open", "No clear difference"),
        (-0.3, -0.1, 0.0001, "bad", "worse"),
        (0.1, 0.3, 0.0001, "good", "better"),
        (0.1, 0.3, 0.128, "open", "No clear difference"),
    ],
)
def test_the_verdict_on_a_difference_follows_its_interval_and_its_p_value(
    tmp_path: Path, low: float, high: float, p: float, kind: str, words: str
):
    content = evaluation(tmp_path)
    content["comparisons"][0] |= {"low": low, "high": high, "p_value": p}
    assert verdicts(content)[0]["kind"] == kind
    assert words in verdicts(content)[0]["text"]


def test_a_lower_error_rate_is_better(tmp_path: Path):
    content = json.loads(json.dumps(evaluation(tmp_path)).replace("exact_match", "cer"))
    assert verdicts(content)[0]["kind"] == "bad"
    content["comparisons"][0] |= {"difference": -0.2, "low": -0.3, "high": -0.1}
    assert verdicts(content)[0]["kind"] == "good"


def test_missing_files_are_listed_in_the_report(tmp_path: Path):
    folder = write_run(tmp_path / "bare")
    (folder / "metrics.jsonl").unlink()
    (folder / "adapter" / "ixtune.json").unlink()
    written = report([folder], tmp_path / "out")
    html = (tmp_path / "out" / "report.html").read_text(encoding="utf-8")
    for part in ("evaluation.json", "metrics.jsonl", "ixtune.json", "no-set"):
        assert any(part in sentence for sentence in written.missing)
        assert part in html.partition("Not in this report")[2].partition("</section>")[0]


def test_a_moved_or_changed_image_is_reported(tmp_path: Path):
    stored = evaluation(tmp_path)["answers"]
    album = Album()
    drawn = album.draw(stored[0]["pictures"][0], 4)
    assert isinstance(drawn, Drawn)
    assert drawn.uri.startswith("data:image/jpeg;base64,")
    assert "moved.png" in str(album.draw(stored[4]["pictures"][0], 4))
    assert "another size" in str(album.draw(stored[0]["pictures"][0] | {"width": 641}, 4))
    assert "inside the benchmark" in str(album.draw(stored[0]["pictures"][0] | {"path": None}, 4))
    assert "size limit" in str(Album(1000).draw(stored[0]["pictures"][0], 4))


def test_runs_are_compared(tmp_path: Path):
    one, two = write_run(tmp_path / "one"), write_run(tmp_path / "two", learning_rate=2e-3)
    write_evaluation(one / "evaluation.json")
    write_evaluation(two / "evaluation.json", blind=0.74)
    written = report([one, two], tmp_path / "out")
    assert [sentence.partition(":")[0] for sentence in written.verdicts] == 3 * ["one"] + 3 * ["two"]
    told = json.loads((tmp_path / "out" / "report.json").read_text(encoding="utf-8"))
    differs = {one["key"]: one["values"] for one in told["recipe_differences"]}
    assert differs.pop("training.learning_rate") == {"one": 1e-3, "two": 2e-3}
    assert set(differs) == {"data.train"}
    html = (tmp_path / "out" / "report.html").read_text(encoding="utf-8")
    assert html.count("<polyline") == 6  # three curves of two runs
    assert html.count('class="listing"') == 2


def test_runs_with_equal_folder_names_get_distinct_names(tmp_path: Path):
    runs = [write_run(tmp_path / name / "run") for name in ("a", "b")]
    report(runs, tmp_path / "out")
    told = json.loads((tmp_path / "out" / "report.json").read_text(encoding="utf-8"))
    assert [one["name"] for one in told["runs"]] == ["a/run", "b/run"]


@pytest.mark.parametrize("content", ["{", "[]", '{"format": 1}', '{"format": 2}'])
def test_a_damaged_evaluation_is_refused(tmp_path: Path, content: str):
    folder = write_run(tmp_path / "run")
    (tmp_path / "e.json").write_text(content, encoding="utf-8")
    with pytest.raises(UsageError, match="the evaluation"):
        report([folder], tmp_path / "out", [tmp_path / "e.json"])
    assert not (tmp_path / "out").exists()


def test_hostile_texts_are_escaped(tmp_path: Path):
    folder = write_run(tmp_path / "run")
    write_evaluation(folder / "evaluation.json", hostile=True)
    report([folder], tmp_path / "out")
    html, words = ((tmp_path / "out" / f"report.{kind}").read_text(encoding="utf-8") for kind in ("html", "md"))
    assert "<img src=x" not in html
    assert "<svg onload" not in html
    assert html.count("</script>") == 1
    assert HOSTILE not in words
    assert "<img" not in words.replace("\\<img", "")


def test_an_extended_run_shows_where_it_was_extended(tmp_path: Path):
    folder = write_run(tmp_path / "run")
    event = {"step": 15, "event": "extended", "steps_before": 15, "steps_after": 20}
    with (folder / "metrics.jsonl").open("a", encoding="utf-8") as file:
        file.write(json.dumps(event) + "\n")
    report([folder], tmp_path / "out")
    told = json.loads((tmp_path / "out" / "report.json").read_text(encoding="utf-8"))["runs"][0]
    assert told["extensions"] == [{"step": 15, "steps_before": 15, "steps_after": 20}]
    html = (tmp_path / "out" / "report.html").read_text(encoding="utf-8")
    assert html.count('class="seam"') == html.count("<polyline") - 1  # two curves share the first chart
    assert "Extended at step 15: 15 optimizer steps became 20" in html
