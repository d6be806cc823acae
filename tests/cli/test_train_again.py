"""Test that a run can be repeated from the resolved recipe in its folder."""

from __future__ import annotations

from pathlib import Path

import yaml
from main_job import ixtune, losses
from text_run import prepare_texts, text_recipe

from ixtune.recipe import recipe as recipes
from ixtune.recipe.recipe import Recipe


def test_a_run_is_repeated_from_its_resolved_recipe(tmp_path: Path) -> None:
    text_recipe(tmp_path, prepare_texts(tmp_path / "texts"))
    first, again = tmp_path / "run", tmp_path / "again"
    begun = ixtune("train", tmp_path / "recipe.yaml", "training.max_steps=3", "--set", "adapter.dropout=0.1")
    assert begun.returncode == 0, begun.stderr
    resolved = yaml.safe_load((first / "recipe.yaml").read_text(encoding="utf-8"))
    assert (resolved["training"]["max_steps"], resolved["adapter"]["dropout"]) == (3, 0.1)
    assert set(resolved) == set(Recipe.model_fields)

    refused = ixtune("train", first / "recipe.yaml")
    assert refused.returncode == 1
    assert f"there is a run in this folder already ({first})" in refused.stderr
    assert "output=NAME" in refused.stderr

    done = ixtune("train", first / "recipe.yaml", f"output={again}")
    assert done.returncode == 0, done.stderr
    assert losses(again) == losses(first)
    assert len(losses(again)) == 3
    before, after = (recipes.load(run / "recipe.yaml").model_dump(exclude={"output"}) for run in (first, again))
    assert before == after
