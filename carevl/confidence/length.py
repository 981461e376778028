"""How much an expert pays for length alone, and margins without it.

The slope is that of ordinary least squares without intercept (swapping the responses changes nothing) of margin on
log2(length of first / length of second) and, where labels are known, on the label: so correctness is held fixed.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from carevl.confidence.pairs import Pairs


def doublings(pairs: Pairs) -> NDArray[np.float32]:
    """Return float32 [n_pairs], log2 of the first response's characters over the second's; an empty one has one."""
    logs = np.log2(np.maximum(pairs.lengths, 1)).astype(np.float32)
    ratio: NDArray[np.float32] = logs[:, 0] - logs[:, 1]
    return ratio


def length_slopes(
    margins: NDArray[np.float32], doubled: NDArray[np.float32], gold: NDArray[np.float32] | None
) -> tuple[float, ...]:
    """Fit the slope of each expert, in its own scale per doubling of length; 0 for an expert without margins.

    Args:
        margins: float32 [n_pairs, n_experts], NaN where missing.
        doubled: float32 [n_pairs], as `doublings` returns it.
        gold: float32 [n_pairs], 1 first, -1 second, 0 a tie. Without it, right responses are taken to be no longer
            than wrong ones.
    """
    slopes = []
    for column in margins.T:
        scored = ~np.isnan(column)
        features = doubled[scored, None] if gold is None else np.stack([doubled[scored], gold[scored]], axis=1)
        slopes.append(
            float(np.linalg.lstsq(features.astype(np.float64), column[scored])[0][0]) if scored.any() else 0.0
        )
    return tuple(slopes)


def without_length(pairs: Pairs, slopes: tuple[float, ...]) -> Pairs:
    """Take what each expert pays for length off its margins, with and without caption."""
    paid = doublings(pairs)[:, None] * np.array(slopes, dtype=np.float32)
    return replace(pairs, margins=pairs.margins - paid[:, :, None], no_caption=pairs.no_caption - paid)
