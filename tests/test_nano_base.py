"""Test the files of the embedded base, and that the script that made it runs."""

from __future__ import annotations

import hashlib
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from ixtune.base import resolve
from ixtune.model.loading import load_base

SCRIPTS = Path(__file__).parents[1] / "examples" / "nano-base"

# Every stage, with a font that the demo uses instead of Debian's.
SMOKE = """
import sys, importlib.util
from pathlib import Path
sys.path.insert(0, {scripts!r})
import cells, fonts, measure, stages, tower, train
from state import Machine
spec = importlib.util.find_spec("font_lato")
files = [Path(spec.origin).parent / "files" / "Lato-Regular.ttf"]
fonts.find = lambda unseen=False: files
train.torch.set_num_threads(1)
stages.COPY_BATCH, stages.READ_BATCH, stages.VALIDATION_PAGES = 2, 1, 4
tower.VALIDATION_PAGES = 8
cells.BATCH = cells.FIT_BATCHES = 1
out = Path({out!r})
out.mkdir()
here = Machine()
tower.see(out, 1, 1, here, batch=1)
stages.copy(out, train.VOCABULARY, 1, 1, here)
cells.cells(out, train.VOCABULARY, 1, 1, here)
stages.read(out, train.VOCABULARY, 1, 1, here)
stages.read(out, train.VOCABULARY, 2, 1, here)  # resumes from the checkpoint
train.export(out, out / "base")
again = out / "again"
again.mkdir()
train.recover(again, train.VOCABULARY, 1, 1, here, out / "base")
cells.cells(again, train.VOCABULARY, 1, 1, here)
found = [measure.measure(out / "base", 1, quantize=quantize) for quantize in (False, True)]
(out / "card.md").write_text(measure.card(out / "base", *found, 1))
model, _ = measure.load_base(out / "base", quantize=False, dtype=train.torch.float32)
trained, written = train.configuration(0.02), model.config
for name in ("rope_parameters", "hidden_size", "num_attention_heads", "num_key_value_heads", "plora"):
    assert getattr(trained, name) == getattr(written, name), name
"""


def test_the_base_is_small_and_its_hashes_match_its_card() -> None:
    folder = resolve("nano")
    assert sum(path.stat().st_size for path in folder.iterdir()) < 12_000_000
    card = (folder / "README.md").read_text(encoding="utf-8")
    hashes = dict(re.findall(r"\| `([^`]+)` \| [\d,]+ \| `([0-9a-f]{64})` \|", card))
    weights = [path for path in folder.iterdir() if path.suffix in (".safetensors", ".model")]
    assert set(hashes) == {path.name for path in weights}
    for path in weights:
        assert hashlib.sha256(path.read_bytes()).hexdigest() == hashes[path.name]


def test_every_part_of_the_base_affects_the_output() -> None:
    model, _ = load_base(resolve("nano"), quantize=False, dtype=torch.float32)
    assert (model.config.vision_config.image_size, model.config.vision_config.patch_size) == (336, 14)
    assert model.config.num_attention_heads > model.config.num_key_value_heads
    silent = [name for name, parameter in model.named_parameters() if float(parameter.abs().max()) == 0]
    assert silent == []
    assert any(name.endswith("_plora.B.weight") for name, _ in model.named_parameters())


# half a minute alone, minutes on a machine with other work
@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_the_script_that_made_the_base_runs_every_stage(tmp_path: Path) -> None:
    code = SMOKE.format(scripts=str(SCRIPTS), out=str(tmp_path / "stages"))
    done = subprocess.run([sys.executable, "-W", "ignore", "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "read 2 unseen fonts: " in done.stdout
    card = (tmp_path / "stages" / "card.md").read_text(encoding="utf-8")
    assert "| value of a named field | 0.000 [0.000, 0.793] |" in card
    model, _ = load_base(tmp_path / "stages" / "base", quantize=False, dtype=torch.float32)
    assert model.config.vocab_size == 354
