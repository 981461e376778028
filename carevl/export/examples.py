"""A run's rows as prompts with answers, part by part, from which every format is written."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from carevl.data.turns import IMAGE_TAG
from carevl.errors import UserError
from carevl.judging.turns import Turn, turns_of
from carevl.store.earlier_versions import with_places
from carevl.store.ingested import Ingested
from carevl.store.run import Run
from carevl.store.table import Table

Selection = Literal["items", "pairs", "judgments", "dpo"]
"""Which rows of a run are exported."""
Row = dict[str, Any]


@dataclass(frozen=True)
class Example:
    """What is asked, with its answer, and the answer that it is preferred to (None: there is none)."""

    item_id: str
    split: str
    images: tuple[str, ...]
    """The image_ids of its images, in the order in which they stand in the turns."""
    turns: tuple[Turn, ...]
    """The last is the prompt."""
    chosen: str
    rejected: str | None
    written_by: Mapping[str, Any] | None = None
    """Who wrote the responses, where models were asked for them: of `chosen` and `rejected`, or of all `responses` that
    a judgment is about, the names of the models; of an answer that should be wrong, its kind in brackets."""

    @property
    def has_tag(self) -> bool:
        """Whether a text holds the tag that stands for an image in training formats."""
        texts = (*(turn.text for turn in self.turns), self.chosen, self.rejected or "")
        return any(IMAGE_TAG in text for text in texts)


@dataclass(frozen=True)
class Part:
    """Examples, and the images that they name: image_id to (bytes, format)."""

    examples: list[Example]
    images: dict[str, tuple[bytes, str]]


def parts(run: Run, what: Selection) -> Iterator[Part]:
    """Yield rows of a run, in the memory of one part.

    Args:
        what: `items`: every pair of an item's responses that its labels, or else its sources' preference, put in an
            order. `pairs`: the pairs of responses whose label the router trusts. `judgments`: the targets of phase 1.
            `dpo`: the chosen and rejected judgments of phase 2, of its first round.

    Raises:
        UserError: the run has not come so far.
    """
    stage, below, read = _TABLES[what]
    manifest = run.latest(stage)
    if manifest is not None and manifest["cause"].get("respond"):  # ingest read questions too; gather has them whole
        stage, manifest = "gather", run.latest("gather")
    if manifest is None:
        raise UserError(f"{run.root}: stage {stage} is not finished, so there are no {what} to export; `carevl run` it")
    table = Table(run.root / stage / manifest["fingerprint"] / below)
    ingested = Ingested.behind(run, manifest)
    for number in ingested.items.parts():
        items = {item["item_id"]: item for item in ingested.items.read(number).to_pylist() if item["error"] is None}
        for name, writers in _writers(ingested, number).items():
            items[name]["written_by"] = writers
        rows = list(items.values())
        if what != "items":
            stored = table.read(number)
            rows = (stored if what == "pairs" else with_places(stored)).to_pylist()
        examples = [example for row in rows if row["item_id"] in items for example in read(items[row["item_id"]], row)]
        named = {name for example in examples for name in example.images}
        images = ingested.read_images(number, ["image_id", "bytes", "format"]).to_pylist() if named else []
        yield Part(examples, {image["image_id"]: (image["bytes"], image["format"]) for image in images})


def _writers(ingested: Ingested, number: int) -> dict[str, list[list[str]]]:
    """Return item_id to the writers of each response, of a part's items whose responses were asked for."""
    writers: dict[str, list[list[str]]] = {}
    for row in ingested.writers.read(number).to_pylist() if ingested.gathered else ():
        responses = writers.setdefault(row["item_id"], [])
        responses += [[] for _ in range(row["response"] + 1 - len(responses))]
        name = row["model"] or row["kind"]
        name = name if row["kind"] in ("answer", name) else f"{name} ({row['kind']})"
        if name not in responses[row["response"]]:
            responses[row["response"]].append(name)
    return writers


def _of_item(item: Row, _: Row) -> Iterator[Example]:
    values = item["source_preference"] if item["gold"] is None else item["gold"]
    for first in range(len(values or ())):
        for second in range(first + 1, len(values)):
            if values[first] != values[second]:
                best, worst = (first, second) if values[first] > values[second] else (second, first)
                yield _pair(item, best, worst)


def _of_route(item: Row, route: Row) -> Iterator[Example]:
    if route["route"] == "high":
        yield _pair(item, route["winner"], route["first"] + route["second"] - route["winner"])


def _pair(item: Row, best: int, worst: int) -> Example:
    writers = item.get("written_by")
    written_by = None if writers is None else {"chosen": writers[best], "rejected": writers[worst]}
    return _example(item, turns_of(item), item["responses"][best], item["responses"][worst], written_by)


def _of_target(item: Row, target: Row) -> Iterator[Example]:
    yield _example(item, (_prompt(target),), target["text"], None, _of_shown(item, target))


def _of_judged_pair(item: Row, pair: Row) -> Iterator[Example]:
    yield _example(item, (_prompt(pair),), pair["chosen"], pair["rejected"], _of_shown(item, pair))


def _of_shown(item: Row, row: Row) -> dict[str, Any] | None:
    """Return the writers of the responses that a judging prompt shows, in its order."""
    writers = item.get("written_by")
    return None if writers is None else {"responses": [writers[n] for n in row["order"]]}


def _prompt(row: Row) -> Turn:
    return Turn("user", row["prompt"], tuple(row["places"]))


def _example(
    item: Row, turns: tuple[Turn, ...], chosen: str, rejected: str | None, written_by: Mapping[str, Any] | None
) -> Example:
    return Example(item["item_id"], item["split"], tuple(item["images"]), turns, chosen, rejected, written_by)


_TABLES: dict[Selection, tuple[str, str, Callable[[Row, Row], Iterator[Example]]]] = {
    "items": ("ingest", "", _of_item),
    "pairs": ("route", "", _of_route),
    "judgments": ("demonstrate", "targets", _of_target),
    "dpo": ("select", "", _of_judged_pair),
}
"""Selection to the stage that makes it, the table below the stage's directory, and how a row is read."""
