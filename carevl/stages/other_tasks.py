"""Pairs of ratings and of rankings: what the trusted order of an item's responses says of the judge's other two tasks.

The judge is asked nothing more. As a rejected verdict may have the evidence of the chosen one, a rejected rating or
ranking differs from the chosen one in its numbers alone; the evidence is that of a judgment that speaks for the order.

- Of a trusted pair either response is rated: the better one as phase 1 rates winners, which is preferred to how it
  rates losers, and the other one the other way round. Ratings are drawn from those of phase 1's targets.
- Where each of three or more responses is in a trusted pair, an order that agrees with all of these is preferred to the
  same with one of them, neighbours there, exchanged.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import pyarrow.compute as pc

from carevl.judging.prompts import Task, write_judgment
from carevl.judging.verdicts import read_verdict
from carevl.stages.demonstrate import BAD, GOOD, shown_order
from carevl.stages.sampling import Item, Prompted
from carevl.stats.draws import hash_uniform

if TYPE_CHECKING:
    from carevl.settings.asking import Asking
    from carevl.settings.stages import Select
    from carevl.stages.selection.base import Row
    from carevl.store.table import Table


@dataclass(frozen=True)
class TargetFacts:
    """What pairs of phase 2 take over from the targets of phase 1."""

    shares: Mapping[Task, float] = field(default_factory=dict)
    """Rows of a task for each pairwise one."""
    good: Sequence[int] = (5,)
    """The ratings of winners, ascending, as often as there are."""
    bad: Sequence[int] = (1,)
    """Those of losers."""

    @classmethod
    def read(cls, targets: Table) -> TargetFacts:
        """Read the targets of every part."""
        counts: dict[Task, int] = {"pairwise": 0, "pointwise": 0, "ranking": 0}
        ratings: list[int] = []
        for number in targets.parts():
            rows = targets.read(number, ["task", "text"])
            for task in counts:
                counts[task] += pc.sum(pc.equal(rows["task"], task)).as_py() or 0
            texts = rows.filter(pc.equal(rows["task"], "pointwise"))["text"].to_pylist()
            verdicts = (read_verdict(text, "pointwise", 1).in_items((0,)) for text in texts)
            ratings += [int(verdict.rating) for verdict in verdicts if verdict.rating is not None]
        good, bad = [n for n in sorted(ratings) if n >= GOOD], [n for n in sorted(ratings) if n <= BAD]
        shares = {task: n / max(1, counts["pairwise"]) for task, n in counts.items()}
        return cls(shares, good or cls.good, bad or cls.bad)

    def wanted(self, select: Select) -> dict[Task, float]:
        """Return how many pairs of ratings and of rankings there are to be for each pair of verdicts."""
        settings: dict[Task, float | None] = {"pointwise": select.pointwise_share, "ranking": select.ranking_share}
        return {task: self.shares.get(task, 0.0) if share is None else share for task, share in settings.items()}


NO_TARGETS = TargetFacts()


@dataclass(frozen=True)
class TrustedPair:
    """Two responses of an item whose order is trusted."""

    winner: int
    loser: int
    scores: tuple[float, float] = (1.0, 0.0)
    """Of the two verdicts."""
    source: Row | None = None
    """A judgment that speaks for the winner, of `judgment_rows`; None: the judge has not been asked, as of a label that
    the first router trusts, or none fits other prompts than its own."""

    @classmethod
    def of_route(cls, route: Row) -> TrustedPair:
        """Return the pair of a row of ROUTES that is high."""
        return cls(route["winner"], route["first"] + route["second"] - route["winner"])

    @property
    def gap(self) -> float:
        """Return how much surer one verdict is than the other."""
        return self.scores[0] - self.scores[1]

    def prefer(self, item: Item, prompted: Prompted, asking: Asking, chosen: Row, rejected: Row) -> dict[str, Any]:
        """Return a row of PAIRS: two judgments with the evidence of the source.

        Args:
            chosen, rejected: the rating or the ranking, as `write_judgment` takes it.
        """
        assert self.source is not None
        evidence, thinking = self.source["evidence"], self.source["thinking"]
        return {
            "item_id": item["item_id"],
            "task": prompted.task,
            "order": prompted.order,
            "rank": 0,
            **prompted.columns(item, asking),
            "chosen": write_judgment(evidence, thinking=thinking, **chosen),
            "rejected": write_judgment(evidence, thinking=thinking, **rejected),
            "winner": self.winner,
            "loser": self.loser,
            "score_chosen": self.scores[0],
            "score_rejected": self.scores[1],
        }


def order_responses(pairs: Iterable[TrustedPair], lots: Sequence[float]) -> tuple[int, ...] | None:
    """Return responses, best first, with the winner of every pair before its loser; None where pairs form a circle.

    Args:
        lots: one for each response; of those that no pair tells apart the lowest comes first.
    """
    beats = {(pair.winner, pair.loser) for pair in pairs}
    left, order = set(range(len(lots))), []
    while left:
        unbeaten = [i for i in left if not any((j, i) in beats for j in left)]
        if not unbeaten:
            return None
        order.append(min(unbeaten, key=lambda i: lots[i]))
        left.remove(order[-1])
    return tuple(order)


@dataclass(frozen=True)
class OtherTasks:
    """The pairs of ratings and of rankings that the items of a part give."""

    targets: TargetFacts
    asking: Asking
    seed: int
    rows: Mapping[Task, list[list[dict[str, Any]]]] = field(default_factory=lambda: {"pointwise": [], "ranking": []})
    """Those of an item together."""

    def add(self, item: Item, pairs: Sequence[TrustedPair]) -> None:
        """Add what the trusted pairs of an item give."""
        found: dict[Task, Iterator[dict[str, Any]]] = {
            "pointwise": self._ratings(item, pairs),
            "ranking": self._ranking(item, pairs),
        }
        for task, rows in found.items():
            if of_item := [*rows]:
                self.rows[task].append(of_item)

    def take(self, shares: Mapping[Task, float], n_verdicts: int) -> Iterator[dict[str, Any]]:
        """Yield about so many rows of each task for each of some pairs of verdicts, of items drawn by chance."""
        for task, share in shares.items():
            drawn = sorted(self.rows[task], key=lambda of_item: hash_uniform(self.seed, of_item[0]["item_id"], task))
            left = share * n_verdicts
            for of_item in drawn:
                if left < len(of_item) / 2:
                    break
                yield from of_item
                left -= len(of_item)

    def _ratings(self, item: Item, pairs: Sequence[TrustedPair]) -> Iterator[dict[str, Any]]:
        """Yield two rows, of the surest pair whose winner never loses and whose loser never wins.

        A response that is better than one and worse than another has no rating that goes with both.
        """
        winners, losers = {pair.winner for pair in pairs}, {pair.loser for pair in pairs}
        extreme = [pair for pair in pairs if pair.source and pair.winner not in losers and pair.loser not in winners]
        if not extreme:
            return
        pair = max(extreme, key=lambda pair: (pair.gap, -pair.winner, -pair.loser))
        sides = (("good", self.targets.good), ("bad", self.targets.bad))
        good, bad = ({"rating": self._draw(item, side, ratings)} for side, ratings in sides)
        yield pair.prefer(item, Prompted("pointwise", (pair.winner,)), self.asking, good, bad)
        yield pair.prefer(item, Prompted("pointwise", (pair.loser,)), self.asking, bad, good)

    def _draw(self, item: Item, side: str, ratings: Sequence[int]) -> int:
        return ratings[int(hash_uniform(self.seed, item["item_id"], side) * len(ratings))]

    def _ranking(self, item: Item, pairs: Sequence[TrustedPair]) -> Iterator[dict[str, Any]]:
        """Yield a row of an item with three or more responses, each in a trusted pair.

        Both orders agree with all trusted pairs, as targets of phase 1 do, but for one, whose responses are neighbours
        in the chosen order and exchanged in the rejected one.
        """
        n = len(item["responses"])
        if n < 3 or {i for pair in pairs for i in (pair.winner, pair.loser)} != set(range(n)):
            return
        best_first = order_responses(pairs, [hash_uniform(self.seed, item["item_id"], "ranked", i) for i in range(n)])
        neighbours = set(pairwise(best_first or ()))
        judged = [pair for pair in pairs if pair.source and (pair.winner, pair.loser) in neighbours]
        if best_first is None or not judged:
            return
        pair = max(judged, key=lambda pair: (pair.gap, -pair.winner))
        shown = shown_order(item, self.seed)
        exchanged = {pair.winner: pair.loser, pair.loser: pair.winner}
        orders = best_first, tuple(exchanged.get(i, i) for i in best_first)
        chosen, rejected = ({"ranking": [shown.index(i) + 1 for i in order]} for order in orders)
        yield pair.prefer(item, Prompted("ranking", shown), self.asking, chosen, rejected)
