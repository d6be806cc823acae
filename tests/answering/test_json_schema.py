"""Test that answers follow a JSON schema, whatever the model would say: nano was trained on other questions."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import small_tokenizer
import torch
from in_process import call
from records import write_image

from ixtune.answering.answerer import Answerer
from ixtune.answering.json_logits import JsonLogits
from ixtune.answering.json_schema import ANY_OBJECT, JsonGrammar, checked_schema, read_schema
from ixtune.answering.settings import Settings
from ixtune.base import resolve
from ixtune.data.prepared.image_files import ImageFiles
from ixtune.data.text.tokenizer import Tokenizer
from ixtune.errors import UsageError
from ixtune.evaluation.questions import ImageView, prompt_of
from ixtune.evaluation.session import Loaded
from ixtune.training.batch import ImageSource

RECEIPT: dict[str, Any] = {
    "type": "object",
    "properties": {
        "shop": {"type": "string"},
        "total": {"type": "number"},
        "paid": {"enum": ["cash", "card", None]},
        "lines": {"type": "array", "minItems": 1, "items": {"$ref": "#/$defs/line"}},
    },
    "$defs": {"line": {"type": "object", "properties": {"name": {"type": "string"}}}},
    "required": ["shop", "total", "paid", "lines"],
    "additionalProperties": False,
}


def grammar(schema: Any, tokenizer: Tokenizer) -> JsonGrammar:
    return JsonGrammar(checked_schema(schema, "here"), tokenizer)


@pytest.fixture(scope="module", params=["nano", "small", "released"])
def tokenizer(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    """One piece a character, byte-pair pieces with bytes, and the released vocabulary."""
    if request.param == "nano":
        return Tokenizer.from_base(resolve("nano"))
    if request.param == "small":
        return Tokenizer(small_tokenizer.train(tmp_path_factory.mktemp("small")))
    return Tokenizer(request.getfixturevalue("released_tokenizer"))


WHOLE = '{"shop": "Müller & Söhne \\"24\\"", "total": 4.50, "paid": null, "lines": [{"name": "寿司"}]}'


def test_every_vocabulary_accepts_valid_answers_only(tokenizer: Tokenizer) -> None:
    receipt = grammar(RECEIPT, tokenizer)
    assert receipt.fits(tokenizer.encode(WHOLE))
    assert receipt.fits(tokenizer.encode(json.dumps(json.loads(WHOLE), indent=4, ensure_ascii=False)))
    for wrong in (
        WHOLE[:-1],
        WHOLE.replace("4.50", '"4.50"'),
        WHOLE.replace("null", '"bank"'),
        WHOLE.replace('"shop"', '"store"'),
        WHOLE.replace("[", "[[UNUSED_TOKEN_145]"),
        WHOLE.replace("Söhne", "S[UNUSED_TOKEN_146]"),
        WHOLE.replace(": 4", ":" + 60 * " " + "4"),
    ):
        assert not receipt.fits(tokenizer.encode(wrong)), wrong
    assert grammar(json.loads(ANY_OBJECT), tokenizer).fits(tokenizer.encode(WHOLE))
    state = receipt.start()
    for token in tokenizer.encode(WHOLE):
        state.accept(token)
    assert state.complete
    assert not state.ended
    bits = np.unpackbits(np.frombuffer(state.allowed(), np.uint8), bitorder="little")
    assert bits.nonzero()[0].tolist() == sorted([tokenizer.eos_id, tokenizer.end_of_turn_id])
    state.accept(tokenizer.end_of_turn_id)
    assert state.ended
    with pytest.raises(ValueError, match="not allowed"):
        receipt.start().accept(tokenizer.eos_id)


CLOSINGS: list[tuple[Any, str, str]] = [
    (RECEIPT, "", '{"shop":"","total":0,"paid":null,"lines":[{}]}'),
    (RECEIPT, '{"shop": "A \\', None),
    (RECEIPT, '{"shop": "Aldi', '{"shop": "Aldi","total":0,"paid":null,"lines":[{}]}'),
    (RECEIPT, '{"shop": "} ]", "total": -', '{"shop": "} ]", "total": -0,"paid":null,"lines":[{}]}'),
    (RECEIPT, '{"shop": "A", "total": 1.5, "paid": "ca', None),
    (RECEIPT, '{"shop": "A", "total": 1.5, "paid": "card", "lines": [{"name": "x"}, ', None),
    ({"type": "object"}, '{"a": [1, {"b": tr', '{"a": [1, {"b": true}]}'),
    ({"type": "string", "pattern": "^[a-z]+@[a-z]+$"}, '"ab', None),
    ({"type": "string", "format": "date"}, '"2026-1', None),
    ({"type": "array", "minItems": 3, "items": {"type": "integer", "minimum": 7}}, "[8", None),
    ({"$ref": "#/$defs/t", "$defs": {"t": {"type": "array", "items": {"$ref": "#/$defs/t"}}}}, "[[[", "[[[]]]"),
]


def test_a_truncated_answer_is_completed_minimally(tokenizer: Tokenizer) -> None:
    for schema, start, wanted in CLOSINGS:
        compiled = grammar(schema, tokenizer)
        ids = tokenizer.encode(start)
        closing = compiled.closing(ids)
        assert closing is not None, start
        whole = tokenizer.decode([*ids, *closing])
        json.loads(whole)
        assert whole.startswith(start)
        assert compiled.fits([*ids, *closing]), whole
        assert wanted is None or whole == wanted


def test_an_answer_truncated_inside_a_character_is_completed(tokenizer: Tokenizer) -> None:
    anything = grammar({"type": "string"}, tokenizer)
    cut = [*tokenizer.encode('"'), *(tokenizer.piece_id(f"<0x{byte:02X}>") for byte in "€".encode()[:2])]
    closing = anything.closing(cut)
    assert closing is not None
    assert "�" not in json.loads(tokenizer.decode([*cut, *closing]))


def test_each_row_follows_its_own_grammar_and_others_are_unconstrained() -> None:
    tokenizer = Tokenizer.from_base(resolve("nano"))
    size = tokenizer.vocab_size + 6  # an embedding with padding
    number = grammar({"type": "integer"}, tokenizer)
    held = JsonLogits([number, None, grammar({"enum": ["a"]}, tokenizer)])
    prompts = torch.full((3, 4), tokenizer.pad_id)
    scores = torch.zeros(3, size)
    first = held(prompts, scores.clone())
    said = {tokenizer.decode([token]) for token in first[0].isfinite().nonzero().flatten().tolist()}
    assert said == set("-0123456789")
    assert first[1].isfinite().all()
    assert {tokenizer.decode([token]) for token in first[2].isfinite().nonzero().flatten().tolist()} == {'"'}
    # the first row continues to its end; only padding is added after that
    rows = [tokenizer.encode(text) for text in ("12", "xy", '"a')]
    stop = tokenizer.end_of_turn_id
    for at in range(2):
        prompts = torch.cat([prompts, torch.tensor([[row[at]] for row in rows])], 1)
        now = held(prompts, scores.clone())
    assert {tokenizer.eos_id, stop} < set(now[0].isfinite().nonzero().flatten().tolist())
    for tokens in ([stop, 5, tokenizer.encode('"')[0]], [tokenizer.pad_id, 5, stop]):
        prompts = torch.cat([prompts, torch.tensor(tokens)[:, None]], 1)
        now = held(prompts, scores.clone())
    assert now.isfinite().all()
    with pytest.raises(ValueError, match="beams"):
        held(prompts.repeat(2, 1), scores.repeat(2, 1))


@pytest.mark.parametrize("sampled", [False, True])
def test_a_batch_with_shared_prefixes_gives_valid_answers(tmp_path: Path, sampled: bool) -> None:
    loaded = Loaded("nano", None, None)
    images = ImageSource(ImageFiles((Path("/"),)))
    view = ImageView(1)
    pages = [write_image(tmp_path / f"{name}.png", 60, 40) for name in "ab"]
    prompts = [prompt_of(text, [page], view) for page in pages for text in ("Read it.", "What is on this sheet?")]
    sampling = {"do_sample": True, "temperature": 2.0, "top_p": 0.9} if sampled else {}
    settings = Settings(24, json_schema=json.dumps(RECEIPT), repetition_penalty=1.1, **sampling)
    with loaded.autocast():
        answerer = Answerer(loaded.model, loaded.tokenizer, images, settings)
        together = answerer.answer(prompts)
        alone = [answerer.answer([prompt])[0] for prompt in prompts[:2]]
    assert answerer.prefixes.reused
    for answer in (*together, *alone):
        content = json.loads(answer.text)
        assert list(content) == RECEIPT["required"]
        assert answer.text.endswith(answer.added)
        assert bool(answer.added) <= (answer.finish == "length")
        assert answer.tokens <= 24
    assert sampled or together[:2] == alone


WRONG: list[tuple[str, str, str]] = [
    ("{", "this is not JSON", "line 1, column 2"),
    ('{\n "type": object}', "this is not JSON", "line 2, column 10"),
    ("[1]", "a JSON schema is an object", "schema.json"),
    ('{"properties": {"a": {"items": {"type": "objekt"}}}}', "Invalid type: objekt", "$.properties.a.items"),
    ('{"properties": {"a": {"anyOf": [{}, {"not": {}}]}}}', "not", "$.properties.a.anyOf[1]"),
    ('{"$defs": {"d": {"pattern": "(?=a)", "type": "string"}}, "$ref": "#/$defs/d"}', "regex", "$"),
    ('{"properties": {"d": {"$ref": "#/$defs/none"}}}', "none", "$.properties.d"),
    ('{"type": "string", "format": "colour"}', "Unknown format: colour", "$"),
    ('{"required": ["a"], "properties": {"a": false}, "type": "object"}', "unsatisfiable", "$"),
    ('{"items":' * 400 + "{}" + "}" * 400, "deeply", "schema.json"),
    ('{"items":' * 99_000 + "{}" + "}" * 99_000, "deeply", "schema.json"),
]


@pytest.mark.parametrize(("text", "what", "where"), WRONG)
def test_an_invalid_schema_is_reported_with_its_place(tmp_path: Path, text: str, what: str, where: str) -> None:
    path = tmp_path / "schema.json"
    path.write_text(text)
    with pytest.raises(UsageError, match=what) as error:
        read_schema(path)
    assert str(error.value.where).startswith(str(path))
    assert str(error.value.where).endswith(where)


def test_predict_accepts_a_schema_for_one_question_and_for_a_file(tmp_path: Path) -> None:
    image = write_image(tmp_path / "a.png", 60, 40)
    schema = tmp_path / "schema.json"
    schema.write_text(json.dumps(RECEIPT))
    options = ("--base", "nano", "--hd-num", "1", "--json-schema", schema, "--max-new-tokens")
    one = call("predict", "Read it.", "--image", image, *options, "12")
    assert one.returncode == 0, one.stderr
    assert list(json.loads(one.stdout)) == RECEIPT["required"]
    assert "was added to complete the JSON" in one.stderr
    (tmp_path / "questions.csv").write_text("question,image\nRead it.,a.png\nAgain.,a.png\n")
    many = call("predict", "--from", tmp_path / "questions.csv", "--out", tmp_path / "out.jsonl", *options, "12")
    assert many.returncode == 0, many.stderr
    assert "2 cut off by --max-new-tokens 12, their JSON completed" in many.stdout
    lines = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines()]
    assert lines[0]["answer"] == one.stdout.strip()
    assert all(line["answer"].endswith(line["added"]) and line["finish"] == "length" for line in lines)
    schema.write_text('{"type": "objekt"}')
    wrong = call("predict", "Read it.", *options, "12")
    assert wrong.returncode == 2
    assert "Invalid type: objekt" in wrong.stderr
    assert "hint" in wrong.stderr


def test_evaluate_constrains_a_prepared_set_of_json_answers(tmp_path: Path) -> None:
    for name in "ab":
        write_image(tmp_path / f"{name}.png", 60, 40)
    answers = ['{"shop": "A", "total": 1}', '{"total": 2, "shop": "B"}']
    rows = [
        {"id": name, "question": "Read it.", "image": f"{name}.png", "answer": answer}
        for name, answer in zip("ab", answers, strict=True)
    ]
    (tmp_path / "q.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    short = {key: RECEIPT["properties"][key] for key in ("shop", "total")}
    (tmp_path / "schema.json").write_text(json.dumps({"type": "object", "properties": short, "required": [*short]}))
    prepared = call("prepare", tmp_path / "q.jsonl", "--out", tmp_path / "set", "--base", "nano", "--hd-num", "1")
    assert prepared.returncode == 0, prepared.stderr
    options = ("--base", "nano", "--json-schema", tmp_path / "schema.json", "--max-new-tokens", "8")
    done = call("evaluate", tmp_path / "set", *options, "--score", "field_f1", "--out", tmp_path / "found.json")
    assert done.returncode == 0, done.stderr
    found = json.loads((tmp_path / "found.json").read_text())
    assert found["json_schema"]["required"] == ["shop", "total"]
    assert "1 of 2 questions have no reference that follows the schema" in done.stdout
    for answer in found["answers"]:
        for name in ("base", "base, images swapped"):
            assert list(json.loads(answer["answers"][name]))[:2] == ["shop", "total"]
