import json
import os
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import IO, Any

import pytest
import torch
from bitsandbytes.functional import dequantize_4bit, quantize_4bit
from safetensors.torch import load_file, save_file

from ixtune.adapter.weights import read_adapter
from ixtune.checkpoint import safetensors_file
from ixtune.checkpoint.identity import base_identity
from ixtune.checkpoint.shards import open_checkpoint
from ixtune.errors import IxtuneError
from ixtune.files import sha256_file
from ixtune.merging import merge as merging
from ixtune.merging.merge import REPORT_FILE, merge

Tensors = dict[str, torch.Tensor]


def nf4_round_trip(weight: torch.Tensor) -> torch.Tensor:
    """Quantize and dequantize the whole matrix with bitsandbytes."""
    codes, state = quantize_4bit(weight, blocksize=64, compress_statistics=True, quant_type="nf4")
    return dequantize_4bit(codes, state)


HIDDEN, INNER, RANK, ALPHA = 64, 128, 4, 8
LINEARS = {
    "attention.wqkv": (128, HIDDEN),
    "attention.wo": (HIDDEN, HIDDEN),
    "feed_forward.w1": (INNER, HIDDEN),
    "feed_forward.w2": (HIDDEN, INNER),
}
PROJECTOR = {"vision_proj.0.weight": (HIDDEN, 128), "vision_proj.0.bias": (HIDDEN,)}


def base_tensors(dtype: torch.dtype = torch.bfloat16) -> Tensors:
    """Return small tensors with the original names, in a non-alphabetical order."""
    generator = torch.Generator().manual_seed(1)
    shapes: dict[str, tuple[int, ...]] = {
        "plora_glb_GN": (1, 1, 128),
        "plora_sub_GN": (1, 1, 1, 128),
        **PROJECTOR,
    }
    shapes["model.tok_embeddings.weight"] = (96, HIDDEN)
    for layer in range(2):
        for linear, (out, inner) in LINEARS.items():
            shapes[f"model.layers.{layer}.{linear}.weight"] = (out, inner)
            shapes[f"model.layers.{layer}.{linear}.Plora_A.weight"] = (8, inner)
            shapes[f"model.layers.{layer}.{linear}.Plora_B.weight"] = (out, 8)
        shapes[f"model.layers.{layer}.ffn_norm.weight"] = (HIDDEN,)
    shapes["output.weight"] = (96, HIDDEN)
    return {name: (torch.randn(shape, generator=generator) * 0.05).to(dtype) for name, shape in shapes.items()}


def adapter_tensors() -> Tensors:
    generator = torch.Generator().manual_seed(2)
    tensors = {}
    for layer in range(2):
        for linear, (out, inner) in LINEARS.items():
            key = f"base_model.model.model.layers.{layer}.{linear}"
            tensors[f"{key}.lora_A.weight"] = torch.randn(RANK, inner, generator=generator) * 0.1
            tensors[f"{key}.lora_B.weight"] = torch.randn(out, RANK, generator=generator) * 0.1
    for name, shape in PROJECTOR.items():
        tensors[f"base_model.model.{name}"] = torch.randn(shape, generator=generator) * 0.05
    return tensors


CONFIG = {
    "peft_type": "LORA",
    "r": RANK,
    "lora_alpha": ALPHA,
    "target_modules": ["wqkv", "wo", "w1", "w2"],
    "modules_to_save": ["vision_proj"],
}


def write_adapter(folder: Path, tensors: Tensors, record: dict[str, Any] | None = None, **config: Any) -> Path:
    folder.mkdir(parents=True)
    save_file(tensors, folder / "adapter_model.safetensors")
    (folder / "adapter_config.json").write_text(json.dumps(CONFIG | config))
    if record is not None:
        (folder / "ixtune.json").write_text(json.dumps(record))
    return folder


def write_base(folder: Path, tensors: Tensors, form: str = "safetensors", shards: int = 2) -> Path:
    folder.mkdir(parents=True)
    names = list(tensors)
    stem, save, index = {
        "safetensors": ("model", save_file, "model.safetensors.index.json"),
        "bin": ("pytorch_model", torch.save, "pytorch_model.bin.index.json"),
    }[form]
    if shards == 1:
        save(tensors, folder / f"{stem}.{form}")
    else:
        weight_map = {}
        for k in range(shards):
            shard = f"{stem}-{k + 1:05d}-of-{shards:05d}.{form}"
            part = names[k * len(names) // shards : (k + 1) * len(names) // shards]
            save({name: tensors[name] for name in part}, folder / shard)
            weight_map |= dict.fromkeys(part, shard)
        (folder / index).write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
    (folder / "config.json").write_text('{"auto_map": {"AutoModel": "modeling_x.X"},\n   "vocab_size": 96}')
    (folder / "tokenizer.model").write_bytes(b"\x00pieces")
    (folder / "modeling_x.py").write_text("raise SystemExit('ran')")
    return folder


@pytest.fixture
def base(tmp_path: Path) -> Path:
    return write_base(tmp_path / "base", base_tensors())


@pytest.fixture
def adapter(tmp_path: Path, base: Path) -> Path:
    record = {"base_identity": base_identity(open_checkpoint(base)), "base": str(base)}
    return write_adapter(tmp_path / "adapter", adapter_tensors(), record)


def load_folder(folder: Path) -> Tensors:
    return {name: tensor for file in folder.glob("*.safetensors") for name, tensor in load_file(file).items()}


def plain_merge(base: Tensors, adapter: Tensors, scale: float = ALPHA / RANK) -> Tensors:
    """Merge in four lines, with everything in memory."""
    merged = dict(base)
    for name in base:
        key = "base_model.model." + name.removesuffix(".weight")
        if f"{key}.lora_A.weight" in adapter:
            update = adapter[f"{key}.lora_B.weight"] @ adapter[f"{key}.lora_A.weight"]
            merged[name] = (base[name].float() + scale * update).to(base[name].dtype)
        elif f"base_model.model.{name}" in adapter:
            merged[name] = adapter[f"base_model.model.{name}"].to(base[name].dtype)
    return merged


def assert_within_one_rounding(found: Tensors, expected: Tensors) -> None:
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        assert found[name].dtype == tensor.dtype
        eps = torch.finfo(tensor.dtype).eps
        torch.testing.assert_close(found[name], tensor, rtol=eps, atol=1e-7, msg=name)


def nothing_left(folder: Path) -> bool:
    return not [path for path in folder.iterdir() if "merged" in path.name]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_merging_adds_scale_times_b_times_a(tmp_path: Path, dtype: torch.dtype) -> None:
    base = write_base(tmp_path / "base", base_tensors(dtype))
    adapter = write_adapter(tmp_path / "adapter", adapter_tensors())
    report = merge(adapter, base, tmp_path / "merged")
    found = load_folder(tmp_path / "merged")
    expected = plain_merge(base_tensors(dtype), adapter_tensors())
    assert_within_one_rounding(found, expected)
    assert (report.tensors, report.merged, report.changed) == (len(expected), 10, 10)
    assert report.copied == len(expected) - 10
    for name in found.keys() - {f"model.layers.{k}.{n}.weight" for k in range(2) for n in LINEARS} - PROJECTOR.keys():
        assert torch.equal(found[name], base_tensors(dtype)[name])


def test_base_format_and_sharding_do_not_change_the_merged_tensors(tmp_path: Path) -> None:
    adapter = write_adapter(tmp_path / "adapter", adapter_tensors())
    results, identities = [], set()
    for form, shards in (("bin", 1), ("bin", 3), ("safetensors", 1), ("safetensors", 2)):
        base = write_base(tmp_path / f"{form}{shards}", base_tensors(), form, shards)
        report = merge(adapter, base, tmp_path / f"merged-{form}{shards}")
        results.append(load_folder(tmp_path / f"merged-{form}{shards}"))
        identities.add((report.base_identity, report.merged_identity))
    assert len(identities) == 1
    for other in results[1:]:
        assert all(torch.equal(results[0][name], other[name]) for name in results[0])


def test_bin_shard_k_becomes_safetensors_shard_k_in_the_same_order(tmp_path: Path) -> None:
    base = write_base(tmp_path / "base", base_tensors(), "bin", 3)
    merge(write_adapter(tmp_path / "adapter", adapter_tensors()), base, tmp_path / "merged")
    source, merged = open_checkpoint(base), open_checkpoint(tmp_path / "merged")
    assert merged.shards == tuple(f"model-0000{k}-of-00003.safetensors" for k in (1, 2, 3))
    for old, new in zip(source.shards, merged.shards, strict=True):
        assert [info.name for info in source.in_shard(old)] == [info.name for info in merged.in_shard(new)]
    index = json.loads((tmp_path / "merged" / "model.safetensors.index.json").read_text())
    assert index["metadata"]["total_size"] == source.nbytes
    assert list(index["weight_map"]) == list(source.by_name)


def test_a_single_bin_becomes_one_safetensors_file_without_an_index(tmp_path: Path) -> None:
    base = write_base(tmp_path / "base", base_tensors(), "bin", 1)
    merge(write_adapter(tmp_path / "adapter", adapter_tensors()), base, tmp_path / "merged")
    names = {path.name for path in (tmp_path / "merged").iterdir()}
    copied = {"config.json", "tokenizer.model", "modeling_x.py", "preprocessor_config.json", "tokenizer_config.json"}
    assert (
        names
        == {"model.safetensors", "ixtune.json", REPORT_FILE, "preprocessor_config.json", "tokenizer_config.json"}
        | {"chat_template.jinja"}
        | copied
    )


def test_other_files_of_the_base_are_copied_and_code_is_never_run(base: Path, adapter: Path, tmp_path: Path) -> None:
    (base / "assets").mkdir()
    (base / "assets" / "logo.png").write_bytes(b"png")
    (base / "README.md").write_text("of the base")
    (base / "LICENSE").write_text("terms")
    for left in (".gitattributes", "training_args.bin", "other.gguf", "merge_report.json"):
        (base / left).write_text("left behind")
    report = merge(adapter, base, tmp_path / "merged")
    for name in ("config.json", "tokenizer.model", "modeling_x.py", "assets/logo.png", "LICENSE"):
        assert (tmp_path / "merged" / name).read_bytes() == (base / name).read_bytes()
        assert report.carried_sha256[name] == sha256_file(base / name)
    assert (tmp_path / "merged" / "README.base.md").read_text() == "of the base"
    for left in (".gitattributes", "training_args.bin", "other.gguf", "README.md"):
        assert not (tmp_path / "merged" / left).exists()
    assert "left behind" not in (tmp_path / "merged" / "merge_report.json").read_text()


def test_merging_a_tiny_network_matches_peft(tmp_path: Path) -> None:
    from peft import LoraConfig, get_peft_model

    class Net(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.wqkv = torch.nn.Linear(16, 24, bias=False)
            self.wo = torch.nn.Linear(24, 16, bias=False)
            self.vision_proj = torch.nn.Sequential(torch.nn.Linear(8, 8), torch.nn.GELU(), torch.nn.Linear(8, 8))

    torch.manual_seed(3)
    net = Net()
    base = tmp_path / "base"
    base.mkdir()
    save_file(net.state_dict(), base / "model.safetensors")
    config = LoraConfig(
        r=4,
        lora_alpha=6,
        target_modules=["wqkv", "wo"],
        modules_to_save=["vision_proj"],
        rank_pattern={"wo": 2},
        alpha_pattern={"wo": 5},
        init_lora_weights=False,
    )
    peft_model = get_peft_model(net, config)
    with torch.no_grad():
        for name, parameter in peft_model.named_parameters():
            if "modules_to_save" in name:
                parameter += 0.1
    peft_model.save_pretrained(tmp_path / "adapter")
    merge(tmp_path / "adapter", base, tmp_path / "merged")
    expected = peft_model.merge_and_unload().state_dict()
    found = load_file(tmp_path / "merged" / "model.safetensors")
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        torch.testing.assert_close(found[name], tensor, rtol=1e-6, atol=1e-7)


def test_scales_follow_patterns_and_rslora(tmp_path: Path) -> None:
    tensors = adapter_tensors()
    plain = read_adapter(write_adapter(tmp_path / "plain", tensors))
    assert {pair.scale for pair in plain.low_rank.values()} == {2.0}
    stabilised = read_adapter(write_adapter(tmp_path / "rs", tensors, use_rslora=True))
    assert {pair.scale for pair in stabilised.low_rank.values()} == {4.0}
    patterned = read_adapter(write_adapter(tmp_path / "pattern", tensors, alpha_pattern={r"layers\.1\..*": 2}))
    assert patterned.low_rank["model.layers.0.attention.wo.weight"].scale == 2.0
    assert patterned.low_rank["model.layers.1.attention.wo.weight"].scale == 0.5


@pytest.mark.parametrize("keys", [("separators.glb", "separators.sub"), ("plora_glb_GN", "plora_sub_GN")])
def test_trained_separators_replace_the_original_ones(keys: tuple[str, str], base: Path, tmp_path: Path) -> None:
    values = {
        f"base_model.model.{keys[0]}": torch.full((1, 1, 128), 0.5),
        f"base_model.model.{keys[1]}": torch.full((1, 1, 1, 128), 0.25),
    }
    adapter = write_adapter(tmp_path / "adapter", values, modules_to_save=["separators"])
    merge(adapter, base, tmp_path / "merged")
    found = load_folder(tmp_path / "merged")
    assert torch.equal(found["plora_glb_GN"], values[f"base_model.model.{keys[0]}"].bfloat16())
    assert torch.equal(found["plora_sub_GN"], values[f"base_model.model.{keys[1]}"].bfloat16())


def test_merging_onto_nf4_quantizes_every_decoder_linear_first(tmp_path: Path) -> None:
    only_wo = {k: v for k, v in adapter_tensors().items() if ".wo." in k}
    base = write_base(tmp_path / "base", base_tensors())
    report = merge(write_adapter(tmp_path / "adapter", only_wo), base, tmp_path / "merged", onto="nf4")
    quantized = base_tensors()
    for name in quantized:
        if name.removesuffix(".weight").split(".", 3)[-1] in LINEARS:
            quantized[name] = nf4_round_trip(quantized[name])
    found = load_folder(tmp_path / "merged")
    assert_within_one_rounding(found, plain_merge(quantized, only_wo))
    assert not torch.equal(
        found["model.layers.0.feed_forward.w1.weight"],
        base_tensors()["model.layers.0.feed_forward.w1.weight"],
    )
    assert (report.merged, report.changed, report.copied) == (2, 2, report.tensors - 8)
    assert "bitsandbytes" in report.versions


def test_the_nf4_round_trip_matches_bitsandbytes_linear() -> None:
    import bitsandbytes

    weight = base_tensors()["model.layers.0.feed_forward.w1.weight"]
    layer = bitsandbytes.nn.Linear4bit(HIDDEN, INNER, bias=False, quant_type="nf4", compress_statistics=True)
    layer.weight = bitsandbytes.nn.Params4bit(weight.clone(), requires_grad=False, quant_type="nf4")
    layer = layer.to("cpu")
    expected = bitsandbytes.functional.dequantize_4bit(layer.weight.data, layer.weight.quant_state)
    assert torch.equal(nf4_round_trip(weight), expected)
    assert torch.equal(nf4_round_trip(weight.float()).bfloat16(), expected)


@pytest.mark.parametrize(("name", "dtype"), [("bf16", torch.bfloat16), ("fp32", torch.float32)])
def test_merging_onto_nf4_quantizes_in_the_compute_dtype_of_training(
    name: str, dtype: torch.dtype, tmp_path: Path
) -> None:
    base = write_base(tmp_path / "base", base_tensors(torch.float16))
    only_wo = {k: v for k, v in adapter_tensors().items() if ".wo." in k}
    adapter = write_adapter(tmp_path / "adapter", only_wo, {"recipe": {"training": {"compute_dtype": name}}})
    merge(adapter, base, tmp_path / "merged", onto="nf4")
    found = load_folder(tmp_path / "merged")
    untouched = "model.layers.1.feed_forward.w1.weight"
    held = base_tensors(torch.float16)[untouched].to(dtype)
    assert torch.equal(found[untouched], nf4_round_trip(held).half())


def test_merging_onto_nf4_after_training_without_it_warns(base: Path, tmp_path: Path) -> None:
    adapter = write_adapter(tmp_path / "adapter", adapter_tensors(), {"quantize": "none"})
    warnings = merge(adapter, base, tmp_path / "merged", onto="nf4").warnings
    assert any("not trained on NF4" in warning for warning in warnings)


def test_the_report_on_disk_records_the_merge(base: Path, adapter: Path, tmp_path: Path) -> None:
    report = merge(adapter, base, tmp_path / "merged")
    written = json.loads((tmp_path / "merged" / REPORT_FILE).read_text())
    assert written["base_identity"] == base_identity(open_checkpoint(base))
    assert written["merged_identity"] == base_identity(open_checkpoint(tmp_path / "merged"))
    weights = written["adapters"][0]["sha256"]["adapter_model.safetensors"]
    assert weights == sha256_file(adapter / "adapter_model.safetensors")
    assert written["arithmetic"] == report.arithmetic
    assert report.arithmetic.startswith("W1 replaces W: ")
    for name, digest in written["file_sha256"].items():
        assert digest == sha256_file(tmp_path / "merged" / name)
    assert written["sampled_rows"] == report.sampled_rows > 50
    assert 0 < written["max_abs_error"] < 1e-3
    assert written["warnings"] == []


def test_repeating_a_merge_gives_the_same_bytes(base: Path, adapter: Path, tmp_path: Path) -> None:
    first, second = (merge(adapter, base, tmp_path / name) for name in ("merged1", "merged2"))
    assert first.file_sha256 == second.file_sha256


def test_progress_counts_writing_and_checking_up_to_the_total(base: Path, adapter: Path, tmp_path: Path) -> None:
    seen: list[tuple[str, int, int]] = []
    merge(adapter, base, tmp_path / "merged", progress=lambda *step: seen.append(step))
    assert [step for step, _, _ in seen] == sorted((step for step, _, _ in seen), reverse=True)
    assert seen[-1][1] == seen[-1][2] == 2 * open_checkpoint(base).nbytes
    assert [done for _, done, _ in seen] == sorted(done for _, done, _ in seen)


def test_an_adapter_without_effect_is_merged_with_a_warning(base: Path, tmp_path: Path) -> None:
    tensors = {k: torch.zeros_like(v) if "lora_B" in k else v for k, v in adapter_tensors().items()}
    tensors |= {f"base_model.model.{name}": base_tensors()[name].float() for name in PROJECTOR}
    report = merge(write_adapter(tmp_path / "adapter", tensors), base, tmp_path / "merged")
    assert report.changed == 0
    assert any("changes nothing" in warning for warning in report.warnings)
    assert report.merged_identity == report.base_identity


def test_a_run_folder_can_be_passed_for_its_adapter(base: Path, tmp_path: Path) -> None:
    write_adapter(tmp_path / "run" / "adapter", adapter_tensors())
    assert merge(tmp_path / "run", base, tmp_path / "merged").merged == 10


# ---- refusals: one line, and nothing left behind


def refusal(adapter: Path, base: Path, **options: Any) -> IxtuneError:
    out = base.parent / "merged"
    with pytest.raises(IxtuneError) as caught:
        merge(adapter, base, out, **options)
    assert nothing_left(out.parent)
    return caught.value


def with_value(value: float) -> Callable[[Tensors], None]:
    def change(tensors: Tensors) -> None:
        tensors["base_model.model.model.layers.1.attention.wo.lora_B.weight"][3, 1] = value

    return change


def renamed(old: str, new: str) -> Callable[[Tensors], None]:
    return lambda tensors: tensors.update({new: tensors.pop(f"base_model.model.{old}")})


def cut(name: str, rows: int, columns: int) -> Callable[[Tensors], None]:
    def change(tensors: Tensors) -> None:
        key = f"base_model.model.{name}"
        tensors[key] = tensors[key][:rows, :columns].contiguous()

    return change


WO = "model.layers.1.attention.wo"


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (with_value(float("nan")), "layers.1.attention.wo.lora_B.weight holds NaN or infinity"),
        (with_value(float("inf")), "layers.1.attention.wo.lora_B.weight holds NaN or infinity"),
        (cut(f"{WO}.lora_A.weight", 2, 64), "lora_A [2, 64] and lora_B [64, 4], but rank 4"),
        (cut(f"{WO}.lora_B.weight", 64, 2), "lora_A [4, 64] and lora_B [64, 2], but rank 4"),
        (
            cut(f"{WO}.lora_A.weight", 4, 32),
            f"{WO}.weight has the shape [64, 32] in the adapter and [64, 64] in the base",
        ),
        (
            cut("vision_proj.0.weight", 8, 8),
            "vision_proj.0.weight has the shape [8, 8] in the adapter and [64, 128]",
        ),
        (renamed(f"{WO}.lora_A.weight", "stray"), "holds stray, which is neither"),
        (
            renamed(f"{WO}.lora_A.weight", f"{WO}.lora_magnitude_vector"),
            "lora_magnitude_vector, which is neither",
        ),
        (
            lambda tensors: tensors.pop(f"base_model.model.{WO}.lora_A.weight"),
            f"{WO} has lora_B but not lora_A",
        ),
        (
            renamed("vision_proj.0.bias", "base_model.model.vision_proj.9.bias"),
            "changes vision_proj.9.bias, which",
        ),
        (lambda tensors: tensors.clear(), "the adapter is empty"),
    ],
)
def test_a_bad_adapter_is_refused_with_the_tensor_name(
    change: Callable[[Tensors], None], words: str, base: Path, tmp_path: Path
) -> None:
    tensors = adapter_tensors()
    change(tensors)
    assert words in str(refusal(write_adapter(tmp_path / "adapter", tensors), base))


@pytest.mark.parametrize(
    ("config", "words"),
    [
        ({"use_dora": True}, "is DoRA, but model.layers.0.attention.wo.weight has no low-rank pair or no magnitude"),
        ({"peft_type": "LOHA"}, "of the type LOHA"),
        ({"init_lora_weights": "pissa_niter_4"}, "initialized with 'pissa_niter_4', which changes the base"),
        ({"r": 8}, "but rank 8"),
        ({"r": 0}, "give no scale"),
        ({"lora_alpha": None}, "give no scale"),
        ({"modules_to_save": None}, "vision_proj.0.bias, which is neither"),
    ],
)
def test_an_unsupported_adapter_configuration_is_refused(
    config: dict[str, Any], words: str, base: Path, tmp_path: Path
) -> None:
    assert words in str(refusal(write_adapter(tmp_path / "adapter", adapter_tensors(), **config), base))


def test_an_incomplete_adapter_folder_is_refused(base: Path, adapter: Path, tmp_path: Path) -> None:
    assert "there is no adapter" in str(refusal(tmp_path / "absent", base))
    (adapter / "adapter_config.json").write_text("{")
    assert "not JSON" in str(refusal(adapter, base))
    (adapter / "adapter_config.json").unlink()
    assert "lacks adapter_config.json" in str(refusal(adapter, base))


def test_weights_with_another_hash_than_recorded_are_refused(base: Path, tmp_path: Path) -> None:
    adapter = write_adapter(tmp_path / "adapter", adapter_tensors(), {"adapter_sha256": "0" * 64})
    assert "not those that ixtune.json was written for" in str(refusal(adapter, base))


def test_a_damaged_adapter_file_is_refused(base: Path, adapter: Path) -> None:
    path = adapter / "adapter_model.safetensors"
    os.truncate(path, path.stat().st_size - 5)
    assert "ends inside tensor" in str(refusal(adapter, base))


def test_another_base_is_refused_with_both_identities_unless_forced(adapter: Path, tmp_path: Path) -> None:
    tensors = base_tensors()
    tensors["output.weight"] += 1
    other = write_base(tmp_path / "other", tensors)
    trained_on = json.loads((adapter / "ixtune.json").read_text())["base_identity"]
    error = refusal(adapter, other)
    assert trained_on[:12] in str(error)
    assert base_identity(open_checkpoint(other)) in " ".join(error.notes)
    report = merge(adapter, other, tmp_path / "merged", force=True)
    assert any(warning.startswith("forced") for warning in report.warnings)


def test_an_adapter_that_names_no_base_is_merged_with_a_warning(base: Path, tmp_path: Path) -> None:
    report = merge(write_adapter(tmp_path / "adapter", adapter_tensors()), base, tmp_path / "merged")
    assert "does not say which base" in report.warnings[0]


def test_an_existing_output_folder_is_never_changed(base: Path, adapter: Path, tmp_path: Path) -> None:
    (tmp_path / "merged").mkdir()
    with pytest.raises(IxtuneError, match="exists already"):
        merge(adapter, base, tmp_path / "merged")
    assert list((tmp_path / "merged").iterdir()) == []


def test_a_disk_that_is_too_small_is_refused_before_writing(
    base: Path, adapter: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("shutil.disk_usage", lambda path: SimpleNamespace(free=1 << 20))
    assert "0.00 GiB free, the merged model needs 0.01 GiB" in str(refusal(adapter, base))


def test_a_disk_that_fills_up_during_the_merge_leaves_no_files(base: Path, adapter: Path, tmp_path: Path) -> None:
    """Simulate a full disk by a file size limit: the system refuses the same write."""
    script = f"""
        import resource
        from pathlib import Path
        from ixtune.merging.merge import merge
        from ixtune.errors import IxtuneError
        resource.setrlimit(resource.RLIMIT_FSIZE, (60_000, 60_000))
        try:
            merge(Path({str(adapter)!r}), Path({str(base)!r}), Path({str(tmp_path / "merged")!r}))
        except IxtuneError as error:
            raise SystemExit(str(error))
    """
    done = subprocess.run([sys.executable, "-c", textwrap.dedent(script)], capture_output=True, text=True, check=False)
    assert "could not be written: File too large" in done.stderr
    assert done.returncode == 1
    assert nothing_left(tmp_path)


def test_a_truncated_base_shard_is_refused(base: Path, adapter: Path) -> None:
    shard = base / "model-00002-of-00002.safetensors"
    os.truncate(shard, shard.stat().st_size - 1)
    assert shard.name in str(refusal(adapter, base))


def test_a_sum_that_overflows_the_dtype_is_refused(tmp_path: Path) -> None:
    base = write_base(tmp_path / "base", base_tensors(torch.float16))
    tensors = adapter_tensors()
    tensors[f"base_model.model.{WO}.lora_B.weight"] *= 1e8
    assert f"{WO}.weight is not finite after merging" in str(refusal(write_adapter(tmp_path / "a", tensors), base))


def test_a_base_with_integer_weights_is_refused(adapter: Path, tmp_path: Path) -> None:
    tensors = base_tensors()
    tensors[f"{WO}.weight"] = tensors[f"{WO}.weight"].view(torch.int16)
    base = write_base(tmp_path / "integers", tensors)
    assert f"nothing can be merged into {WO}.weight, stored as int16" in str(refusal(adapter, base, force=True))


def test_ctrl_c_leaves_no_files(base: Path, adapter: Path, tmp_path: Path) -> None:
    def press(step: str, done: int, total: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        merge(adapter, base, tmp_path / "merged", progress=press)
    assert nothing_left(tmp_path)


def kill_when(adapter: Path, base: Path, tmp_path: Path, condition: str) -> None:
    """Merge in another process, and kill it when `condition` on step, done and total first holds."""
    script = f"""
        import json
        import time
        from pathlib import Path
        from ixtune.merging.merge import merge
        def finished():
            journal = Path({str(tmp_path / ".merged.unfinished" / "merge_journal.json")!r})
            return len(json.loads(journal.read_bytes())["finished"]) if journal.exists() else 0
        def stall(step, done, total):
            if {condition}:
                Path({str(tmp_path / "half")!r}).touch()
                time.sleep(3600)
        merge(Path({str(adapter)!r}), Path({str(base)!r}), Path({str(tmp_path / "merged")!r}), progress=stall)
    """
    (tmp_path / "half").unlink(missing_ok=True)
    process = subprocess.Popen([sys.executable, "-c", textwrap.dedent(script)])
    deadline = time.monotonic() + 600
    while not (tmp_path / "half").exists() and time.monotonic() < deadline:
        time.sleep(0.05)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert (tmp_path / "half").exists()
    assert not (tmp_path / "merged").exists()


@pytest.mark.parametrize(
    ("condition", "shards"),
    [("done > 0", 0), ("finished() == 2", 2), ("step == 'checking'", 3)],
    ids=["in the first shard", "in the last shard", "in the check"],
)
def test_after_kill_9_a_merge_resumes_and_gives_the_same_bytes(tmp_path: Path, condition: str, shards: int) -> None:
    base = write_base(tmp_path / "base", base_tensors(), shards=3)
    adapter = write_adapter(tmp_path / "adapter", adapter_tensors())
    straight = merge(adapter, base, tmp_path / "straight")
    kill_when(adapter, base, tmp_path, condition)
    report = merge(adapter, base, tmp_path / "merged")
    assert report.resumed_shards == shards
    assert report.file_sha256 == straight.file_sha256
    assert report.changed == straight.changed
    assert {path.name for path in (tmp_path / "merged").iterdir()} == {
        path.name for path in (tmp_path / "straight").iterdir()
    }
    assert not list(tmp_path.glob(".merged*"))


def test_unfinished_output_of_another_adapter_is_not_reused(base: Path, adapter: Path, tmp_path: Path) -> None:
    kill_when(adapter, base, tmp_path, "step == 'checking'")
    tensors = {name: 2 * tensor for name, tensor in adapter_tensors().items()}
    report = merge(write_adapter(tmp_path / "other", tensors), base, tmp_path / "merged")
    assert report.resumed_shards == 0
    assert_within_one_rounding(load_folder(tmp_path / "merged"), plain_merge(base_tensors(), tensors))


def test_a_shard_changed_after_the_kill_fails_the_check(base: Path, adapter: Path, tmp_path: Path) -> None:
    kill_when(adapter, base, tmp_path, "step == 'checking'")
    shard = next((tmp_path / ".merged.unfinished").glob("*.safetensors"))
    with open(shard, "r+b") as file:
        file.seek(-1, os.SEEK_END)
        byte = file.read(1)[0]
        file.seek(-1, os.SEEK_END)
        file.write(bytes([byte ^ 1]))
    assert "on the disk differ from those written" in str(refusal(adapter, base))


def test_a_second_merge_into_the_same_folder_is_refused(base: Path, adapter: Path, tmp_path: Path) -> None:
    def intrude(step: str, done: int, total: int) -> None:
        with pytest.raises(IxtuneError, match="another process is writing"):
            merge(adapter, base, tmp_path / "merged")

    merge(adapter, base, tmp_path / "merged", progress=intrude)
    assert_within_one_rounding(load_folder(tmp_path / "merged"), plain_merge(base_tensors(), adapter_tensors()))


# ---- the proof must be able to fail


@pytest.mark.parametrize("damaged", [f"{WO}.weight", "output.weight"])
def test_a_flipped_bit_on_disk_fails_the_check(
    damaged: str, base: Path, adapter: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = safetensors_file._settle

    def settle_then_flip(written: IO[bytes]) -> int:
        nbytes = real(written)
        info = {info.name: info for info in safetensors_file.read_safetensors_index(Path(written.name))}.get(damaged)
        if info is not None:
            with open(written.name, "r+b") as file:
                file.seek(info.offset or 0)
                byte = file.read(1)[0]
                file.seek(info.offset or 0)
                file.write(bytes([byte ^ 1]))
        return nbytes

    monkeypatch.setattr(safetensors_file, "_settle", settle_then_flip)
    assert f"the bytes of {damaged} on the disk" in str(refusal(adapter, base))


@pytest.mark.parametrize("onto", ["bf16", "nf4"])
def test_wrong_arithmetic_fails_the_check(
    onto: merging.Onto, base: Path, adapter: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = torch.Tensor.addmm_
    monkeypatch.setattr(torch.Tensor, "addmm_", lambda w, b, a, alpha: real(w, b, a, alpha=alpha * 1.2))
    assert "more than one rounding" in str(refusal(adapter, base, onto=onto))
