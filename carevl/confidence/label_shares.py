"""Which labelled image serves what: by a hash of the image, so that it is the same in every run and stage."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

import numpy as np

from carevl.stats.draws import hash_uniform

if TYPE_CHECKING:
    from carevl.confidence.pairs import Pairs
    from carevl.settings.router import LabelShares

Holder = Literal["router", "low_router", "choice"]


def serves(image_id: str, holder: Holder, shares: LabelShares | None, seed: int) -> bool:
    """Return whether a labelled image serves something; undivided ones serve the first router and choice."""
    return holder != "low_router" if shares is None else _holder_of(image_id, shares, seed) == holder


def _holder_of(image_id: str, shares: LabelShares, seed: int) -> Holder:
    holders: tuple[tuple[Holder, float], ...] = (
        ("router", shares.router),
        ("low_router", shares.low_router),
        ("choice", shares.choice),
    )
    place = hash_uniform(seed, image_id, "labels") * sum(share for _, share in holders)
    for holder, share in holders:
        if place < share:
            return holder
        place -= share
    return next(holder for holder, share in reversed(holders) if share)


def serving(holder: Holder, labelled: Pairs, shares: LabelShares | None, seed: int) -> Pairs | None:
    """Return those of labelled pairs whose images serve something; None where there are none.

    An item of several images goes by its first, one without by its own id.
    """
    of_item = np.array([serves(name, holder, shares, seed) for name in labelled.image_id.to_pylist()], dtype=np.bool_)
    chosen = of_item[labelled.item]
    return labelled.select(chosen) if chosen.any() else None
