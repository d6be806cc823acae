"""Test the names of all transformers trackers, and run those that work without a server."""

from __future__ import annotations

import importlib.metadata
import json
import os
import sqlite3
import subprocess
import sys
from pathlib import Path

import pytest
from text_run import prepare_texts, run, text_recipe
from transformers.integrations.integration_utils import INTEGRATION_TO_CALLBACK

from ixtune.errors import UsageError
from ixtune.recipe.value_types import TRACKERS
from ixtune.training.monitoring import trackers


def test_every_tracker_of_transformers_has_a_name_and_a_check() -> None:
    assert set(TRACKERS) == set(INTEGRATION_TO_CALLBACK) == set(trackers._DISTRIBUTIONS)


@pytest.mark.parametrize("name", TRACKERS)
def test_an_unusable_tracker_is_refused_with_a_hint(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(distribution: str) -> str:
        raise importlib.metadata.PackageNotFoundError(distribution)

    monkeypatch.setattr(trackers.importlib.metadata, "version", missing)
    monkeypatch.delenv("KUBEFLOW_TRAINER_SERVER_URL", raising=False)
    with pytest.raises(UsageError, match=f"training.report_to lists {name}") as refused:
        trackers.require([name])
    assert "remove" in refused.value.hint


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return prepare_texts(tmp_path_factory.mktemp("texts") / "train")


@pytest.fixture
def own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Set a separate home and environment, so that nothing on the machine is used or changed."""
    for name in (
        "WANDB_MODE", "WANDB_API_KEY", "WANDB_PROJECT", "WANDB_NAME", "WANDB_DIR", "MLFLOW_EXPERIMENT_NAME",
        "MLFLOW_TRACKING_URI", "MLFLOW_ALLOW_FILE_STORE", "TRACKIO_PROJECT", "TRACKIO_DIR",
    ):  # fmt: skip
        monkeypatch.setenv(name, "")  # so that what `prepare` sets is taken back
        monkeypatch.delenv(name)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.slow
def test_mlflow_logs_to_a_local_store(data: Path, own: Path) -> None:
    pytest.importorskip("mlflow")
    run(text_recipe(own, data, "training.report_to=[mlflow]", "training.max_steps=3"))
    (losses,) = (own / "run").rglob("metrics/loss")
    assert len(losses.read_text().splitlines()) == 3


@pytest.mark.slow
def test_trackio_logs_to_a_local_folder(data: Path, own: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRACKIO_DIR", str(own / "trackio"))  # read at the import
    pytest.importorskip("trackio")
    run(text_recipe(own, data, "training.report_to=[trackio]", "training.max_steps=3"))
    (database,) = (own / "trackio").glob("ixtune*.db")
    with sqlite3.connect(database) as opened:
        rows = [json.loads(row[0]) for row in opened.execute("select metrics from metrics")]
    assert sum("train/loss" in row for row in rows) == 3


@pytest.mark.slow
def test_wandb_logs_offline(data: Path, own: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_MODE", "offline")  # read at the first use
    pytest.importorskip("wandb")
    run(text_recipe(own, data, "training.report_to=[wandb]", "training.max_steps=3"))
    assert list((own / "run" / "wandb").glob("offline-run-*/*.wandb"))


@pytest.mark.slow
def test_wandb_online_is_refused_without_a_login(own: Path) -> None:
    pytest.importorskip("wandb")
    code = "from ixtune.training.monitoring import trackers; trackers.require(['wandb'])"
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=False)
    assert "training.report_to lists wandb, which is not logged in" in done.stderr
