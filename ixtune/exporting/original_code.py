"""Find the Python files that belong to a base by reading their imports. They are never run here."""

from __future__ import annotations

import ast
import json
from pathlib import Path
from typing import Any

from ixtune.checkpoint.member import member_in
from ixtune.errors import IxtuneError
from ixtune.family import FOUR_KHD


def code_files(folder: Path) -> tuple[list[str], list[str]]:
    """Return the files that config.json and tokenizer_config.json name, with all they import from the same folder.

    Returns:
        (existing files, missing files)
    """
    wanted = [f"{module}.py" for module in _named_modules(folder)]
    present: list[str] = []
    missing: list[str] = []
    while wanted:
        name = wanted.pop()
        if name in present or name in missing:
            continue
        if not (folder / name).is_file():
            missing.append(name)
            continue
        present.append(name)
        wanted += [f"{module}.py" for module in _neighbors(folder / name)]
    return sorted(present), sorted(missing)


def require_code(folder: Path) -> None:
    """Refuse a base whose configuration names missing code.

    Raises:
        IxtuneError: Files are missing; they are named.
    """
    _, missing = code_files(folder)
    if missing:
        hub_id = (member_in(folder) or FOUR_KHD).hub_id
        raise IxtuneError(
            f"code that the configuration of the base names is missing: {', '.join(missing)}",
            where=str(folder),
            hint=f"ixtune never downloads code: review it, then run `hf download {hub_id} --include '*.py' "
            f"--local-dir {folder}`, and export again",
        )


def _named_modules(folder: Path) -> set[str]:
    """Return the modules in the `auto_map` of a configuration, such as `modeling_internlm_xcomposer2`."""
    modules = set()
    for name in ("config.json", "tokenizer_config.json"):
        try:
            auto_map = json.loads((folder / name).read_bytes()).get("auto_map", {})
        except (OSError, ValueError, AttributeError):
            continue
        for value in _texts(auto_map):
            module = value.rpartition("--")[2].partition(".")[0]  # `owner/name--module.Class` names another repository
            if module.isidentifier():
                modules.add(module)
    return modules


def _texts(value: Any) -> list[str]:
    if isinstance(value, str):
        return [value]
    inner = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    return [text for one in inner for text in _texts(one)]


def _neighbors(path: Path) -> set[str]:
    """Return the modules that a file imports from its own folder (`from .build_mlp import …`)."""
    try:
        tree = ast.parse(path.read_text(encoding="utf-8"))
    except (SyntaxError, ValueError):
        return set()
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.level == 1:
            found |= {node.module.split(".")[0]} if node.module else {alias.name for alias in node.names}
    return found
