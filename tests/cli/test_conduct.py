"""Test behavior shared by all commands: --quiet, --json, NO_COLOR on a terminal, and shell completion."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from in_process import call
from main_job import command, environment, ixtune, write_recipe, write_records
from terminal import has_colour, on_terminal

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_records(tmp_path_factory.mktemp("conduct") / "raw", 3)


@pytest.fixture(scope="module")
def prepared(data: Path) -> Path:
    out = data.parents[1] / "prepared"
    done = ixtune("--quiet", "prepare", data, "--out", out, "--hd-num", "1", "--base", "nano")
    assert (done.returncode, done.stdout, done.stderr) == (0, f"{out}\n", "")
    return out


def test_quiet_prints_only_the_path_of_the_result(prepared: Path, tmp_path: Path):
    recipe = write_recipe(tmp_path / "r.yaml", prepared, tmp_path / "run")
    trained = ixtune("train", recipe, "training.max_steps=1", "--quiet")  # behind the verb it is the same flag
    assert (trained.returncode, trained.stdout, trained.stderr) == (0, f"{tmp_path / 'run' / 'adapter'}\n", "")
    for verb, made, options in (
        ("merge", tmp_path / "merged", ()),
        ("export", tmp_path / "exported", ("--profile", "peft-original")),
    ):
        done = call("--quiet", verb, tmp_path / "run", "--out", made, *options)
        assert (done.returncode, done.stdout) == (0, f"{made}\n"), done.stderr
        assert all(line.startswith("warning: ") for line in done.stderr.splitlines())
    shown = call("--quiet", "preview", prepared, "--out", tmp_path / "preview", "--limit", "1")
    assert shown.stdout == f"{tmp_path / 'preview' / 'index.html'}\n"
    answers = tmp_path / "answers.jsonl"
    asked = call("--quiet", "predict", "--from", prepared, "--out", answers, "--base", "nano", "--max-new-tokens", "2")
    assert (asked.returncode, asked.stdout) == (0, f"{answers}\n"), asked.stderr


def test_quiet_still_prints_errors_and_requested_output(data: Path, tmp_path: Path):
    failed = ixtune(
        "--quiet", "prepare", tmp_path / "none.csv", "--out", tmp_path / "x", "--hd-num", "1", "--base", "nano"
    )
    assert (failed.returncode, failed.stdout) == (2, "")
    assert failed.stderr.startswith("error: ")
    image = next(data.parent.glob("*.png"))
    assert ixtune("--quiet", "layout", image).stdout == ixtune("layout", image).stdout != ""


def test_quiet_shows_no_progress_on_a_terminal(data: Path, tmp_path: Path):
    words = ("prepare", data, "--hd-num", "1", "--base", "nano", "--out")
    code, shown = on_terminal(command("--quiet", *words, tmp_path / "quiet"))
    assert (code, shown) == (0, f"{tmp_path / 'quiet'}\n")
    code, shown = on_terminal(command(*words, tmp_path / "loud"))
    assert code == 0
    assert "source   " in shown
    assert "records" in shown


def test_prepare_json_prints_only_json_with_the_counts(data: Path, tmp_path: Path):
    out = tmp_path / "out"
    done = ixtune("prepare", data, "--out", out, "--hd-num", "1", "--base", "nano", "--json")
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout)
    assert (told["read"], told["accepted"], told["rejected"], told["rejected_by_reason"]) == (3, 3, 0, {})
    assert told["sources"][0]["detected"].startswith("JSON list of InternLM-XComposer conversations")
    assert told["sets"][str(out)]["tokens"]["total"] > 3 * 313


@pytest.mark.parametrize(
    ("words", "code"),
    [
        (["recipes", "ls"], 0),
        (["plan", ROOT / "recipes" / "qlora-24gb.yaml", "--mix", "charts", "--gpu-gib", "8"], 1),
        (["layout", "none.png"], 1),
        (["recipes", "show", "none"], 2),
    ],
    ids=["table", "plan", "layout", "error"],
)
def test_no_color_applies_to_tables_and_errors(words: list[str], code: int):
    plain = on_terminal(command(*words), NO_COLOR="1")
    assert plain[0] == code
    assert plain[1]
    assert not has_colour(plain[1])


def test_an_error_on_a_terminal_is_red_unless_no_color_is_set():
    for value in ({}, {"NO_COLOR": ""}):  # an empty one is none, says no-color.org
        code, shown = on_terminal(command("recipes", "show", "none"), **value)
        assert code == 2
        assert has_colour(shown)


def test_no_color_applies_to_the_live_view_of_training(prepared: Path, tmp_path: Path):
    recipe = write_recipe(tmp_path / "r.yaml", prepared, tmp_path / "run")
    code, shown = on_terminal(command("train", recipe, "training.max_steps=2"), NO_COLOR="1")
    assert code == 0
    assert "step 2/2" in shown or "step     2/2" in shown
    assert not has_colour(shown)


@pytest.fixture
def installed(tmp_path: Path) -> Path:
    """Return a folder for the PATH with an `ixtune` script, as an installation makes it."""
    script = tmp_path / "bin" / "ixtune"
    script.parent.mkdir()
    script.write_text(f"#!{sys.executable}\nimport sys\nfrom ixtune.cli import main\nsys.exit(main())\n")
    script.chmod(0o755)
    return script.parent


def bash(script: str, installed: Path, home: Path) -> str:
    env = environment() | {"PATH": f"{installed}{os.pathsep}{os.environ['PATH']}", "HOME": str(home)}
    env |= {"PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        ["bash", "--norc", "-c", script], env=env, cwd=home, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.skipif(shutil.which("bash") is None, reason="there is no bash")
@pytest.mark.parametrize(
    ("line", "expected", "not_expected"),
    [
        ("ixtune pre", {"prepare", "preview", "predict"}, {"train"}),
        ("ixtune recipes c", {"check", "cp"}, {"ls"}),
        ("ixtune recipes show qlora-", {"qlora-16gb", "qlora-24gb", "qlora-80gb"}, {"charts"}),
        ("ixtune train --p", {"--processes"}, {"--resume"}),
        ("ixtune base ", {"info", "verify", "convert"}, {"train"}),
    ],
)
def test_bash_completes_commands_and_options(
    line: str, expected: set[str], not_expected: set[str], installed: Path, tmp_path: Path
):
    words = line.split(" ")
    found = bash(
        'eval "$(ixtune --show-completion bash)"\n'
        "function=$(complete -p ixtune | sed 's/.*-F \\([^ ]*\\) .*/\\1/')\n"
        f"COMP_WORDS=({' '.join(words[:-1])} '{words[-1]}'); COMP_CWORD={len(words) - 1}\n"
        '$function ixtune; printf "%s\\n" "${COMPREPLY[@]}"',
        installed,
        tmp_path,
    ).split()
    assert expected <= set(found)
    assert not set(found) & not_expected


@pytest.mark.skipif(shutil.which("bash") is None, reason="there is no bash")
def test_install_completion_writes_a_file_that_a_new_bash_reads(installed: Path, tmp_path: Path):
    assert "completion installed in" in bash("ixtune --install-completion bash", installed, tmp_path)
    bashrc = (tmp_path / ".bashrc").read_text(encoding="utf-8")
    written = next(path for path in tmp_path.rglob("*.sh"))
    assert str(written) in bashrc
    assert "complete -o default -F _ixtune_completion ixtune" in written.read_text(encoding="utf-8")


def test_completion_for_a_named_shell_needs_no_parent_shell(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Run as in the entry point of a container, in a service or under nohup."""
    import shellingham

    def none_found() -> None:
        raise shellingham.ShellDetectionFailure

    monkeypatch.setattr(shellingham, "detect_shell", none_found)
    monkeypatch.setenv("HOME", str(tmp_path))
    for shell in ("bash", "fish"):
        done = call("--install-completion", shell)
        assert done.returncode == 0, done.stderr
        assert f"{shell} completion installed in {tmp_path}" in done.stdout
        assert "ixtune" in call("--show-completion", shell).stdout
