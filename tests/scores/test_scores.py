"""Compare scores with hand calculations and with documented examples of the reference implementations."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ixtune.scores import SCORES
from ixtune.scores.case import Case
from ixtune.scores.choice import chosen
from ixtune.scores.circular import all_right
from ixtune.scores.ocrbench import FORMULAS
from ixtune.scores.vqa import normalized

OPTIONS = {"A": "left", "B": "left side", "C": "right"}


def score(name: str, *pairs: tuple[str, str | Sequence[str]], kind: str = "") -> float:
    """Return the score of (answer, reference or references) pairs."""
    cases = [Case(answer, (given,) if isinstance(given, str) else tuple(given), kind=kind) for answer, given in pairs]
    parts = [SCORES[name].part(case) for case in cases]
    return sum(part[0] for part in parts) / sum(part[1] for part in parts)


def test_scores_match_the_documented_pix2struct_example() -> None:
    """Use its documented example of exact match, ANLS and relaxed accuracy, all on one set of answers."""
    pairs = (
        ("abc", "abc"),
        ("abc", "Abc"),
        ("Abc", "abc"),
        ("100%", "96%"),
        ("100%", "94%"),
        ("100%", "0.96"),
        ("100%", "0.94"),
        ("Don't", "Won't"),
    )
    assert score("exact_match", *pairs) == 0.125
    assert score("anls", *pairs) == pytest.approx(0.475)
    assert score("relaxed_accuracy", *pairs) == 0.625


def test_exact_match_ignores_only_white_space() -> None:
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
def test_anls_matches_hand_calculations(answer: str, references: list[str], wanted: float) -> None:
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
def test_relaxed_accuracy_matches_hand_calculations(answer: str, reference: str, right: bool) -> None:
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
        ("red,blue", "redblue"),  # commas go before anything else is looked at
        ("1,000/2", "1000 2"),
        ("Joe's", "joe 's"),
        ("whats", "what's"),
        ("what's", "what 's"),
        ("lets", "lets"),  # the table of contractions has let's only with its apostrophe
        ("im", "im"),  # and I'm only with a capital, which is gone by then
        ("a - b/c", "b c"),
    ],
)
def test_vqa_normalization_matches_its_official_evaluation(text: str, wanted: str) -> None:
    assert normalized(text) == wanted


def test_vqa_accuracy_leaves_out_one_annotator_at_a_time() -> None:
    # 3 of 10 agree: left out an agreeing one 2/3, else 1
    assert score("vqa_accuracy", ("two", ["2"] * 3 + ["3"] * 7)) == pytest.approx(0.3 * 2 / 3 + 0.7)
    assert score("vqa_accuracy", ("2", ["2"] * 2 + ["3"] * 8)) == pytest.approx(0.2 / 3 + 0.8 * 2 / 3)
    assert score("vqa_accuracy", ("2", ["2"] * 10)) == 1
    assert score("vqa_accuracy", ("4", ["2"] * 10)) == 0
    assert score("vqa_accuracy", ("The red one", ["red 1"])) == 1


def test_token_f1_matches_the_metric_card() -> None:
    """Use the documented examples of the `evaluate` library's SQuAD metric: one, zero and two thirds."""
    assert score("token_f1", ("1976", "1976")) == 1
    assert score("token_f1", ("1999", "1976")) == 0
    pairs = (("1976", "1976"), ("Beyonce", "Beyonc\u00e9 and Bruno Mars"), ("climate change", "climate change"))
    assert score("token_f1", *pairs) == pytest.approx(2 / 3)


def test_token_f1_matches_hand_calculations() -> None:
    assert score("token_f1", ("the Denver Broncos!", "Denver Broncos")) == 1
    assert score("token_f1", ("Denver", "Denver Broncos")) == pytest.approx(2 / 3)
    assert score("token_f1", ("the", "a")) == 1
    assert score("token_f1", ("x", "the")) == 0


def test_error_rates_match_the_metric_cards() -> None:
    """Use the documented examples of WER and CER in the `evaluate` library."""
    pairs = (("this is the prediction", "this is the reference"), ("there is an other sample", "there is another one"))
    assert score("wer", *pairs) == 0.5
    assert score("cer", *pairs) == pytest.approx(0.34146341463414637)
    assert score("cer", ("hello", "gracias")) == 1
    assert score("cer", ("hello world", "hello")) == 1.2
    assert score("wer", ("hello world", "hi everyone"), ("good night moon", "have a great day")) == 1


@pytest.mark.parametrize(
    ("reference", "answer", "words", "characters"),
    [
        ("X", "X", 0, 0),
        ("X", "X X Y Y", 3, 6),
        ("X Y X", "X Z", 2 / 3, 3 / 5),
        ("X", "Y", 1, 1),
        ("X", "Y Z", 2, 3),
        ("This is a test", "", 1, 1),
        ("This is a test", "This test", 0.5, 5 / 14),
    ],
)
def test_error_rates_match_the_paper_and_jiwer(reference: str, answer: str, words: float, characters: float) -> None:
    """Use the table of Morris, Maier, Green (2004) with the rates in jiwer's tests."""
    assert score("wer", (answer, reference)) == pytest.approx(words)
    assert score("cer", (answer, reference)) == pytest.approx(characters)


def test_error_rates_use_the_nearest_reference_and_can_exceed_one() -> None:
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


def test_fields_are_flattened_as_in_the_donut_example() -> None:
    """Use the example in its evaluator: the fields menu.name and menu.count, each twice."""
    menu = '{"menu": [{"name": ["cake"], "count": ["2"]}, {"name": ["juice"], "count": ["1"]}]}'
    assert SCORES["field_f1"].part(Case(menu, (menu,))) == (8.0, 8.0)
    half = '{"menu": [{"name": ["juice"], "count": ["2"]}]}'
    assert score("field_f1", (half, menu)) == 2 * 2 / (2 + 4)
    assert score("field_accuracy", (half, menu)) == 2 / 4


def test_an_empty_value_counts_as_a_field() -> None:
    assert score("field_accuracy", ('{"a": null, "b": ""}', '{"a": null, "b": ""}')) == 1
    assert score("field_accuracy", ('{"a": "3"}', '{"a": null}')) == 0


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
        ("The answer is **C**", "C"),
        ("B is what it is, no", None),  # more than three words follow the letter
        ("A or B", None),
        ("b", None),
        ("on the left", "A"),
        ("RIGHT", "C"),
        ("it is the left side", None),  # which is on the left, too
        ("left or right", None),
        ("A dog", "A"),  # an article cannot be told from a letter
        ("Z", None),
        ("right Z", None),
        ("right, as anybody who has eyes can see", None),  # more than twice as long as all options
        ("D", None),
        ("", None),
    ],
)
def test_a_choice_is_read_from_letter_or_text_as_in_mmbench(answer: str, wanted: str | None) -> None:
    assert chosen(answer, OPTIONS) == wanted
    right = SCORES["choice_accuracy"].part(Case(answer, ("C",), OPTIONS))
    assert right == (float(wanted == "C"), 1.0)


def test_without_options_any_valid_letter_is_a_choice() -> None:
    assert chosen("(D)", {}) == "D"
    assert chosen("Z", {}) is None


def test_ocrbench_searches_the_reference_in_the_answer() -> None:
    """Use the two examples of the benchmark's paper, and its rules for case and line ends."""
    assert score("ocrbench", ("agency", "REGENCY")) == 0
    assert score("ocrbench", ("The total amount is RM 26.70", "RM 26.70")) == 1
    assert score("ocrbench", ("it says centre\nhere", "CENTRE here\n")) == 1
    assert score("ocrbench", ("ANTONIO'S", ["ANTONIOS", "ANTONIO'S"])) == 1
    assert score("ocrbench", ("R M", "RM")) == 0
    assert score("ocrbench", ("anything", " ")) == 0


def test_ocrbench_formulas_are_case_sensitive_and_ignore_spaces() -> None:
    pair = ("y _ { 2 } = -1", "y_{2} = - 1\n")
    assert score("ocrbench", pair) == 0
    assert score("ocrbench", pair, kind=FORMULAS) == 1
    assert score("ocrbench", ("Y_{2}=-1", "y_{2}=-1"), kind=FORMULAS) == 0


def test_a_circular_question_is_right_if_all_answers_are() -> None:
    parts = [(1.0, 1.0), (1.0, 1.0), (0.0, 1.0), (1.0, 1.0), (0.0, 1.0)]
    assert all_right(parts, ["a", "b", "a", "b", "c"]) == [(0.0, 1.0), (1.0, 1.0), (0.0, 1.0)]
    with pytest.raises(ValueError, match="zip"):
        all_right(parts, ["a"])


def test_a_question_without_a_reference_is_refused() -> None:
    with pytest.raises(ValueError, match="without a reference"):
        Case("x", ())


@given(st.text(), st.lists(st.text(), min_size=1, max_size=4))
def test_scores_are_between_zero_and_one_and_a_reference_scores_best(answer: str, references: list[str]) -> None:
    for name, made in SCORES.items():
        if name.startswith("field") or name in ("choice_accuracy", "ocrbench"):
            continue  # of these a reference must be of a form, or not be blank
        top, bottom = made.part(Case(answer, tuple(references)))
        assert bottom > 0
        assert top >= 0
        if made.higher_is_better:
            assert top <= bottom
        perfect = made.part(Case(references[0], (references[0],)))
        assert perfect[0] / perfect[1] == float(made.higher_is_better), name
