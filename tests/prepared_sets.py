"""Write prepared sets in the formats of older ixtune versions."""

from __future__ import annotations

import json
from pathlib import Path

import pyarrow

from ixtune.data.prepared import store
from ixtune.data.prepared.manifest import MANIFEST


def as_format_2(folder: Path) -> None:
    """Write the set as ixtune did before images had a hash and roots were relative."""
    with pyarrow.ipc.open_stream(folder / store.ARROW) as reader:
        rows = reader.read_all().to_pylist()
    for row in rows:
        for image in row["pictures"]:
            for key in ("content", "bytes", "name"):
                del image[key]
    table = pyarrow.Table.from_pylist(rows)
    with pyarrow.OSFile(str(folder / store.ARROW), "wb") as file, pyarrow.ipc.new_stream(file, table.schema) as stream:
        stream.write_table(table)
    (folder / "dataset_info.json").write_text("{}")
    manifest = json.loads((folder / MANIFEST).read_text())
    manifest["image_roots"] = [one if isinstance(one, str) else one["absolute"] for one in manifest["image_roots"]]
    (folder / MANIFEST).write_text(json.dumps(manifest | {"format": 2}))
