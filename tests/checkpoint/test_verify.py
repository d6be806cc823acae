from __future__ import annotations

import hashlib
from pathlib import Path

import pytest

from ixtune.base import shipped
from ixtune.checkpoint.sizes import Sizes
from ixtune.checkpoint.terms import terms_of
from ixtune.checkpoint.verify import known_hashes, verify
from ixtune.errors import IxtuneError
from ixtune.family import FOUR_KHD


@pytest.fixture
def cached(tmp_path: Path) -> Path:
    """Return the nano base as the hub cache stores it: links to files named by their hash."""
    blobs, snapshot = tmp_path / "blobs", tmp_path / "snapshots" / "main"
    blobs.mkdir()
    snapshot.mkdir(parents=True)
    for file in shipped("nano").iterdir():
        content = file.read_bytes()
        blob = blobs / hashlib.sha256(content).hexdigest()
        blob.write_bytes(content)
        (snapshot / file.name).symlink_to(blob)
    return snapshot


def test_hub_cache_files_are_compared_with_the_hash_in_their_name(cached: Path) -> None:
    found = verify(cached)
    assert found.findings == {}
    assert found.compared["model-00001-of-00002.safetensors"] == "the hub's cache"
    blob = (cached / "tokenizer.model").resolve()
    blob.write_bytes(blob.read_bytes() + b" ")
    (altered,) = verify(cached).findings["altered"]
    assert altered.startswith("tokenizer.model has the SHA-256")
    assert verify(cached, hashes=False).findings == {}


def test_without_hashes_only_headers_are_read(cached: Path) -> None:
    read: list[int] = []
    found = verify(cached, hashes=False, advance=read.append)
    assert (found.file_sha256, read) == ({}, [])
    assert found.identity == verify(shipped("nano")).identity


def test_the_released_tokenizer_hash_applies_to_released_sizes_only(tmp_path: Path) -> None:
    assert known_hashes(tmp_path, Sizes()) == {"tokenizer.model": (FOUR_KHD.tokenizer_sha256, "the released model")}
    assert known_hashes(tmp_path, Sizes(vocabulary=92600)) == {}


def test_a_folder_of_another_architecture_is_not_a_base(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "llama"}')
    with pytest.raises(IxtuneError, match="'llama' checkpoint, not InternLM-XComposer2-4KHD"):
        verify(tmp_path)


def test_missing_config_and_4_bit_folders_get_their_own_hint(tmp_path: Path) -> None:
    with pytest.raises(IxtuneError, match="no config.json"):
        verify(tmp_path)
    (tmp_path / "config.json").write_text('{"model_type": "internlmxcomposer2", "quantization_config": {}}')
    with pytest.raises(IxtuneError, match="stored in 4 bits"):
        verify(tmp_path)


def test_an_empty_folder_with_a_config_reports_every_tensor_missing(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "internlmxcomposer2"}')
    found = verify(tmp_path)
    assert len(found.missing) == 942 + 1
    assert "the folder holds no checkpoint" in found.damaged[0]


def test_the_terms_are_the_released_ones_or_those_in_the_folder(tmp_path: Path) -> None:
    assert terms_of(tmp_path, Sizes()) == FOUR_KHD.terms
    small = Sizes(layers=2)
    assert terms_of(tmp_path, small).startswith("not stated")
    (tmp_path / "LICENSE.txt").write_text("x")
    assert terms_of(tmp_path, small) == "see its LICENSE.txt"
    assert terms_of(shipped("nano"), small) == "apache-2.0, says its README.md"
