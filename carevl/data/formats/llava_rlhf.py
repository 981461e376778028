"""LLaVA-RLHF human preference: two outputs, of which `preference` (1 or 2) names the better one."""

from __future__ import annotations

from carevl.data.formats.base import ANY, FIRST, SECOND, Format, read_preference
from carevl.data.rows import Preference, Row, RowError, number
from carevl.data.turns import read_response, read_turns


def read(row: Row) -> Preference:
    """Read a row of LLaVA-RLHF. `captions`, where the source has a captions file, goes into `extra`."""
    turns = read_turns(row.get("conversations"), "conversations")
    before_answer = turns[:-1] if turns[-1].role == "assistant" else turns
    responses = tuple(read_response(row.get(name), name)[1] for name in ("output_1", "output_2"))
    better = number(row.get("preference"), "preference")
    if better not in (1, 2):
        raise RowError("preference", f"`preference` should be 1 or 2, found {better:g}")
    preference = FIRST if better == 1 else SECOND
    return read_preference(row, before_answer, responses, preference, "id", "captions", images=["image"])


FORMAT = Format(
    name="llava-rlhf",
    columns={
        "image": ANY,
        "conversations": "list",
        "output_1": "struct|text",
        "output_2": "struct|text",
        "preference": "number",
    },
    read=read,
    example={
        "image": "a.png",
        "conversations": [{"from": "human", "value": "What is it?\n<image>"}],
        "output_1": {"from": "llava", "value": "A dog."},
        "output_2": {"from": "llava", "value": "A cat."},
        "preference": 2,
    },
)
