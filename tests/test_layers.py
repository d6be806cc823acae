"""Check every import statement against the table of layers: imports go downwards only."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

PACKAGE = Path(__file__).resolve().parents[1] / "ixtune"

# Modules and packages, lowest layer first. Each may import itself and everything on a lower layer, nothing else.
LAYERS: tuple[frozenset[str], ...] = tuple(
    frozenset(layer.split())
    for layer in (
        "auto_classes",  # imports the classes for transformers by name, once transformers is imported
        "__init__",  # the version and the lazy public API
        "errors platforms",
        "family",
        "layout",
        "files base scores",
        "recipe",
        "pages",  # templates, style and scripts of HTML pages
        "data checkpoint",
        "model tokenization",
        "processing adapter planning answering",
        "merging",
        "exporting training",
        "evaluation folder_inspection init_project doctor bench",
        "report serving",
        "api",
        "cli",
        "__main__",
    )
)
LAYER_OF = {name: number for number, names in enumerate(LAYERS) for name in names}
# Imports that the layers would allow but that are forbidden.
FORBIDDEN = {
    "model": {"data"},  # data and model meet in training and evaluation only
    "checkpoint": {"scores"},
    "report": {"bench"},
}
TENSORS = {"torch", "transformers", "peft", "trl", "accelerate", "bitsandbytes", "safetensors"}
HEAVY = TENSORS | {"datasets", "numpy", "PIL", "pandas", "pyarrow", "pydantic", "yaml", "sentencepiece"}
HEAVY |= {"huggingface_hub", "rich"}


class Import(NamedTuple):
    """Hold one import: its module, whether it is at the top of the file, and whether it is for types only."""

    file: Path
    line: int
    module: str
    top: bool
    typing: bool

    @property
    def part(self) -> str | None:
        """Return the part of ixtune that it names, or None."""
        words = self.module.split(".")
        if words[0] != "ixtune":
            return None
        return words[1] if len(words) > 1 else "__init__"

    def __str__(self) -> str:
        return f"{self.file.relative_to(PACKAGE.parent)}:{self.line} imports {self.module}"


def part_of(file: Path) -> str:
    return file.relative_to(PACKAGE).parts[0].removesuffix(".py")


def module_of(file: Path) -> str:
    return ".".join(file.relative_to(PACKAGE.parent).with_suffix("").parts).removesuffix(".__init__")


def imports(file: Path) -> list[Import]:
    """Return every import of a file; `from ixtune import base` counts as `ixtune.base`."""
    return list(_walk(file, ast.parse(file.read_text(encoding="utf-8")), top=True, typing=False))


def _walk(file: Path, node: ast.AST, *, top: bool, typing: bool) -> Iterator[Import]:
    if isinstance(node, ast.Import):
        yield from (Import(file, node.lineno, alias.name, top, typing) for alias in node.names)
    elif isinstance(node, ast.ImportFrom):
        module = node.module or ""
        if node.level:
            folder = file.parents[node.level - 1].relative_to(PACKAGE.parent)
            module = ".".join([*folder.parts, *filter(None, [module])])
        names = [alias.name for alias in node.names]
        parts = [name for name in names if module == "ixtune" and not name.startswith("__")]
        for name in [f"ixtune.{part}" for part in parts] or [module]:
            yield Import(file, node.lineno, name, top, typing)
    elif isinstance(node, ast.If) and ast.unparse(node.test) in ("TYPE_CHECKING", "typing.TYPE_CHECKING"):
        for child in node.body:
            yield from _walk(file, child, top=top, typing=True)
        for child in node.orelse:
            yield from _walk(file, child, top=top, typing=typing)
    else:
        inside = top and not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
        for child in ast.iter_child_nodes(node):
            yield from _walk(file, child, top=inside, typing=typing)


FILES = sorted(PACKAGE.rglob("*.py"))
ALL = [found for file in FILES for found in imports(file)]


def broken(rule: str, found: list[Import]) -> None:
    assert not found, f"{rule}:\n" + "\n".join(map(str, found))


@pytest.mark.parametrize("file", FILES, ids=lambda file: str(file.relative_to(PACKAGE)))
def test_a_file_imports_only_its_own_or_a_lower_layer(file: Path):
    part = part_of(file)
    found = [i for i in imports(file) if i.part and i.part != part]
    if part == "__init__":  # the public names for editors and type checkers; at run time they are imported on first use
        found = [i for i in found if not i.typing]
    upward = [i for i in found if LAYER_OF[i.part] >= LAYER_OF[part] or i.part in FORBIDDEN.get(part, ())]
    broken(f"{part} is on layer {LAYER_OF[part]} and imports from its own or a higher one", upward)


def test_no_two_files_import_each_other():
    modules = {
        ".".join(file.relative_to(PACKAGE.parent).with_suffix("").parts).removesuffix(".__init__") for file in FILES
    }
    edges: dict[str, set[str]] = {}
    for found in ALL:
        own = module_of(found.file)
        if found.module in modules and not f"{own}.".startswith(f"{found.module}."):
            edges.setdefault(own, set()).add(found.module)
    circles = sorted(f"{a} <-> {b}" for a, near in edges.items() for b in near if a in edges.get(b, ()) and a < b)
    assert not circles, "\n".join(circles)


def test_data_never_imports_a_tensor_library():
    found = [i for i in ALL if part_of(i.file) == "data" and i.module.split(".")[0] in TENSORS]
    broken("prepared data are made without torch", found)


def test_layout_and_errors_import_only_the_standard_library():
    import sys

    own = ("layout", "family", "errors", "platforms", "files", "base", "__init__")
    found = [i for i in ALL if part_of(i.file) in own and i.top and not i.part]
    broken(
        "no package at the ground",
        [i for i in found if i.module.split(".")[0] not in sys.stdlib_module_names],
    )


def test_the_command_line_imports_heavy_modules_only_inside_functions():
    found = [i for i in ALL if part_of(i.file) == "cli" and i.top and not i.typing]
    light = {"errors", "platforms", "base", "cli", "__init__", "family", "layout", "files"}
    broken(
        "slow start",
        [i for i in found if i.module.split(".")[0] in HEAVY or (i.part and i.part not in light)],
    )


def test_no_file_uses_remote_code_or_pickle():
    for file in FILES:
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, ast.keyword) and isinstance(node.value, ast.Constant):
                assert (node.arg, node.value.value) != ("trust_remote_code", True), f"{file}:{node.value.lineno}"
                assert (node.arg, node.value.value) != ("weights_only", False), f"{file}:{node.value.lineno}"
    executes = [i for i in ALL if i.module.split(".")[0] in ("pickle", "dill", "cloudpickle", "marshal", "shelve")]
    broken("what executes code when it is read", [i for i in executes if i.file.name != "torch_file.py"])


def test_the_import_parser_finds_every_form_of_import(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    import sys

    monkeypatch.setattr(sys.modules[__name__], "PACKAGE", tmp_path / "ixtune")
    file = tmp_path / "ixtune" / "data" / "x.py"
    file.parent.mkdir(parents=True)
    file.write_text(
        "import torch.nn as nn\n"
        "from ixtune import base, cli\n"
        "from . import record\n"
        "from ..model.vision import Tower\n"
        "if TYPE_CHECKING:\n    import numpy\n"
        "def f():\n    from ixtune.training import run\n"
    )
    found = [(i.module, i.top, i.typing, i.part) for i in imports(file)]
    assert found == [
        ("torch.nn", True, False, None),
        ("ixtune.base", True, False, "base"),
        ("ixtune.cli", True, False, "cli"),
        ("ixtune.data", True, False, "data"),
        ("ixtune.model.vision", True, False, "model"),
        ("numpy", True, True, None),
        ("ixtune.training", False, False, "training"),
    ]
