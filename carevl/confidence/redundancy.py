"""Experts that err together count for less than their number."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray


def errors(p: NDArray[np.floating], gold: NDArray[np.float32]) -> NDArray[np.float64]:
    """Return float64 [n_pairs, n_experts], 1 where an expert names the wrong winner, 0.5 where it names none, else 0.

    Args:
        p: [n_pairs, n_experts], P(first is better); NaN, a missing opinion, stays NaN.
        gold: float32 [n_pairs], 1 first, -1 second.
    """
    lean = np.sign(p - 0.5)
    wrong: NDArray[np.float64] = (0.5 - 0.5 * lean * gold[:, None]).astype(np.float64)
    return wrong


def error_correlation(wrong: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return float64 [n_experts, n_experts], Pearson correlation of errors over the pairs that both scored.

    1 on the diagonal; 0 for two experts of which one never errs, always does, or shares no pair with the other.
    """
    n_experts = wrong.shape[1]
    correlation = np.eye(n_experts)
    for i in range(n_experts):
        for j in range(i):
            both = ~np.isnan(wrong[:, i]) & ~np.isnan(wrong[:, j])
            a, b = wrong[both, i], wrong[both, j]
            if both.any() and np.ptp(a) and np.ptp(b):
                correlation[i, j] = correlation[j, i] = np.corrcoef(a, b)[0, 1]
    return correlation


def effective_experts(correlation: NDArray[np.float64]) -> NDArray[np.float64]:
    """Count the independent experts that the panel is worth: n^2 / sum of correlations (Kish 1965), those below 0 as 0.

    Args:
        correlation: float64 [..., n_experts, n_experts].

    Returns:
        float64 [...], 1 for perfect copies, n for experts whose errors have nothing to do with each other.
    """
    n = correlation.shape[-1]
    effective: NDArray[np.float64] = n**2 / np.maximum(correlation, 0).sum(axis=(-2, -1))
    return effective


def shared_weights(correlation: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return float64 [n_experts], one over the sum of an expert's correlations: k copies share the weight of one."""
    weights: NDArray[np.float64] = 1 / np.maximum(correlation, 0).sum(axis=1)
    return weights
