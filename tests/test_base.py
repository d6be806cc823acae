import json
import os
import socket
from pathlib import Path

import pytest

from ixtune import base
from ixtune.errors import IxtuneError


def checkpoint(folder: Path, *names: str) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for name in names or ("config.json", "tokenizer.model", "model.safetensors"):
        (folder / name).touch()
    return folder


def index(folder: Path, *shards: str, form: str = "pytorch_model.bin") -> None:
    weight_map = {f"tensor.{number}": shard for number, shard in enumerate(shards)}
    (folder / f"{form}.index.json").write_text(json.dumps({"weight_map": weight_map}))


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return an empty temporary hub cache."""
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*arguments: object, **options: object) -> None:
        raise AssertionError("a request was made")

    monkeypatch.setattr(socket.socket, "connect", refuse)


def cached_snapshot(cache: Path, *names: str) -> Path:
    repository = cache / "models--owner--name"
    (repository / "refs").mkdir(parents=True)
    (repository / "refs" / "main").write_text("0" * 40)
    return checkpoint(repository / "snapshots" / ("0" * 40), *names)


@pytest.mark.usefixtures("no_network")
@pytest.mark.parametrize("weights", ["model.safetensors", "pytorch_model.bin", "model-00001-of-00001.safetensors"])
def test_a_folder_with_all_parts_is_a_base(tmp_path: Path, weights: str):
    folder = checkpoint(tmp_path / "base", "config.json", "tokenizer.model", weights)
    assert base.resolve(str(folder)) == folder


def test_a_tilde_expands_to_the_home_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    checkpoint(tmp_path / "base")
    assert base.resolve("~/base") == tmp_path / "base"


@pytest.mark.usefixtures("no_network")
def test_a_folder_that_looks_like_a_hub_id_is_a_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    checkpoint(tmp_path / "owner" / "name")
    monkeypatch.chdir(tmp_path)
    assert base.resolve("owner/name") == Path("owner/name")


@pytest.mark.parametrize(
    ("present", "missing"),
    [
        (["notes.txt"], ["config.json", "tokenizer.model", "weights"]),
        (["config.json", "model.safetensors"], ["tokenizer.model"]),
        (["config.json", "tokenizer.model"], ["weights"]),
    ],
)
def test_an_incomplete_checkpoint_reports_what_is_missing(tmp_path: Path, present: list[str], missing: list[str]):
    folder = checkpoint(tmp_path / "base", *present)
    with pytest.raises(IxtuneError, match="not a complete base") as caught:
        base.resolve(str(folder))
    message = str(caught.value)
    assert str(folder) in message
    assert all(name in message for name in missing)
    assert not any(name in message for name in present)


def test_a_shard_named_in_the_index_must_exist(tmp_path: Path):
    folder = checkpoint(tmp_path / "base", "config.json", "tokenizer.model", "a.bin")
    index(folder, "a.bin", "b.bin", "b.bin")
    with pytest.raises(IxtuneError, match=r"missing b\.bin"):
        base.resolve(str(folder))


def test_one_complete_format_is_enough(tmp_path: Path):
    folder = checkpoint(tmp_path / "base", "config.json", "tokenizer.model", "a.safetensors")
    index(folder, "a.bin", "b.bin")
    index(folder, "a.safetensors", form="model.safetensors")
    assert base.resolve(str(folder)) == folder


@pytest.mark.parametrize("shard", ["../secret.bin", "/etc/passwd", "sub/a.bin"])
def test_an_index_cannot_point_outside_its_folder(tmp_path: Path, shard: str):
    folder = checkpoint(tmp_path / "base", "config.json", "tokenizer.model")
    index(folder, shard)
    with pytest.raises(IxtuneError, match="outside its folder"):
        base.resolve(str(folder))


@pytest.mark.parametrize("content", ["", "[]", '{"weight_map": 3}', '{"weight_map": {"a": 3}}', "\xff"])
def test_a_damaged_index_is_reported(tmp_path: Path, content: str):
    folder = checkpoint(tmp_path / "base", "config.json", "tokenizer.model")
    (folder / "model.safetensors.index.json").write_text(content, encoding="latin-1")
    with pytest.raises(IxtuneError, match=r"index of the weights cannot be read.*index\.json"):
        base.resolve(str(folder))


def test_a_file_is_not_a_base(tmp_path: Path):
    (tmp_path / "model.bin").touch()
    with pytest.raises(IxtuneError, match="not a folder"):
        base.resolve(str(tmp_path / "model.bin"))


def test_an_adapter_is_not_a_base(tmp_path: Path):
    folder = checkpoint(tmp_path / "adapter", "adapter_config.json", "adapter_model.safetensors")
    with pytest.raises(IxtuneError, match="an adapter, not a base") as caught:
        base.resolve(str(folder))
    assert "merge" in caught.value.hint


@pytest.mark.usefixtures("no_network")
@pytest.mark.parametrize(
    "name", ["", "nothing", "./no/such", "../owner", "../../owner/name", "a/b/c", "owner/..", "/no"]
)
def test_an_invalid_base_name_is_refused_without_a_request(name: str):
    with pytest.raises(IxtuneError, match="no such base folder|not a folder|not a complete base"):
        base.resolve(name)


@pytest.mark.usefixtures("no_network", "cache")
def test_offline_an_uncached_hub_id_is_refused_with_both_remedies():
    with pytest.raises(IxtuneError, match="not a folder, and not complete in the hub cache: owner/name") as caught:
        base.resolve("owner/name")
    assert "HF_HUB_OFFLINE" in caught.value.hint


@pytest.mark.usefixtures("no_network")
def test_a_complete_cached_snapshot_is_used_without_a_request(cache: Path):
    folder = cached_snapshot(cache)
    assert base.resolve("owner/name") == folder


@pytest.mark.usefixtures("no_network")
def test_offline_an_interrupted_download_is_not_taken_for_a_base(cache: Path):
    index(cached_snapshot(cache, "config.json", "tokenizer.model", "a.bin"), "a.bin", "b.bin")
    with pytest.raises(IxtuneError, match="not complete in the hub cache"):
        base.resolve("owner/name")


class FakeHub:
    """Fake snapshot_download: raise an exception, or return a folder."""

    def __init__(self, answer: Exception | Path) -> None:
        self.answer = answer
        self.patterns: list[str] = []

    def __call__(self, hub_id: str, *, allow_patterns: list[str], local_files_only: bool = False) -> str:
        from huggingface_hub.errors import LocalEntryNotFoundError

        self.patterns = allow_patterns
        if local_files_only:
            raise LocalEntryNotFoundError("not cached")
        if isinstance(self.answer, Exception):
            raise self.answer
        return str(self.answer)


def online(monkeypatch: pytest.MonkeyPatch, answer: Exception | Path) -> FakeHub:
    import huggingface_hub
    from huggingface_hub import constants

    hub = FakeHub(answer)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(huggingface_hub, "snapshot_download", hub)
    return hub


def test_online_a_hub_id_is_downloaded_without_code(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    folder = checkpoint(tmp_path / "snapshot")
    hub = online(monkeypatch, folder)
    assert base.resolve(base.HUB_ID) == folder
    assert not any(Path("modeling.py").match(pattern) for pattern in hub.patterns)


def hub_error(kind: str) -> Exception:
    from types import SimpleNamespace

    from huggingface_hub import errors

    response = SimpleNamespace(headers={}, request=None, status_code=404)
    return getattr(errors, kind)("no", response=response)


@pytest.mark.parametrize(
    ("kind", "told"),
    [
        ("RepositoryNotFoundError", "and not a model on the hub: owner/name"),
        ("GatedRepoError", "access grant for owner/name"),
        ("HfHubHTTPError", "owner/name could not be downloaded"),
    ],
)
def test_a_hub_refusal_is_a_one_line_error(monkeypatch: pytest.MonkeyPatch, kind: str, told: str):
    online(monkeypatch, hub_error(kind))
    with pytest.raises(IxtuneError, match=told) as caught:
        base.resolve("owner/name")
    assert "\n" not in str(caught.value)


def test_a_broken_connection_is_a_one_line_error(monkeypatch: pytest.MonkeyPatch):
    online(monkeypatch, RuntimeError("peer closed\nlong story"))
    with pytest.raises(IxtuneError, match="could not be downloaded: peer closed"):
        base.resolve("owner/name")


def test_a_full_disk_during_download_keeps_its_error(monkeypatch: pytest.MonkeyPatch):
    online(monkeypatch, OSError(28, os.strerror(28)))
    with pytest.raises(OSError, match="No space"):
        base.resolve("owner/name")


def test_the_embedded_base_includes_its_tokenizer():
    assert base.resolve_tokenizer("nano") == base.resolve("nano")


@pytest.mark.usefixtures("no_network")
def test_a_folder_with_a_tokenizer_is_enough_to_prepare(tmp_path: Path):
    folder = checkpoint(tmp_path / "base", "tokenizer.model")
    assert base.resolve_tokenizer(str(folder)) == folder


@pytest.mark.usefixtures("no_network")
@pytest.mark.parametrize(
    ("present", "told"),
    [
        (["config.json", "model.safetensors"], r"missing tokenizer\.model"),
        (["adapter_config.json", "adapter_model.safetensors"], "an adapter, not a base"),
    ],
)
def test_a_folder_without_a_tokenizer_is_refused(tmp_path: Path, present: list[str], told: str):
    folder = checkpoint(tmp_path / "base", *present)
    with pytest.raises(IxtuneError, match=told) as caught:
        base.resolve_tokenizer(str(folder))
    assert str(folder) in str(caught.value)
    assert "config.json" not in str(caught.value)


@pytest.mark.usefixtures("no_network")
@pytest.mark.parametrize("name", ["nothing", "../owner", "a/b/c", "tokenizer.model"])
def test_a_tokenizer_is_resolved_by_the_same_rules_as_a_base(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
):
    (tmp_path / "tokenizer.model").touch()
    monkeypatch.chdir(tmp_path)
    with pytest.raises(IxtuneError, match="no such base folder|not a folder"):
        base.resolve_tokenizer(name)


@pytest.mark.usefixtures("no_network")
def test_a_cached_tokenizer_is_used_without_a_request_but_is_no_base(cache: Path):
    folder = cached_snapshot(cache, "tokenizer.model")
    assert base.resolve_tokenizer("owner/name") == folder
    with pytest.raises(IxtuneError, match="not complete in the hub cache"):
        base.resolve("owner/name")


@pytest.mark.usefixtures("no_network")
@pytest.mark.parametrize("cached", [[], ["config.json"]])
def test_offline_an_uncached_tokenizer_is_refused_with_both_remedies(cache: Path, cached: list[str]):
    if cached:
        cached_snapshot(cache, *cached)
    with pytest.raises(IxtuneError, match="not a folder, and not complete in the hub cache: owner/name") as caught:
        base.resolve_tokenizer("owner/name")
    assert "HF_HUB_OFFLINE" in caught.value.hint


def test_online_only_the_tokenizer_of_a_hub_id_is_downloaded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    folder = checkpoint(tmp_path / "snapshot", "tokenizer.model")
    hub = online(monkeypatch, folder)
    assert base.resolve_tokenizer(base.HUB_ID) == folder
    assert hub.patterns == ["tokenizer.model"]


def test_online_a_repository_without_a_tokenizer_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    online(monkeypatch, checkpoint(tmp_path / "snapshot", "README.md"))
    with pytest.raises(IxtuneError, match=r"missing tokenizer\.model"):
        base.resolve_tokenizer("owner/name")


def test_recipes_are_found_in_the_repository():
    assert (base.shipped("recipes") / "qlora-24gb.yaml").is_file()


def test_an_installed_folder_takes_precedence_over_the_repository(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(base, "_PACKAGE", tmp_path / "ixtune")
    checkpoint(tmp_path / "examples" / "nano-base" / "base")
    assert base.resolve("nano") == tmp_path / "examples" / "nano-base" / "base"
    checkpoint(tmp_path / "ixtune" / "_shipped" / "nano")
    assert base.resolve("nano") == tmp_path / "ixtune" / "_shipped" / "nano"


def test_a_broken_installation_is_reported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(base, "_PACKAGE", tmp_path / "ixtune")
    with pytest.raises(IxtuneError, match="nano folder is missing from this installation"):
        base.resolve("nano")
