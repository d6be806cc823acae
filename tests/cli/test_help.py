"""Test the command line: help, version, errors, exit codes."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import typer

from ixtune import __version__, cli
from ixtune.errors import DataError, IxtuneError, UsageError
from ixtune.recipe import shipped_recipes

ROOT = Path(__file__).resolve().parents[2]
COMMAND: Any = typer.main.get_command(cli.app)
VERBS = tuple(COMMAND.commands)
PAGES: list[list[str]] = [[], *([verb] for verb in VERBS)]
PAGES += [[verb, below] for verb in VERBS for below in getattr(COMMAND.commands[verb], "commands", ())]


def ixtune(*arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
    """Run the command line in a separate process."""
    command = [sys.executable, "-m", "ixtune", *arguments]
    return subprocess.run(
        command,
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
        env=os.environ | {"NO_COLOR": "1"} | variables,
    )


@pytest.mark.parametrize("page", PAGES, ids=" ".join)
def test_every_help_page_exits_0_without_heavy_imports(page: list[str]):
    """Check the imports; `make bench` measures the time, which has to stay below 0.3 s."""
    heavy = "torch", "transformers", "datasets", "pydantic", "yaml", "rich", "numpy"
    code = (
        f"import sys; from ixtune.cli import main; main(sys.argv[1:]); print([n for n in {heavy} if n in sys.modules])"
    )
    command = [sys.executable, "-c", code, *page, "--help"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("Usage: ")
    assert "Example: ixtune " in done.stdout
    assert done.stdout.endswith("[]\n"), "what is heavy is imported"


def test_help_lists_every_command_with_a_sentence():
    lines = ixtune("--help").stdout.partition("Commands:")[2].splitlines()
    described = {words[0]: words[1:] for line in lines if (words := line.split())}
    assert set(VERBS) <= set(described)
    assert all(len(described[verb]) >= 3 for verb in VERBS)


def test_every_option_has_a_help_text():
    for page in PAGES:
        command = COMMAND
        for name in page:
            command = command.commands[name]
        for parameter in command.params:
            assert parameter.help or parameter.name == "help", f"{page}: {parameter.name}"


def test_version():
    done = ixtune("--version")
    assert (done.returncode, done.stdout) == (0, f"ixtune {__version__}\n")


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["tarin"], "No such command 'tarin'"),
        (["train"], "Missing argument"),
        (["recipes", "ls", "--lnog"], "No such option"),
    ],
)
def test_wrong_usage_exits_2_with_a_one_line_reason(arguments: list[str], told: str):
    done = ixtune(*arguments)
    assert done.returncode == 2
    assert told in done.stderr
    assert "Traceback" not in done.stderr


def test_a_recipe_with_mistakes_lists_them_and_exits_2(tmp_path: Path):
    recipe = tmp_path / "r.yaml"
    recipe.write_text("base: nano\nadapter:\n  rnak: 8\n")
    done = ixtune("train", str(recipe))
    assert done.returncode == 2
    assert done.stderr.splitlines()[0] == f"error: 3 mistakes in the recipe ({recipe})"
    assert f"{recipe}:3: unknown key adapter.rnak; did you mean adapter.rank?" in done.stderr
    assert done.stderr.splitlines()[-1].startswith("hint:  ")
    assert "Traceback" not in done.stderr


def failing_with(monkeypatch: pytest.MonkeyPatch, error: BaseException) -> None:
    """Make `ixtune recipes ls` raise this error."""

    def fail(kind: str) -> Path:
        raise error

    monkeypatch.setattr(shipped_recipes, "shipped", fail)


@pytest.mark.parametrize("kind", [IxtuneError, UsageError, DataError])
def test_an_expected_error_is_two_lines_with_its_exit_code(
    kind: type[IxtuneError], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    failing_with(monkeypatch, kind("it is [bold]broken[/]", where="a:1", hint="glue it", notes=["here"]))
    assert cli.main(["recipes", "ls"]) == kind.exit_code
    out, err = capsys.readouterr()
    assert out == ""
    assert err == "error: it is [bold]broken[/] (a:1)\n  here\nhint:  glue it\n"


def test_ctrl_c_exits_130(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    failing_with(monkeypatch, KeyboardInterrupt())
    assert cli.main(["recipes", "ls"]) == 130
    assert capsys.readouterr().err == "interrupted: nothing half-written is left\n"


class SafetensorError(Exception):
    """Imitate the error of safetensors."""


@pytest.mark.parametrize(
    ("error", "told"),
    [
        (OSError(errno.ENOSPC, "No space left on device", "/out"), "error: no space left on the disk (/out)"),
        (
            SafetensorError("I/O error: No space left on device (os error 28)"),
            "error: no space left on the disk",
        ),
        (PermissionError(errno.EACCES, "Permission denied", "/out"), "error: permission denied (/out)"),
        (NotADirectoryError(errno.ENOTDIR, "Not a directory", "a.csv/x"), "error: not a directory (a.csv/x)"),
        (FileExistsError(errno.EEXIST, "File exists", "a.csv"), "error: file exists (a.csv)"),
        (ZeroDivisionError("by zero\nmore"), "error: internal error: ZeroDivisionError: by zero"),
        (KeyError(), "error: internal error: KeyError: "),
    ],
)
def test_any_other_error_is_one_line_with_a_hint(
    error: Exception, told: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    failing_with(monkeypatch, error)
    assert cli.main(["recipes", "ls"]) == 1
    first, second = capsys.readouterr().err.splitlines()
    assert first == told
    assert second.startswith("hint:  ")


@pytest.mark.parametrize("variables", [{}, {"IXTUNE_DEBUG": "1"}])
def test_debug_adds_the_traceback_and_keeps_the_exit_code(
    variables: dict[str, str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    failing_with(monkeypatch, UsageError("it is broken", hint="glue it"))
    assert cli.main([*([] if variables else ["--debug"]), "recipes", "ls"]) == 2
    err = capsys.readouterr().err
    assert "Traceback" in err
    assert err.endswith("error: it is broken\nhint:  glue it\n")


def test_a_closed_pipe_causes_no_error_output():
    command = [sys.executable, "-m", "ixtune", "recipes", "show", "qlora-24gb"]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.close()
        assert process.stderr.read() == b""
    assert process.wait() == 1
