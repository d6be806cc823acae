"""Options that several verbs share."""

from __future__ import annotations

from typing import Annotated

import typer

SetOption = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="KEY=VALUE", help="A change to the recipe, as without --set; repeat for several."),
]
