"""The truth of a drawn world: what a label is that names a winner."""

import pytest

from carevl.data.truth import Truth, label_outcome

ITEM = {"images": ["a"], "question": "How many?", "responses": ["Two.", "Three.", "2"]}
TRUTHS = {("a", "How many?"): Truth("count", True, {"Two.": 5, "Three.": 1, "2": 5})}


@pytest.mark.parametrize(
    ("winner", "loser", "outcome"), [(0, 1, "right"), (1, 0, "wrong"), (0, 2, "tie"), (2, 0, "tie")]
)
def test_a_winner_among_equally_good_responses_is_a_tie(winner, loser, outcome):
    assert label_outcome(TRUTHS, ITEM, winner, loser) == outcome


def test_of_data_that_nobody_drew_nothing_is_known():
    assert label_outcome({}, ITEM, 0, 1) is None
