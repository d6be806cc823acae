import json
import os
import pickle
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from ixtune.checkpoint import safetensors_file
from ixtune.checkpoint.safetensors_file import write_safetensors
from ixtune.checkpoint.shards import Checkpoint, open_checkpoint, open_file
from ixtune.errors import IxtuneError
from ixtune.files import sha256_file

Tensors = dict[str, torch.Tensor]


@pytest.fixture
def tensors() -> Tensors:
    generator = torch.Generator().manual_seed(0)
    return {
        "a.weight": torch.randn(7, 5, generator=generator).bfloat16(),
        "b.weight": torch.randn(3, 4, 2, generator=generator).bfloat16(),
        "c.bias": torch.randn(9, generator=generator).bfloat16(),
        "scalar": torch.tensor(2.5).bfloat16(),
        "empty": torch.empty(0, 3).bfloat16(),
    }


def write_single_safetensors(folder: Path, tensors: Tensors) -> None:
    save_file(tensors, folder / "model.safetensors")


def write_single_bin(folder: Path, tensors: Tensors) -> None:
    torch.save(tensors, folder / "pytorch_model.bin")


def write_old_bin(folder: Path, tensors: Tensors) -> None:
    torch.save(tensors, folder / "pytorch_model.bin", _use_new_zipfile_serialization=False)


def write_repacked_bin(folder: Path, tensors: Tensors) -> None:
    """Rewrite the zip by another tool, so that the offsets torch computes are wrong."""
    torch.save(tensors, folder / "archive.bin")
    with (
        zipfile.ZipFile(folder / "archive.bin") as old,
        zipfile.ZipFile(folder / "pytorch_model.bin", "w", zipfile.ZIP_STORED) as new,
    ):
        for entry in old.infolist():
            new.writestr(entry.filename, old.read(entry))
    (folder / "archive.bin").unlink()


def write_sharded_bin(folder: Path, tensors: Tensors) -> None:
    _write_shards(folder, tensors, "pytorch_model-{}-of-00002.bin", "pytorch_model.bin.index.json", torch.save)


def write_sharded_safetensors(folder: Path, tensors: Tensors) -> None:
    _write_shards(folder, tensors, "model-{}-of-00002.safetensors", "model.safetensors.index.json", save_file)


def _write_shards(folder: Path, tensors: Tensors, pattern: str, index: str, save: Callable[..., object]) -> None:
    names = list(tensors)
    weight_map = {}
    for number, part in (("00001", names[:2]), ("00002", names[2:])):
        save({name: tensors[name] for name in part}, folder / pattern.format(number))
        weight_map |= dict.fromkeys(part, pattern.format(number))
    (folder / index).write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))


FORMS = [
    write_single_safetensors,
    write_sharded_safetensors,
    write_single_bin,
    write_sharded_bin,
    write_old_bin,
    write_repacked_bin,
]


@pytest.mark.parametrize("write", FORMS)
def test_every_format_reads_back_exactly_in_full_and_by_rows(
    write: Callable[[Path, Tensors], None], tmp_path: Path, tensors: Tensors
) -> None:
    write(tmp_path, tensors)
    checkpoint = open_checkpoint(tmp_path)
    assert checkpoint.by_name.keys() == tensors.keys()
    for name, expected in tensors.items():
        info = checkpoint.by_name[name]
        assert (info.shape, info.dtype, info.nbytes) == (
            tuple(expected.shape),
            expected.dtype,
            expected.nbytes,
        )
        assert torch.equal(checkpoint.read(name), expected)
        if expected.dim():
            for start in range(len(expected)):
                assert torch.equal(checkpoint.read_rows(name, start, start + 1), expected[start : start + 1])
        plain = expected.reshape(-1).view(torch.uint8).numpy().tobytes()
        assert bytes(checkpoint.read_bytes(name, 3, 11)) == plain[3:11]
    assert checkpoint.nbytes == sum(tensor.nbytes for tensor in tensors.values())


def test_offsets_in_torch_files_are_found_without_loading_them(tmp_path: Path, tensors: Tensors) -> None:
    write_single_bin(tmp_path, tensors)
    raw = (tmp_path / "pytorch_model.bin").read_bytes()
    for info in open_checkpoint(tmp_path).tensors:
        assert info.offset is not None
        plain = tensors[info.name].reshape(-1).view(torch.uint8).numpy().tobytes()
        assert raw[info.offset : info.offset + info.nbytes] == plain


@pytest.mark.parametrize("write", [write_old_bin, write_repacked_bin])
def test_untrusted_offsets_are_not_used(
    write: Callable[[Path, Tensors], None], tmp_path: Path, tensors: Tensors
) -> None:
    write(tmp_path, tensors)
    infos = open_checkpoint(tmp_path).tensors
    stored = [info for info in infos if info.offset is not None]
    raw = (tmp_path / "pytorch_model.bin").read_bytes()
    for info in stored:
        plain = tensors[info.name].reshape(-1).view(torch.uint8).numpy().tobytes()
        assert raw[info.offset : info.offset + info.nbytes] == plain
    assert len(stored) < len(tensors)


def test_tensors_come_in_shard_order_then_file_order(tmp_path: Path, tensors: Tensors) -> None:
    backwards = dict(reversed(tensors.items()))
    write_sharded_bin(tmp_path, backwards)
    checkpoint = open_checkpoint(tmp_path)
    assert checkpoint.shards == ("pytorch_model-00001-of-00002.bin", "pytorch_model-00002-of-00002.bin")
    assert list(checkpoint.by_name) == list(backwards)


@pytest.mark.parametrize("old_format", [False, True])
def test_transposed_and_overlapping_torch_tensors_read_correctly(tmp_path: Path, old_format: bool) -> None:
    whole = torch.arange(24.0).reshape(4, 6)
    tensors = {"t": whole.t(), "part": whole[1:3, 2:5], "same": whole, "wide": torch.ones(1).expand(3)}
    torch.save(tensors, tmp_path / "pytorch_model.bin", _use_new_zipfile_serialization=not old_format)
    checkpoint = open_checkpoint(tmp_path)
    for name, expected in tensors.items():
        assert torch.equal(checkpoint.read(name), expected)
        assert torch.equal(checkpoint.read_rows(name, 1, 2), expected[1:2])
        plain = expected.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()
        assert bytes(checkpoint.read_bytes(name, 2, 9)) == plain[2:9]


def test_parameters_with_gradients_read_as_plain_tensors(tmp_path: Path) -> None:
    torch.save({"w": torch.nn.Parameter(torch.ones(2, 2))}, tmp_path / "pytorch_model.bin")
    assert not open_checkpoint(tmp_path).read("w").requires_grad


def test_safetensors_take_precedence_over_bin_files(tmp_path: Path, tensors: Tensors) -> None:
    write_single_bin(tmp_path, {"other": torch.ones(1)})
    write_single_safetensors(tmp_path, tensors)
    assert open_checkpoint(tmp_path).shards == ("model.safetensors",)


def test_a_row_range_outside_the_tensor_is_an_error(tmp_path: Path, tensors: Tensors) -> None:
    write_single_safetensors(tmp_path, tensors)
    with pytest.raises(IndexError, match=r"a\.weight has 7 rows"):
        open_checkpoint(tmp_path).read_rows("a.weight", 5, 8)


def test_the_writer_makes_valid_safetensors_with_mixed_dtypes(tmp_path: Path) -> None:
    tensors = {
        "odd": torch.ones(3, dtype=torch.uint8),
        "wide": torch.arange(4.0),
        "narrow": torch.ones(5, 2).bfloat16(),
        "whole": torch.tensor([1, 2]),
    }
    torch.save(tensors, tmp_path / "pytorch_model.bin")
    source = open_checkpoint(tmp_path)
    write_safetensors(
        tmp_path / "model.safetensors",
        source.tensors,
        lambda info: [source.read_rows(info.name, *rows) for rows in info.row_blocks(4)],
    )
    loaded = load_file(tmp_path / "model.safetensors")
    assert all(torch.equal(loaded[name], tensors[name]) for name in tensors)
    again = open_file(tmp_path / "model.safetensors")
    assert all(torch.equal(again.read(name), tensors[name]) for name in tensors)


def test_the_writer_refuses_blocks_that_do_not_add_up(tmp_path: Path, tensors: Tensors) -> None:
    write_single_bin(tmp_path, tensors)
    infos = list(open_checkpoint(tmp_path).tensors)
    with pytest.raises(ValueError, match=r"a\.weight: 0 bytes written"):
        write_safetensors(tmp_path / "x.safetensors", infos, lambda info: [])
    with pytest.raises(ValueError, match="a block of torch.float32"):
        write_safetensors(tmp_path / "y.safetensors", infos, lambda info: [torch.ones(info.shape)])


class TouchesAFile:
    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, ...]:
        return os.system, (f"touch {self.path}",)


@pytest.mark.parametrize("form", ["zip", "old", "pickle of today", "pickle of then"])
def test_code_in_a_torch_file_is_refused_and_does_not_run(tmp_path: Path, form: str) -> None:
    trace = tmp_path / "ran"
    content = {"w": torch.ones(2), "x": TouchesAFile(trace)}
    path = tmp_path / "pytorch_model.bin"
    if form.startswith("pickle"):
        path.write_bytes(pickle.dumps(TouchesAFile(trace), protocol=2 if form == "pickle of then" else None))
    else:
        torch.save(content, path, _use_new_zipfile_serialization=form == "zip")
    with pytest.raises(IxtuneError, match="holds more than tensors: .*; none of it was run") as caught:
        open_checkpoint(tmp_path)
    assert not trace.exists()
    assert "posix.system" in str(caught.value) or form == "pickle of today"
    assert "weights_only" not in str(caught.value) + caught.value.hint


def refusal(folder: Path) -> str:
    with pytest.raises(IxtuneError) as caught:
        open_checkpoint(folder)
    return str(caught.value)


def test_a_folder_without_weights_is_not_a_checkpoint(tmp_path: Path) -> None:
    assert "holds no checkpoint" in refusal(tmp_path)
    assert "no such folder" in refusal(tmp_path / "absent")


@pytest.mark.parametrize("write", [write_sharded_bin, write_sharded_safetensors])
def test_a_missing_shard_is_named_with_a_tensor_it_holds(
    write: Callable[[Path, Tensors], None], tmp_path: Path, tensors: Tensors
) -> None:
    write(tmp_path, tensors)
    next(tmp_path.glob("*00002-of-00002.*")).unlink()
    assert "00002-of-00002" in refusal(tmp_path)
    assert "c.bias" in refusal(tmp_path)


@pytest.mark.parametrize("kept", [0, 5, 60, 0.5, 0.99, -1])
@pytest.mark.parametrize("write", [write_single_safetensors, write_single_bin, write_old_bin])
def test_a_truncated_shard_is_refused_wherever_it_was_cut(
    write: Callable[[Path, Tensors], None], kept: float, tmp_path: Path, tensors: Tensors
) -> None:
    write(tmp_path, tensors)
    (path,) = tmp_path.iterdir()
    size = path.stat().st_size
    os.truncate(path, kept if kept == int(kept) and kept >= 0 else size - 1 if kept == -1 else int(size * kept))
    message = refusal(tmp_path)
    assert path.name in message


def test_the_tensor_at_which_a_safetensors_file_ends_is_named(tmp_path: Path, tensors: Tensors) -> None:
    del tensors["empty"]
    write_single_safetensors(tmp_path, tensors)
    path = tmp_path / "model.safetensors"
    last = list(open_checkpoint(tmp_path).by_name)[-1]
    os.truncate(path, path.stat().st_size - 1)
    assert f"ends inside tensor {last}" in refusal(tmp_path)


def test_a_file_that_shrinks_after_opening_is_refused_on_read(tmp_path: Path, tensors: Tensors) -> None:
    write_single_safetensors(tmp_path, tensors)
    checkpoint = open_checkpoint(tmp_path)
    os.truncate(tmp_path / "model.safetensors", 10)
    with pytest.raises(IxtuneError, match="bytes too early"):
        checkpoint.read("a.weight")


def test_a_git_lfs_pointer_is_recognized(tmp_path: Path) -> None:
    for name in ("model.safetensors", "pytorch_model.bin"):
        (tmp_path / name).write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n")
        assert "git-lfs pointer" in refusal(tmp_path)
        (tmp_path / name).unlink()


@pytest.mark.parametrize("write", [write_sharded_bin, write_sharded_safetensors])
def test_a_mismatch_of_index_and_shards_names_the_tensor(
    write: Callable[[Path, Tensors], None], tmp_path: Path, tensors: Tensors
) -> None:
    write(tmp_path, tensors)
    (path,) = tmp_path.glob("*.index.json")
    index = json.loads(path.read_text())
    shards = sorted(set(index["weight_map"].values()))

    path.write_text(json.dumps({"weight_map": index["weight_map"] | {"ghost": shards[0]}}))
    assert f"places tensor ghost in {shards[0]}" in refusal(tmp_path)
    path.write_text(json.dumps({"weight_map": index["weight_map"] | {"c.bias": shards[0]}}))
    assert f"places tensor c.bias in {shards[0]}" in refusal(tmp_path)
    path.write_text(json.dumps({"weight_map": {k: v for k, v in index["weight_map"].items() if k != "c.bias"}}))
    assert f"{shards[1]} holds tensor c.bias" in refusal(tmp_path)
    path.write_text(json.dumps({"weight_map": index["weight_map"] | {"c.bias": "../elsewhere.bin"}}))
    assert "outside its folder" in refusal(tmp_path)
    path.write_text("{}")
    assert "is not an index" in refusal(tmp_path)
    path.write_text('{"weight_map": {"a": "x.bin", "a": "y.bin"}}')
    assert "lists tensor a twice" in refusal(tmp_path)


def test_a_tensor_in_two_shards_is_refused(tmp_path: Path, tensors: Tensors) -> None:
    write_sharded_safetensors(tmp_path, tensors)
    save_file(tensors, tmp_path / "model-00001-of-00002.safetensors")
    assert "tensor c.bias is in model-00001" in refusal(tmp_path)


def test_a_torch_file_with_anything_but_tensors_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "pytorch_model.bin"
    for content, words in (
        ([torch.ones(1)], "holds a list"),
        ({"model": {"w": torch.ones(1)}}, "entry 'model' is not a plain tensor but dict"),
        ({"w": torch.ones(2, 2).to_sparse()}, "entry 'w' is not a plain tensor"),
        ({"step": 3}, "entry 'step' is not a plain tensor but int"),
    ):
        torch.save(content, path)
        assert words in refusal(tmp_path)


def craft(path: Path, header: str, data: bytes = b"") -> None:
    path.write_bytes(len(header).to_bytes(8, "little") + header.encode() + data)


@pytest.mark.parametrize(
    ("header", "words"),
    [
        (
            '{"a": {"dtype": "F32", "shape": [2], "data_offsets": [0, 4]}}',
            "range of tensor a does not fit its shape",
        ),
        ('{"a": {"dtype": "F32", "shape": [1], "data_offsets": [4, 8]}}', "range of tensor a does not fit"),
        ('{"a": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}}', "4 bytes follow"),
        ('{"a": {"dtype": "F4", "shape": [1], "data_offsets": [0, 4]}}', "tensor a has the dtype F4"),
        ('{"a": {"dtype": "F32", "shape": [-1], "data_offsets": [0, 4]}}', "not a safetensors header"),
        ('{"a": {"dtype": "F32"}}', "not a safetensors header"),
        ("[]", "not a safetensors header"),
        ("{", "not a safetensors header"),
        ('{"a": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}, "a": {}}', "the name a occurs twice"),
    ],
)
def test_a_malformed_safetensors_header_is_refused(tmp_path: Path, header: str, words: str) -> None:
    craft(tmp_path / "model.safetensors", header, bytes(8))
    assert words in refusal(tmp_path)


def test_open_checkpoint_returns_a_checkpoint(tmp_path: Path, tensors: Tensors) -> None:
    write_single_safetensors(tmp_path, tensors)
    assert isinstance(open_checkpoint(tmp_path), Checkpoint)


def test_rows_are_read_into_the_given_buffer(tmp_path: Path, tensors: Tensors) -> None:
    write_single_safetensors(tmp_path, tensors)
    checkpoint = open_checkpoint(tmp_path)
    landing = torch.zeros(1 << 20, dtype=torch.uint8)
    for name, expected in tensors.items():
        found = checkpoint.read_rows(name, 0, checkpoint.by_name[name].rows, landing)
        assert torch.equal(found, expected)
        assert found.numel() == 0 or found.data_ptr() == landing.data_ptr()
    too_short = torch.zeros(1, dtype=torch.uint8)
    assert torch.equal(checkpoint.read_rows("a.weight", 2, 5, too_short), tensors["a.weight"][2:5])
    assert torch.equal(too_short, torch.zeros(1, dtype=torch.uint8))


def test_flush_and_sync_intervals_do_not_change_the_file(
    tmp_path: Path, tensors: Tensors, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_single_bin(tmp_path, tensors)
    source = open_checkpoint(tmp_path)
    for flush, sync in ((1 << 24, 1 << 30), (1, 1 << 30), (1, 16)):
        monkeypatch.setattr(safetensors_file, "_FLUSH_BYTES", flush)
        monkeypatch.setattr(safetensors_file, "_SYNC_BYTES", sync)
        path = tmp_path / f"{flush}-{sync}.safetensors"
        digest = write_safetensors(
            path, source.tensors, lambda info: [source.read_rows(info.name, *rows) for rows in info.row_blocks(4)]
        )
        assert digest == sha256_file(path)
    assert len({sha256_file(path) for path in tmp_path.glob("*.safetensors")}) == 1
