"""Options that several commands share."""

from __future__ import annotations

import math
from typing import Annotated

import typer


def finite(value: float | None) -> float | None:
    """Refuse inf and nan, which typer's range check lets through."""
    if value is not None and not math.isfinite(value):
        raise typer.BadParameter(f"{value} is not an amount of memory")
    return value


SetOption = Annotated[
    list[str] | None,
    typer.Option(
        "--set", metavar="KEY=VALUE", help="Override a recipe key, as KEY=VALUE without --set does; repeatable."
    ),
]
