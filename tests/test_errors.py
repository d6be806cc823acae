import traceback

import pytest

from ixtune.errors import DataError, IxtuneError, UsageError, choice


def test_an_error_reads_as_one_line_what_and_where():
    error = IxtuneError("the file is empty", where="a.json:3", hint="fill it")
    assert str(error) == "the file is empty (a.json:3)"
    assert error.hint == "fill it"


def test_an_error_without_a_place_reads_as_what_alone():
    assert str(IxtuneError("no GPU", hint="use another machine")) == "no GPU"


@pytest.mark.parametrize(("kind", "code"), [(IxtuneError, 1), (UsageError, 2), (DataError, 3)])
def test_each_kind_has_its_exit_code(kind: type[IxtuneError], code: int):
    assert kind("what", hint="how").exit_code == code


def test_a_wrong_name_is_answered_with_the_nearest_or_with_all():
    assert choice("Anlss", ["ANLS", "f1"]) == "did you mean ANLS?"
    assert choice("bleu", ["ANLS", "f1"]) == "choose one of ANLS, f1"


def test_notes_are_kept_in_order():
    assert UsageError("2 mistakes", hint="correct them", notes=["one", "two"]).notes == ("one", "two")


def test_a_traceback_ends_with_the_notes_and_how_to_mend_it():
    error = UsageError("2 mistakes", hint="correct them", notes=["one", "two"])
    shown = "".join(traceback.format_exception(error)).splitlines()
    assert shown[-4:] == ["ixtune.errors.UsageError: 2 mistakes", "one", "two", "hint:  correct them"]
