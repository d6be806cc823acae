"""Test that the processor's chat template gives our ids and accepts images as transformers' processors do."""

from __future__ import annotations

import base64
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from jinja2 import TemplateError as JinjaError
from PIL import Image
from records import write_image

from ixtune.base import resolve
from ixtune.data.record import Place, Record, Turn
from ixtune.data.text.conversation_rules import PLACEHOLDER, TemplateError
from ixtune.data.text.template import encode, encode_prompt, expand
from ixtune.data.text.tokenizer import Tokenizer
from ixtune.family import FOUR_KHD, TWO_FIVE, Member
from ixtune.processing import IXC2ImageProcessor, IXC2Processor, IXC2Tokenizer

FILE = resolve("nano") / "tokenizer.model"
OURS = Tokenizer(FILE)
PICTURE = Image.linear_gradient("L").resize((40, 90)).convert("RGB")


@cache
def processor(member: Member = FOUR_KHD) -> IXC2Processor:
    """A processor of the embedded vocabulary with small layouts."""
    return IXC2Processor(IXC2ImageProcessor(2, **member.record()), IXC2Tokenizer(str(FILE)))


texts = st.text(alphabet="ab 12.\n-:é你", min_size=1, max_size=12).filter(str.strip)
parts = st.one_of(texts.map(lambda text: {"type": "text", "text": text}), st.just({"type": "image", "image": PICTURE}))


@st.composite
def conversations(draw: st.DrawFn) -> list[dict[str, Any]]:
    """Messages with a system prompt or without, of one to three rounds, contents as texts or as parts."""
    messages = [{"role": "system", "content": draw(texts)}] if draw(st.booleans()) else []
    for _ in range(draw(st.integers(1, 3))):
        content = draw(st.one_of(texts, st.lists(parts, min_size=1, max_size=3)))
        if isinstance(content, list) and not any(one["type"] == "image" or one["text"].strip() for one in content):
            content = "x"
        messages += [{"role": "user", "content": content}, {"role": "assistant", "content": draw(texts)}]
    return messages


def turns_of(messages: list[dict[str, Any]]) -> list[Turn]:
    """The same conversation as `ixtune prepare` reads it."""
    made = []
    for message in messages:
        content = message["content"]
        if isinstance(content, list):
            content = "".join(PLACEHOLDER if part["type"] == "image" else part["text"] for part in content)
        made.append(Turn(message["role"], content))
    return made


@settings(max_examples=25, deadline=None)
@given(conversations(), st.sampled_from([FOUR_KHD, TWO_FIVE]), st.booleans())
def test_ids_match_those_of_training_and_of_prompts(messages: list[dict[str, Any]], member: Member, asks: bool) -> None:
    if asks:
        messages = messages[:-1]
    how = {"add_generation_prompt": asks, "tokenize": True, "return_dict": True, "return_tensors": "pt"}
    made = processor(member).apply_chat_template(messages, **how, return_assistant_tokens_mask=True)
    turns = turns_of(messages)
    tokens = [member.tokens(*grid) for grid in made["grids"].tolist()] if "grids" in made else []
    if asks:
        expected = encode_prompt(turns, tokens, OURS, member=member)
    else:
        record = Record("a", (), tuple(turns), source="s", place=Place("line", 1))
        expected = encode(record, tokens, OURS, member)
    assert made["input_ids"].tolist() == [expand(expected)[0]]
    if not asks:
        assert made["assistant_masks"].tolist() == [[int(label >= 0) for label in expand(expected)[1]]]
    assert (made["input_ids"] == processor().image_token_id).sum() == sum(tokens)


@pytest.mark.parametrize(
    "messages",
    [
        [("user", "a</s>")],
        [("user", "[UNUSED_TOKEN_145]")],
        [("user", " ")],
        [("assistant", "a")],
        [("user", "a"), ("user", "b")],
        [("user", "a"), ("system", "b")],
        [("user", "a"), ("assistant", "<ImageHere>")],
        [("user", "a"), ("assistant", "b")],
        [("tool", "a")],
    ],
    ids=str,
)
def test_the_jinja_template_refuses_what_the_python_template_refuses(messages: list[tuple[Any, str]]) -> None:
    told = [{"role": role, "content": text} for role, text in messages]
    with pytest.raises(JinjaError):
        processor().apply_chat_template(told, add_generation_prompt=True)
    if messages[0][0] != "tool":
        with pytest.raises(TemplateError):
            encode_prompt([Turn(*one) for one in messages], [1] * ("<Image" in str(messages)), OURS)


def test_images_are_accepted_in_every_form_that_transformers_accepts(tmp_path: Path) -> None:
    path = write_image(tmp_path / "a b.png", 60, 100)
    content = path.read_bytes()
    text = base64.b64encode(content).decode()
    array = np.asarray(Image.open(path))
    of_parts = [
        {"type": "image", "path": str(path)},
        {"type": "image", "url": path.as_uri()},
        {"type": "image", "image": path},
        {"type": "image", "base64": text},
        {"type": "image", "url": f"data:image/png;base64,{text}"},
        {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{text}"}},
        {"type": "image", "image": Image.open(path)},
        {"type": "image", "image": array},
        {"type": "image", "image": torch.from_numpy(array.transpose(2, 0, 1) / 255)},
    ]
    how = {"add_generation_prompt": True, "tokenize": True, "return_dict": True, "return_tensors": "pt"}
    expected = processor()(images=path, text="What?", return_tensors="pt")
    for part in of_parts:
        messages = [{"role": "user", "content": [part, {"type": "text", "text": "What?"}]}]
        made = processor().apply_chat_template(messages, **how)
        assert sorted(made) == ["attention_mask", "crops", "grids", "input_ids"]
        for name in made:
            assert torch.equal(made[name], expected[name]), part
    beside = [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "What?"}]}]
    made = processor().apply_chat_template(beside, **how, processor_kwargs={"images": [path]})
    assert torch.equal(made["crops"], expected["crops"])
    with pytest.raises(Exception, match="there is no such image"):
        processor()(images=str(tmp_path / "absent.png"), text="What?")


def test_images_may_be_nested_and_unequal_texts_are_padded_on_either_side() -> None:
    wide = PICTURE.resize((300, 60))
    asked = ["a <ImageHere> or <ImageHere>?", "no image", "<ImageHere>and longer words?"]
    flat = processor()(images=[PICTURE, wide, PICTURE], text=asked, padding=True, return_tensors="pt")
    nested = processor()(images=[[PICTURE, wide], [], [PICTURE]], text=asked, padding=True, return_tensors="pt")
    for name in flat:
        assert torch.equal(flat[name], nested[name])
    alone = [
        processor()(images=of or None, text=text)["input_ids"][0]
        for of, text in zip(([PICTURE, wide], [], [PICTURE]), asked, strict=True)
    ]
    for side, rows in (("left", flat), ("right", None)):
        rows = rows or processor()(
            images=[PICTURE, wide, PICTURE], text=asked, padding=True, padding_side=side, return_tensors="pt"
        )
        for row, mask, expected in zip(rows["input_ids"], rows["attention_mask"], alone, strict=True):
            assert row[mask.bool()].tolist() == expected
            assert mask[-1 if side == "left" else 0] == 1
    unpadded = processor()(images=[PICTURE, wide, PICTURE], text=asked)
    assert unpadded["input_ids"] == alone
    with pytest.raises(ValueError, match="unless|pad"):
        processor()(text=["a", "a longer one"], return_tensors="pt")
    coarse = processor()(images=PICTURE, text="a", hd_num=1)
    assert len(coarse["input_ids"][0]) < len(processor()(images=PICTURE, text="a")["input_ids"][0])


def test_a_rendered_text_is_used_unchanged_and_ids_decode_to_text() -> None:
    messages = [{"role": "user", "content": "1 ab"}]
    rendered = processor().apply_chat_template(messages, add_generation_prompt=True)
    ids = processor()(text=rendered)["input_ids"]
    assert ids == processor()(text="1 ab")["input_ids"] == [expand(encode_prompt([Turn("user", "1 ab")], [], OURS))[0]]
    assert processor()(text="1 ab", add_special_tokens=False)["input_ids"] == [OURS.encode("1 ab")]
    assert processor().batch_decode(ids) == [rendered]
    assert processor().post_process_image_text_to_text(ids) == ["user\n1 ab\nassistant\n"]
    answered = torch.tensor([[*ids[0], *OURS.encode(" 42 "), OURS.end_of_turn_id, *OURS.encode("\n"), OURS.eos_id]])
    assert processor().batch_decode(answered, {"input_ids": ids}) == ["42"]
    many = processor()._get_num_multimodal_tokens(image_sizes=[(90, 40), (60, 300)])
    made = processor()(images=[PICTURE, PICTURE.resize((300, 60))], text="a", return_tensors="pt")
    assert sum(many.num_image_tokens or []) == int((made["input_ids"] == 0).sum())
    assert sum(many.num_image_patches or []) == len(made["crops"])
