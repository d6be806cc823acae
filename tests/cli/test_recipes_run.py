"""Run the command in the head of every shipped recipe: one step on the embedded base, with its own settings."""

from __future__ import annotations

import json
import shlex
from pathlib import Path

import pytest
from in_process import call
from records import write_image

from ixtune.base import resolve
from ixtune.data.prepare import prepare
from ixtune.data.prepared.manifest import PrepareOptions
from ixtune.data.sources.source import Source
from ixtune.family import FOUR_KHD, member_of_hub_id
from ixtune.recipe.recipe import load
from ixtune.recipe.shipped_recipes import shipped_by_name

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]

ROOT = Path(__file__).resolve().parents[2]
# those for another member of the family need its base: tests/cli/test_two_five.py
NAMES = [name for name, one in shipped_by_name().items() if member_of_hub_id(load(one.path).base) in (None, FOUR_KHD)]


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("receipts")
    rows = []
    for at in range(4):
        write_image(folder / f"{at}.png", 60 + at, 40)
        rows.append({"image": f"{at}.png", "question": "Read it.", "answer": json.dumps({"total": str(at)})})
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    prepare(
        [Source(path=str(folder / "rows.jsonl"))],
        folder / "set",
        base=resolve("nano"),
        options=PrepareOptions(hd_num=1),
    )
    return folder / "set"


@pytest.mark.parametrize("name", NAMES)
def test_a_shipped_recipe_runs_as_its_header_says(
    name: str, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = shipped_by_name()[name].path
    words = shlex.split(path.read_text(encoding="utf-8").splitlines()[0].removeprefix("# "))
    assert words[:2] == ["ixtune", "train"]
    recipe = load(path)
    (tmp_path / "recipes").symlink_to(ROOT / "recipes")
    monkeypatch.chdir(tmp_path)
    changes = ["base=nano", "training.max_steps=1", "training.gradient_accumulation=1", "data.weights=null"]
    changes += [f"data.train={data}", f"output={tmp_path / 'run'}"]
    changes += [f"data.validation={data}"] if recipe.data.validation else []
    done = call(*words[1:], *changes, "--no-report")
    assert done.returncode == 0, done.stderr + done.stdout[-3000:]
    assert "done     1 step" in done.stdout
    assert (tmp_path / "run" / "adapter" / "adapter_model.safetensors").is_file()
