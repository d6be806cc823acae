"""List, describe and copy the recipes shipped with ixtune."""

from __future__ import annotations

import shlex
from dataclasses import dataclass
from pathlib import Path

from ixtune.base import shipped
from ixtune.errors import UsageError, choice
from ixtune.files import atomic_write_text
from ixtune.recipe.yaml_text import RECIPE, YamlKind

_PLAN = "plan"
_FACTS = ("purpose", "gpu", "status", _PLAN)


@dataclass(frozen=True, slots=True)
class Shipped:
    """Shipped recipe, and the `# fact: text` lines at its head.

    Attributes:
        path: Its file.
        purpose: What it is for.
        gpu: On which GPU.
        status: Whether it was measured.
        plan: The command that gives the figures in its head; empty without any.
    """

    path: Path
    purpose: str = ""
    gpu: str = ""
    status: str = ""
    plan: str = ""

    @property
    def name(self) -> str:
        """Return the name that `ixtune recipes` shows."""
        return self.path.stem

    def planned_with(self, option: str) -> str | None:
        """Return the value of an option in the plan command of its head."""
        words = shlex.split(self.plan)
        return words[words.index(option) + 1] if option in words[:-1] else None


def shipped_by_name() -> dict[str, Shipped]:
    """Return the shipped recipes by name."""
    return {path.stem: Shipped(path, **_facts(path)) for path in sorted(shipped("recipes").glob("*.yaml"))}


def recipe_named(name: str) -> Shipped:
    """Return the shipped recipe of a name, with or without the extension.

    Raises:
        UsageError: There is none.
    """
    recipes = shipped_by_name()
    found = recipes.get(name.removesuffix(".yaml"))
    if found is None:
        raise UsageError(
            "there is no such recipe",
            where=name,
            hint=choice(name.removesuffix(".yaml"), recipes) if recipes else "reinstall ixtune, which ships recipes",
        )
    return found


def kind_of(path: Path) -> YamlKind:
    """Return the words for messages about a recipe file, with a hint for the name of a shipped recipe."""
    name = path.name.removesuffix(".yaml")
    if path.is_file() or name not in shipped_by_name():
        return RECIPE
    copying = f"`ixtune recipes cp {name} {name}.yaml` copies the shipped recipe; then pass {name}.yaml"
    return RECIPE._replace(hint_file=copying)


def copy(name: str, target: Path | None = None) -> Path:
    """Copy a shipped recipe to a new file, and name that file in the commands of its head.

    Args:
        name: Name of the recipe.
        target: The new file, or a folder for it; NAME.yaml in the current folder if it is None.

    Raises:
        UsageError: There is no such recipe, or there is such a file already.
    """
    found = recipe_named(name)
    path = target or Path(found.path.name)
    path = path / found.path.name if path.is_dir() else path
    if path.exists():
        raise UsageError("the file exists already", where=str(path), hint="choose another name")
    if path.parent.exists() and not path.parent.is_dir():
        raise UsageError(f"{path.parent} is a file, not a folder", where=str(path), hint="choose another folder")
    if not path.parent.is_dir():
        raise UsageError("the folder of the file does not exist", where=str(path), hint=f"create {path.parent} first")
    text = found.path.read_text(encoding="utf-8")
    atomic_write_text(path, text.replace(f"recipes/{found.path.name}", shlex.quote(str(path))))
    return path


def _facts(path: Path) -> dict[str, str]:
    facts = {}
    for line in path.read_text(encoding="utf-8").splitlines():
        if not line.startswith("#"):
            break
        fact, colon, text = line.lstrip("# ").partition(":")
        if colon and fact in _FACTS:
            facts[fact] = text.strip()
    return facts
