from __future__ import annotations

import pytest

from carevl.judging.turns import images_last


@pytest.mark.parametrize(
    ("parts", "moved"),
    [
        ([None, "a"], ["a", None]),
        ([None, None, "a"], ["a", None, None]),
        (["a", None], ["a", None]),
        (["a"], ["a"]),
        ([None, "a", None, "b"], [None, "a", None, "b"]),
    ],
)
def test_images_go_behind_the_words_only_if_their_order_stays(parts, moved):
    assert images_last(parts) == moved
