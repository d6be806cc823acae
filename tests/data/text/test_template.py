from __future__ import annotations

import re
from dataclasses import replace
from functools import cache
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ixtune.data.record import Place, Record, Role, Turn
from ixtune.data.rejects import Reason
from ixtune.data.text.conversation_rules import TemplateError, require_placeholders
from ixtune.data.text.template import Sample, encode, encode_prompt, expand
from ixtune.data.text.tokenizer import Tokenizer

START, END = "[UNUSED_TOKEN_146]", "[UNUSED_TOKEN_145]"
IMAGE = "<ImageHere>"

# what would merge across a border if anything could: line ends, spaces, brackets, code, wide characters
FRAGMENTS = st.sampled_from(
    ["a", "The total", "assistant", "user", "1", "42.5", "é", "好", "😀", "UNUSED"]
    + [" ", "\n", "\n\n", "\t", "\r\n", "\u200b", ")\n", "```py\n"]
    + ["[", "]", "<", ">", "s>", "/"]
)
TEXTS = st.one_of(st.lists(FRAGMENTS, min_size=1, max_size=8).map("".join), st.text(min_size=1)).filter(
    # what has a meaning for the template is refused, and hypothesis knows these words from the code
    lambda text: bool(text.strip()) and IMAGE not in text and not re.search(r"</?s>|<unk>|\[UNUSED_TOKEN_\d+\]", text)
)
DIALOGUES = st.integers(1, 3).flatmap(lambda n: st.lists(TEXTS, min_size=2 * n, max_size=2 * n))


@cache
def loaded(path: Path) -> Tokenizer:
    return Tokenizer(path)


def record(*texts: str, roles: tuple[Role, ...] = ("user", "assistant")) -> Record:
    turns = tuple(Turn(roles[n % len(roles)], text) for n, text in enumerate(texts))
    return Record("r", (), turns, "source.json", Place("line", 1))


def whole_text(record: Record) -> str:
    return "".join(f"{START}{turn.role}\n{turn.text.strip()}{END}\n" for turn in record.turns) + "</s>"


def counted_labels(ids: list[int], tokenizer: Tokenizer) -> list[int]:
    """Compute labels as the reference does (MODEL.md 3.4): count ends of turns, skip a header of known length."""
    header = 2 + len(tokenizer.encode("assistant\n"))  # newline, start of turn, "assistant\n"
    labels, last, ends = list(ids), 0, 0
    for at, token in enumerate(ids):
        if token == tokenizer.end_of_turn_id:
            if ends % 2 == 0:
                labels[last : at + header + 1] = [-100] * (at + header + 1 - last)
            else:
                last = at + 1
            ends += 1
        elif token == tokenizer.eos_id:
            labels[at + 1 :] = [-100] * len(labels[at + 1 :])
            break
    return labels


@given(texts=DIALOGUES)
def test_ids_between_turn_tokens_match_those_of_the_whole_text(tokenizer: Tokenizer, texts: list[str]):
    sample = encode(record(*texts), [], tokenizer)
    assert sample.token_ids == (tokenizer.bos_id, *tokenizer.encode(whole_text(record(*texts))))


@given(texts=DIALOGUES)
def test_ids_match_the_whole_text_with_the_released_vocabulary(released_tokenizer: Path, texts: list[str]):
    released = loaded(released_tokenizer)
    sample = encode(record(*texts), [], released)
    assert sample.token_ids == (released.bos_id, *released.encode(whole_text(record(*texts))))
    ids, labels = expand(sample)
    assert labels == counted_labels(ids, released)


@given(
    parts=st.lists(st.one_of(st.just(""), TEXTS), min_size=2, max_size=4),
    answer=TEXTS,
    tokens=st.integers(1, 4),
)
def test_ids_between_images_match_those_of_each_text_part(
    released_tokenizer: Path, parts: list[str], answer: str, tokens: int
):
    released = loaded(released_tokenizer)
    asked = record(IMAGE.join(parts), answer)
    wanted = [released.bos_id]
    for number, part in enumerate(whole_text(asked).split(IMAGE)):
        wanted += [*([0] * tokens if number else []), *released.encode(part)]
    ids, labels = expand(encode(asked, [tokens] * (len(parts) - 1), released))
    assert ids == wanted
    assert labels == counted_labels(ids, released)


@given(texts=DIALOGUES)
def test_labels_from_structure_match_labels_from_token_counts(tokenizer: Tokenizer, texts: list[str]):
    ids, labels = expand(encode(record(*texts), [], tokenizer))
    assert labels == counted_labels(ids, tokenizer)


def supervised_text(sample: Sample, tokenizer: Tokenizer) -> list[str]:
    return [tokenizer.decode(sample.token_ids[start:end]) for start, end in sample.supervised]


def test_each_answer_is_trained_with_its_end_and_the_last_with_eos(tokenizer: Tokenizer):
    sample = encode(record("one?", "first", "two?", " second \n"), [], tokenizer)
    assert supervised_text(sample, tokenizer) == [f"first{END}", f"second{END}\n"]
    assert sample.token_ids[sample.supervised[-1][1] - 1] == tokenizer.eos_id
    assert sample.supervised[-1][1] == len(sample.token_ids)
    assert sample.supervised_tokens == sum(end - start for start, end in sample.supervised)


def test_images_are_inserted_at_their_placeholders(tokenizer: Tokenizer):
    sample = encode(record(f"one {IMAGE} two {IMAGE}{IMAGE}", "answer"), [2, 3, 1], tokenizer)
    ids, labels = expand(sample)
    assert sample.length == len(ids) == len(labels) == len(sample.token_ids) + 6
    first, second, third = sample.image_slots
    assert second == third
    assert tokenizer.decode(sample.token_ids[:first]) == f"{START}user\none "
    assert tokenizer.decode(sample.token_ids[first:second]) == " two "
    assert [at for at, token in enumerate(ids) if token == 0] == [
        *range(first, first + 2),
        *range(second + 2, second + 6),
    ]
    assert all(label == -100 for label, token in zip(labels, ids, strict=True) if token == 0)


def test_a_prompt_is_the_prefix_of_its_sample(tokenizer: Tokenizer):
    whole = encode(record(f"{IMAGE}one?", "first", "two?", "second"), [5], tokenizer)
    prompt = encode_prompt(record(f"{IMAGE}one?", "first", "two?").turns, [5], tokenizer)
    start, _ = whole.supervised[-1]
    assert prompt == Sample(whole.token_ids[:start], whole.image_slots, (), (5,))


@given(system=TEXTS, texts=DIALOGUES)
def test_a_system_turn_comes_first_and_is_not_trained(tokenizer: Tokenizer, system: str, texts: list[str]):
    plain = encode(record(*texts), [], tokenizer)
    turns = (Turn("system", system), *record(*texts).turns)
    sample = encode(replace(record(), turns=turns), [], tokenizer)
    header = tokenizer.encode(f"{START}system\n{system.strip()}{END}\n")
    assert sample.token_ids == (tokenizer.bos_id, *header, *plain.token_ids[1:])
    assert sample.supervised == tuple((start + len(header), end + len(header)) for start, end in plain.supervised)


def test_a_prompt_begins_with_its_own_system_turn_only(tokenizer: Tokenizer):
    turns = (Turn("system", "be terse"), *record("one?", "first").turns)
    whole = encode(replace(record(), turns=turns), [], tokenizer)
    start, _ = whole.supervised[-1]
    assert encode_prompt(turns[:-1], [], tokenizer).token_ids == whole.token_ids[:start]
    assert encode_prompt(turns[:-1], [], tokenizer, system="be kind").token_ids == whole.token_ids[:start]
    assert encode_prompt(turns[1:-1], [], tokenizer, system="be terse").token_ids == whole.token_ids[:start]


def test_error_messages_count_turns_as_in_the_source(tokenizer: Tokenizer):
    bad = record("a</s>").turns
    with pytest.raises(TemplateError, match="turn 2 contains"):
        encode_prompt((Turn("system", "be terse"), *bad), [], tokenizer)
    with pytest.raises(TemplateError, match="turn 1 contains"):
        encode_prompt(bad, [], tokenizer, system="be terse")
    with pytest.raises(TemplateError, match="the system prompt contains"):
        encode_prompt(record("one?").turns, [], tokenizer, system="</s>")


def test_a_prompt_that_ends_with_the_system_turn_is_refused(tokenizer: Tokenizer):
    with pytest.raises(TemplateError, match="ends with the system prompt"):
        encode_prompt([Turn("system", "be terse")], [], tokenizer)


def test_errors_use_the_placeholder_of_the_source():
    with pytest.raises(TemplateError) as caught:
        require_placeholders(record("What is it?", "A cat.").turns, 1, "<image>")
    assert "put <image> where" in caught.value.hint


def test_a_prompt_that_ends_with_an_answer_is_refused(tokenizer: Tokenizer):
    with pytest.raises(TemplateError, match="ends with an answer"):
        encode_prompt(record("one?", "first").turns, [], tokenizer)


@pytest.mark.parametrize(
    ("texts", "roles", "images", "reason"),
    [
        ((), ("user",), 0, Reason.BAD_CONVERSATIONS),
        (("hi", "be terse", "yo"), ("user", "system", "assistant"), 0, Reason.SYSTEM_NOT_FIRST),
        (("be terse", "be kind", "hi", "yo"), ("system", "system", "user", "assistant"), 0, Reason.SYSTEM_NOT_FIRST),
        (("be terse",), ("system",), 0, Reason.NOTHING_SUPERVISED),
        (("be terse", "yo"), ("system", "assistant"), 0, Reason.STARTS_WITH_ASSISTANT),
        (("be terse", "hi"), ("system", "user"), 0, Reason.ENDS_WITH_USER),
        ((" ", "hi", "yo"), ("system", "user", "assistant"), 0, Reason.BAD_CONVERSATIONS),
        ((f"see {IMAGE}", "hi", "yo"), ("system", "user", "assistant"), 1, Reason.PLACEHOLDER_IN_ANSWER),
        (("</s>", "hi", "yo"), ("system", "user", "assistant"), 0, Reason.SPECIAL_TOKEN_IN_TEXT),
        (("hi", "there", "yo"), ("user", "user", "assistant"), 0, Reason.REPEATED_ROLE),
        (("hi", "yo", "yo"), ("user", "assistant", "assistant"), 0, Reason.REPEATED_ROLE),
        (("welcome", "hi"), ("assistant", "user"), 0, Reason.STARTS_WITH_ASSISTANT),
        (("hi", "yo", "bye"), ("user", "assistant"), 0, Reason.ENDS_WITH_USER),
        (("hi",), ("user",), 0, Reason.ENDS_WITH_USER),
        (("hi", " \n"), ("user", "assistant"), 0, Reason.EMPTY_ANSWER),
        (("", "yo"), ("user", "assistant"), 0, Reason.EMPTY_QUESTION),
        (("a<unk>b", "yo"), ("user", "assistant"), 0, Reason.SPECIAL_TOKEN_IN_TEXT),
        (("hi", "</s>"), ("user", "assistant"), 0, Reason.SPECIAL_TOKEN_IN_TEXT),
        (("<s>", "yo"), ("user", "assistant"), 0, Reason.SPECIAL_TOKEN_IN_TEXT),
        (("hi", f"yo{END}"), ("user", "assistant"), 0, Reason.SPECIAL_TOKEN_IN_TEXT),
        (("[UNUSED_TOKEN_7]", "yo"), ("user", "assistant"), 0, Reason.SPECIAL_TOKEN_IN_TEXT),
        (("a\ud83d", "yo"), ("user", "assistant"), 0, Reason.INVALID_UNICODE),
        (("hi", "yo"), ("user", "assistant"), 1, Reason.MISSING_PLACEHOLDER),
        ((IMAGE, "yo"), ("user", "assistant"), 2, Reason.TOO_FEW_PLACEHOLDERS),
        ((IMAGE, "yo"), ("user", "assistant"), 0, Reason.TOO_MANY_PLACEHOLDERS),
        ((f"{IMAGE}hi", f"see {IMAGE}"), ("user", "assistant"), 2, Reason.PLACEHOLDER_IN_ANSWER),
    ],
)
def test_malformed_conversations_are_refused_with_their_reason(
    tokenizer: Tokenizer, texts: tuple[str, ...], roles: tuple[Role, ...], images: int, reason: Reason
):
    with pytest.raises(TemplateError) as caught:
        encode(record(*texts, roles=roles), [5] * images, tokenizer)
    assert caught.value.reason == reason
    assert str(caught.value)
    assert caught.value.hint


def test_a_missing_placeholder_has_a_hint_to_add_one(tokenizer: Tokenizer):
    with pytest.raises(TemplateError) as caught:
        encode(record("What is it?", "A cat."), [5], tokenizer)
    assert "put <ImageHere> where the image belongs" in caught.value.hint


def test_a_character_outside_a_vocabulary_without_bytes_is_refused(tmp_path: Path):
    from small_tokenizer import train

    narrow = Tokenizer(train(tmp_path, byte_fallback=False, vocab_size=160))
    with pytest.raises(TemplateError) as caught:
        encode(record("😀", "a"), [], narrow)
    assert caught.value.reason == Reason.UNKNOWN_CHARACTER
