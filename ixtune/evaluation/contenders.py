"""Who is evaluated: a base, adapters on it, and merged or exported models, each by a name of its own."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from ixtune.adapter import bundle
from ixtune.adapter.weights import find_adapter
from ixtune.errors import UsageError
from ixtune.evaluation.compare import MAJORITY

BASE = "base"


@dataclass(frozen=True, slots=True)
class Contender:
    """One model to evaluate.

    Attributes:
        name: What the table calls it.
        base: `nano`, a checkpoint folder or a hub id.
        adapter: The adapter folder on it, if there is one.
    """

    name: str
    base: str
    adapter: Path | None = None


def contenders(base: str | None, adapters: Sequence[str], models: Sequence[str]) -> list[Contender]:
    """The base first, then the adapters, then the models.

    Adapters on different bases bring a base each, unless `base` is given for all.

    Args:
        base: `nano`, a checkpoint folder or a hub id; None for those that the adapters name, or for none.
        adapters: Adapter or run folders, each as PATH or NAME=PATH; without a name one is called `adapter`, several
            by their folders.
        models: Merged or exported models, likewise; one is called `merged`.

    Raises:
        UsageError: nothing is named, or two have one name.
        IxtuneError: an adapter cannot be read.
    """
    found = [
        Contender(name, base or str(bundle.read_info(find_adapter(path))["base"]), find_adapter(path))
        for name, path in _named(adapters, "adapter")
    ]
    bases = list(dict.fromkeys([base] if base else [one.base for one in found]))
    made = [Contender(BASE if len(bases) == 1 else f"{BASE} {name}", name) for name in bases]
    made += found
    made += [Contender(name, str(path)) for name, path in _named(models, "merged")]
    if not made:
        raise UsageError("no model is named", mend="give --adapter, --base, --model, or several of them")
    names = [one.name for one in made]
    twice = sorted({name for name in [*names, MAJORITY] if [*names, MAJORITY].count(name) > 1 or not name})
    if twice:
        raise UsageError(f"two models, or none, have the name {twice[0]!r}", mend="name them: --adapter first=runs/one")
    return made


def _named(given: Sequence[str], alone: str) -> list[tuple[str, Path]]:
    """PATH or NAME=PATH each -> names and paths; a path that exists is never split."""
    found = []
    for text in given:
        name, equals, path = text.partition("=")
        if equals and not Path(text).exists():
            found.append((name.strip(), Path(path)))
        else:
            found.append((alone if len(given) == 1 else Path(text).resolve().name, Path(text)))
    return found
