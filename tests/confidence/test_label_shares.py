"""Labelled images serve one thing each, whatever else is there."""

import numpy as np
import pyarrow as pa
import pytest
from pydantic import ValidationError

from carevl.confidence.label_shares import serves, serving
from carevl.settings.router import LabelShares

HOLDERS = ("router", "low_router", "choice")
IDS = [f"image-{n}" for n in range(3000)]


def test_every_image_serves_one_thing_in_the_proportions_asked_for():
    shares = LabelShares(router=2, low_router=1, choice=1)
    served = [[holder for holder in HOLDERS if serves(name, holder, shares, 0)] for name in IDS]
    assert {len(holders) for holders in served} == {1}
    counts = [sum(holders == [holder] for holders in served) for holder in HOLDERS]
    assert np.abs(np.array(counts) / len(IDS) - [0.5, 0.25, 0.25]).max() < 0.03
    assert served != [[holder for holder in HOLDERS if serves(name, holder, shares, 1)] for name in IDS]


def test_a_share_of_nothing_serves_nothing():
    shares = LabelShares(router=1, low_router=0, choice=0)
    assert all(serves(name, "router", shares, 0) for name in IDS)
    assert not any(serves(name, holder, shares, 0) for name in IDS for holder in HOLDERS[1:])
    with pytest.raises(ValidationError, match="shares of the labelled images are all 0"):
        LabelShares(router=0, low_router=0, choice=0)


def test_undivided_images_serve_the_first_router_and_choice():
    assert [serves("image", holder, None, 0) for holder in HOLDERS] == [True, False, True]


def test_pairs_of_one_image_stay_together(make_pairs):
    pairs = make_pairs(np.ones(400), gold=np.ones(400))
    images = pa.array([f"image-{n // 2}" for n in range(400)])
    pairs = pairs.__class__(**{**pairs.__dict__, "image_id": images})
    parts = [serving(holder, pairs, LabelShares(), 0) for holder in HOLDERS]
    assert sum(map(len, parts)) == 400
    held = [set(part.image_id.take(pa.array(part.item)).to_pylist()) for part in parts]
    assert not held[0] & held[1] | held[1] & held[2] | held[0] & held[2]
    assert serving("low_router", pairs, None, 0) is None
