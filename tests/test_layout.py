from __future__ import annotations

import dataclasses
import json
import math

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from ixtune.family import FOUR_KHD
from ixtune.layout import LayoutError, PatchLayout, plan

sides = st.integers(1, 12_000)
hd_nums = st.integers(1, 70)


def planned(width: int, height: int, hd_num: int, upscale: bool = True) -> PatchLayout | None:
    try:
        return plan(width, height, hd_num, upscale=upscale)
    except LayoutError:
        return None


@given(sides, sides, hd_nums)
def test_an_image_fills_whole_crops_and_at_most_hd_num(width: int, height: int, hd_num: int):
    layout = planned(width, height, hd_num)
    if layout is None:
        return
    assert layout.final_width % FOUR_KHD.crop == layout.final_height % FOUR_KHD.crop == 0
    assert 1 <= layout.crops <= hd_num
    assert layout.crops == layout.rows * layout.cols


@given(sides, sides, hd_nums)
def test_padding_is_on_one_axis_below_a_crop_and_even_within_one_pixel(width: int, height: int, hd_num: int):
    layout = planned(width, height, hd_num)
    if layout is None:
        return
    require_even_padding(layout)
    assert layout.pad_left + layout.pad_right == 0 or layout.pad_top + layout.pad_bottom == 0


def require_even_padding(layout: PatchLayout) -> None:
    for before, resized, after, final in (
        (layout.pad_left, layout.resized_width, layout.pad_right, layout.final_width),
        (layout.pad_top, layout.resized_height, layout.pad_bottom, layout.final_height),
    ):
        assert before + resized + after == final
        assert before >= 0
        assert after - before in (0, 1)
        assert before + after < FOUR_KHD.crop


@given(sides, sides, hd_nums)
@example(671, 336, 2)  # the reference shrinks it to 336 x 168, because twice its height is 336.5
@example(672, 336, 2)
def test_without_upscale_a_fitting_image_keeps_its_size_and_none_grows(width: int, height: int, hd_num: int):
    plain, layout = planned(width, height, hd_num), planned(width, height, hd_num, upscale=False)
    cols, rows = math.ceil(width / FOUR_KHD.crop), math.ceil(height / FOUR_KHD.crop)
    if cols * rows > hd_num:
        assert layout == (plain and dataclasses.replace(plain, upscale=False))
    else:
        assert layout is not None
        assert (layout.resized_width, layout.resized_height) == (width, height)
        assert (layout.cols, layout.rows) == (cols, rows)
    if layout is None:
        return
    assert layout.resized_width <= width
    assert layout.resized_height <= height
    assert layout.crops <= hd_num
    require_even_padding(layout)


@given(sides, sides, hd_nums)
def test_no_upscale_never_costs_more_tokens_than_upscale(width: int, height: int, hd_num: int):
    plain, layout = planned(width, height, hd_num), planned(width, height, hd_num, upscale=False)
    if plain is not None and layout is not None and max(plain.resized_width, plain.resized_height) > max(width, height):
        assert layout.rows <= plain.rows
        assert layout.cols <= plain.cols
        assert layout.tokens <= plain.tokens


@given(sides, sides, hd_nums)
def test_an_image_of_the_resized_size_has_the_same_layout_no_upscale(width: int, height: int, hd_num: int):
    layout = planned(width, height, hd_num)
    if layout is not None:
        again = plan(layout.resized_width, layout.resized_height, layout.crops, upscale=False)
        kept = dataclasses.replace(
            layout, width=again.width, height=again.height, hd_num=again.hd_num, upscale=False, transposed=False
        )
        assert dataclasses.replace(again, transposed=False) == kept


@given(sides, sides, hd_nums)
def test_a_transposed_image_has_the_transposed_layout(width: int, height: int, hd_num: int):
    layout, turned = planned(width, height, hd_num), planned(height, width, hd_num)
    if layout is None or turned is None:
        assert layout is turned
        return
    if width == height:
        assert layout == turned
        assert not layout.transposed
        return
    assert turned == dataclasses.replace(
        layout,
        width=height,
        height=width,
        transposed=not layout.transposed,
        resized_width=layout.resized_height,
        resized_height=layout.resized_width,
        pad_left=layout.pad_top,
        pad_top=layout.pad_left,
        rows=layout.cols,
        cols=layout.rows,
    )


@given(sides, sides, hd_nums)
def test_a_larger_hd_num_never_gives_the_long_side_fewer_crops(width: int, height: int, hd_num: int):
    fewer, more = planned(width, height, hd_num), planned(width, height, hd_num + 1)
    if fewer is not None and more is not None:
        assert max(fewer.rows, fewer.cols) <= max(more.rows, more.cols)


@given(st.integers(1, 1000), st.integers(1, 1000), hd_nums, st.integers(2, 99))
def test_the_layout_depends_only_on_the_aspect_ratio(width: int, height: int, hd_num: int, factor: int):
    """Float division rounds correctly, so equal ratios give equal quotients."""
    small, large = planned(width, height, hd_num), planned(width * factor, height * factor, hd_num)
    if small is None or large is None:
        assert small is large
        return
    assert dataclasses.replace(large, width=width, height=height) == small


@given(st.integers(1, 80), st.integers(1, 80))
def test_tokens_match_the_formula_and_the_sum_of_their_parts(rows: int, cols: int):
    assert FOUR_KHD.tokens(rows, cols) == 144 * (rows * cols + 1) + 1 + 12 * (rows + 1)
    assert sum(FOUR_KHD.token_parts(rows, cols).values()) == FOUR_KHD.tokens(rows, cols)


@pytest.mark.parametrize(
    ("width", "height", "hd_num", "tokens"),
    [
        (1000, 1000, 25, 3817),
        (1600, 1200, 16, 1921),
        (1920, 1080, 55, 8005),
        (1080, 1920, 55, 8041),
        (1240, 1754, 9, 1489),
        (3840, 1600, 25, 3217),
    ],
)
def test_token_counts_match_the_published_ones(width: int, height: int, hd_num: int, tokens: int):
    assert plan(width, height, hd_num).tokens == tokens


def test_truncation_can_save_a_row_of_crops():
    layout = plan(5328, 2132, 16)
    assert (layout.rows, layout.resized_height) == (2, 672)


@pytest.mark.parametrize("value", [True, 3.0, "3", None, 3.5])
@pytest.mark.parametrize("argument", range(3))
def test_a_non_integer_argument_is_refused_by_name(argument: int, value: object):
    arguments: list[object] = [640, 480, 9]
    arguments[argument] = value
    with pytest.raises(TypeError, match=("width", "height", "hd_num")[argument]):
        plan(*arguments)  # type: ignore[arg-type]


@pytest.mark.parametrize("arguments", [(0, 5, 9), (5, 0, 9), (-5, 5, 9), (5, -1, 9), (5, 5, 0), (5, 5, -1)])
def test_arguments_below_one_are_refused(arguments: tuple[int, int, int]):
    with pytest.raises(LayoutError, match=r"positive|at least 1"):
        plan(*arguments)


@pytest.mark.parametrize("arguments", [(5000, 1, 9), (1, 5000, 1), (10**400, 1, 9)])
def test_an_image_that_resizes_to_nothing_is_refused(arguments: tuple[int, int, int]):
    with pytest.raises(LayoutError, match=r"too thin|too large"):
        plan(*arguments)


def test_a_layout_is_frozen_and_json_serializable():
    layout = plan(300, 811, 25)
    with pytest.raises(dataclasses.FrozenInstanceError):
        layout.rows = 1  # type: ignore[misc]
    told = json.loads(json.dumps(layout.as_dict()))
    assert (told["rows"], told["cols"], told["tokens"]) == (layout.rows, layout.cols, layout.tokens)
    assert told["transposed"] is True
