"""HelpSteer3: a dialogue, two responses, and from -3 to 3 how much better the second one is."""

from __future__ import annotations

from carevl.data.formats.base import Format, read_preference
from carevl.data.rows import Preference, Row, RowError, number, text
from carevl.data.turns import read_turns

_MOST = 3


def read(row: Row) -> Preference:
    """Read a row of HelpSteer3."""
    responses = (text(row.get("response1"), "response1"), text(row.get("response2"), "response2"))
    better = number(row.get("overall_preference"), "overall_preference")
    if abs(better) > _MOST:
        raise RowError("preference", f"`overall_preference` should be from -{_MOST} to {_MOST}, found {better:g}")
    turns = read_turns(row.get("context"), "context")
    extra = ("domain", "language")
    return read_preference(row, turns, responses, (-better, better), *extra, images=["images", "image"], required=False)


FORMAT = Format(
    name="helpsteer3",
    columns={"context": "list", "response1": "text", "response2": "text", "overall_preference": "number"},
    read=read,
    example={
        "context": [{"role": "user", "content": "What is it?"}],
        "response1": "A cat.",
        "response2": "A dog.",
        "overall_preference": -2,
    },
    of_text=True,
)
