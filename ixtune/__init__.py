"""ixtune fine-tunes InternLM-XComposer2-4KHD-7B on your data, with LoRA or QLoRA on one GPU.

It offers the commands of the command line as functions, see `ixtune.api`. The import itself loads nothing; once it is
done, transformers' Auto classes load ixtune's models.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from ixtune.auto_classes import register_when_imported

__version__ = "0.1.0.dev0"

__all__ = [
    "IxtuneError",
    "Recipe",
    "__version__",
    "evaluate",
    "export",
    "load_model",
    "load_processor",
    "merge",
    "plan",
    "predict",
    "prepare",
    "train",
]

if TYPE_CHECKING:
    from ixtune.api import evaluate, export, load_model, load_processor, merge, plan, predict, prepare, train
    from ixtune.errors import IxtuneError
    from ixtune.recipe.recipe import Recipe
else:
    _ELSEWHERE = {"IxtuneError": "ixtune.errors", "Recipe": "ixtune.recipe.recipe"}  # not in ixtune.api

    def __getattr__(name: str) -> object:
        """Import a public name when it is first used (PEP 562)."""
        if name not in __all__:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        import importlib

        module = importlib.import_module(_ELSEWHERE.get(name, "ixtune.api"))
        value = globals()[name] = getattr(module, name)
        return value

    def __dir__() -> list[str]:
        """List the public names, those not yet imported included."""
        return sorted({*globals(), *__all__})


register_when_imported()
