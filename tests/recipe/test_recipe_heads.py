"""Test the head of every shipped recipe: its command, GPU and planned figures."""

from __future__ import annotations

import shlex
from pathlib import Path

import pytest

from ixtune.checkpoint.sizes import Sizes
from ixtune.family import member_of_hub_id
from ixtune.planning import plan_report
from ixtune.planning.gpus import Machine
from ixtune.planning.plan import make_plan
from ixtune.planning.record_mixes import records_of
from ixtune.recipe.recipe import load
from ixtune.recipe.shipped_recipes import Shipped, shipped_by_name

ROOT = Path(__file__).resolve().parents[2]
WANTED = """documents charts receipts screenshots multi-image text-mix qlora-16gb qlora-24gb qlora-80gb lora-80gb
projector-only demo qlora-24gb-2.5 documents-2.5""".split()
SHIPPED = shipped_by_name()
PLANNED = [recipe for recipe in SHIPPED.values() if recipe.plan]
SHOWN = ("packs", "time", "verdict")


def head(recipe: Shipped) -> list[str]:
    lines = recipe.path.read_text(encoding="utf-8").splitlines()
    return lines[: next(number for number, line in enumerate(lines) if not line.startswith("#"))]


def test_the_listed_recipes_are_shipped():
    assert sorted(SHIPPED) == sorted(WANTED)


@pytest.mark.parametrize("recipe", SHIPPED.values(), ids=lambda recipe: recipe.name)
def test_the_head_is_complete_and_its_command_matches_the_file(recipe: Shipped):
    _, ixtune, train, path, *overrides = shlex.split(head(recipe)[0])
    assert (ixtune, train, path) == ("ixtune", "train", f"recipes/{recipe.path.name}")
    as_commanded = load(ROOT / path, overrides)
    assert (as_commanded.output, as_commanded.data) == (load(recipe.path).output, load(recipe.path).data) or (
        recipe.name == "qlora-24gb"  # whose output is one to be named
    )
    assert recipe.purpose
    assert recipe.gpu
    assert recipe.status.startswith(("measured (", "planned, not yet run on a GPU"))


@pytest.mark.parametrize("recipe", SHIPPED.values(), ids=lambda recipe: recipe.name)
def test_an_unmeasured_recipe_has_a_plan(recipe: Shipped):
    assert recipe.plan or recipe.status.startswith("measured (")


@pytest.mark.parametrize("recipe", PLANNED, ids=lambda recipe: recipe.name)
def test_the_figures_in_the_head_match_the_plan(recipe: Shipped):
    """Compare with `ixtune plan` for the released 7B, which needs no weights."""
    assert shlex.split(recipe.plan)[:3] == ["ixtune", "plan", f"recipes/{recipe.path.name}"]
    gib, mix = recipe.planned_with("--gpu-gib"), recipe.planned_with("--mix")
    assert gib is not None
    assert mix is not None
    machine = Machine("cuda", round(float(gib) * 2**30), "as given")
    chosen = load(recipe.path)
    member = member_of_hub_id(chosen.base)
    assert member
    made = make_plan(chosen, Sizes.released(member), records_of(mix, member), machine)
    lines = [line for line in plan_report.lines(made) if line.split()[0] in SHOWN]
    assert made.fits
    at = head(recipe).index(f"# plan: {recipe.plan}")
    assert head(recipe)[at + 1 : at + 1 + len(SHOWN)] == [f"#   {line}" for line in lines]


def test_recipes_are_short_and_no_two_are_equal():
    texts = {}
    for recipe in SHIPPED.values():
        lines = recipe.path.read_text(encoding="utf-8").splitlines()
        assert len(lines) <= 60, recipe.name
        texts[recipe.name] = "\n".join(line for line in lines if line and not line.startswith("#"))
    assert len(set(texts.values())) == len(texts)
