"""Test the code that travels with an exported model, and that ixtune itself never runs it."""

from __future__ import annotations

import ast
import json
import shutil
import sys
from pathlib import Path

import pytest
from in_process import call
from main_job import write_records
from transformers import AutoConfig, AutoImageProcessor, AutoModelForCausalLM, AutoProcessor, AutoTokenizer
from transformers.dynamic_module_utils import get_imports, get_relative_import_files

import ixtune.processing
from ixtune.base import resolve
from ixtune.data.processor_files import write_processor_files
from ixtune.exporting import standalone

ROOT = Path(ixtune.__file__).parents[1]
# What a bare environment holds; numpy comes with transformers. `get_imports` below skips what stands in a try block.
BARE = {"torch", "transformers", "PIL", "sentencepiece", "numpy"}
FILES = standalone.files()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """The embedded base as `export --profile transformers` leaves a model."""
    folder = tmp_path / "model"
    shutil.copytree(resolve("nano"), folder)
    write_processor_files(folder, 1)
    standalone.write(folder)
    return folder


def _what_runs(text: str) -> list[str]:
    """The statements of a module but for imports, those for types, and registrations, without places."""
    module = ast.parse(text)

    class Strip(ast.NodeTransformer):
        def visit_ImportFrom(self, node: ast.ImportFrom) -> ast.AST | None:  # noqa: N802 - ast's own name
            ours = node.level or str(node.module).startswith("ixtune")
            return ast.Pass() if ours else node

        def visit_Raise(self, node: ast.Raise) -> ast.AST:  # noqa: N802
            return ast.Pass() if "is not part of this folder" in ast.unparse(node) else node

    dropped = ("AutoConfig.register", "AutoModel", "AutoTokenizer.register", "AutoImageProcessor.", "AutoProcessor.")
    kept = [
        ast.unparse(node)
        for node in Strip().visit(module).body
        if not (isinstance(node, ast.Expr | ast.For) and any(name in ast.unparse(node) for name in dropped))
    ]
    return [text for text in kept if text != "pass" and not text.startswith("if TYPE_CHECKING")]


@pytest.mark.parametrize("name", FILES)
def test_a_file_matches_its_module_and_imports_only_available_packages(name: str) -> None:
    origin = FILES[name].split("Generated from ")[1].split()[0]
    docstring, *found = _what_runs(FILES[name])
    assert [docstring, *found] == _what_runs((ROOT / origin).read_text(encoding="utf-8"))
    assert found
    imported = {
        node.module or "" if isinstance(node, ast.ImportFrom) else node.names[0].name
        for node in ast.walk(ast.parse(FILES[name]))
        if isinstance(node, ast.Import | ast.ImportFrom) and not getattr(node, "level", 0)
    }
    assert not {module.split(".")[0] for module in imported} - BARE - sys.stdlib_module_names - {"pillow_heif"}


def test_transformers_finds_every_file_and_every_package(folder: Path) -> None:
    entry = folder / f"{standalone.PREFIX}.py"
    found = {Path(file).name for file in get_relative_import_files(entry)} | {entry.name}
    assert found == set(FILES) == {file.name for file in folder.glob("*.py")}
    for file in folder.glob("*.py"):
        assert (set(get_imports(file)) - sys.stdlib_module_names) <= BARE, file.name


def test_ixtune_never_runs_code_from_an_exported_folder(folder: Path, tmp_path: Path) -> None:
    """Every file notes when it runs."""
    for file in folder.glob("*.py"):
        file.write_text(f"open({str(tmp_path / 'it ran')!r}, 'w')\n")
    data = write_records(tmp_path / "raw", 1)
    for arguments in (
        ("base", "verify", folder),
        ("prepare", data, "--out", tmp_path / "set", "--hd-num", "1", "--base", folder),
        ("predict", "--base", folder, "--image", tmp_path / "raw" / "0.png", "--hd-num", "1", "Which number?"),
    ):
        ended = call(*arguments)
        assert ended.returncode == 0, ended.stderr
    for auto in (AutoConfig, AutoTokenizer, AutoImageProcessor, AutoProcessor, AutoModelForCausalLM):
        assert type(auto.from_pretrained(folder)).__module__.startswith("ixtune.")
    assert not (tmp_path / "it ran").exists()


def test_saving_with_ixtune_removes_the_reference_to_the_code(folder: Path, tmp_path: Path) -> None:
    AutoConfig.from_pretrained(folder).save_pretrained(tmp_path / "again")
    assert "auto_map" not in json.loads((tmp_path / "again" / "config.json").read_bytes())
