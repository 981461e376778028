"""How many actors every pool gets whose size is `auto`: pools at work together should finish together."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from carevl.cluster.resources import Resources, actor_resources

if TYPE_CHECKING:
    from carevl.settings.models import Pool


@dataclass(frozen=True)
class Demand:
    """A pool that competes for room.

    `resources` are those of one actor, `seconds` what one would take for all the work. `fixed` are the actors of a pool
    whose size is set, None for one that is to be sized, which gets at most `most`.
    """

    name: str
    resources: Resources
    seconds: float
    most: int
    fixed: int | None = None


def size_pools(demands: Sequence[Demand], nodes: Sequence[Resources]) -> dict[str, int]:
    """Return the actors of the pools to be sized, at least one each.

    Pools of set size have their places first, and every other pool one. Then the pool that would finish last gets one
    more actor, again and again, until it has all that it can use or there is no room for another: the stage would not
    end sooner by more actors elsewhere, so what is left stays free.
    """
    room = _Room(nodes)
    for demand in demands:
        for _ in range(demand.fixed or 0):
            room.take(demand.resources)
    growing = [demand for demand in demands if demand.fixed is None]
    for demand in growing:
        room.take(demand.resources)
    actors = {demand.name: 1 for demand in growing}
    while growing:
        last = max(growing, key=lambda demand: demand.seconds / actors[demand.name])
        if actors[last.name] >= last.most or not room.take(last.resources):
            break
        actors[last.name] += 1
    return actors


def share_actors(
    pools: Mapping[str, Pool], most: int, rates: Mapping[str, float], nodes: Sequence[Resources]
) -> dict[str, int]:
    """Return the actors of those pools at work together whose size is `auto`.

    Args:
        most: parts that there are to do: more actors would find none.
        rates: rows per second of an actor; pools that are absent count as 1.
    """
    demands = [
        Demand(
            name,
            actor_resources(pool),
            1 / rates.get(name, 1.0),
            most,
            None if pool.auto else min(pool.bounds[1], most),
        )
        for name, pool in pools.items()
    ]
    ahead = sum(limit_preparers(pools, most, nodes).values())
    return size_pools([Demand("preparers", _PREPARER, 0.0, ahead, ahead), *demands], nodes)


_PREPARER: Resources = {"CPU": 1.0}


def limit_preparers(pools: Mapping[str, Pool], most: int, nodes: Sequence[Resources]) -> dict[str, int]:
    """Return the preparers of pools at work together: as set, or fewer where they would keep an engine out.

    Beside all of them, an actor of every pool finds room, unless it has to wait for another node in any case.

    Args:
        most: as for `share_actors`.
    """

    def fit(actors: Sequence[Resources]) -> bool:
        return all(map(_Room(nodes).take, actors))

    engines = [actor_resources(pool) for pool in pools.values() if fit([actor_resources(pool)])]
    for limit in range(max(pool.preparers for pool in pools.values()), 0, -1):
        counts = {name: min(pool.preparers, most, limit) for name, pool in pools.items()}
        ahead = [_PREPARER] * sum(counts.values())
        if fit(ahead) and all(fit([*ahead, engine]) for engine in engines):
            return counts
    return dict.fromkeys(pools, 0)


class _Room:
    """Free resources of every node. A share of a GPU lies on one GPU, so each GPU is counted for itself."""

    def __init__(self, nodes: Sequence[Resources]) -> None:
        self.free = [{name: amount for name, amount in node.items() if name != "GPU"} for node in nodes]
        self.gpus = [[1.0] * int(node.get("GPU", 0)) for node in nodes]

    def take(self, resources: Resources) -> bool:
        """Put an actor where the least is left over; return False where no node has room."""
        others = {name: amount for name, amount in resources.items() if name != "GPU" and amount}
        gpu = resources.get("GPU", 0.0)
        fitting = [
            n
            for n, free in enumerate(self.free)
            if all(free.get(name, 0.0) >= amount - 1e-9 for name, amount in others.items())
            and (not gpu or self._places(n, gpu) is not None)
        ]
        if not fitting:
            return False
        # Nodes with GPUs are left to those who need them, as long as another node has room.
        n = min(fitting, key=lambda n: (sum(self.gpus[n]), self.free[n].get("CPU", 0.0)))
        for name, amount in others.items():
            self.free[n][name] -= amount
        for place, amount in self._places(n, gpu) or ():
            self.gpus[n][place] -= amount
        return True

    def _places(self, n: int, gpu: float) -> list[tuple[int, float]] | None:
        """Return which of a node's GPUs an actor would have, and how much of each; None without room."""
        share = min(gpu, 1.0)
        places = [place for place, free in enumerate(self.gpus[n]) if free >= share - 1e-9]
        places.sort(key=lambda place: self.gpus[n][place])
        count = math.ceil(gpu)
        return [(place, share) for place in places[:count]] if len(places) >= count else None
