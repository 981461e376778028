"""Whether responses tell by their words alone which of them is right, as they should not: a judge would learn that.

A classifier reads the two responses of a pair, and neither image nor question: logistic regression on the difference of
their words and pairs of words. It is cross-fitted by images, so that no pair is read by one that has seen its image.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray
from scipy import optimize, sparse, special

from carevl.audit.ledger import Floats, Ledger, Tree
from carevl.audit.measures import LEAST
from carevl.stats.draws import hash_uniform

_FOLDS = 5
_PENALTY = 1.0
"""Of half the squared weights, against the sum of the losses of all pairs."""


def measure_response_text(
    texts: Sequence[tuple[str, str]], label: Floats, images: NDArray[np.int64], groups: Mapping[str, NDArray[np.bool_]]
) -> Tree:
    """Return by group how often a classifier finds the better response of a pair by its words.

    Args:
        texts: of the two responses, [n_pairs].
        label: 1 where the first is better, -1 the second, 0 a tie, NaN unknown, [n_pairs].
        images: a number per distinct image, [n_pairs].
        groups: name to the pairs of it; each has a classifier of its own, none where fewer than 20 have a label.
    """
    decided = np.abs(np.nan_to_num(label)) == 1
    measured = {name: np.flatnonzero(inside & decided) for name, inside in groups.items()}
    measured = {name: rows for name, rows in measured.items() if len(rows) >= LEAST}
    ledger = Ledger(images)
    for name, rows in measured.items():
        values = np.full(len(label), np.nan)
        values[rows] = _cross_fit([texts[row] for row in rows], label[rows], images[rows])
        ledger.put_mean(name, values=values)
    return ledger.estimate() if measured else {}


def _cross_fit(texts: Sequence[tuple[str, str]], label: Floats, images: NDArray[np.int64]) -> Floats:
    """Return 1 where the classifier is right, 0 where it is wrong, 0.5 where it is undecided, [n_pairs]."""
    features = _features(texts)
    folds = np.array([int(_FOLDS * hash_uniform("fold", int(image))) for image in images])
    right = np.full(len(label), 0.5)
    for fold in range(_FOLDS):
        held_out = folds == fold
        if held_out.any() and not held_out.all():
            margin = features[held_out] @ _fit(features[~held_out], label[~held_out])
            right[held_out] = 0.5 + 0.5 * np.sign(margin) * label[held_out]
    return right


def _fit(features: sparse.csr_matrix, label: Floats) -> Floats:
    signed = sparse.diags(label) @ features

    def loss(weights: Floats) -> tuple[float, Floats]:
        margin = signed @ weights
        value = np.logaddexp(0, -margin).sum() + _PENALTY / 2 * weights @ weights
        return float(value), _PENALTY * weights - signed.T @ special.expit(-margin)

    fitted: Floats = optimize.minimize(loss, np.zeros(features.shape[1]), jac=True, method="L-BFGS-B").x
    return fitted


def _features(texts: Sequence[tuple[str, str]]) -> sparse.csr_matrix:
    """Return the words and pairs of words that the first has and the second has not, less those of the second."""
    columns: dict[str, int] = {}
    entries: list[tuple[int, int, float]] = []
    for row, (first, second) in enumerate(texts):
        a, b = _grams(first), _grams(second)
        for sign, grams in ((1.0, a - b), (-1.0, b - a)):
            entries += [(row, columns.setdefault(gram, len(columns)), sign) for gram in sorted(grams)]
        length = columns.setdefault("", len(columns))  # no word
        entries.append((row, length, float(np.log((len(first) + 1) / (len(second) + 1)))))
    rows, places, values = zip(*entries, strict=True)
    return sparse.csr_matrix((values, (rows, places)), shape=(len(texts), len(columns)))


def _grams(text: str) -> set[str]:
    words = ["^", *re.findall(r"\w+|[^\w\s]", text.casefold()), "$"]
    return {*words, *(f"{a} {b}" for a, b in itertools.pairwise(words))}
