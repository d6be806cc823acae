"""Compare ids, labels and masks with the reference; skipped without the released tokenizer."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from ixtune.data.record import Record, Turn
from ixtune.data.schemas.record_reader import record_of
from ixtune.data.sources.source import Schema, Source
from ixtune.data.sources.source_loader import open_source
from ixtune.data.text.conversation_rules import TemplateError
from ixtune.data.text.template import encode, encode_prompt, expand
from ixtune.data.text.tokenizer import Tokenizer

PLACEHOLDER = "<ImageHere>"
SPECIAL = re.compile(r"<unk>|<s>|</s>|\[UNUSED_TOKEN_\d+\]")


@pytest.fixture(scope="module")
def released(released_tokenizer: Path) -> Tokenizer:
    return Tokenizer(released_tokenizer)


@pytest.fixture(scope="module")
def text(golden: Path) -> dict[str, Any]:
    return json.loads((golden / "text.json").read_text(encoding="utf-8"))


def well_formed(conversation: dict[str, Any]) -> bool:
    """Return whether the reference accepts a conversation (MODEL.md 3.6), written independently of the template."""
    turns = conversation["sample"]["conversations"]
    roles = "".join({"user": "u", "human": "u", "system": "s"}.get(turn["from"].lower(), "a") for turn in turns)
    questions = "".join(turn["value"] for turn in turns[::2])
    answers = [turn["value"] for turn in turns[1::2]]
    return (
        re.fullmatch("(ua)+", roles) is not None
        and all(answer.strip() and PLACEHOLDER not in answer for answer in answers)
        and questions.count(PLACEHOLDER) == conversation["n_images"]
        and not SPECIAL.search(questions + "".join(answers))
    )


def read(conversation: dict[str, Any], folder: Path) -> Record:
    source = folder / "source.json"
    source.write_text(json.dumps([conversation["sample"]]), encoding="utf-8")
    opened = open_source(Source(path=str(source), schema=Schema.IXC))
    (entry,) = opened.entries()
    return record_of(entry, opened.reading)


def test_tokenizer_ids_match_the_reference(golden: Path, released: Tokenizer):
    vectors = json.loads((golden / "tokenizer.json").read_text(encoding="utf-8"))["vectors"]
    assert vectors
    for vector in vectors:
        assert released.encode(vector["text"]) == vector["ids"], vector["text"]


def test_turn_token_ids_match_the_reference(text: dict[str, Any], released: Tokenizer):
    assert (released.end_of_turn_id, released.start_of_turn_id) == (text["eoa_id"], text["sot_id"])
    if released.sha256 != text["tokenizer_sha256"]:
        pytest.fail("the fixtures were made with another tokenizer.model")


def test_valid_conversations_match_the_reference_ids_labels_and_masks(
    text: dict[str, Any], released: Tokenizer, tmp_path: Path
):
    compared = 0
    tokens = text["image_tokens_per_image_in_this_file"]
    for conversation in filter(well_formed, text["conversations"]):
        record = read(conversation, tmp_path)
        sample = encode(record, [tokens] * conversation["n_images"], released)
        ids, labels = expand(sample)
        assert sample.length == len(ids)
        assert sample.supervised_tokens == sum(label != -100 for label in labels)
        for run in conversation["runs"]:
            if run["max_length"] < len(ids):
                continue  # the reference cuts; here a long record is rejected
            for path in ("interleave_4khd", "interleave_successor", "text_path"):
                if path not in run or "error" in run[path]:
                    continue
                wanted = run[path]
                where = (conversation["name"], path)
                assert ids == [0 if token == -100 else token for token in wanted["wrap_ids"]], where
                assert labels == wanted["labels"], where
                assert [int(token == 0) for token in ids] == wanted["im_mask"], where
                assert wanted["attention_mask"] == [1] * len(ids), where
                compared += 1
    assert compared


def test_malformed_conversations_are_refused_with_a_reason(text: dict[str, Any], released: Tokenizer, tmp_path: Path):
    refused = {}
    for conversation in text["conversations"]:
        # the reference takes a system turn for an answer; here it is one of the chat's system prompts
        if not well_formed(conversation) and conversation["name"] != "system_role":
            record = read(conversation, tmp_path)
            if conversation["name"] == "missing_placeholder":  # read with the image in front of the first question
                assert record.turns[0].text.startswith(PLACEHOLDER)
                continue
            with pytest.raises(TemplateError) as caught:
                encode(record, [5] * conversation["n_images"], released)
            assert caught.value.hint
            refused[conversation["name"]] = caught.value.reason.value
    known = {
        "extra_placeholder": "too_many_placeholders",
        "placeholder_in_answer": "placeholder_in_answer",
        "two_images_one_placeholder": "too_few_placeholders",
        "literal_eos_in_user": "special_token_in_text",
        "literal_end_mark_in_user": "special_token_in_text",
        "starts_with_assistant": "starts_with_assistant",
        "ends_with_user": "ends_with_user",
        "empty_answer": "empty_answer",
    }
    assert refused
    assert {name: reason for name, reason in refused.items() if name in known} == {
        name: reason for name, reason in known.items() if name in refused
    }


def prompt_ids(chat: dict[str, Any], tokens: int, tokenizer: Tokenizer, **options: Any) -> list[int]:
    turns = [turn for q, a in chat["history"] for turn in (Turn("user", q), Turn("assistant", a))]
    turns.append(Turn("user", chat["query"]))
    images = sum(turn.text.count(PLACEHOLDER) for turn in turns)
    sample = encode_prompt(turns, [tokens] * images, tokenizer, **options)
    assert sample.supervised == ()
    return expand(sample)[0]


def test_chat_prompts_match_the_reference_with_its_two_quirks(text: dict[str, Any], released: Tokenizer):
    tokens = text["image_tokens_per_image_in_this_file"]
    assert text["chats"]
    for chat in text["chats"]:
        system = chat["meta_instruction"] or None
        ids = prompt_ids(chat, tokens, released, system=system, bos_every_part=True)
        if "input_ids" in chat:
            assert ids == chat["input_ids"], chat["name"]
            continue
        first, *others = chat["part_ids_with_bos_each"]
        assert ids == [*first, *(token for part in others for token in [*[0] * tokens, *part])], chat["name"]
        assert [int(token == 0) for token in ids] == chat["im_mask"], chat["name"]


def test_default_prompts_match_the_reference_with_a_single_bos(text: dict[str, Any], released: Tokenizer):
    compared = 0
    for chat in text["chats"]:
        if chat["meta_instruction"] or "part_ids_with_bos_each" not in chat:
            continue
        parts = [part[1:] for part in chat["part_ids_with_bos_each"]]
        wanted = [1, *parts[0], *(token for part in parts[1:] for token in [0, *part])]
        assert prompt_ids(chat, 1, released) == wanted, chat["name"]
        compared += 1
    assert compared
