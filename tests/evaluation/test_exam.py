"""Test reading prepared sets and benchmark files as questions with all reference answers."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from main_job import ixtune
from records import write_image

from ixtune.base import resolve
from ixtune.data.benchmarks import read
from ixtune.data.prepared import store
from ixtune.data.text.tokenizer import Tokenizer
from ixtune.errors import IxtuneError
from ixtune.evaluation.exam import exam_of, exam_of_items
from ixtune.evaluation.questions import ImageView

TEN = ["red"] * 3 + ["blue"] * 7


def questions(folder: Path, *lines: dict) -> Path:
    write_image(folder / "a.png", 80, 60)
    path = folder / "q.jsonl"
    path.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return Tokenizer.from_base(resolve("nano"))


def test_repeated_answers_are_kept_in_both_input_forms(tmp_path: Path, tokenizer: Tokenizer):
    line = {"id": "q", "image": "a.png", "question": "Which colour?", "answer": TEN}
    file = questions(tmp_path, line)
    done = ixtune("prepare", file, "--out", tmp_path / "set", "--hd-num", "1", "--base", "nano")
    assert done.returncode == 0, done.stderr
    of_set = exam_of(store.load(tmp_path / "set"))
    line = {"id": "q", "image": "a.png", "question": "Which colour?", "answers": TEN}
    items = read("questions", questions(tmp_path, line), images=tmp_path / "kept")
    of_file = exam_of_items(items, "{question}", ImageView(1), tokenizer)
    for exam in (of_set, of_file):
        assert exam.questions[0].references == tuple(TEN)
        assert exam.questions[0].text == "Which colour?"
        assert exam.rows.lengths == [exam.rows.record(0)["length"]]
    # the same tokens, so that the loss of a file is that of the set it would become
    for column in ("token_ids", "supervised_starts", "supervised_ends", "length"):
        assert list(_as_list(of_set.rows.record(0)[column])) == list(_as_list(of_file.rows.record(0)[column]))


def _as_list(value: object) -> list:
    return list(value) if isinstance(value, list | tuple) else [value]


def test_a_question_the_template_refuses_is_a_reject_with_its_line(tmp_path: Path, tokenizer: Tokenizer):
    good = {"id": "good", "question": "Hello?", "answers": ["hi"]}
    bad = {"id": "bad", "question": "What is </s>?", "answers": ["x"]}
    items = read("questions", questions(tmp_path, good, bad), images=tmp_path / "kept")
    exam = exam_of_items(items, "{question}", ImageView(1), tokenizer)
    assert [question.id for question in exam.questions] == ["good"]
    (reject,) = exam.rejects
    assert (reject.id, reject.reason.value, str(reject.place)) == ("bad", "special_token_in_text", "line 2")
    with pytest.raises(IxtuneError, match="no question is usable") as raised:
        exam_of_items(
            read("questions", questions(tmp_path, bad), images=tmp_path), "{question}", ImageView(1), tokenizer
        )
    assert "line 1: turn 1" in raised.value.notes[0]


def test_a_limit_counts_questions_not_their_rotations(tmp_path: Path, tokenizer: Tokenizer):
    asked = {"answers": ["A"], "options": {"A": "red", "B": "blue"}}
    lines = [{"id": str(at), "question": f"Colour {at}?", **asked} for at in range(3)]
    items = read("questions", questions(tmp_path, *lines), images=tmp_path / "kept", circular=True)
    exam = exam_of_items(items, "{question}", ImageView(1), tokenizer, limit=2)
    assert [question.group for question in exam.questions] == ["0", "0", "1", "1"]


def test_a_question_can_place_its_image_as_in_predict(tmp_path: Path, tokenizer: Tokenizer):
    line = {"id": "q", "image": "a.png", "question": "See <ImageHere>: what is it?", "answers": ["x"]}
    exam = exam_of_items(
        read("questions", questions(tmp_path, line), images=tmp_path), "{question}", ImageView(1), tokenizer
    )
    assert exam.questions[0].prompt.turns[0].text == "See <ImageHere>: what is it?"
