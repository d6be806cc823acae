"""Test `import ixtune`: it is light and typed, and all docstring examples run."""

from __future__ import annotations

import doctest
import inspect
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import pytest
import typer
from records import write_image

import ixtune
from ixtune import api, cli
from ixtune.errors import IxtuneError

ROOT = Path(__file__).resolve().parents[1]
RECIPE = """
base: nano
data:
  train: prepared/train
adapter:
  rank: 2
  alpha: 4
training:
  max_steps: 2
  pack_tokens: 1600
  gradient_checkpointing: false
output: run
"""


def test_importing_ixtune_loads_only_the_standard_library() -> None:
    """Check the imports; `make bench` measures the time."""
    code = "import sys; before = set(sys.modules); import ixtune; print(*sorted(set(sys.modules) - before))"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    loaded = {name.partition(".")[0] for name in done.stdout.split()}
    assert loaded - set(sys.stdlib_module_names) == {"ixtune"}
    assert "ixtune.api" not in done.stdout.split()


def test_every_public_name_exists_and_is_documented() -> None:
    assert set(ixtune.__all__) == {*api.__all__, "IxtuneError", "Recipe", "__version__"}
    assert set(ixtune.__all__) <= set(dir(ixtune))
    for name in api.__all__:
        assert getattr(ixtune, name) is getattr(api, name)
        assert ">>> " in (getattr(api, name).__doc__ or ""), name


def test_functions_take_the_options_of_their_commands_with_the_same_defaults() -> None:
    """Skip options that only print, and those that have their own command or function.

    Empty values are equal, such as None and (). `ratios` is the opposite of `--thousands`. `workers` is 1 for the
    function, and the number of cores for the command.
    """
    command: Any = typer.main.get_command(cli.app)
    renamed = {"correct": "corrections", "thousands": "ratios", "format_": "format", "image": "images"}
    renamed |= {"adapter": "adapters", "model": "models", "score": "scores", "changes": "overrides"}
    left_out = {
        "prepare": {"as_json"},
        "plan": {"as_json"},
        "train": {"report", "processes"},  # evaluate(report=); processes are started by the command
        "evaluate": {"as_json", "processes"},
        "predict": {"source", "out", "columns", "image_root", "limit", "batch_size", "processes"},  # a file
        "merge": {"dry_run", "verify_answers", "verify_onto"},
        "export": {"check", "listed", "push_to_hub"},
    }
    for name, without in left_out.items():
        options = {parameter.name: parameter for parameter in command.commands[name].params}
        parameters = inspect.signature(getattr(api, name)).parameters
        known = {option: option if option in parameters else renamed.get(option, "") for option in options}
        same = {option: parameter for option, parameter in known.items() if option not in without}
        missing = {option for option, parameter in same.items() if parameter not in parameters}
        assert not missing, f"{name}: {missing}"
        for option, parameter in same.items():
            theirs, ours = options[option].default, parameters[parameter].default
            if parameters[parameter].default is not inspect.Parameter.empty and option not in ("thousands", "workers"):
                assert (theirs or None) == (ours or None), f"{name}: {option} is {theirs!r}, {parameter} is {ours!r}"


def test_prepare_takes_an_image_root_in_an_object_store(tmp_path: Path) -> None:
    """It reaches the check of object stores as a URL, not as a local path."""
    (tmp_path / "q.csv").write_text("image,question,answer\na.png,Which?,b\n")
    with pytest.raises(IxtuneError, match=r"only refer to it \(s3://bucket/x\)"):
        ixtune.prepare(tmp_path / "q.csv", tmp_path / "set", image_root="s3://bucket/x", base="nano", hd_num=1)


def test_an_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="module 'ixtune' has no attribute 'prune'"):
        ixtune.prune  # noqa: B018


def test_docstring_examples_run_in_order(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Run them in one project folder: a table of eight images is prepared, trained, evaluated, merged and exported."""
    rows = ["image,question,answer"]
    for at in range(8):
        write_image(tmp_path / "photos" / f"{at}.png", 80 + at, 60)
        rows.append(f"{at}.png,How wide is it?,{80 + at}")
    (tmp_path / "questions.csv").write_text("\n".join(rows))
    (tmp_path / "recipe.yaml").write_text(RECIPE)
    monkeypatch.chdir(tmp_path)
    names = ["prepare", "plan", "train", "evaluate", "predict", "merge", "export", "load_model", "load_processor"]
    assert set(names) == set(api.__all__)
    finder, runner = doctest.DocTestFinder(recurse=False), doctest.DocTestRunner()
    for name in names:
        for example in finder.find(getattr(api, name), name, globs={}):
            runner.run(example)
    assert runner.failures == 0
    assert runner.tries >= 2 * len(names)


def test_wrong_values_are_refused_before_anything_is_loaded(tmp_path: Path) -> None:
    """typer checks them for the command line; from Python nothing did."""
    data, untyped = "nowhere", cast(Any, ixtune)
    calls: list[tuple[Callable[[], Any], str]] = [
        (
            lambda: untyped.prepare(data, "out", base="nano", hd_num=1, missing_placeholder="back"),
            "missing_placeholder is 'back'",
        ),
        (lambda: untyped.plan("documents", mix="documents", gpu_gib=0), "gpu_gib is 0, not 0.1 or more"),
        (lambda: untyped.plan("documents", mix="documents", processes=0), "processes is 0, not 1 or more"),
        (lambda: untyped.evaluate(data, base="nano", limit=0), "limit is 0"),
        (lambda: untyped.evaluate(data, base="nano", batch_size=-2), "batch_size is -2"),
        (lambda: untyped.evaluate(data, base="nano", max_new_tokens=0), "max_new_tokens is 0"),
        (lambda: untyped.predict("What?", base="nano", max_new_tokens=0), "max_new_tokens is 0"),
        (lambda: untyped.predict("What?", base="nano", dpi=-5), "dpi is -5"),
        (lambda: untyped.predict("What?", base="nano", template="Original"), "template is 'Original', none of"),
        (lambda: untyped.load_processor("nano", hd_num=0), "hd_num is 0"),
        (lambda: untyped.load_processor("nano", hd_num="9"), "hd_num is '9', not 1 or more"),
        (lambda: untyped.load_model("nano", quantize="int8"), "quantize is 'int8'"),
        (lambda: untyped.load_model("nano", quantize=True), "quantize is True"),
        (lambda: untyped.load_model("nano", dtype="float32"), "not a torch.dtype"),
        (lambda: untyped.merge([], "out"), "no adapter is given"),
        (lambda: untyped.merge("run", "out", base="nano", onto="NF4"), "onto is 'NF4', none of bf16, nf4"),
    ]
    for call, said in calls:
        with pytest.raises(IxtuneError) as caught:
            call()
        assert said in str(caught.value)
