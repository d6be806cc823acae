"""Test that batches group questions about the same images, within limits of rows and tokens."""

from __future__ import annotations

from ixtune.answering.batches import Size, batches, shares
from ixtune.answering.prompt import Prompt, start_key
from ixtune.data.record import Turn


def test_questions_about_one_image_are_neighbors_in_any_input_order():
    sizes = [Size(key, 300, 10) for key in ("a", "b", "a", "c", "b", "a")]
    assert batches(sizes, max_rows=2) == [[0, 2], [5, 1], [4, 3]]
    assert batches(sizes, max_rows=8) == [[0, 2, 5, 1, 4, 3]]


def test_a_shared_prefix_counts_once_and_suffixes_are_padded():
    sizes = [Size("a", 300, 10), Size("a", 300, 40), Size("b", 300, 10)]
    assert batches(sizes, max_tokens=380) == [[0, 1], [2]]  # 300 + 2 * 40
    assert batches(sizes, max_tokens=379) == [[0], [1], [2]]
    assert batches(sizes, max_tokens=720) == [[0, 1, 2]]  # 2 * 300 + 3 * 40
    assert batches(sizes, max_tokens=1) == [[0], [1], [2]]
    assert batches([], max_rows=2) == []


def test_prompts_share_a_start_if_images_and_leading_text_are_equal():
    def key(text: str, *images: str, before: tuple[Turn, ...] = ()) -> object:
        return start_key((*before, Turn("user", text)), [{"path": image} for image in images])

    assert key("<ImageHere>How many?", "a") == key("<ImageHere>Which?", "a")
    assert key("<ImageHere>How many?", "a") != key("<ImageHere>How many?", "b")
    assert key("See <ImageHere>", "a") != key("<ImageHere>", "a")
    assert key("<ImageHere>and<ImageHere>?", "a", "b") != key("<ImageHere>or<ImageHere>?", "a", "b")
    system = (Turn("system", "Be brief."),)
    assert key("<ImageHere>", "a", before=system) != key("<ImageHere>", "a")
    assert key("How many?") is None
    image = {"root": 0, "path": "a", "tokens": 313}
    assert Prompt((Turn("user", "<ImageHere>What?"),), (image,)).size.prefix_tokens == 313


def test_processes_get_whole_groups_in_roughly_equal_shares():
    sizes = [Size(key, 1000, 10) for key in "aaaabbbbccccdd"]
    made = batches(sizes, max_rows=2)  # aa aa bb bb cc cc dd
    assert shares(made, sizes, 1) == [made]
    assert shares(made, sizes, 2) == [[[0, 1], [2, 3], [8, 9], [10, 11]], [[4, 5], [6, 7], [12, 13]]]
    for processes in (2, 3, 5, 20):
        found = shares(made, sizes, processes)
        assert sorted(batch for of_one in found for batch in of_one) == made
        assert len(found) == processes
    assert shares([], [], 3) == [[], [], []]


def test_a_group_larger_than_a_share_is_split_between_batches():
    sizes = [Size("a", 1000, 10)] * 12 + [Size(None, 0, 10)] * 4
    made = batches(sizes, max_rows=2)
    parts = shares(made, sizes, 3)
    assert all(any(0 <= at < 12 for batch in of_one for at in batch) for of_one in parts)
    assert max(map(len, parts)) <= 4
