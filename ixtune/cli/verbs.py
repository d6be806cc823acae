"""What groups of verbs have in common: a fast start, and one way to end on Ctrl-C."""

from __future__ import annotations

from typing import Any

import typer
from typer.core import TyperGroup


class Verbs(TyperGroup):
    """A group of verbs whose options cost no import."""

    def get_params(self, ctx: Any) -> Any:
        """The options; a flag that is not given is False.

        typer 0.29 says None of it, and imports pydantic to make a bool of that: half of the time of a `--help`.
        """
        params = super().get_params(ctx)
        for one in params:
            if one.default is None and getattr(one, "is_flag", False):
                one.default = False
        return params


class AllVerbs(Verbs):
    """The verbs of the command line; its own flags may stand behind the verb too."""

    flags = ("--quiet", "--debug")

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Parse, with the flags of the command line moved to where they belong."""
        mine, others = args, []
        if "--" in args:
            mine, others = args[: args.index("--")], args[args.index("--") :]
        moved = [word for word in mine if word in self.flags]
        return super().parse_args(ctx, [*moved, *(word for word in mine if word not in self.flags), *others])

    def invoke(self, ctx: Any) -> Any:
        """Run the verb that was asked for."""
        try:
            return super().invoke(ctx)
        except KeyboardInterrupt as interrupt:
            typer.echo("interrupted: what was finished is kept, nothing half-written is left", err=True)
            raise typer.Exit(130) from interrupt
