"""Other labels than the router's, as pure functions of stored routes: what an arm learns from is a table `routes`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from carevl.stats.draws import hash_uniform
from carevl.store.schemas import ROUTES

Rule = Literal["every", "drawn", "subset", "threshold"]


@dataclass(frozen=True)
class Labels:
    """A rule for which pairs are high, and with which winner. A pair that is dropped, or has no winner, never is.

    `every`: all, with the ensemble's winner. `drawn`: all, with a winner drawn by the ensemble's probability, so that
    on average each verdict is learned by its probability. `subset`: as many as the router found high, taken at random.
    `threshold`: those whose winner has at least this probability.
    """

    rule: Rule
    threshold: float = 0.0

    def apply(self, routes: pa.Table, seed: int, most: float) -> pa.Table:
        """Return routes with these labels, row by row.

        Args:
            most: `subset`: the largest draw that is taken, see `pair_uniforms`.
        """
        labelled = decided(routes)
        first, second, winner = (routes[name].to_numpy() for name in ("first", "second", "winner"))
        probability = routes["probability"].to_numpy()
        high = labelled
        if self.rule == "threshold":
            high = labelled & (confidence(routes) >= np.float32(self.threshold))
        elif self.rule == "subset":
            high = labelled & (pair_uniforms(routes, seed, self.rule) <= most)
        elif self.rule == "drawn":
            winner = np.where(pair_uniforms(routes, seed, self.rule) < probability, first, second)
        dropped = _is(routes, "dropped")
        route = np.where(high, "high", np.where(dropped, "dropped", "low"))
        labels = pa.array(np.nan_to_num(winner).astype(np.int32))
        changed = {
            "route": pa.array(route).cast(ROUTES.field("route").type),
            "winner": pa.compute.if_else(pa.array(high), labels, routes["winner"]),
        }
        for name, column in changed.items():
            routes = routes.set_column(routes.column_names.index(name), ROUTES.field(name), column)
        return routes


def decided(routes: pa.Table) -> NDArray[np.bool_]:
    """Return bool [n_pairs]: pairs that are not dropped and have a winner."""
    winner = routes["winner"].to_numpy()
    has_winner: NDArray[np.bool_] = ~_is(routes, "dropped") & (np.nan_to_num(winner, nan=-1) >= 0)
    return has_winner


def confidence(routes: pa.Table) -> NDArray[np.float32]:
    """Return float32 [n_pairs]: the winner's probability, from 0.5 to 1; NaN where it is unknown."""
    probability = routes["probability"].to_numpy()
    sure: NDArray[np.float32] = np.abs(probability - np.float32(0.5)) + np.float32(0.5)
    return sure


def pair_uniforms(routes: pa.Table, seed: int, purpose: str) -> NDArray[np.float64]:
    """Draw float64 [n_pairs], from 0 to 1, for each pair by itself, whatever else is in the data."""
    keys: list[dict[str, Any]] = routes.select(["item_id", "first", "second"]).to_pylist()
    return np.array([hash_uniform(seed, purpose, *key.values()) for key in keys], np.float64)


def _is(routes: pa.Table, route: str) -> NDArray[np.bool_]:
    matches: NDArray[np.bool_] = routes["route"].cast(pa.string()).to_numpy() == route
    return matches
