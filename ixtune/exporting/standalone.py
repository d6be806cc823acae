"""Write the code that loads an exported model without ixtune: modules of this package with relative imports.

transformers copies such code into its own folder and runs it if the caller passes `trust_remote_code=True`. It
finds the files by their flat relative imports (`from .ixc2_decoder import Decoder`), so that is all that changes:
every module that the entry imports at its top becomes one file, with its imports rewritten. ixtune itself never runs
these files.
"""

from __future__ import annotations

import ast
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import ixtune
from ixtune.data.processor_files import PREPROCESSOR_FILE, TOKENIZER_FILE
from ixtune.files import atomic_write_json

ENTRY = "ixtune.processing"
PREFIX = "ixc2"
_PACKAGE = Path(ixtune.__file__).parent

# One file is the entry for all classes: transformers makes a separate package for each entry, and the configuration
# class of one would differ from that of the next.
AUTO_MAP: Mapping[str, Mapping[str, Any]] = {
    "config.json": {
        "AutoConfig": f"{PREFIX}.IXC2Config",
        **{
            f"AutoModel{task}": f"{PREFIX}.IXC2ForCausalLM"
            for task in ("", "ForCausalLM", "ForImageTextToText", "ForMultimodalLM")
        },
    },
    PREPROCESSOR_FILE: {
        "AutoImageProcessor": f"{PREFIX}.IXC2ImageProcessor",
        "AutoProcessor": f"{PREFIX}.IXC2Processor",
    },
    TOKENIZER_FILE: {
        "AutoTokenizer": [f"{PREFIX}.IXC2Tokenizer", None],
        "AutoProcessor": f"{PREFIX}.IXC2Processor",
    },
}


def write(folder: Path) -> None:
    """Write the code into a folder that holds a model and its processor, and name it in their JSON files."""
    for name, text in files().items():
        (folder / name).write_text(text, encoding="utf-8")
    for name, auto_map in AUTO_MAP.items():
        described = json.loads((folder / name).read_bytes())
        atomic_write_json(folder / name, {**described, "auto_map": auto_map})


def files() -> dict[str, str]:
    """Return the content of every file by its name, the entry first.

    Raises:
        ValueError: Two modules would get the same file name.
    """
    made: dict[str, str] = {}
    waiting = [ENTRY]
    done: set[str] = set()
    while waiting:
        module = waiting.pop(0)
        if module in done:
            continue
        done.add(module)
        name = f"{flat_name(module)}.py"
        if name in made:
            raise ValueError(f"{module} and another module would both be {name}")
        tree = ast.parse(_source(module).read_text(encoding="utf-8"))
        needed = [found for node in tree.body for found in _modules_of(node)]
        made[name] = _rewritten(module, tree)
        waiting += needed
    return made


def flat_name(module: str) -> str:
    """Return the file name of a module next to the weights, such as `ixc2_decoder` for `ixtune.model.decoder`."""
    return PREFIX if module == ENTRY else f"{PREFIX}_{module.rpartition('.')[2]}"


def _source(module: str) -> Path:
    path = _PACKAGE.parent.joinpath(*module.split("."))
    return path / "__init__.py" if path.is_dir() else path.with_suffix(".py")


def _modules_of(node: ast.AST) -> Iterator[str]:
    """Yield the modules of this package that an import statement names."""
    if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "ixtune":
        assert node.module is not None
        for alias in node.names:
            inner = f"{node.module}.{alias.name}"
            yield inner if _source(inner).is_file() else node.module


def _rewritten(module: str, tree: ast.Module) -> str:
    source = _source(module)
    lines = source.read_text(encoding="utf-8").splitlines()
    for node in reversed(list(_statements(tree))):
        start, stop = node.lineno - 1, node.end_lineno or node.lineno
        new = _replaced(node, lines[start:stop], top=node in tree.body)
        while not new and lines[start - 1].startswith("#"):  # the comment on what is left out
            start -= 1
        lines[start:stop] = new
    origin = source.relative_to(_PACKAGE.parent).as_posix()
    header = [
        f"# Generated from {origin} of ixtune {ixtune.__version__} by `ixtune export`: change it there, not here.",
        "# SPDX-License-Identifier: Apache-2.0",
    ]
    return "\n".join([*header, *lines]).rstrip() + "\n"


def _statements(tree: ast.Module) -> Iterator[ast.stmt]:
    """Yield the statements to replace, in the order of their lines."""
    found = [node for node in ast.walk(tree) if isinstance(node, ast.ImportFrom) and any(_modules_of(node))]
    found_too = [node for node in tree.body if _registers(node) or _is_for_types(node)]
    inside = {inner for node in found_too for inner in ast.walk(node)}
    yield from sorted([*(node for node in found if node not in inside), *found_too], key=lambda node: node.lineno)


def _replaced(node: ast.stmt, lines: list[str], *, top: bool) -> list[str]:
    if not isinstance(node, ast.ImportFrom):
        return []  # types are not needed to run, and the Auto classes find these by the auto_map
    indent = " " * node.col_offset
    if not top:
        return [f'{indent}raise ImportError("{node.module} is not part of this folder: pip install ixtune")']
    if set(_modules_of(node)) == {node.module}:
        return [lines[0].replace(f"from {node.module} ", f"from .{flat_name(str(node.module))} ", 1), *lines[1:]]
    made = []
    for alias, inner in zip(node.names, _modules_of(node), strict=True):
        name = flat_name(inner)
        # transformers' loader only sees imports of the first form
        made += [f"from .{name} import __name__ as _{name}", f"from . import {name} as {alias.asname or alias.name}"]
    return made


def _registers(node: ast.stmt) -> bool:
    """Return whether a statement at the top of a module registers classes with transformers' Auto classes."""
    if isinstance(node, ast.FunctionDef | ast.ClassDef):
        return False
    calls = [inner.func for inner in ast.walk(node) if isinstance(inner, ast.Call)]
    return any(
        isinstance(func, ast.Attribute)
        and func.attr == "register"
        and isinstance(func.value, ast.Name)
        and func.value.id.startswith("Auto")
        for func in calls
    )


def _is_for_types(node: ast.stmt) -> bool:
    return isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"
