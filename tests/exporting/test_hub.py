"""Test the upload and its model card, without network."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from ixtune.adapter.card import Facts, text
from ixtune.adapter.profiles import PROFILES
from ixtune.base import HUB_ID
from ixtune.errors import IxtuneError, UsageError
from ixtune.exporting.hub import push


class Hub:
    """Stand-in for the hub that records its requests."""

    asked: list[tuple[str, dict[str, Any]]] = []
    refuses = False

    def create_repo(self, name: str, **settings: Any) -> str:
        self.asked.append((name, settings))
        return f"https://hub.invalid/{name}"

    def upload_folder(self, **settings: Any) -> None:
        if self.refuses:
            raise ConnectionError("the line went dead\nwith details")
        self.asked.append(("upload", settings))


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> type[Hub]:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    monkeypatch.setattr("huggingface_hub.HfApi", Hub)
    monkeypatch.setattr(Hub, "asked", [])
    return Hub


def test_the_folder_is_uploaded_to_a_private_repository(hub: type[Hub], tmp_path: Path) -> None:
    assert push(tmp_path, "me/mine") == "https://hub.invalid/me/mine"
    assert hub.asked[0] == ("me/mine", {"private": True, "exist_ok": True})
    assert hub.asked[1][1]["folder_path"] == tmp_path


def test_a_failed_upload_keeps_the_folder_and_prints_the_command(
    hub: type[Hub], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hub, "refuses", True)
    (tmp_path / "model.safetensors").write_bytes(b"x")
    with pytest.raises(IxtuneError, match="the upload failed or is incomplete: the line went dead") as caught:
        push(tmp_path, "me/mine")
    assert caught.value.hint.endswith(f"`hf upload me/mine {tmp_path}`")
    assert (tmp_path / "model.safetensors").read_bytes() == b"x"


@pytest.mark.parametrize("name", ["mine", "../mine", "me/mine/more", "https://x/y"])
def test_an_invalid_repository_name_is_refused(name: str, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="is not a repository name"):
        push(tmp_path, name)


def test_the_card_names_the_hub_base_and_all_known_facts() -> None:
    record = {
        "data": {"records": 1234, "hash": "ab", "path": "/home/me"},
        "steps": 500,
        "metrics": {"exact_match": 0.75},
        "recipe": {"adapter": {"rank": 64}, "output": "/home/me/run"},
    }
    card = text(Facts(PROFILES["nf4"], HUB_ID, "terms of the base", record, 55, ("a warning",)))
    assert card.startswith("---\nlibrary_name: transformers\nbase_model: " + HUB_ID)
    for told in ("records: 1,234", "steps: 500", "exact match: 0.75", '"rank": 64', "- a warning", "`hd_num` 55"):
        assert told in card
    assert "/home/me" not in card
    assert "terms of the base" in card
