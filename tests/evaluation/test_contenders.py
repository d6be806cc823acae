"""Test which models are evaluated, and their names."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from ixtune.errors import UsageError
from ixtune.evaluation.contenders import Contender, contenders
from ixtune.evaluation.evaluate import EvaluationOptions, EvaluationSource, _blinded, _groups


def adapter(folder: Path, base: str = "nano") -> Path:
    """Write the files of a run that are checked before loading."""
    made = folder / "adapter"
    made.mkdir(parents=True)
    (made / "ixtune.json").write_text(json.dumps({"format": 1, "base": base, "base_identity": "b" * 64}))
    for name in ("adapter_model.safetensors", "adapter_config.json"):
        (made / name).write_bytes(b"")
    return folder


def test_one_adapter_is_compared_with_its_base(tmp_path: Path):
    run = adapter(tmp_path / "run")
    assert contenders(None, [str(run)], []) == [
        Contender("base", "nano"), Contender("adapter", "nano", run / "adapter")
    ]  # fmt: skip


def test_several_adapters_are_named_by_folder_or_explicitly(tmp_path: Path):
    one, two = adapter(tmp_path / "one"), adapter(tmp_path / "two")
    names = [one.name for one in contenders("nano", [str(one), f"second={two}"], ["merged=m", "x/out"])]
    assert names == ["base", "one", "second", "merged", "out"]


def test_a_path_with_an_equals_sign_is_a_path(tmp_path: Path):
    run = adapter(tmp_path / "lr=1e-4")
    assert contenders(None, [str(run)], [])[1].name == "adapter"


def test_adapters_on_different_bases_add_each_base(tmp_path: Path):
    one, two = adapter(tmp_path / "one"), adapter(tmp_path / "two", "other/base")
    assert [(c.name, c.base) for c in contenders(None, [str(one), str(two)], [])] == [
        ("base nano", "nano"), ("base other/base", "other/base"), ("one", "nano"), ("two", "other/base")
    ]  # fmt: skip


def test_no_model_and_duplicate_names_are_refused(tmp_path: Path):
    with pytest.raises(UsageError, match="no model is named"):
        contenders(None, [], [])
    run = adapter(tmp_path / "run")
    for adapters in ([f"a={run}", f"a={run}"], [f"base={run}"], [f"majority answer={run}"], [f"={run}"]):
        with pytest.raises(UsageError, match="is empty, reserved or used twice"):
            contenders(None, adapters, [])


def test_a_base_shares_memory_only_with_its_first_adapter():
    base, one, two = Contender("base", "nano"), Contender("1", "nano", Path("1")), Contender("2", "nano", Path("2"))
    merged = Contender("merged", "m")
    assert list(_groups([base, one, two, merged])) == [[base, one], [two], [merged]]


def test_the_blind_control_uses_adapters_else_models_else_the_base():
    base, one, merged = Contender("base", "nano"), Contender("1", "nano", Path("1")), Contender("merged", "m")
    assert _blinded([base, one, merged]) == [one]
    assert _blinded([base, merged]) == [merged]
    assert _blinded([base]) == [base]


def test_contradictory_options_are_refused():
    with pytest.raises(UsageError, match="there is no score bleu"):
        EvaluationOptions(scores=("bleu",))
    with pytest.raises(UsageError, match="--circular needs --benchmark"):
        EvaluationSource(path=Path("set"), circular=True)
    with pytest.raises(UsageError, match="does not contain"):
        EvaluationSource(path=Path("f"), benchmark="docvqa", prompt="question")
