"""Arenas (VisionArena, WildVision): the conversations of two models about an image, and which of them won.

The columns are those of WildVision's `create_hf_battle_dataset` and of FastChat's logs.
"""

from __future__ import annotations

from carevl.data.formats.base import FIRST, IMAGES, SECOND, Format, read_preference
from carevl.data.rows import Preference, Row, RowError, text
from carevl.data.turns import join_dialogues, read_response

_WINNERS = {"model_a": FIRST, "model_b": SECOND, "tie": (0.5, 0.5), "tie (bothbad)": (0.5, 0.5)}


def read(row: Row) -> Preference:
    """Read a battle. One of several turns is about different earlier answers, and a row error for that."""
    winner = text(row.get("winner"), "winner", "preference")
    if winner not in _WINNERS:
        raise RowError("preference", f"`winner` is {winner[:60]!r}; known: {', '.join(_WINNERS)}")
    first, one = read_response(row.get("conversation_a"), "conversation_a")
    second, other = read_response(row.get("conversation_b"), "conversation_b")
    turns = join_dialogues(first or [], second or [])
    extra = ("question_id", "model_a", "model_b", "language", "winner")
    return read_preference(row, turns, (one, other), _WINNERS[winner], *extra, images=["images", "image"])


FORMAT = Format(
    name="arena",
    columns={**IMAGES, "conversation_a": "list", "conversation_b": "list", "winner": "text"},
    read=read,
    example={
        "image": "a.png",
        "conversation_a": [{"role": "user", "content": "What is it?"}, {"role": "assistant", "content": "A dog."}],
        "conversation_b": [{"role": "user", "content": "What is it?"}, {"role": "assistant", "content": "A cat."}],
        "winner": "model_b",
    },
)
