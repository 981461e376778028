"""Stage `gather`: what models answered becomes the responses of items.

Equal answers to a question are one response, and those of most draws are kept; faulty ones are left out. Some questions
get an answer that should be wrong (`respond.negatives`). Who wrote each response is in the table `writers`. Items that
have responses already pass unchanged.

So that no text tells by itself that it is wrong, answers to the same question about other images are handed out in
turn: each is wrong for one item as often as it is given by most draws for another.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from carevl.data.answers import words_of
from carevl.data.intake import merge_items
from carevl.data.pictures import picture
from carevl.errors import UserError
from carevl.models.row_errors import first_line
from carevl.settings.registry import import_object
from carevl.stages.base import PARTS, Counts, RunContext, Stage
from carevl.stages.respond import gets_negative, is_question
from carevl.stages.responses import ANSWER, Answer, Answered, complete, exchange, read_answers, with_gold
from carevl.store.run import RunError
from carevl.store.schemas import ALIKE, ITEMS, WRITERS

if TYPE_CHECKING:
    from PIL.Image import Image

    from carevl.data.drawn import DataRoot
    from carevl.settings.tree import Settings
    from carevl.store.ingested import Ingested
    from carevl.store.table import Table

VERSION = 1
_EXAMPLES = 3

Rejected = Callable[[str, Sequence["Image"], Sequence[str]], Sequence[str]]
"""A user's function of question, images and responses that returns further responses."""


def give_responses(settings: Settings, items: pa.Table, answers: pa.Table) -> pa.Table:
    """Return the items that have responses, or get them of these answers, without any that should be wrong."""
    rows, of_item = [], _by_item(answers)
    for item in items.to_pylist():
        if is_question(item):
            answered = read_answers(item, of_item.get(item["item_id"], ()), settings.respond)
            item, _ = complete(item, answered, None, settings.respond)  # noqa: PLW2901
        rows += [item] if item["error"] is None else []
    return pa.Table.from_pylist(rows, ITEMS)


def _by_item(*answers: pa.Table) -> dict[str, list[dict[str, Any]]]:
    of_item: dict[str, list[dict[str, Any]]] = {}
    for table in answers:
        for row in table.to_pylist():
            of_item.setdefault(row["item_id"], []).append(row)
    return of_item


def run(context: RunContext) -> Counts:
    """Give every question its responses.

    Raises:
        RunError: more questions than allowed have none.
    """
    [table] = context.pending
    settings, ingested, target = context.settings, context.ingested, context.table(table)
    gatherer = _Gatherer(
        settings, ingested, [context.table(f"respond/{each.name}") for each in settings.respond.models]
    )
    others = gatherer.find_negatives()
    counts = Counter(rows_in=0, rows_out=0, errors=0, questions=0, alike=0, negatives=0, responses=0)
    faults: Counter[str] = Counter()
    problems: list[str] = []
    for number in ingested.questions.parts():
        items, writers, answered = gatherer.gather(number, others)
        written = pa.Table.from_pylist(items, ITEMS)
        ingested.writers.write(number, pa.Table.from_pylist(writers, WRITERS))
        target.write(number, written)
        failed = [item["error"] for item in items if item["error"] and item["error"]["stage"] == "gather"]
        problems += [error["message"] for error in failed if error["kind"] != ALIKE]
        counts.update(rows_in=len(items), rows_out=len(items), questions=len(answered), alike=len(failed))
        counts["responses"] += len({(row["item_id"], row["response"]) for row in writers})
        counts["negatives"] += len({row["item_id"] for row in writers if row["kind"] != ANSWER})
        for each in answered:
            faults += each.faults
    counts["errors"] = len(problems)
    counts["alike"] -= len(problems)
    log = context.log_for(table)
    log(
        f"{counts['questions']} questions: {counts['responses']} responses to "
        f"{counts['questions'] - counts['alike'] - counts['errors']} of them, {counts['alike']} whose answers are all "
        f"alike; {counts['negatives']} got one that should be wrong"
    )
    if faults:
        log("answers left out: " + ", ".join(f"{count} {fault}" for fault, count in sorted(faults.items())))
    if len(problems) > settings.max_error_fraction * counts["questions"]:
        raise RunError(
            f"gather: {len(problems)} of {counts['questions']} questions have no responses, more than "
            f"max_error_fraction = {settings.max_error_fraction:.1%} allows: {'; '.join(problems[:_EXAMPLES])}; choose "
            "another model, or another prompt"
        )
    return {table: {**counts, "faults": dict(faults)}}


@dataclass
class _Gatherer:
    """Reads questions with their answers, part by part; equal for equal tables."""

    settings: Settings
    ingested: Ingested
    answers: Sequence[Table]

    def __post_init__(self) -> None:
        path = self.settings.respond.rejected
        self.rejected: Rejected | None = None if path is None else import_object(path, "function")
        self.labelled = set(_labelled_sources(self.settings))

    def find_negatives(self) -> dict[str, Answer]:
        """Return item_id to what should be wrong, of the questions that get it."""
        negatives, seed = self.settings.respond.negatives, self.settings.seed
        if not negatives.share:
            return {}
        first: dict[tuple[Any, ...], dict[str, Answer]] = {}
        unseen: dict[str, Answer] = {}
        for number in self.ingested.questions.parts():
            for item, answered in self._read(number):
                if not answered.answers or not gets_negative(item["item_id"], negatives, seed):
                    continue
                own = answered.answers[0]
                same = (words_of(item["question"]), *((turn["role"], turn["text"]) for turn in item["turns"]))
                first.setdefault(same, {})[item["item_id"]] = own
                unlike = [answer for answer in answered.unseen if answer.words != own.words]
                if unlike:
                    unseen[item["item_id"]] = unlike[0]
        if "other" not in negatives.kinds:
            return unseen
        other = {name: _as_other(answer) for group in first.values() for name, answer in exchange(group, seed).items()}
        return unseen | other if negatives.kinds[0] == "other" else other | unseen

    def gather(
        self, number: int, others: Mapping[str, Answer]
    ) -> tuple[list[dict[str, Any]], list[dict[str, Any]], list[Answered]]:
        """Return a part of items, of `writers`, and what was answered to its questions."""
        answered = {item["item_id"]: each for item, each in self._read(number)}
        images = self._images(number) if self.rejected else {}
        items: list[dict[str, Any]] = []
        writers: list[dict[str, Any]] = []
        for item in self.ingested.questions.read(number).to_pylist():
            whole, written = item, list[dict[str, Any]]()
            if (own := answered.get(item["item_id"])) is not None:
                rejected = self._reject(item, own, images)
                whole, written = complete(item, own, others.get(item["item_id"]), self.settings.respond, rejected)
                whole = with_gold(whole, self.labelled)
            items.append(whole)
            writers += written
        return merge_items(items), writers, list(answered.values())  # a source may have these very responses

    def _read(self, number: int) -> Iterator[tuple[dict[str, Any], Answered]]:
        of_item = _by_item(*(table.read(number) for table in self.answers))
        for item in self.ingested.questions.read(number).to_pylist():
            if is_question(item):
                yield item, read_answers(item, of_item.get(item["item_id"], ()), self.settings.respond)

    def _images(self, number: int) -> dict[str, dict[str, Any]]:
        return {row["image_id"]: row for row in self.ingested.read_images(number).to_pylist()}

    def _reject(self, item: Mapping[str, Any], answered: Answered, images: Mapping[str, Any]) -> list[str]:
        """Return what the user's own function makes of a question, and of its answers."""
        if self.rejected is None or not answered.answers:
            return []
        pixels = self.settings.data.resize_pixels
        pictures = [picture(images[name], resize_pixels=pixels) for name in item["images"]]
        try:
            texts = self.rejected(item["question"], pictures, [answer.text for answer in answered.answers])
        except Exception as error:
            raise UserError(
                f"respond.rejected: {self.settings.respond.rejected} failed: {first_line(error)}"
            ) from error
        if not isinstance(texts, list | tuple) or not all(isinstance(text, str) for text in texts):
            raise UserError(f"respond.rejected: {self.settings.respond.rejected} has to return a list of texts")
        return list(texts)


def _as_other(answer: Answer) -> Answer:
    return replace(answer, draws=[replace(draw, kind="other") for draw in answer.draws])


def _labelled_sources(settings: Settings) -> list[str]:
    return [name for name, source in settings.data.named_sources if source.labels]


def members(settings: Settings) -> list[str]:
    """Return its one table where models answer, else none."""
    return [""] if settings.respond.models else []


def inputs(settings: Settings, table: str) -> dict[str, str]:
    """Return the questions and the answers of every responder."""
    del table
    return {name: name for name in ("ingest", *(f"respond/{each.name}" for each in settings.respond.models))}


def fingerprint_inputs(settings: Settings, root: DataRoot, table: str) -> dict[str, Any]:
    """Return what the items depend on, apart from questions and answers."""
    del root, table
    labelled = _labelled_sources(settings)
    respond = settings.respond.model_dump(exclude={"models"})
    return {"version": VERSION, "seed": settings.seed, "respond": respond, "labelled": labelled}


STAGE = Stage(
    name="gather", members=members, inputs=inputs, fingerprint_inputs=fingerprint_inputs, run=run, contents=PARTS
)
