from __future__ import annotations

import json
import re

from ixtune.data.rejects import Reason, Reject


def test_every_reason_has_a_code_and_a_description_of_its_own():
    assert all(re.fullmatch("[a-z]+(_[a-z]+)*", reason.value) for reason in Reason)
    assert len({reason.description for reason in Reason}) == len(Reason)


def test_a_row_is_one_line_of_json_whatever_the_text_holds():
    reject = Reject("好.json", 3, 17, "a\nb", Reason.BAD_ID, "half a pair: \ud83d", "mend it")
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
