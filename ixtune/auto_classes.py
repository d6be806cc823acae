"""Register ixtune's classes with transformers' Auto classes when those are first imported.

transformers has no entry points, and importing it takes seconds. So `import ixtune` leaves a finder that waits for the
Auto classes. Once they are there, and no module of transformers or ixtune is half imported, it imports
`ixtune.processing`, which registers everything.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable, Sequence
from importlib.machinery import ModuleSpec, PathFinder
from types import ModuleType
from typing import Any

_REGISTERS = "ixtune.processing"
_PACKAGES = ("transformers", "ixtune")
_AUTO = "transformers.models.auto."
# The helpers of the Auto classes alone, which other parts of transformers import too, do not count.
_WANTED = tuple(
    f"{_AUTO}{name}_auto" for name in ("configuration", "modeling", "processing", "tokenization", "image_processing")
)


class _Waiting:
    """Finder that counts the modules being imported, and registers when the last of them is done."""

    def __init__(self) -> None:
        self._running = 0

    def find_spec(
        self, name: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        """Return the spec that Python itself finds, with a loader that is followed by `_done`."""
        if name.partition(".")[0] not in _PACKAGES:
            return None
        spec = PathFinder.find_spec(name, path, target)
        if spec is not None and spec.loader is not None:
            spec.loader.exec_module = self._followed(spec.loader.exec_module)  # type: ignore[assignment, method-assign]
        return spec

    def _followed(self, execute: Callable[[ModuleType], Any]) -> Callable[[ModuleType], None]:
        def exec_module(module: ModuleType) -> None:
            self._running += 1
            try:
                execute(module)
            finally:
                self._running -= 1
            if not self._running:
                self.register()

        return exec_module

    def register(self) -> None:
        """Import the module that registers the classes, if the Auto classes are imported."""
        if self in sys.meta_path and any(name in sys.modules for name in _WANTED):
            sys.meta_path.remove(self)
            importlib.import_module(_REGISTERS)


def register_when_imported() -> None:
    """Register now if transformers' Auto classes are imported, or else as soon as they are."""
    waiting = _Waiting()
    sys.meta_path.insert(0, waiting)
    waiting.register()
