"""Base classes of the command groups: a fast start, a uniform exit on Ctrl-C, and completion for a named shell."""

from __future__ import annotations

from typing import Any

import typer
from typer.core import TyperCommand, TyperGroup


class Panels(TyperCommand):
    """Command whose help groups its options by `rich_help_panel`, options without a panel first."""

    def format_options(self, ctx: Any, formatter: Any) -> None:
        """Write the arguments, then the options panel by panel, in the order in which they are declared."""
        panels: dict[str, list[tuple[str, str]]] = {}
        for one in self.get_params(ctx):
            record = one.get_help_record(ctx)
            if record is not None:
                default = "Arguments" if one.param_type_name == "argument" else "Options"
                panels.setdefault(getattr(one, "rich_help_panel", None) or default, []).append(record)
        for name, records in panels.items():
            with formatter.section(name):
                formatter.write_dl(records)


_SHELLS = ("bash", "zsh", "fish", "powershell", "pwsh")


class Verbs(TyperGroup):
    """Group of commands whose options need no import."""

    def get_params(self, ctx: Any) -> list[Any]:
        """Return the options, with False as the default of every flag.

        typer 0.29 gives None, and imports pydantic to convert it to a bool: half of the time of a `--help`.
        """
        params: list[Any] = super().get_params(ctx)
        for one in params:
            if one.default is None and getattr(one, "is_flag", False):
                one.default = False
            if one.name in ("install_completion", "show_completion"):
                verb = "Install" if one.name == "install_completion" else "Print"
                one.help = f"{verb} shell completion. A shell may follow: {', '.join(_SHELLS[:-1])}. Default: this one."
        return params


class AllVerbs(Verbs):
    """Commands of the command line; global flags are also accepted after the command."""

    flags = ("--quiet", "--debug")

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Parse the arguments, after moving the command line's own flags in front of the command."""
        _complete_named_shell(ctx, args)
        mine, others = args, []
        if "--" in args:
            mine, others = args[: args.index("--")], args[args.index("--") :]
        moved = [word for word in mine if word in self.flags]
        return super().parse_args(ctx, [*moved, *(word for word in mine if word not in self.flags), *others])

    def invoke(self, ctx: Any) -> Any:
        """Run the command; on Ctrl-C, print what the interrupted code says of its output, and exit with code 130."""
        try:
            return super().invoke(ctx)
        except KeyboardInterrupt as interrupt:
            typer.echo(f"interrupted: {str(interrupt) or 'nothing half-written is left'}", err=True)
            raise typer.Exit(130) from interrupt


def _complete_named_shell(ctx: Any, args: list[str]) -> None:
    """Install or print completion for the shell that follows the option, and exit.

    typer looks for a shell among the parent processes instead. In a container or a service there is none.
    """
    for option, name in (("--install-completion", "install_callback"), ("--show-completion", "show_callback")):
        if args[:1] == [option] and len(args) > 1 and args[1] in _SHELLS:
            from typer import completion

            getattr(completion, name)(ctx, None, args[1])
