"""The figures of each round of phase 2: its pairs, its trusted labels, and whether it helped."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from carevl.stages.rounds import RoundOutcomes, in_round
from carevl.stats.estimate import format_estimate
from carevl.stats.exact import share
from carevl.store.table import Table

if TYPE_CHECKING:
    from collections.abc import Callable

Items = Mapping[str, Mapping[str, Any]]


def round_figures(
    most: int,
    finished: Mapping[str, Table],
    items: Items,
    outcomes: RoundOutcomes,
    describe_pairs: Callable[[Table], dict[str, Any]],
) -> list[dict[str, Any]]:
    """Return a tree for each round whose pairs are selected.

    Args:
        most: rounds that the settings ask for.
        finished: the tables that there are.
        items: those without labels, by their ids.
        outcomes: whether rounds helped.
        describe_pairs: a table of pairs to their figures.

    Returns:
        `round`, `pairs`; where the judge testifies `labels`: those `trusted`, and of these the ones `without_promise`,
        of images that the judge was trained on; as soon as it is known whether the round helped `choice` (the labelled
        `pairs`, and the share right in both orders `before` and `after`) and `kept`.
    """
    figures: list[dict[str, Any]] = []
    trained = (
        _images(Table(finished["demonstrate"].directory / "targets"), items) if "demonstrate" in finished else set()
    )
    for number in range(1, most + 1):
        pairs = finished.get(in_round(number, "select"))
        if pairs is None:
            break
        tree = {"round": number, "pairs": describe_pairs(pairs)}
        if (routes := finished.get(in_round(number, "route_low"))) is not None:
            tree["labels"] = _label_figures(routes, items, trained)
        figures.append(tree | _outcome(number, outcomes))
        trained |= _images(pairs, items)
    return figures


def _images(rows: Table, items: Items) -> set[str]:
    """Return the images of the items that rows are about."""
    return {image for name in rows.read(columns=["item_id"])["item_id"].to_pylist() for image in items[name]["images"]}


def _label_figures(routes: Table, items: Items, trained: set[str]) -> dict[str, int]:
    rows = routes.read(columns=["item_id", "route"]).to_pylist()
    trusted = [items[row["item_id"]] for row in rows if row["route"] == "high" and row["item_id"] in items]
    return {"trusted": len(trusted), "without_promise": sum(not trained.isdisjoint(item["images"]) for item in trusted)}


def _outcome(number: int, outcomes: RoundOutcomes) -> dict[str, Any]:
    helped = outcomes.helped(number)
    if helped is None:
        return {}
    kept = {"kept": number == 1 or helped}
    before, after = outcomes.examined(number - 1), outcomes.examined(number)
    if before is None or after is None or not after["pairs"]:
        return kept
    return {"choice": {"pairs": after["pairs"], "before": _share(before), "after": _share(after)}, **kept}


def _share(examined: Mapping[str, Any]) -> Any:
    right, pairs = examined["right"], examined["pairs"]
    return share([True] * right + [False] * (pairs - right))


def round_lines(rounds: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    """Yield what the figures say of each round."""
    for tree in rounds:
        pairs = tree["pairs"]
        right = f", {format_estimate(pairs['right_way'])} the right way" if "right_way" in pairs else ""
        yield f"round {tree['round']}: {pairs['count']} pairs from {pairs['items']} items{right}"
        if labels := tree.get("labels"):
            unsure = f"{labels['without_promise']} are of images that the judge was trained on: without promise"
            yield f"  trusted labels of low pairs: {labels['trusted']}; {unsure}"
        if choice := tree.get("choice"):
            before, after = format_estimate(choice["before"]), format_estimate(choice["after"])
            yield f"  {choice['pairs']} labelled pairs, right in both orders: {before} before, {after} after"
        if tree.get("kept") is False:
            yield "  not kept: it did not help"
