"""Test the upload at the end of a run, to a fake hub."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from text_run import prepare_texts, text_recipe

from ixtune.cli import main
from ixtune.errors import IxtuneError, UsageError
from ixtune.exporting import publish


class Hub:
    """Record the uploaded files."""

    uploaded: dict[str, bytes] = {}
    refuses = False

    def create_repo(self, name: str, **settings: Any) -> str:
        return f"https://hub.invalid/{name}"

    def upload_folder(self, folder_path: Path, **settings: Any) -> None:
        if self.refuses:
            raise ConnectionError("the line went dead")
        self.uploaded.update({path.name: path.read_bytes() for path in folder_path.iterdir()})


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> type[Hub]:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    monkeypatch.setattr("huggingface_hub.HfApi", Hub)
    monkeypatch.setattr("huggingface_hub.get_token", lambda: "token")
    monkeypatch.setattr(Hub, "uploaded", {})
    return Hub


def test_a_finished_run_uploads_adapter_card_and_report(
    hub: type[Hub], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    data, others = prepare_texts(tmp_path / "texts"), prepare_texts(tmp_path / "others", count=4, first=50)
    text_recipe(tmp_path, data)
    changes = ["training.max_steps=2", f"data.validation={others}", "training.push_to_hub=me/mine"]
    assert main(["train", str(tmp_path / "recipe.yaml"), *changes]) == 0
    assert "uploaded https://hub.invalid/me/mine" in capfd.readouterr().out
    assert {"adapter_model.safetensors", "adapter_config.json", "ixtune.json", "README.md", "report.html"} <= set(
        hub.uploaded
    )
    adapter = tmp_path / "run" / "adapter"
    assert hub.uploaded["adapter_model.safetensors"] == (adapter / "adapter_model.safetensors").read_bytes()
    assert not (tmp_path / "run" / "upload").exists()


def test_a_failed_upload_keeps_the_files_to_upload(
    hub: type[Hub], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hub, "refuses", True)
    (tmp_path / "adapter").mkdir()
    (tmp_path / "adapter" / "ixtune.json").write_text("{}")
    with pytest.raises(IxtuneError, match="the line went dead") as failed:
        publish.publish(tmp_path, "me/mine")
    assert failed.value.hint.endswith(f"`hf upload me/mine {tmp_path / 'upload'}`")
    assert (tmp_path / "upload" / "ixtune.json").is_file()


def test_an_upload_that_cannot_succeed_is_refused_before_training(
    hub: type[Hub], monkeypatch: pytest.MonkeyPatch
) -> None:
    publish.require_login("me/mine")
    monkeypatch.setattr("huggingface_hub.get_token", lambda: None)
    with pytest.raises(UsageError, match="not logged in to the hub"):
        publish.require_login("me/mine")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(UsageError, match="HF_HUB_OFFLINE is set"):
        publish.require_login("me/mine")
