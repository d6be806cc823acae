"""Run the command in the head of every shipped recipe: one step on a small base, with its own settings."""

from __future__ import annotations

import json
import shlex
from pathlib import Path

import pytest
from in_process import call
from records import write_image
from two_five_base import write_two_five_base

from ixtune.base import resolve
from ixtune.family import TWO_FIVE, member_of_hub_id
from ixtune.recipe.recipe import load
from ixtune.recipe.shipped_recipes import shipped_by_name

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def bases(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Return a base of each member of the family: the embedded one, and a random InternLM-XComposer-2.5."""
    return {"4khd": resolve("nano"), "2.5": write_two_five_base(tmp_path_factory.mktemp("two-five") / "base")}


@pytest.fixture(scope="module")
def sets(bases: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Return the prepared set for each base."""
    folder = tmp_path_factory.mktemp("receipts")
    rows = []
    for at in range(4):
        write_image(folder / f"{at}.png", 60 + at, 40)
        rows.append({"image": f"{at}.png", "question": "Read it.", "answer": json.dumps({"total": str(at)})})
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    for name, base in bases.items():
        done = call("prepare", folder / "rows.jsonl", "--out", folder / name, "--base", base, "--hd-num", "1")
        assert done.returncode == 0, done.stderr
    return {name: folder / name for name in bases}


@pytest.mark.parametrize("name", shipped_by_name())
def test_a_shipped_recipe_runs_as_its_header_says(
    name: str, bases: dict[str, Path], sets: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = shipped_by_name()[name].path
    words = shlex.split(path.read_text(encoding="utf-8").splitlines()[0].removeprefix("# "))
    assert words[:2] == ["ixtune", "train"]
    recipe = load(path)
    member = "2.5" if member_of_hub_id(recipe.base) == TWO_FIVE else "4khd"
    base, data = bases[member], sets[member]
    (tmp_path / "recipes").symlink_to(ROOT / "recipes")
    monkeypatch.chdir(tmp_path)
    changes = [f"base={base}", "training.max_steps=1", "training.gradient_accumulation=1", "data.weights=null"]
    changes += [f"data.train={data}", f"output={tmp_path / 'run'}"]
    changes += [f"data.validation={data}"] if recipe.data.validation else []
    done = call(*words[1:], *changes, "--no-report")
    assert done.returncode == 0, done.stderr + done.stdout[-3000:]
    assert "done     1 step" in done.stdout
    assert (tmp_path / "run" / "adapter" / "adapter_model.safetensors").is_file()
