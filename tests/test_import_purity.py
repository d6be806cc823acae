"""Test which modules an import loads, in a fresh interpreter."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
TENSORS = {"torch", "transformers", "peft", "trl", "accelerate", "bitsandbytes"}
HEAVY = TENSORS | {
    "datasets",
    "numpy",
    "PIL",
    "pandas",
    "pyarrow",
    "pydantic",
    "yaml",
    "sentencepiece",
    "huggingface_hub",
}


def loaded_by(statement: str) -> set[str]:
    """Return the top-level modules of a new interpreter after one statement."""
    code = f"import sys, json\n{statement}\nprint(json.dumps([name.partition('.')[0] for name in sys.modules]))"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    return set(json.loads(done.stdout.splitlines()[-1]))


def test_importing_the_command_line_loads_nothing_heavy():
    assert not loaded_by("import ixtune.cli") & HEAVY


def test_the_lowest_layer_loads_only_the_standard_library():
    assert not loaded_by("import ixtune.layout, ixtune.errors, ixtune.files, ixtune.base") & (HEAVY | {"typer", "rich"})


def test_importing_recipe_loads_no_tensor_library():
    loaded = loaded_by("import ixtune.recipe")
    assert not loaded & (HEAVY - {"pydantic", "yaml"})


@pytest.mark.parametrize(
    "module",
    [
        "adapter.folder",
        "answering.json_schema",
        "answering.settings",
        "evaluation.contenders",
        "evaluation.options",
        "evaluation.questions",
    ],
)
def test_checking_answer_options_loads_no_tensor_library(module: str):
    assert not loaded_by(f"import ixtune.{module}") & TENSORS


@pytest.mark.parametrize("module", sorted(path.stem for path in (ROOT / "ixtune" / "data").glob("*.py")))
def test_importing_data_loads_no_tensor_library(module: str):
    name = "ixtune.data" if module == "__init__" else f"ixtune.data.{module}"
    assert not loaded_by(f"import {name}") & TENSORS
