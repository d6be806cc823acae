from __future__ import annotations

import json
from pathlib import Path

import pytest
from small_base import RELEASED_CONFIG, SMALL

from ixtune.checkpoint.sizes import Sizes
from ixtune.checkpoint.tensor_shapes import tensor_shapes
from ixtune.model.configuration import IXC2Config
from ixtune.model.loading import expected_shapes


def test_the_default_sizes_give_the_released_942_tensors(golden: Path) -> None:
    released = json.loads((golden / "full_7b_tensor_index.json").read_text(encoding="utf-8"))
    assert tensor_shapes(Sizes()) == {name: tuple(shape) for name, shape in released.items()}
    assert len(released) == 942


@pytest.mark.parametrize("extra", [{}, SMALL], ids=["7B", "small"])
def test_tensor_shapes_match_the_network(extra: dict[str, object]) -> None:
    given = {**RELEASED_CONFIG, **extra}
    assert tensor_shapes(Sizes.from_config_json(given)) == expected_shapes(IXC2Config.from_dict(given))
