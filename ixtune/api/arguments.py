"""Arguments that several public functions take."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

if TYPE_CHECKING:
    from ixtune.recipe.recipe import Recipe

StrPath: TypeAlias = str | Path
Quantize: TypeAlias = Literal["nf4", "none"]
JsonSchema: TypeAlias = StrPath | Mapping[str, Any]


def recipe_of(recipe: Recipe | StrPath, overrides: Sequence[str]) -> Recipe:
    """Return the recipe itself, or load it from its file or from those that ship."""
    from ixtune.errors import UsageError
    from ixtune.recipe import recipe as recipes
    from ixtune.recipe.shipped_recipes import recipe_named

    overrides = [overrides] if isinstance(overrides, str) else overrides
    if isinstance(recipe, recipes.Recipe):
        if overrides:
            raise UsageError("overrides change a recipe file, not a Recipe", hint="use recipe.model_copy(update=...)")
        return recipe
    path = Path(recipe)
    return recipes.load(
        path if path.exists() or path.suffix in (".yaml", ".yml") else recipe_named(str(recipe)).path, overrides
    )


def several_of(given: StrPath | Sequence[StrPath]) -> list[StrPath]:
    """Return one path or several as a list."""
    return [given] if isinstance(given, str | Path) else list(given)


def path_of(given: StrPath | None) -> Path | None:
    """Return a path given as text or as a Path; None stays None."""
    return None if given is None else Path(given)


def schema_of(given: JsonSchema | None) -> str | None:
    """Return a JSON schema, given as such or by its file, as checked text."""
    from ixtune.answering.json_schema import checked_schema, read_schema

    if given is None:
        return None
    return read_schema(Path(given)) if isinstance(given, str | Path) else checked_schema(dict(given), "json_schema")
