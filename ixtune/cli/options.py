"""Options that several verbs share."""

from __future__ import annotations

import math
from typing import Annotated

import typer


def finite(value: float | None) -> float | None:
    """Refuse inf and nan, which a range lets pass."""
    if value is not None and not math.isfinite(value):
        raise typer.BadParameter(f"{value} is no amount of memory")
    return value


SetOption = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="KEY=VALUE", help="A change to the recipe, as without --set; repeat for several."),
]
