"""Test sources and images in an object store, with a real S3 server on loopback."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from in_process import call
from pdf_files import write_pdf
from records import write_image

from ixtune.data import remote_files
from ixtune.data.prepared import store
from ixtune.data.rejects import RecordError
from ixtune.data.remote_files import RemoteFolder, is_remote, without_secrets

SECRET = "do-not-print-me"
LINES = [
    {"image": "img/a.png", "question": "What?", "answer": "A cat."},
    {"image": "s3://data/set/img/b.png", "question": "What?", "answer": "A dog."},
    {"image": "report.pdf#page=2", "question": "What?", "answer": "A page."},
    {"image": "img/a.png", "question": "And?", "answer": "The same."},
    {"image": "img/gone.png", "question": "What?", "answer": "Nothing."},
    {"image": "../../other/a.png", "question": "What?", "answer": "Outside."},
    {"image": "s3://elsewhere/a.png", "question": "What?", "answer": "Elsewhere."},
    {"image": "", "question": "What?", "answer": "No image."},
]


@pytest.fixture(scope="module")
def local(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same data on the local disk."""
    folder = tmp_path_factory.mktemp("local") / "set"
    write_image(folder / "img" / "a.png", 60, 40)
    write_image(folder / "img" / "b.png", 61, 40)
    write_pdf(folder / "report.pdf", (300, 400), (400, 300))
    (folder / "train.jsonl").write_text("".join(json.dumps(line) + "\n" for line in LINES))
    return folder


@pytest.fixture(scope="module")
def bucket(local: Path) -> Iterator[str]:
    """The URL of the same data in the bucket of an in-process S3 server."""
    moto_server = pytest.importorskip("moto.server", reason="moto[server], for an S3 server on loopback")
    s3fs = pytest.importorskip("s3fs", reason="the extra s3")
    server = moto_server.ThreadedMotoServer(ip_address="127.0.0.1", port=0)
    server.start()
    host, port = server.get_host_and_port()
    settings = {
        "AWS_ENDPOINT_URL": f"http://{host}:{port}",
        "AWS_ACCESS_KEY_ID": "tester",
        "AWS_SECRET_ACCESS_KEY": SECRET,
        "AWS_DEFAULT_REGION": "us-east-1",
    }
    before = dict(os.environ)
    os.environ.update(settings)
    try:
        system = s3fs.S3FileSystem()
        system.mkdir("data")
        system.put(str(local), "data/set", recursive=True)
        yield "s3://data/set"
    finally:
        os.environ.clear()
        os.environ.update(before)
        server.stop()


def content(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


@pytest.mark.slow
def test_a_set_from_s3_equals_the_local_one_for_any_process_count(
    bucket: str, local: Path, tmp_path: Path, tokenizer_base: Path
):
    common = ("--base", tokenizer_base, "--hd-num", 4, "--embed-images", "--max-reject-rate", 1)
    ways: dict[str, tuple[str | Path, ...]] = {
        "file": (f"{bucket}/train.jsonl",),
        "two": (f"{bucket}/train.jsonl", "-j", "2"),
        "folder": (bucket,),
        "images": (local / "train.jsonl", "--image-root", bucket),
    }
    for name, way in ways.items():
        done = call("prepare", *way, "--out", tmp_path / name, *common)
        assert done.returncode == 0, done.stderr
        assert SECRET not in done.stdout + done.stderr
        assert "/ixtune-" not in done.stdout + done.stderr  # the temporary copy has no name for the user
        manifest = json.loads((tmp_path / name / "manifest.json").read_text())
        accepted = 4 if name == "folder" else 5  # s3:// addresses in records are those of a remote image root
        assert (manifest["records"]["accepted"], manifest["records"]["read"]) == (accepted, 8)
        assert manifest["image_roots"] == ["."]
        reasons = manifest["records"]["rejected_by_reason"]
        assert reasons["picture_missing"] == reasons["path_outside_root"] == 1
        assert "ixtune-" not in (tmp_path / name / "manifest.json").read_text()
    assert content(tmp_path / "file") == content(tmp_path / "two")
    images = [path for path in content(tmp_path / "file") if path.startswith("images/")]
    assert len(images) == 3
    rows = list(store.load(tmp_path / "file").dataset)
    assert {row["source"] for row in rows} == {f"{bucket}/train.jsonl"}
    done = call("prepare", local / "train.jsonl", "--out", tmp_path / "local", *common)
    on_disk = {row["id"]: row for row in store.load(tmp_path / "local").dataset}
    for row in rows:
        if row["id"] in on_disk:  # the record that names s3:// is none on the disk
            assert row["token_ids"] == on_disk[row["id"]]["token_ids"]
            assert [one["content"] for one in row["pictures"]] == [
                one["content"] for one in on_disk[row["id"]]["pictures"]
            ]


@pytest.mark.slow
def test_a_dataset_info_reads_its_images_from_s3(bucket: str, tmp_path: Path, tokenizer_base: Path):
    columns = {"prompt": "question", "query": "", "response": "answer", "images": "image"}
    info = {"mine": {"file_name": "train.jsonl", "columns": columns}}
    (tmp_path / "dataset_info.json").write_text(json.dumps(info))
    (tmp_path / "train.jsonl").write_text("".join(json.dumps(line) + "\n" for line in LINES))
    (tmp_path / "img").mkdir()
    (tmp_path / "img" / "a.png").write_text("not that one")
    how = ("--base", tokenizer_base, "--hd-num", 4, "--embed-images", "--max-reject-rate", 1, "--image-root", bucket)
    done = call("prepare", tmp_path / "dataset_info.json", "--out", tmp_path / "out", *how)
    assert done.returncode == 0, done.stderr
    records = json.loads((tmp_path / "out" / "manifest.json").read_text())["records"]
    assert (records["accepted"], records["read"]) == (5, 8)
    assert records["rejected_by_reason"]["picture_missing"] == 1
    assert len([path for path in content(tmp_path / "out") if path.startswith("images/")]) == 3


@pytest.mark.slow
def test_a_data_config_may_contain_urls(bucket: str, tmp_path: Path, tokenizer_base: Path):
    config = tmp_path / "mix.yaml"
    config.write_text(f"sources:\n  - path: {bucket}/train.jsonl\n    image_root: {bucket}\n")
    done = call(
        "prepare", config, "--out", tmp_path / "out", "--base", tokenizer_base, "--hd-num", 1, "--embed-images",
        "--max-reject-rate", 1,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert json.loads((tmp_path / "out" / "manifest.json").read_text())["records"]["accepted"] == 5


@pytest.mark.slow
def test_a_missing_or_too_large_file_is_refused(
    bucket: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, tokenizer_base: Path
):
    common = ("--out", tmp_path / "x", "--hd-num", 1, "--embed-images", "--base", tokenizer_base)
    folder = RemoteFolder(bucket)
    assert folder.read("img/a.png", 1 << 20).startswith(b"\x89PNG")
    with pytest.raises(RecordError, match="more than 0 MiB"):
        folder.read("img/b.png", 10)
    done = call("prepare", f"{bucket}/none.jsonl", *common)
    assert done.returncode == 2
    assert "there is no such file or folder" in done.stderr
    monkeypatch.setattr(remote_files, "_SPARE_BYTES", 1 << 60)
    done = call("prepare", f"{bucket}/train.jsonl", *common)
    assert done.returncode == 1
    assert "set TMPDIR" in done.stderr
    assert not (tmp_path / "x").exists()


@pytest.mark.parametrize(
    ("source", "code", "words"),
    [
        (("s3://data/train.jsonl",), 2, "--embed-images"),
        (("s3://user:hidden-word@data/t.jsonl", "--embed-images"), 2, "a user, a password or a query"),
        (("hf://datasets/someone/receipts/t.jsonl", "--embed-images"), 1, "unset HF_HUB_OFFLINE"),
    ],
)
def test_an_unreadable_url_is_refused_without_revealing_secrets(
    source: tuple[str, ...], code: int, words: str, tmp_path: Path, tokenizer_base: Path
):
    done = call("prepare", *source, "--out", tmp_path / "x", "--hd-num", 1, "--base", tokenizer_base)
    assert done.returncode == code, done.stderr
    assert words in done.stderr
    assert "hint:" in done.stderr
    assert "hidden-word" not in done.stdout + done.stderr
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "x").exists()


def test_secrets_are_removed_from_messages(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("SOME_TOKEN", "abc-123-xyz")
    text = without_secrets("GET https://me:pw@host/a?X-Signature=99 with abc-123-xyz failed")
    assert text == "GET https://...@host/a?... with ... failed"


def test_only_object_stores_are_remote():
    assert [is_remote(one) for one in ("s3://a/b", "hf://datasets/x/y", "az://c", "gs://d")] == [True] * 4
    assert not any(map(is_remote, ("a/b", "https://x/y", "file:///a", "C:\\a", None, "s3:/a")))
