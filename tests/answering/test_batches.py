"""Batches: questions about the same images together, within rows and tokens."""

from __future__ import annotations

from ixtune.answering.batches import Size, batches
from ixtune.answering.prompt import Prompt, start_key
from ixtune.data.record import Turn


def test_questions_about_one_image_are_neighbors_whatever_their_order():
    sizes = [Size(key, 300, 10) for key in ("a", "b", "a", "c", "b", "a")]
    assert batches(sizes, max_rows=2) == [[0, 2], [5, 1], [4, 3]]
    assert batches(sizes, max_rows=8) == [[0, 2, 5, 1, 4, 3]]


def test_a_shared_prefix_counts_once_and_own_tokens_are_padded_to_the_longest():
    sizes = [Size("a", 300, 10), Size("a", 300, 40), Size("b", 300, 10)]
    assert batches(sizes, max_tokens=380) == [[0, 1], [2]]  # 300 + 2 * 40
    assert batches(sizes, max_tokens=379) == [[0], [1], [2]]
    assert batches(sizes, max_tokens=720) == [[0, 1, 2]]  # 2 * 300 + 3 * 40
    assert batches(sizes, max_tokens=1) == [[0], [1], [2]]
    assert batches([], max_rows=2) == []


def test_prompts_start_alike_if_images_and_text_before_the_last_of_them_are_equal():
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
