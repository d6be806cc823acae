from __future__ import annotations

import json
import re

from ixtune.data.record import Place
from ixtune.data.rejects import Reason, Reject


def test_every_reason_has_its_own_code_and_description():
    assert all(re.fullmatch("[a-z]+(_[a-z0-9]+)*", reason.value) for reason in Reason)
    assert len({reason.description for reason in Reason}) == len(Reason)


def test_a_reject_is_one_line_of_json_for_any_text():
    reject = Reject("好.json", Place("line", 17), 3, "a\nb", Reason.BAD_ID, "half a pair: \ud83d", "mend it")
    row = reject.row()
    assert row.count(b"\n") == 1
    assert json.loads(row) == {
        "source": "好.json",
        "record": 3,
        "line": 17,
        "id": "a\nb",
        "reason": "bad_id",
        "found": "half a pair: \ud83d",
        "mend": "mend it",
    }


def test_a_row_or_member_is_named_by_its_unit():
    for place in (Place("row", 4), Place("member", "a/7.json")):
        fields = json.loads(Reject("x", place, 1, None, Reason.BAD_ID, "f", "m").row())
        assert fields[place.unit] == place.at
        assert "line" not in fields
