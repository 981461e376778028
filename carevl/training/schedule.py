"""Which items a step holds, and how workers share them: a pure function of seed, step and number of workers.

A step holds the same items for any number of workers; only the micro-batches into which they fall differ. The position
in the data is the number of steps done.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from itertools import accumulate, islice
from typing import TYPE_CHECKING

from carevl.models.packing import Shape, computed_tokens

if TYPE_CHECKING:
    from carevl.settings.training import Packing


@dataclass(frozen=True)
class Schedule:
    """The steps of a training.

    `n_items` items are seen once per epoch, for `epochs` or until there are `n_steps`; with `n_replay`, a step also
    holds `replay_share` times as many replayed items, numbered from `n_items` on, in rounds that each hold every one
    of them once. `together` are the sizes of groups of consecutive items, all of them, whose members share a step where
    they find room; without it every item is on its own.
    """

    n_items: int
    batch_size: int
    epochs: int
    seed: int
    n_replay: int = 0
    replay_share: float = 0.0
    n_steps: int | None = None
    together: tuple[int, ...] = ()

    @property
    def steps_per_epoch(self) -> int:
        """Steps of an epoch; the last one may be smaller."""
        return -(-self.n_items // self.batch_size)

    @property
    def steps(self) -> int:
        """Steps of the whole training."""
        return self.n_steps or self.epochs * self.steps_per_epoch

    def for_tokens(self, tokens: int, lengths: Sequence[int]) -> Schedule:
        """Return the same, with as many steps as come nearest to `tokens`, at least one.

        Args:
            lengths: tokens of every item, replayed ones behind the others.
        """
        steps, left = 0, tokens
        while True:
            size = sum(lengths[i] for i in self.step(steps))
            if steps and 2 * left < size:
                return replace(self, n_steps=steps)
            steps, left = steps + 1, left - size

    def step(self, number: int) -> list[int]:
        """Return the items of a step."""
        epoch, place = divmod(number, self.steps_per_epoch)
        order = _order(self, epoch)
        start = place * self.batch_size
        items = order[start : start + self.batch_size]
        return [*items, *(self.n_items + i for i in self._replayed(epoch * self.n_items + start, len(items)))]

    def _replayed(self, before: int, n: int) -> list[int]:
        """Return the replayed items beside `n` items when `before` items have been seen."""
        if not self.n_replay:
            return []
        # Rounded from the epoch's start, not step by step, so that a share such as 0.1 is met over many steps.
        first, last = round(before * self.replay_share), round((before + n) * self.replay_share)
        rounds = {k // self.n_replay for k in range(first, last)}
        orders = {k: _shuffled(self.n_replay, self.seed, "replay", k) for k in rounds}
        return [orders[k // self.n_replay][k % self.n_replay] for k in range(first, last)]


_LOOK_AHEAD = 64


@lru_cache(maxsize=2)
def _order(schedule: Schedule, epoch: int) -> list[int]:
    """Return the items of an epoch, step after step.

    Groups are shuffled; a step takes, of the next few, always the first that fits it. Where none fits, the next one is
    taken and cut where the step ends.
    """
    sizes = schedule.together or (1,) * schedule.n_items
    starts = [0, *accumulate(sizes)]  # group g holds the items starts[g] to starts[g + 1]
    waiting = _shuffled(len(sizes), schedule.seed, "epoch", epoch)[::-1]  # the next group is last: pop is cheap there
    order: list[int] = []
    while waiting:
        room = schedule.batch_size - len(order) % schedule.batch_size
        fits = (k for k, group in enumerate(islice(reversed(waiting), _LOOK_AHEAD)) if sizes[group] <= room)
        group = waiting.pop(-1 - next(fits, 0))
        order += range(starts[group], starts[group + 1])
    return order


def _shuffled(n: int, *seed: object) -> list[int]:
    order = list(range(n))
    random.Random(repr(seed)).shuffle(order)
    return order


@dataclass(frozen=True)
class MicroBatch:
    """Items that one worker computes at a time.

    `weight` is 1; 0 for a repetition that only keeps workers in step, when there are fewer items than workers.
    """

    items: list[int]
    weight: float = 1.0


def micro_batches(
    items: Sequence[int],
    shapes: Sequence[Shape],
    world: int,
    batch_tokens: int,
    packing: Packing,
    *,
    kinds: Sequence[int] | None = None,
) -> list[list[MicroBatch]]:
    """Share a step's items among `world` workers: as many micro-batches each, and of like cost at each place.

    Args:
        shapes: those of every item of the training.
        batch_tokens: most tokens of a micro-batch, padding included; no item is longer.
        kinds: of every item of the training; those of a micro-batch are of one kind.
    """
    if kinds is not None and len({kinds[i] for i in items}) > 1:
        of_kind = [[i for i in items if kinds[i] == kind] for kind in sorted({kinds[i] for i in items})]
        shared = [micro_batches(group, shapes, world, batch_tokens, packing) for group in of_kind]
        return [[batch for group in shared for batch in group[rank]] for rank in range(world)]

    def cost(batch: Sequence[int]) -> int:
        return computed_tokens([shapes[i] for i in batch], packing)

    batches: list[list[int]] = [[]]
    # Longest first, so that items of like length share a micro-batch and little of it is padding.
    for i in sorted(items, key=lambda i: (-shapes[i].longest, i)):
        if batches[-1] and cost([*batches[-1], i]) > batch_tokens:
            batches.append([])
        batches[-1].append(i)
    # As many micro-batches for each worker: smaller ones cost less than repetitions.
    while len(batches) % world and any(len(batch) > 1 for batch in batches):
        _halve_largest(batches, cost)
    filled = [MicroBatch(batch) for batch in sorted(batches, key=cost, reverse=True)]
    # Every worker has to take part in every collective of the engine: who has no item left repeats one that counts 0.
    filled += [MicroBatch(filled[-1].items, 0.0)] * (-len(filled) % world)
    return [filled[rank::world] for rank in range(world)]


def _halve_largest(batches: list[list[int]], cost: Callable[[Sequence[int]], int]) -> None:
    largest = max((batch for batch in batches if len(batch) > 1), key=cost)
    batches.remove(largest)
    batches += [largest[: len(largest) // 2], largest[len(largest) // 2 :]]
