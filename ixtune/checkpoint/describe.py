"""Describe a base in numbers: its sizes, its parts, its storage format and its license terms."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ixtune.checkpoint.convert import other_files
from ixtune.checkpoint.identity import base_identity
from ixtune.checkpoint.shards import open_checkpoint
from ixtune.checkpoint.sizes import Sizes
from ixtune.checkpoint.terms import terms_of
from ixtune.checkpoint.verify import TOKENIZER_FILE, form_of, read_config_json
from ixtune.files import sha256_file


def describe(folder: Path) -> dict[str, Any]:
    """Describe a base as a JSON-serializable dict, reading only headers and the edges of its tensors.

    Raises:
        IxtuneError: It is not a base, or its weights cannot be opened.
    """
    sizes = Sizes.from_config_json(read_config_json(folder))
    checkpoint = open_checkpoint(folder)
    dtypes: dict[str, int] = {}
    for info in checkpoint.tensors:
        name = str(info.dtype).removeprefix("torch.")
        dtypes[name] = dtypes.get(name, 0) + 1
    tokenizer = folder / TOKENIZER_FILE
    return {
        "folder": str(folder),
        "form": form_of(sizes),
        "vocabulary": sizes.vocabulary,
        "hidden": sizes.hidden,
        "intermediate": sizes.intermediate,
        "layers": sizes.layers,
        "heads": sizes.heads,
        "kv_heads": sizes.kv_heads,
        "plora_ranks": {"wqkv": sizes.plora_ranks[0], "others": sizes.plora_ranks[1]},
        "vision": {
            "layers": sizes.vision.layers,
            "width": sizes.vision.width,
            "side": sizes.vision.side,
            "patch": sizes.vision.patch,
        },
        "parameters": sizes.parameters(),
        "tensors": len(checkpoint.tensors),
        "dtypes": dtypes,
        "bytes": checkpoint.nbytes,
        "nf4_bytes": sum(sizes.weight_bytes(nf4=True, float_bytes=2).values()),
        "shards": {shard: (folder / shard).stat().st_size for shard in checkpoint.shards},
        "tokenizer_sha256": sha256_file(tokenizer) if tokenizer.is_file() else None,
        "identity": base_identity(checkpoint),
        "code_files": [file.name for file in other_files(folder) if file.suffix == ".py"],
        "terms": terms_of(folder, sizes),
    }
