"""Fill in the generated parts of the documentation: `<!-- generated: NAME -->` becomes Markdown made from the code."""

from __future__ import annotations

import importlib.util
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
_MARK = re.compile(r"^<!-- generated: ([a-z ]+) -->$", re.MULTILINE)


def on_page_markdown(markdown: str, **_: Any) -> str:
    """Replace every mark of a page; MkDocs calls this."""
    return _MARK.sub(lambda found: GENERATED[found[1]](), markdown)


def commands() -> str:
    """Describe every command and option, from the Typer app."""
    import typer

    from ixtune.cli import app

    root: Any = typer.main.get_command(app)
    return "\n".join(line for words, command in _commands(root, ("ixtune",)) for line in _described(words, command))


def _commands(command: Any, words: tuple[str, ...]) -> Iterator[tuple[tuple[str, ...], Any]]:
    yield words, command
    for name, below in getattr(command, "commands", {}).items():
        yield from _commands(below, (*words, name))


def _described(words: tuple[str, ...], command: Any) -> Iterator[str]:
    yield f"## {' '.join(words)}\n"
    for paragraph in (command.help or "").split("\n\n"):
        text, _, example = " ".join(paragraph.split()).partition("Example: ")
        if text:
            yield f"{_plain(text.strip())}\n"
        if example:
            yield f"```console\n{example}\n```\n"
    rows = [_row(parameter) for parameter in command.params if not parameter.hidden]
    if rows:
        yield "| Argument or option | Meaning | Default |\n|---|---|---|"
        yield "\n".join(rows) + "\n"


def _row(parameter: Any) -> str:
    option = parameter.param_type_name == "option"
    names = " / ".join([*parameter.opts, *parameter.secondary_opts]) if option else parameter.name.upper()
    if option and not getattr(parameter, "is_flag", False):
        names += f" {parameter.metavar or parameter.name.upper()}"
    default = parameter.default
    if parameter.required:
        shown = "required"
    elif default in (None, False, "") or callable(default) or getattr(parameter, "is_eager", False):
        shown = ""
    else:
        shown = f"`{default}`"
    return f"| `{names.replace('|', ' or ')}` | {_plain(parameter.help or '')} | {shown} |"


def recipe_keys() -> str:
    """List every key of a recipe with its values and its default, from the pydantic models."""
    from ixtune.recipe.recipe import AdapterSection, DataSection, LoraSettings, Recipe, TrainingSection

    sections: list[tuple[str, Any]] = [
        ("", Recipe),
        ("data.", DataSection),
        ("adapter.", AdapterSection),
        ("adapter.per_target.TARGET.", LoraSettings),
        ("training.", TrainingSection),
    ]
    lines = ["| Key | Meaning | Default |", "|---|---|---|"]
    for prefix, section in sections:
        for name, field in section.model_fields.items():
            if field.description is None:  # a section of its own, listed below
                continue
            default = "required" if field.is_required() else f"`{_yaml(field.default)}`"
            lines.append(f"| `{prefix}{name}` | {_plain(' '.join(field.description.split()))} | {default} |")
    return "\n".join(lines)


def _yaml(value: Any) -> str:
    if value is None:
        return "null"
    if isinstance(value, bool):
        return str(value).lower()
    return f"[{', '.join(map(str, value))}]" if isinstance(value, tuple) else str(value)


def reasons() -> str:
    """List the reason codes of rejects."""
    from ixtune.data.rejects import Reason

    return "\n".join(f"| `{reason.value}` | {_plain(reason.description)} |" for reason in Reason)


def layers() -> str:
    """List the layers, lowest first, from the test that enforces them."""
    found: Any = importlib.util.spec_from_file_location("test_layers", ROOT / "tests" / "test_layers.py")
    module = importlib.util.module_from_spec(found)
    found.loader.exec_module(module)
    lines = ["| Layer | Modules |", "|---|---|"]
    lines += [
        f"| {number} | {' '.join(f'`{name}`' for name in sorted(names))} |"
        for number, names in enumerate(module.LAYERS)
    ]
    return "\n".join(lines)


def _plain(text: str) -> str:
    """Keep a text from being read as HTML or as the end of a cell."""
    parts = re.split(r"(`[^`]*`)", text.replace("|", "\\|"))
    return "".join(part if part.startswith("`") else part.replace("<", "&lt;") for part in parts)


GENERATED: dict[str, Callable[[], str]] = {
    "commands": commands,
    "recipe keys": recipe_keys,
    "reasons": reasons,
    "layers": layers,
}
