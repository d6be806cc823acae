import traceback

import pytest

from ixtune.errors import DataError, IxtuneError, UsageError, choice


def test_an_error_is_one_line_of_message_and_place():
    error = IxtuneError("the file is empty", where="a.json:3", hint="fill it")
    assert str(error) == "the file is empty (a.json:3)"
    assert error.hint == "fill it"


def test_an_error_without_a_place_is_its_message():
    assert str(IxtuneError("no GPU", hint="use another machine")) == "no GPU"


@pytest.mark.parametrize(("kind", "code"), [(IxtuneError, 1), (UsageError, 2), (DataError, 3)])
def test_each_kind_has_its_exit_code(kind: type[IxtuneError], code: int):
    assert kind("what", hint="how").exit_code == code


def test_a_wrong_name_gets_a_suggestion_or_the_list():
    assert choice("Anlss", ["ANLS", "f1"]) == "did you mean ANLS?"
    assert choice("bleu", ["ANLS", "f1"]) == "choose one of ANLS, f1"


def test_notes_are_kept_in_order():
    assert UsageError("2 mistakes", hint="correct them", notes=["one", "two"]).notes == ("one", "two")


def test_a_traceback_ends_with_the_notes_and_the_hint():
    error = UsageError("2 mistakes", hint="correct them", notes=["one", "two"])
    shown = "".join(traceback.format_exception(error)).splitlines()
    assert shown[-4:] == ["ixtune.errors.UsageError: 2 mistakes", "one", "two", "hint:  correct them"]
