"""Benchmark a merge (read, add, write, sync, read back, hash) against `cp` and `sync`."""

from __future__ import annotations

import json
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import measuring
import pytest
import torch
from safetensors.torch import save_file

from ixtune.checkpoint.safetensors_file import TensorInfo, row_major, write_safetensors

pytestmark = [pytest.mark.bench, pytest.mark.timeout(3600)]

LAYERS, SHARDS, RANK, ROUNDS = 6, 3, 64, 3
# the 7B's own shapes, out and in
LINEARS = {
    "attention.wqkv": (6144, 4096),
    "attention.wo": (4096, 4096),
    "feed_forward.w1": (14336, 4096),
    "feed_forward.w2": (4096, 14336),
    "feed_forward.w3": (14336, 4096),
}
VOCABULARY = (92544, 4096)
MERGE = """
import re, resource, sys, time
from pathlib import Path
import torch
torch.set_num_threads(1)
import ixtune.merging.merge as merging
if sys.argv[4] == "nf4":
    import bitsandbytes.functional
status = lambda key: int(re.search(key + r":\\s+(\\d+)", Path("/proc/self/status").read_text()).group(1)) / 1024
imported, start = status("VmRSS"), time.perf_counter()
merging.merge(Path(sys.argv[1]), Path(sys.argv[2]), Path(sys.argv[3]), onto=sys.argv[4])
usage = resource.getrusage(resource.RUSAGE_SELF)
print(time.perf_counter() - start, usage.ru_utime + usage.ru_stime, status("VmHWM") - imported)
"""


def synthetic_base(folder: Path) -> int:
    """Write random weights in the shapes of the 7B into this many shards; return the bytes."""
    shapes = {"model.tok_embeddings.weight": VOCABULARY, "output.weight": VOCABULARY}
    shapes |= {f"model.layers.{i}.{name}.weight": shape for i in range(LAYERS) for name, shape in LINEARS.items()}
    names = sorted(shapes)
    generator = torch.Generator().manual_seed(0)
    weight_map = {}

    def blocks(info: TensorInfo) -> Iterator[torch.Tensor]:
        for start, stop in info.row_blocks():
            yield (torch.randn(stop - start, *info.shape[1:], generator=generator) * 0.02).bfloat16()

    for k in range(SHARDS):
        shard = f"model-{k + 1:05d}-of-{SHARDS:05d}.safetensors"
        part = names[k::SHARDS]
        infos = [TensorInfo(n, shapes[n], torch.bfloat16, shard, None, row_major(shapes[n])) for n in part]
        write_safetensors(folder / shard, infos, blocks)
        weight_map |= dict.fromkeys(part, shard)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
    return sum((folder / shard).stat().st_size for shard in set(weight_map.values()))


def synthetic_adapter(folder: Path) -> None:
    generator = torch.Generator().manual_seed(1)
    tensors = {}
    for i in range(LAYERS):
        for name, (out, into) in LINEARS.items():
            key = f"base_model.model.model.layers.{i}.{name}"
            tensors[f"{key}.lora_A.weight"] = torch.randn(RANK, into, generator=generator) * 0.01
            tensors[f"{key}.lora_B.weight"] = torch.randn(out, RANK, generator=generator) * 0.01
    save_file(tensors, folder / "adapter_model.safetensors")
    (folder / "adapter_config.json").write_text(json.dumps({"peft_type": "LORA", "r": RANK, "lora_alpha": RANK}))


def copying(base: Path, copy: Path) -> float:
    """Return the wall seconds of cp and sync of the same folder."""
    start = time.perf_counter()
    subprocess.run(["cp", "-r", "--reflink=never", base, copy], check=True)
    subprocess.run(["sync", *copy.iterdir(), copy], check=True)
    return time.perf_counter() - start


def merging(adapter: Path, base: Path, out: Path, onto: str) -> tuple[float, float, float]:
    """Merge in a new process; return wall seconds, CPU seconds, and peak MiB above the memory after imports."""
    command = [sys.executable, "-c", MERGE, str(adapter), str(base), str(out), onto]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    wall, cpu, peak = map(float, done.stdout.split())
    return wall, cpu, peak


@pytest.mark.parametrize("onto", ["bf16", "nf4"])
def test_a_merge_against_a_copy(tmp_path: Path, onto: str) -> None:
    base, adapter = tmp_path / "base", tmp_path / "adapter"
    base.mkdir()
    adapter.mkdir()
    nbytes = synthetic_base(base)
    synthetic_adapter(adapter)
    subprocess.run(["sync", *base.iterdir()], check=True)
    copies, merges = [], []
    for _ in range(ROUNDS if onto == "bf16" else 1):
        copies.append(copying(base, tmp_path / "copy"))
        shutil.rmtree(tmp_path / "copy")
        merges.append(merging(adapter, base, tmp_path / "merged", onto))
        shutil.rmtree(tmp_path / "merged")
    copy_s, merge_s = statistics.median(copies), statistics.median(wall for wall, _, _ in merges)
    row = {
        "nf4": float(onto == "nf4"),
        "gib": nbytes / 2**30,
        "rank": float(RANK),
        "cp_sync_s": copy_s,
        "merge_s": merge_s,
        "ratio": copy_s / merge_s,
        "merge_cpu_s": statistics.median(cpu for _, cpu, _ in merges),
        "peak_mib": max(peak for _, _, peak in merges),
        "rounds": float(len(merges)),
    }
    measuring.record("merge", row)
    assert row["peak_mib"] <= 256  # the time is for reading: disks differ by more than a bound would tell
