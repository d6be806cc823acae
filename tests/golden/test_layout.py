"""Compare layouts with the reference, integer by integer."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from ixtune.layout import LayoutError, plan


def test_every_layout_and_every_failure_matches_the_reference(golden: Path):
    cases = json.loads((golden / "layouts.json").read_text(encoding="utf-8"))["cases"]
    assert cases
    for case in cases:
        arguments = (case["w"], case["h"], case["hd_num"])
        if "error" in case:
            reason = case["error"].partition(": ")[2]
            with pytest.raises(LayoutError, match=reason):
                plan(*arguments)
            continue
        layout = plan(*arguments)
        # the reference pads one axis only, the one across the long side
        axis = "x" if layout.transposed else "y"
        sides = {"x": (layout.pad_left, layout.pad_right), "y": (layout.pad_top, layout.pad_bottom)}
        before, after = sides.pop(axis)
        assert [*sides.values()] == [(0, 0)], arguments
        assert {
            "transposed": layout.transposed,
            "resized_w": layout.resized_width,
            "resized_h": layout.resized_height,
            "pad_axis": axis,
            "pad_before": before,
            "pad_after": after,
            "final_w": layout.final_width,
            "final_h": layout.final_height,
            "rows": layout.rows,
            "cols": layout.cols,
            "tokens": layout.tokens,
            "fits_hd_num": layout.crops <= layout.hd_num,
        } == {key: case[key] for key in case if key not in ("w", "h", "hd_num", "multiple_of_336")}, arguments
