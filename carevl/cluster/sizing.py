"""How many actors every pool gets whose size is `auto`: pools at work together should finish together."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from carevl.cluster.resources import Resources, needed

if TYPE_CHECKING:
    from carevl.settings.models import Pool


@dataclass(frozen=True)
class Demand:
    """A pool that wants actors.

    `seconds` is what one actor would take for all the work; `fixed` the actors of a pool whose size is set, and None
    of one whose size is to be found, which gets at most `most`.
    """

    name: str
    each: Resources
    seconds: float
    most: int
    fixed: int | None = None


def sizes(demands: Sequence[Demand], nodes: Sequence[Resources]) -> dict[str, int]:
    """Actors of the pools to be sized, at least one each.

    Pools of set size have their places first, and every other pool one. Then the pool that would finish last gets one
    more actor, again and again, until it has all that it can use or there is no room for another: the stage would not
    end sooner by more actors elsewhere, so what is left stays free.
    """
    room = _Room(nodes)
    for demand in demands:
        for _ in range(demand.fixed or 0):
            room.take(demand.each)
    growing = [demand for demand in demands if demand.fixed is None]
    for demand in growing:
        room.take(demand.each)
    found = {demand.name: 1 for demand in growing}
    while growing:
        last = max(growing, key=lambda demand: demand.seconds / found[demand.name])
        if found[last.name] >= last.most or not room.take(last.each):
            break
        found[last.name] += 1
    return found


def shares(
    pools: Mapping[str, Pool], most: int, rates: Mapping[str, float], nodes: Sequence[Resources]
) -> dict[str, int]:
    """Actors of those pools at work together whose size is `auto`.

    Args:
        most: parts that there are to do: more actors would find none.
        rates: rows per second of an actor; pools that are absent count as 1.
    """
    demands = [
        Demand(
            name,
            needed(pool),
            1 / rates.get(name, 1.0),
            most,
            None if pool.auto else min(pool.bounds[1], most),
        )
        for name, pool in pools.items()
    ]
    ahead = sum(preparers(pools, most, nodes).values())
    return sizes([Demand("preparers", _PREPARER, 0.0, ahead, ahead), *demands], nodes)


_PREPARER: Resources = {"CPU": 1.0}


def preparers(pools: Mapping[str, Pool], most: int, nodes: Sequence[Resources]) -> dict[str, int]:
    """Preparers of pools at work together: those of the settings, or fewer where they would keep an engine out.

    Beside all of them, an actor of every pool finds room, unless it has to wait for another node in any case.

    Args:
        most: as for `shares`.
    """

    def fit(actors: Sequence[Resources]) -> bool:
        return all(map(_Room(nodes).take, actors))

    engines = [needed(pool) for pool in pools.values() if fit([needed(pool)])]
    for limit in range(max(pool.preparers for pool in pools.values()), 0, -1):
        found = {name: min(pool.preparers, most, limit) for name, pool in pools.items()}
        ahead = [_PREPARER] * sum(found.values())
        if fit(ahead) and all(fit([*ahead, engine]) for engine in engines):
            return found
    return dict.fromkeys(pools, 0)


class _Room:
    """What is free on every node. A share of a GPU lies on one GPU, so each GPU is counted for itself."""

    def __init__(self, nodes: Sequence[Resources]) -> None:
        self.free = [{name: amount for name, amount in node.items() if name != "GPU"} for node in nodes]
        self.gpus = [[1.0] * int(node.get("GPU", 0)) for node in nodes]

    def take(self, each: Resources) -> bool:
        """Puts an actor where the least is left over; False where no node has room."""
        others = {name: amount for name, amount in each.items() if name != "GPU" and amount}
        gpu = each.get("GPU", 0.0)
        fitting = [
            n
            for n, free in enumerate(self.free)
            if all(free.get(name, 0.0) >= amount - 1e-9 for name, amount in others.items())
            and (not gpu or self._places(n, gpu) is not None)
        ]
        if not fitting:
            return False
        n = min(fitting, key=lambda n: (sum(self.gpus[n]), self.free[n].get("CPU", 0.0)))
        for name, amount in others.items():
            self.free[n][name] -= amount
        for place, amount in self._places(n, gpu) or ():
            self.gpus[n][place] -= amount
        return True

    def _places(self, n: int, gpu: float) -> list[tuple[int, float]] | None:
        """Which of a node's GPUs an actor would have, and how much of each."""
        share = min(gpu, 1.0)
        places = [place for place, free in enumerate(self.gpus[n]) if free >= share - 1e-9]
        places.sort(key=lambda place: self.gpus[n][place])
        count = math.ceil(gpu)
        return [(place, share) for place in places[:count]] if len(places) >= count else None
