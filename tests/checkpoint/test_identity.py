from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from ixtune.checkpoint.identity import base_identity
from ixtune.checkpoint.shards import open_checkpoint


def tensors() -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return {
        "output.weight": torch.randn(300, 512, generator=generator).bfloat16(),  # 300 KiB: edges and a middle
        "model.norm.weight": torch.randn(64, generator=generator),
        "plora_glb_GN": torch.randn(1, 1, 8, generator=generator).half(),
    }


def identity_of(folder: Path, content: dict[str, torch.Tensor]) -> str:
    folder.mkdir()
    save_file(content, folder / "model.safetensors")
    return base_identity(open_checkpoint(folder))


def test_the_identity_does_not_depend_on_format_sharding_or_order(tmp_path: Path) -> None:
    content = tensors()
    expected = identity_of(tmp_path / "safetensors", content)
    bin_folder = tmp_path / "bin"
    bin_folder.mkdir()
    names = sorted(content, reverse=True)
    for number, name in enumerate(names):
        torch.save({name: content[name]}, bin_folder / f"part-{number}.bin")
    weight_map = ", ".join(f'"{name}": "part-{number}.bin"' for number, name in enumerate(names))
    (bin_folder / "pytorch_model.bin.index.json").write_text(f'{{"weight_map": {{{weight_map}}}}}')
    assert base_identity(open_checkpoint(bin_folder)) == expected


def test_a_transposed_torch_tensor_has_the_identity_of_its_values(tmp_path: Path) -> None:
    content = tensors()
    expected = identity_of(tmp_path / "plain", content)
    content["output.weight"] = content["output.weight"].t().contiguous().t()
    (tmp_path / "bin").mkdir()
    torch.save(content, tmp_path / "bin" / "pytorch_model.bin")
    assert base_identity(open_checkpoint(tmp_path / "bin")) == expected


def test_the_identity_matches_the_documented_formula(tmp_path: Path) -> None:
    """Compute the hash by a second implementation: adapters store it, so it must never change."""
    import hashlib
    import json

    lines = ""
    for name, tensor in sorted(tensors().items()):
        raw = tensor.reshape(-1).view(torch.uint8).numpy().tobytes()
        edges = hashlib.sha256(raw[:65536] + raw[-65536:]).hexdigest()
        lines += json.dumps([name, list(tensor.shape), str(tensor.dtype)[6:], edges]).replace(" ", "") + "\n"
    assert identity_of(tmp_path / "a", tensors()) == hashlib.sha256(lines.encode()).hexdigest()


@pytest.mark.parametrize("change", ["first value", "last value", "name", "shape", "dtype"])
def test_the_identity_changes_with_first_or_last_value_name_shape_dtype(tmp_path: Path, change: str) -> None:
    content = tensors()
    before = identity_of(tmp_path / "before", content)
    weight = content.pop("output.weight")
    if change.endswith("value"):
        weight.view(-1)[0 if change == "first value" else -1] += 1
    if change == "shape":
        weight = weight.reshape(512, 300)
    if change == "dtype":
        weight = weight.view(torch.float16)
    content["renamed" if change == "name" else "output.weight"] = weight
    assert identity_of(tmp_path / "after", content) != before
