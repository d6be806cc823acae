"""What the README shows is what there is."""

from __future__ import annotations

import json
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from main_job import environment, ixtune
from records import write_image

from ixtune.data.benchmarks import BENCHMARKS
from ixtune.data.rejects import Reason
from ixtune.scores import SCORES

README = Path(__file__).parents[1] / "README.md"


def _blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", README.read_text(encoding="utf-8"), re.DOTALL | re.MULTILINE)


def _commands() -> list[list[str]]:
    text = (
        "\n".join(_blocks("")) + "\n" + "\n".join(re.findall(r"^\| `(ixtune [^`]+)`", README.read_text("utf-8"), re.M))
    )
    return [line.split("#")[0].split() for line in text.splitlines() if line.startswith("ixtune ")]


def test_there_are_commands_to_check() -> None:
    assert {command[1] for command in _commands()} == {
        "prepare", "preview", "layout", "plan", "train", "evaluate", "report", "merge", "predict", "bench", "recipes",
        "export", "chat", "base", "inspect", "init", "doctor",
    }  # fmt: skip


@pytest.mark.parametrize("verb", sorted({command[1] for command in _commands()}))
def test_every_option_in_the_readme_exists(verb: str) -> None:
    shown = ixtune(verb, "--help").stdout
    for command in _commands():
        if command[1] == verb:
            for word in command:
                if word.startswith("--"):
                    assert re.search(rf"(^|\s){re.escape(word)}\b", shown), f"{word} is not in ixtune {verb} --help"


@pytest.mark.parametrize("code", _blocks("python"))
def test_the_python_in_the_readme_runs(code: str) -> None:
    done = subprocess.run([sys.executable, "-W", "ignore", "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    for expected in re.findall(r"print\(.*\)  # (.*)", code):
        assert expected in done.stdout


def test_the_data_section_runs_as_it_stands(tmp_path: Path) -> None:
    """The CSV, the YAML and the commands of the section, in a folder with images of those names."""
    section = README.read_text(encoding="utf-8").partition("## Your data")[2].partition("\n## ")[0]
    table = re.findall(r"^```csv\n(.*?)^```", section, re.DOTALL | re.MULTILINE)[0]
    config = re.findall(r"^```yaml\n(.*?)^```", section, re.DOTALL | re.MULTILINE)[0]
    (tmp_path / "questions.csv").write_text(table)
    (tmp_path / "receipts.csv").write_text(table)
    (tmp_path / "mix.yaml").write_text(config)
    for row in table.splitlines()[1:]:
        write_image(tmp_path / "photos" / row.split(",")[0], 80, 60)
    turns = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "yo"}]
    (tmp_path / "chats.jsonl").write_text("\n".join([json.dumps({"messages": turns})] * 60))
    write_image(tmp_path / "page.png", 80, 60)
    listed = [line for line in section.splitlines() if line.startswith("ixtune ")]
    listed.append(config.splitlines()[0].partition(": ")[2] + " --base nano")
    listed += re.findall(r"^`(ixtune layout [^`]*)`", section, re.MULTILINE)
    assert [command.split()[1] for command in listed] == ["prepare", "preview", "prepare", "layout"]
    for command in listed:
        done = subprocess.run(
            [sys.executable, "-m", *command.split()],
            cwd=tmp_path,
            env={**environment(), "PYTHONPATH": str(README.parent)},
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, (command, done.stderr)
    sides = [tmp_path / "prepared" / "mix" / side / "manifest.json" for side in ("train", "validation")]
    manifests = [json.loads(path.read_text()) for path in sides]
    assert manifests[0]["sources"][1]["rows"] >= 2000
    assert all(manifest["records"]["rows"] for manifest in manifests)


def test_the_way_from_data_to_a_deployed_model_runs_as_it_stands(tmp_path: Path) -> None:
    """The commands of the section in their order, on the embedded base, which needs no GPU, and for one step."""
    section = README.read_text(encoding="utf-8").partition("## From your data")[2].partition("\n## ")[0]
    rows = ["image,question,answer"]
    for at in range(24):
        write_image(tmp_path / "photos" / f"{at}.png", 80 + at, 60)
        rows.append(f"{at}.png,How wide is it?,{80 + at}")
    (tmp_path / "questions.csv").write_text("\n".join(rows))
    write_image(tmp_path / "receipt.png", 80, 60)
    small = {"init": ["--base", "nano"], "prepare": ["--base", "nano"], "train": ["training.max_steps=1"]}
    listed = [shlex.split(line.partition("#")[0]) for line in section.splitlines() if line.startswith("ixtune ")]
    verbs = [words[1] for words in listed]
    assert verbs == ["doctor", "init", "prepare", "plan", "train", "merge", "export", "predict"]
    for words in listed:
        done = subprocess.run(
            [sys.executable, "-m", *words, *small.get(words[1], [])],
            cwd=tmp_path,
            env={**environment(), "PYTHONPATH": str(README.parent)},
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, (words, done.stdout, done.stderr)
    assert (tmp_path / "mine" / "run" / "report.html").is_file()
    assert (tmp_path / "mine" / "export" / "config.json").is_file()


def test_the_tables_of_scores_and_benchmarks_in_the_readme_name_all_there_are() -> None:
    section = README.read_text(encoding="utf-8").partition("## Did it get better?")[2].partition("\n## ")[0]
    told = set(re.findall(r"`([a-z0-9_]+)`", section))
    assert set(SCORES) | set(BENCHMARKS) <= told


def test_the_recipes_in_the_readme_are_those_that_ship_with_the_figures_of_their_heads() -> None:
    section = README.read_text(encoding="utf-8").partition("## Recipes")[2].partition("\n## ")[0]
    rows = dict(re.findall(r"^\| `([a-z0-9-]+)` \| [^|]+ \| ([0-9.]+)", section, re.MULTILINE))
    assert set(rows) == {path.stem for path in (README.parent / "recipes").glob("*.yaml")}
    for name, needs in rows.items():
        head = (README.parent / "recipes" / f"{name}.yaml").read_text(encoding="utf-8")
        assert re.search(rf"fits: {needs} of|, {needs} GiB at most", head), name


def test_the_reason_codes_in_the_readme_are_those_there_are() -> None:
    section = README.read_text(encoding="utf-8").partition("All reason codes")[2].partition("</details>")[0]
    told = re.findall(r"^\| `([a-z0-9_]+)` \| (.*) \|$", section, re.MULTILINE)
    assert dict(told) == {reason.value: reason.description for reason in Reason}


def test_the_make_targets_in_the_readme_exist() -> None:
    makefile = (README.parent / "Makefile").read_text(encoding="utf-8")
    for target in re.findall(r"make ([a-z]+)", README.read_text(encoding="utf-8")):
        assert re.search(rf"^{target}:", makefile, re.MULTILINE), target


def test_nothing_in_the_readme_is_left_to_fill_in() -> None:
    assert not re.search(r"DEMO_|\bTREE\b|\bTBD\b", README.read_text(encoding="utf-8"))
