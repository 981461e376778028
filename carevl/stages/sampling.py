"""What a judge is asked about items, and its answers: the work of the stages demonstrate, testify and sample."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

import pyarrow as pa

from carevl.cluster.earlier_rows import known_requests
from carevl.cluster.jobs import PoolJob, Processor
from carevl.cluster.resources import for_pool
from carevl.data.pictures import decode_shown, picture, shown_images
from carevl.errors import UserError
from carevl.judging.counts import VerdictCounts, describe, join, store
from carevl.judging.markup import split_thinking
from carevl.judging.prompts import Task, judge_turn, write_judgment
from carevl.judging.turns import Turn, shift_places, turns_of
from carevl.judging.verdicts import Verdict, read_verdict
from carevl.models.engines import generate_with_row_errors, generator
from carevl.models.engines.base import Generation, GenerationRequest
from carevl.models.judge_spec import asking_of
from carevl.models.row_errors import Failure
from carevl.stages.base import LoadedModel, in_pool, judge_pixels, pixel_inputs
from carevl.stats.draws import hash_uniform
from carevl.store.run import RunError
from carevl.store.schemas import JUDGMENTS, row_error

if TYPE_CHECKING:
    from carevl.cluster.resources import Reservation
    from carevl.models.engines.base import Generator
    from carevl.settings.asking import Asking
    from carevl.settings.models import Judge
    from carevl.settings.tree import Settings
    from carevl.stages.base import Counts, RunContext
    from carevl.store.table import Table

Item = dict[str, Any]
"""A row of the table `items`."""


UNJUDGED = ("answer", "testimony")
"""Tasks that show no response, and ask for no verdict."""


@dataclass(frozen=True)
class Prompted:
    """A prompt about an item: its task and the responses it shows, in order.

    Task `answer` is the bare question, and `testimony` the question in other words; neither shows a response.
    """

    task: Task | Literal["answer", "testimony"]
    order: tuple[int, ...]
    words: str = "{question}"
    """Of the question, where no response is shown."""

    def write(self, item: Item, asking: Asking) -> tuple[Turn, ...]:
        """Return the turns: one of a judging prompt, and those of the item where no response is shown."""
        asked = turns_of(item)
        match self.task:
            case "answer" | "testimony":
                return (*asked[:-1], _in_words(asked[-1], self.words))
            case task:
                return (judge_turn(task, asked, item["responses"], self.order, asking.template(task)),)

    def columns(self, item: Item, asking: Asking) -> dict[str, Any]:
        """Return prompt and places of a judging prompt, as tables store them."""
        [turn] = self.write(item, asking)
        return {"prompt": turn.text, "places": list(turn.places)}

    def read(self, generation: Generation, wording: str | None = None) -> Verdict:
        """Return what was written. What is no judgment is all evidence, but for what was thought before it.

        Args:
            wording: the judge's own of a verdict.
        """
        match self.task:
            case "answer" | "testimony":
                said = split_thinking(generation.text)[1].strip()
                return Verdict("truncated" if generation.truncated else "ok", said)
            case task:
                reading = read_verdict(generation.text, task, len(self.order), generation.truncated, wording)
                return reading.in_items(self.order)


def _in_words(question: Turn, words: str) -> Turn:
    """Return a question within other words; images before it stay before all of them."""
    before, after = words.split("{question}")
    places = shift_places(question.places, len(before))
    return Turn(question.role, f"{before}{question.text}{after}", places)


Choose = Callable[..., pa.Table]
"""Settings, and one part of items, routes, judgments and more tables, to the rows that are chosen of it."""

Prompts = Callable[[Item, Sequence[dict[str, Any]]], list[Prompted]]
"""What is asked about an item, given its rows of the table `routes`."""


def both_orders(first: int, second: int) -> tuple[Prompted, Prompted]:
    """Return the two pairwise prompts of a pair of responses."""
    return Prompted("pairwise", (first, second)), Prompted("pairwise", (second, first))


def by_item(
    items: pa.Table, routes: pa.Table, *, labelled: bool = False
) -> Iterator[tuple[Item, list[dict[str, Any]]]]:
    """Yield every item to learn from, with its routes: those with an error are passed by.

    Args:
        labelled: yield those with labels, too.
    """
    of_item: dict[str, list[dict[str, Any]]] = {}
    for row in routes.to_pylist():
        of_item.setdefault(row["item_id"], []).append(row)
    for item in items.to_pylist():
        if item["error"] is None and (labelled or item["gold"] is None):
            yield item, of_item.get(item["item_id"], [])


@dataclass(frozen=True)
class SamplingSpec:
    """Which prompts a judge gets, how often, and at what temperature (0 is greedy)."""

    prompts: Prompts
    samples: int
    temperature: float
    seed: int
    labelled: bool = False
    """Whether labelled items are asked about, too."""

    def by_item(self, tables: Mapping[str, pa.Table]) -> Iterator[tuple[Item, list[Prompted]]]:
        """Yield the items that are asked about at all, with their prompts."""
        for item, routes in by_item(tables["items"], tables["routes"], labelled=self.labelled):
            if prompts := self.prompts(item, routes):
                yield item, prompts

    def item_ids(self, tables: Mapping[str, pa.Table]) -> Iterable[str]:
        """Return the ids of the items that are asked about at all."""
        return (item["item_id"] for item, _ in self.by_item(tables))


@dataclass
class JudgeProcessor(Processor):
    """Turns a part of `items`, `images` and `routes` into a part of `judgments`.

    Once few of its texts have a verdict, it makes no further part: those that are made stay.
    """

    judge: Judge
    spec: SamplingSpec
    resize_pixels: int | None = None
    min_parsed: float = 0.0
    """Least share of texts that state a verdict or a tie."""
    engine: Generator = field(init=False, repr=False)
    asking: Asking = field(init=False, repr=False)
    counts: VerdictCounts = field(init=False, repr=False, default_factory=VerdictCounts)
    """What has been asked so far."""

    def setup(self) -> None:
        self.engine, self.asking = generator(self.judge), asking_of(self.judge)

    def preprocess(self, tables: Mapping[str, pa.Table]) -> Mapping[str, pa.Table]:
        """Decode the pictures that the judge will be asked about."""
        images = {name for item, _ in self.spec.by_item(tables) for name in item["images"]}
        return decode_shown(tables, images, self.resize_pixels)

    def row_inputs(self, tables: Mapping[str, pa.Table]) -> Mapping[tuple[Any, ...], Any]:
        """Nothing but the prompt, which task and order tell; question and responses are in the item's key."""
        return {
            (item["item_id"], prompted.task, prompted.order): None
            for item, prompts in self.spec.by_item(tables)
            for prompted in prompts
        }

    def process(self, tables: Mapping[str, pa.Table]) -> pa.Table:
        if self.counts.answered >= _ENOUGH:
            refuse_unread(self.counts, self.min_parsed)
        images = {row["image_id"]: row for row in shown_images(tables).to_pylist()}
        known = known_requests(tables)
        rows: list[dict[str, Any]] = []
        prompted_rows: list[Prompted] = []
        requests: list[GenerationRequest] = []
        for item, asked_of_item in self.spec.by_item(tables):
            prompts = [
                prompted for prompted in asked_of_item if (item["item_id"], prompted.task, prompted.order) not in known
            ]
            if not prompts:
                continue
            shown = tuple(picture(images[name], resize_pixels=self.resize_pixels) for name in item["images"])
            for prompted in prompts:
                *before, asked = prompted.write(item, self.asking)
                for sample in range(self.spec.samples):
                    key = (item["item_id"], prompted.task, prompted.order, sample)
                    seed = int(hash_uniform(self.spec.seed, *key) * 2**31)
                    requests.append(
                        GenerationRequest(shown, asked.text, seed=seed, places=asked.places, earlier=tuple(before))
                    )
                    prompted_rows.append(prompted)
                    rows.append(dict(zip(("item_id", "task", "order", "sample"), key, strict=True)))
        generations = generate_with_row_errors(
            self.engine, requests, max_tokens=self.judge.max_tokens, temperature=self.spec.temperature
        )
        for row, prompted, generation in zip(rows, prompted_rows, generations, strict=True):
            if isinstance(generation, Failure):
                row["error"] = row_error("judge", generation.kind, generation.message)
                continue
            verdict = prompted.read(generation, self.asking.verdict)
            row |= {
                "text": generation.text,
                "evidence": verdict.evidence,
                "winner": verdict.winner,
                "rating": verdict.rating,
                "ranking": verdict.ranking,
                "status": verdict.status,
                "tokens": generation.tokens,
                "error": None,
            }
            if prompted.task not in UNJUDGED:
                self.counts.add(prompted.task, generation.text, verdict.status, tie=verdict.tie)
        return pa.Table.from_pylist(rows, JUDGMENTS)


_ENOUGH = 32
"""Texts of an actor after which their share with a verdict says something."""


def refuse_unread(counts: VerdictCounts, min_parsed: float) -> None:
    """Refuse to go on with a judge of whose texts few have a verdict.

    Args:
        min_parsed: least share of them.

    Raises:
        UserError: there are fewer; it quotes some.
    """
    if counts.read_share >= min_parsed:
        return
    cut = 2 * counts.statuses["truncated"] > counts.answered - counts.parsed
    advice = (
        "raise judge.max_tokens, which cuts most of them short" if cut else "choose a judge that follows its prompt"
    )
    raise UserError(
        f"{counts.parsed + counts.ties} of {counts.answered} judgments of the base judge have a verdict that can be "
        f"read, fewer than demonstrate.min_parsed = {min_parsed:g} asks for; it writes {'; '.join(counts.unread)}; "
        f"{advice} (`carevl check` shows it), or go on with what can be read: --set demonstrate.min_parsed=0"
    )


def typical(judgments: Sequence[Mapping[str, Any]], among: Sequence[Mapping[str, Any]]) -> Mapping[str, Any]:
    """Return the judgment whose evidence is given most often in `among`; the first when several are.

    One without evidence is returned only where all are: they are alike in lacking it.
    """
    counts = Counter(row["evidence"] for row in among)
    return max(judgments, key=lambda row: (bool(row["evidence"]), counts[row["evidence"]], -row["sample"]))


def judgment_rows(judgments: pa.Table, asking: Asking) -> Iterator[dict[str, Any]]:
    """Yield rows of JUDGMENTS, under `thinking` what a judge is to learn of its thinking: all of it, or nothing."""
    for row in judgments.to_pylist():
        keeps = asking.thinking == "keep" and row["text"] is not None
        yield row | {"thinking": split_thinking(row["text"])[0].strip() if keeps else ""}


def in_grammar(row: Mapping[str, Any], order: Sequence[int]) -> str:
    """Return one of `judgment_rows` with a verdict in the words of the grammar, for responses shown in this order."""
    evidence, thinking = row["evidence"], row["thinking"]
    if row["winner"] is not None:
        return write_judgment(evidence, winner=order.index(row["winner"]) + 1, thinking=thinking)
    if row["rating"] is not None:
        return write_judgment(evidence, rating=row["rating"], thinking=thinking)
    return write_judgment(evidence, ranking=[order.index(i) + 1 for i in row["ranking"]], thinking=thinking)


JUDGMENT = ("task", "order", "sample")
"""With the item, what names a judgment."""


def judge_items(
    context: RunContext,
    name: str,
    judge: Judge,
    spec: SamplingSpec,
    routes: Table,
    target: Table,
    *,
    min_parsed: float = 0.0,
) -> Counts:
    """Ask a judge about every item in the pool of the judge; return the counts of `name`, and log those of verdicts.

    Args:
        min_parsed: least share of the texts that state a verdict or a tie, as soon as some are there.

    Raises:
        RunError: fewer do; or as `RunContext.run_pools`. What is done stays.
    """
    if context.retry:
        min_parsed = 0.0
    wording = asking_of(judge).verdict
    if not context.retry:
        for number in target.parts():
            target.is_made(number)  # a damaged one is removed, and made again
    _check_parsed(name, join(count_verdicts(target, wording).values()), min_parsed)
    job = PoolJob(
        name=name,
        processor=JudgeProcessor(judge, spec, judge_pixels(context.settings), min_parsed),
        sources={
            "items": context.ingested.items,
            "images": context.ingested.images,
            "borrowed": context.ingested.borrowed,
            "routes": routes,
        },
        target=target,
        pool=judge.pool,
        key="item_id",
        identity=JUDGMENT,
        expected_keys=spec.item_ids,
        request=("task", "order"),
        earlier=context.earlier(name, target),
    )
    counts = context.run_pools([job])
    verdicts = count_verdicts(target, wording)
    for line in describe(verdicts):
        context.log_for(name)(line)
    _check_parsed(name, join(verdicts.values()), min_parsed)
    return {name: {**counts[name], "verdicts": store(verdicts)}}


def count_verdicts(judgments: Table, wording: str | None = None) -> dict[str, VerdictCounts]:
    """Return the counts of a table of judgments by their task; answers and testimony have no verdict.

    Args:
        wording: the judge's own of a verdict.
    """
    counts: dict[str, VerdictCounts] = {}
    for number in judgments.parts():
        for row in judgments.read(number, ["task", "text", "status", "error"]).to_pylist():
            if row["task"] not in UNJUDGED:
                of_task = counts.setdefault(row["task"], VerdictCounts())
                failed = row["error"] is not None
                of_task.add(row["task"], row["text"], row["status"], failed=failed, wording=wording)
    return counts


def _check_parsed(name: str, counts: VerdictCounts, min_parsed: float) -> None:
    try:
        refuse_unread(counts, min_parsed)
    except UserError as error:
        raise RunError(
            f"{name}: {error}; the parts that are done stay: mend this, and run the same command again"
        ) from error


def choose_rows(context: RunContext, choose: Choose, judged: Table, target: Table, *more: Table) -> int:
    """Apply a pure function of items, routes, judgments and more to every part; return how many rows it chose."""
    n_rows = 0
    tables = [context.ingested.items, context.table("route"), judged, *more]
    for number in context.ingested.items.parts():
        chosen = choose(context.settings, *(table.read(number) for table in tables))
        target.write(number, chosen)
        n_rows += chosen.num_rows
    return n_rows


def judge_inputs(settings: Settings) -> dict[str, Any]:
    """Return what judgments depend on of the judge and of how it sees images, apart from its weights."""
    judge = settings.judge.model_dump(include={"engine", "dtype", "max_model_len", "max_tokens"})
    return judge | settings.judge.computation | pixel_inputs(settings)


def judge_models(settings: Settings, table: str) -> list[LoadedModel]:
    """Return the judge, by which one that was trained from it is as large."""
    del table
    return [in_pool("judge", settings.judge)]


def judge_reservations(stage: str) -> Callable[[Settings], list[Reservation]]:
    """Return what a stage reserves that asks a judge."""
    return lambda settings: [for_pool(stage, "judge.pool", settings.judge.pool)]
