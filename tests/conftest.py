"""Configure all tests: no network, one thread, and the folder of golden fixtures."""

from __future__ import annotations

import os
import sys
import zlib
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

ROOT = Path(__file__).resolve().parents[1]

# Almost all tests compare with what a CPU computes: a GPU that is there is for `make gpu` alone.
if not os.environ.get("IXTUNE_GPU_TESTS"):
    os.environ["CUDA_VISIBLE_DEVICES"] = ""
# Rich and typer read these; some CI systems set them.
for name in ("COLUMNS", "LINES", "NO_COLOR", "FORCE_COLOR", "PY_COLORS", "TTY_COMPATIBLE", "GITHUB_ACTIONS"):
    os.environ.pop(name, None)
os.environ["HF_HUB_OFFLINE"] = "1"  # read by the hub library when it is imported
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

# On a loaded machine, single examples took more than 200 ms, and drawing them is slow too. The suite draws the same
# examples each time, so that a run fails by a change and not by chance; `--hypothesis-profile=random` draws new ones.
settings.register_profile("random", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.register_profile("fixed", settings.get_profile("random"), derandomize=True, database=None)
settings.load_profile("fixed")


# The files that take longest, by seconds. A file stays with one process of several, for its fixtures' sake, and these
# go first, so that none of them begins when the others are done.
LONGEST = (
    "cli/test_evaluate.py", "examples/test_stories.py", "cli/test_train.py", "test_docs.py", "cli/test_demo.py",
    "examples/test_python_api.py", "planning/test_memory.py", "cli/test_train_scores.py", "cli/test_report.py",
    "cli/test_merge.py", "cli/test_doctor.py", "cli/test_conduct.py", "cli/test_merge_faults.py", "cli/test_inspect.py",
    "cli/test_train_again.py", "test_front_door.py", "data/test_prepare.py", "test_processor.py", "cli/test_export.py",
)  # fmt: skip


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Run the files in LONGEST first."""
    places = {ROOT / "tests" / name: place for place, name in enumerate(LONGEST)}
    items.sort(key=lambda item: places.get(item.path, len(LONGEST)))


@pytest.hookimpl(tryfirst=True)
def pytest_fixture_setup(fixturedef: pytest.FixtureDef[object]) -> None:
    """Seed torch, so that random tensors do not depend on what ran before; do not import it for tests without it."""
    if torch := sys.modules.get("torch"):
        torch.manual_seed(zlib.crc32(fixturedef.argname.encode()))


@pytest.fixture(autouse=True)
def _one_torch_thread() -> None:
    """Use one thread, so that float sums do not depend on the cores; do not import torch for tests without it."""
    if torch := sys.modules.get("torch"):
        torch.set_num_threads(1)


@pytest.fixture(scope="session")
def golden() -> Path:
    """Return the folder of reference outputs; IXTUNE_GOLDEN overrides it."""
    return Path(os.environ.get("IXTUNE_GOLDEN") or ROOT / "tests" / "fixtures" / "golden")


@pytest.fixture(scope="session")
def released_tokenizer() -> Path:
    """Return the released tokenizer.model, which is too large and not ours to redistribute."""
    default = ROOT.parent / "shared" / "tokenizer" / "tokenizer.model"
    path = Path(os.environ.get("IXTUNE_TOKENIZER") or default)
    if not path.is_file():
        pytest.skip("the released tokenizer.model is not here; IXTUNE_TOKENIZER names its file")
    return path


@pytest.fixture(scope="session")
def small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a small random base in the original format."""
    from small_base import write_small_base  # imports torch, which tests without a model do not pay for

    return write_small_base(tmp_path_factory.mktemp("small") / "base")
