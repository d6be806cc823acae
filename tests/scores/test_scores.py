"""Scores against examples worked by hand and examples that the reference implementations document."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ixtune.scores import SCORES
from ixtune.scores.case import Case
from ixtune.scores.choice import chosen
from ixtune.scores.vqa import normalised

OPTIONS = {"A": "left", "B": "left side", "C": "right"}


def score(name: str, *pairs: tuple[str, str | Sequence[str]]) -> float:
    """The score of answers, each beside its reference or references."""
    cases = [Case(answer, (given,) if isinstance(given, str) else tuple(given)) for answer, given in pairs]
    parts = [SCORES[name].part(case) for case in cases]
    return sum(part[0] for part in parts) / sum(part[1] for part in parts)


def test_exact_match_forgives_white_space_alone() -> None:
    assert score("exact_match", (" 12  May\n", "12 May")) == 1
    assert score("exact_match", ("12 may", "12 May")) == 0
    assert score("exact_match", ("b", ["a", "b"])) == 1


@pytest.mark.parametrize(
    ("answer", "references", "wanted"),
    [
        ("Hello World", ["hello world"], 1.0),
        ("Hello Wrold", ["Hello World"], 9 / 11),
        ("ab", ["abcd"], 0.5),  # the competition's script keeps exactly one half
        ("a", ["abcd"], 0.0),
        ("Denver Broncos", ["Denver Broncos", "Denver R. Broncos"], 1.0),  # the example of the metric's card
        ("", ["x"], 0.0),
    ],
)
def test_anls_worked_by_hand(answer: str, references: list[str], wanted: float) -> None:
    assert score("anls", (answer, references)) == pytest.approx(wanted)


@pytest.mark.parametrize(
    ("answer", "reference", "right"),
    [
        ("3.15", "3.0", True),
        ("3.16", "3.0", False),
        ("-2.9", "-3", True),
        ("12%", "0.12", True),
        ("12", "12%", False),
        ("YES", "yes", True),
        ("0.01", "0", False),
        ("0", "0", True),
        ("1,000", "1000", False),  # as the common implementation: no thousands separators
    ],
)
def test_relaxed_accuracy_worked_by_hand(answer: str, reference: str, right: bool) -> None:
    assert score("relaxed_accuracy", (answer, reference)) == right


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("The  two dogs.", "2 dogs"),
        ("1,000", "1000"),
        ("3.5 m", "3.5 m"),
        ("dont, stop", "don't stop"),
        ("couldnt've", "couldn't've"),
        ("black/white", "black white"),
        ("none", "0"),
        ("U.S.A", "usa"),
    ],
)
def test_vqa_normalises_as_its_evaluation_does(text: str, wanted: str) -> None:
    assert normalised(text) == wanted


def test_vqa_accuracy_leaves_out_each_annotator_in_turn() -> None:
    # 3 of 10 agree: left out an agreeing one 2/3, else 1
    assert score("vqa_accuracy", ("two", ["2"] * 3 + ["3"] * 7)) == pytest.approx(0.3 * 2 / 3 + 0.7)
    assert score("vqa_accuracy", ("2", ["2"] * 2 + ["3"] * 8)) == pytest.approx(0.2 / 3 + 0.8 * 2 / 3)
    assert score("vqa_accuracy", ("2", ["2"] * 10)) == 1
    assert score("vqa_accuracy", ("4", ["2"] * 10)) == 0
    assert score("vqa_accuracy", ("The red one", ["red 1"])) == 1


def test_token_f1_worked_by_hand() -> None:
    assert score("token_f1", ("1976", ["1976"])) == 1  # the example of the metric's card
    assert score("token_f1", ("the Denver Broncos!", "Denver Broncos")) == 1
    assert score("token_f1", ("Denver", "Denver Broncos")) == pytest.approx(2 / 3)
    assert score("token_f1", ("the", "a")) == 1
    assert score("token_f1", ("x", "the")) == 0


def test_error_rates_are_those_of_the_metric_cards() -> None:
    """The documented example of the `evaluate` library's WER and CER."""
    pairs = (("this is the prediction", "this is the reference"), ("there is an other sample", "there is another one"))
    assert score("wer", *pairs) == 0.5
    assert score("cer", *pairs) == pytest.approx(0.34146341463414637)


def test_error_rates_take_the_nearest_reference_and_can_exceed_one() -> None:
    assert score("cer", ("abcd", ["wxyz", "abce"])) == 0.25
    assert score("wer", ("a b c d", "x")) == 4
    assert score("wer", ("said", "")) == 1


def test_fields_are_compared_by_path_and_value() -> None:
    answer = 'Here: ```json\n{"total": "3.00", "items": [{"name": "tea"}, {"name": "milk"}], "extra": 1}\n```'
    reference = '{"total": 3, "items": [{"name": "milk"}, {"name": "tea"}], "date": "1 May"}'
    assert score("field_accuracy", (answer, reference)) == 3 / 4
    assert score("field_f1", (answer, reference)) == 2 * 3 / (4 + 4)
    assert score("field_accuracy", ("no JSON", reference)) == 0
    assert score("field_accuracy", ('{"a": true}', '{"a": 1}')) == 0


def test_fields_of_many_answers_are_summed() -> None:
    pairs = (('{"a": 1}', '{"a": 1}'), ('{"a": 1}', '{"a": 2, "b": 3, "c": 4}'))
    assert score("field_accuracy", *pairs) == 1 / 4


@pytest.mark.parametrize("reference", ["", "[]", "12", "not JSON"])
def test_a_reference_without_fields_is_refused(reference: str) -> None:
    with pytest.raises(ValueError, match="the reference holds no fields"):
        score("field_f1", ("{}", reference))


@pytest.mark.parametrize(
    ("answer", "wanted"),
    [
        ("B", "B"),
        ("(C)", "C"),
        ("A. left", "A"),
        ("The answer is (B).", "B"),
        ("it is the left side", "B"),
        ("RIGHT", "C"),
        ("left or right", None),
        ("A dog", None),
        ("D", None),
        ("", None),
    ],
)
def test_a_choice_is_named_by_letter_or_by_text(answer: str, wanted: str | None) -> None:
    assert chosen(answer, OPTIONS) == wanted
    right = SCORES["choice_accuracy"].part(Case(answer, ("C",), OPTIONS))
    assert right == (float(wanted == "C"), 1.0)


def test_a_question_without_a_reference_is_refused() -> None:
    with pytest.raises(ValueError, match="without a reference"):
        Case("x", ())


@given(st.text(), st.lists(st.text(), min_size=1, max_size=4))
def test_scores_lie_between_nothing_and_all_and_a_reference_is_always_right(answer: str, references: list[str]) -> None:
    for name, made in SCORES.items():
        if name.startswith("field") or name == "choice_accuracy":
            continue
        top, bottom = made.part(Case(answer, tuple(references)))
        assert bottom > 0
        assert top >= 0
        if made.higher_is_better:
            assert top <= bottom
        perfect = made.part(Case(references[0], (references[0],)))
        assert perfect[0] / perfect[1] == float(made.higher_is_better), name
