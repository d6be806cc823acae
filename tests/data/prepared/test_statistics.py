from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from ixtune.data.prepared.statistics import HD_NUMS, Statistics, TokenCounts, token_counts_of
from ixtune.family import FOUR_KHD, TWO_FIVE, Member
from ixtune.layout import LayoutError, plan


def bill(width: int = 60, height: int = 40, text: int = 20, supervised: int = 5, images: int = 1) -> TokenCounts:
    layouts = [plan(width, height, 4)] * images
    return token_counts_of(text, supervised, layouts, ["exif_ignored"] * images, lowered=False, upscale=True)


def test_token_costs_add_up_and_are_known_for_each_hd_num():
    one = bill(images=2)
    assert one.image == 2 * plan(60, 40, 4).tokens
    assert one.length == 20 + one.image
    assert one.by_hd_num == tuple(2 * plan(60, 40, hd_num).tokens for hd_num in HD_NUMS)
    assert bill(images=0).by_hd_num == (0,) * len(HD_NUMS)


MODELS = [FOUR_KHD, TWO_FIVE, TWO_FIVE.at_inference]


@given(st.integers(1, 5000), st.integers(1, 5000), st.booleans(), st.sampled_from(MODELS))
def test_the_cost_at_each_hd_num_matches_its_layout(width: int, height: int, upscale: bool, member: Member):
    def tokens(hd_num: int) -> int:
        try:
            return plan(width, height, hd_num, upscale=upscale, member=member).tokens
        except LayoutError:
            return -1

    try:
        layout = plan(width, height, 4, upscale=upscale, member=member)
    except LayoutError:
        return
    one = token_counts_of(1, 1, [layout], [], lowered=False, upscale=upscale)
    assert one.by_hd_num == tuple(tokens(hd_num) for hd_num in HD_NUMS)


def test_an_hd_num_without_a_layout_has_no_cost():
    thin = token_counts_of(20, 5, [plan(2000, 1, 55)], [], lowered=False, upscale=True)
    assert thin.by_hd_num[0] == -1
    statistics = Statistics()
    statistics.add(thin)
    statistics.add(bill())
    costs = statistics.as_manifest()["statistics"]["image_tokens_by_hd_num"]
    assert costs["4"] is None
    assert costs["55"] == plan(2000, 1, 55).tokens + plan(60, 40, 55).tokens


sizes = st.tuples(st.integers(1, 3000), st.integers(1, 3000), st.integers(6, 9000), st.integers(1, 6))


@given(st.lists(sizes, min_size=1, max_size=30))
def test_each_histogram_counts_every_record_or_image_once(given: list[tuple[int, int, int, int]]):
    statistics = Statistics()
    for width, height, text, supervised in given:
        layouts = [plan(width, height, 55)] if max(width, height) < 300 * min(width, height) else []
        statistics.add(token_counts_of(text, supervised, layouts, [], lowered=False, upscale=True))
    told = statistics.as_manifest()
    images = sum(told["grids"].values())
    counts = {
        name: sum(one[2] for one in told["statistics"][name]["bins"])
        for name in told["statistics"]
        if name != "image_tokens_by_hd_num" and name not in ("notes", "lowered")
    }
    assert counts == {"length": len(given), "supervised_share": len(given), "crops": images, "aspect": images}
    low, high = told["statistics"]["length"]["bins"][0][0], told["statistics"]["length"]["bins"][-1][1]
    assert low <= told["length"]["min"]
    assert high is None or high >= told["length"]["max"]
    assert told["tokens"]["total"] == told["tokens"]["text"] + told["tokens"]["image"]


def test_a_record_repeated_three_times_counts_three_times():
    once, thrice = Statistics(), Statistics()
    for _ in range(3):
        once.add(bill())
    thrice.add(bill(), 3)
    assert once.as_manifest() == thrice.as_manifest()
    assert thrice.rows == 3
