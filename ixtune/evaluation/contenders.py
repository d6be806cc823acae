"""Models to evaluate: a base, adapters on it, and merged or exported models, each with a name.

Imports no tensor library, so that wrong names are reported at once.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from ixtune.adapter.folder import find_adapter, read_info
from ixtune.errors import UsageError

BASE, MAJORITY = "base", "majority answer"
"""Reserved names: of the base, and of the control that always gives the most common answer."""


@dataclass(frozen=True, slots=True)
class Contender:
    """Model to evaluate.

    Attributes:
        name: Name in the table.
        base: `nano`, a checkpoint folder or a hub id.
        adapter: Folder of the adapter on it, if any.
    """

    name: str
    base: str
    adapter: Path | None = None


def contender(base: str | None, adapter: Path | None) -> Contender:
    """Return a base with an optional adapter.

    Args:
        base: `nano`, a checkpoint folder or a hub id; None for the one named by the adapter.
        adapter: Adapter or run folder.

    Raises:
        UsageError: Neither is given.
        IxtuneError: The adapter cannot be read.
    """
    if adapter is None:
        if base is None:
            raise UsageError("no model is named", hint="pass --adapter, --base, or both")
        return Contender(BASE, base)
    folder = find_adapter(adapter)
    return Contender("adapter", base or str(read_info(folder)["base"]), folder)


def require_form(quantize: str | None) -> None:
    """Refuse an unknown quantization of the decoder linears.

    Raises:
        UsageError: It is not `nf4`, `none` or None, which leaves it to the adapter.
    """
    if quantize not in (None, "nf4", "none"):
        raise UsageError(f"quantize is {quantize!r}", where="--quantize", hint="pass nf4 or none")


def contenders(base: str | None, adapters: Sequence[str], models: Sequence[str]) -> list[Contender]:
    """Return the base first, then the adapters, then the models.

    Adapters on different bases add one base each, unless `base` is given for all.

    Args:
        base: `nano`, a checkpoint folder or a hub id; None for those named by the adapters, or for none.
        adapters: Adapter or run folders, each as PATH or NAME=PATH; without a name, a single one is called `adapter`,
            several by their folders.
        models: Merged or exported models in the same form; a single one is called `merged`.

    Raises:
        UsageError: Nothing is given, or two have the same name.
        IxtuneError: An adapter cannot be read.
    """
    found = [replace(contender(base, path), name=name) for name, path in _named(adapters, "adapter")]
    bases = list(dict.fromkeys([base] if base else [one.base for one in found]))
    made = [Contender(BASE if len(bases) == 1 else f"{BASE} {name}", name) for name in bases]
    made += found
    made += [Contender(name, str(path)) for name, path in _named(models, "merged")]
    if not made:
        raise UsageError("no model is named", hint="pass --adapter, --base or --model")
    names = [one.name for one in made]
    twice = sorted({name for name in [*names, MAJORITY] if [*names, MAJORITY].count(name) > 1 or not name})
    if twice:
        raise UsageError(
            f"the model name {twice[0]!r} is empty, reserved or used twice", hint="name them: --adapter first=runs/one"
        )
    return made


def _named(given: Sequence[str], alone: str) -> list[tuple[str, Path]]:
    """Split each PATH or NAME=PATH into name and path; a path that exists is never split."""
    found = []
    for text in given:
        name, equals, path = text.partition("=")
        if equals and not Path(text).exists():
            found.append((name.strip(), Path(path)))
        else:
            found.append((alone if len(given) == 1 else Path(text).resolve().name, Path(text)))
    return found
