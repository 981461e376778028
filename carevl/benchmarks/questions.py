"""The questions to a judge under each protocol, and how its answers are read.

| protocol | prompt | verdict read by | a row counts as right |
|---|---|---|---|
| `official` | the benchmark's | the benchmark's own parser | as the benchmark says |
| `official_scorer` | the judge's own | our reader | as the benchmark says |
| `strict` | the judge's own, both orders, greedy | our reader | only if every order is right |
| `verdict_prob` | the judge's own, both orders, verdict forced | the verdict token's probability | as `strict` |
| `pointwise` | the judge's own, each response alone | the mean rating of its probabilities | if the better is higher |
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace

from carevl.benchmarks.rows import Image, Row
from carevl.errors import UserError
from carevl.judging.prompts import Task, judge_turn
from carevl.judging.turns import Turn, shift_places
from carevl.settings.asking import Asking
from carevl.settings.data import ProtocolName
from carevl.stats.draws import rng_for


@dataclass(frozen=True)
class Decoding:
    """Sampling parameters of a judgment. `max_tokens` None: the judge's own cap."""

    temperature: float = 0.0
    top_p: float = 1.0
    max_tokens: int | None = None
    image_first: bool = True
    """Whether images that do not stand within the text of the user turn stand before it."""


GREEDY = Decoding()


@dataclass(frozen=True)
class Question:
    """One prompt for one judge. (benchmark, protocol, key, order, sample) is its identity."""

    benchmark: str
    protocol: ProtocolName
    key: str
    order: tuple[int, ...]
    """Indices of the responses in the order shown; one index where a single response is rated."""
    sample: int
    task: Task
    prompt: str
    images: tuple[Image, ...] = ()
    response: str | None = None
    """The assistant turn a reward model has to score. None: the judge writes it."""
    responses: tuple[str, ...] = ()
    """What a judge that scores and sees the image has to score, in the order shown; empty for any other."""
    wording: str | None = None
    """The judge's own wording of a verdict; None: it has none, or the benchmark's is asked for."""
    places: tuple[int, ...] = ()
    """Characters of the prompt before which an image stands, as in `Turn`; empty: all of them before its words."""
    question_id: str | None = None
    """Hash of all this and of the images' bytes, where they were read."""

    @property
    def turn(self) -> Turn:
        """The prompt with the images in their places."""
        return Turn("user", self.prompt, self.places or (0,) * len(self.images))


def judge_question(
    benchmark: str, row: Row, protocol: ProtocolName, order: Sequence[int], sample: int = 0, task: Task | None = None
) -> Question:
    """Return the row as a question in the judge's own prompt."""
    task = task or row.task
    turn = judge_turn(task, [row.turn], row.responses, order)
    return Question(benchmark, protocol, row.key, tuple(order), sample, task, turn.text, row.images, places=turn.places)


def official_question(question: Question, row: Row, template: str, **fields: object) -> Question:
    """Return the question about a row in words of the benchmark's own, with its images in place.

    Args:
        template: with {question}, with {about} for what it says of its images before that, and with the fields.
    """
    about = ("", " about the image", " about the images")[min(len(row.images), 2)]
    before, _, after = template.partition("{question}")
    before = before.format(about=about, **fields)
    prompt = before + row.question + after.format(**fields)
    return replace(question, prompt=prompt, places=shift_places(row.turn.places, len(before)))


def ask_as_trained(question: Question, row: Row, asking: Asking) -> Question:
    """Return a question about a row in the words of the judge that is asked; the benchmark's own words stay."""
    if question.protocol == "official":
        return question
    template = asking.template(question.task)
    if template is not None:
        turn = judge_turn(question.task, [row.turn], row.responses, question.order, template)
        question = replace(question, prompt=turn.text, places=turn.places)
    return replace(question, wording=asking.verdict)


def ask_for_scores(question: Question, row: Row) -> Question:
    """Return a question about a row for a judge that scores every response.

    Raises:
        UserError: its protocol asks for words.
    """
    if question.protocol == "verdict_prob" or (question.protocol == "official" and question.response is None):
        raise UserError(
            f"{question.benchmark}: {question.protocol} reads what a judge writes, and one with a scoring writes "
            "nothing; use --protocol strict or official_scorer"
        )
    shown = tuple(row.responses[i] for i in question.order)
    return replace(question, prompt=row.question, places=row.places, response=None, responses=shown)


def strict_questions(benchmark: str, rows: Iterable[Row], protocol: ProtocolName) -> Iterator[Question]:
    """Yield each row in both orders: as stored and reversed (once where a single response is rated).

    Under `pointwise` each of its responses is rated by itself.
    """
    if protocol == "pointwise":
        yield from pointwise_questions(benchmark, rows, protocol)
        return
    for row in rows:
        order = as_stored(row)
        for shown in dict.fromkeys((order, order[::-1])):
            yield judge_question(benchmark, row, protocol, shown)


def is_strict(protocol: ProtocolName) -> bool:
    """Whether every order, or response, is asked about once and read strictly."""
    return protocol in ("strict", "verdict_prob", "pointwise")


def drawn_questions(
    benchmark: str,
    rows: Iterable[Row],
    protocol: ProtocolName,
    draws: int,
    order: Callable[[Row, int], Sequence[int]],
    official_prompt: Callable[[Row, Sequence[int]], str],
) -> Iterator[Question]:
    """Yield each row `draws` times in the order of its draw, in the benchmark's prompt if `official`, else the judge's.

    Args:
        order: of a row's responses in a draw.
        official_prompt: of a row with its responses in this order; its images stand before or behind all of it.
    """
    for row in rows:
        for sample in range(draws):
            own = judge_question(benchmark, row, protocol, order(row, sample), sample)
            if protocol == "official":
                own = replace(own, prompt=official_prompt(row, own.order), places=())
            yield own


def as_stored(row: Row, _: int = 0) -> tuple[int, ...]:
    """Return the order of the file, whatever the draw."""
    return tuple(range(len(row.responses)))


def pointwise_questions(
    benchmark: str, rows: Iterable[Row], protocol: ProtocolName, draws: int = 1
) -> Iterator[Question]:
    """Yield each response alone: scored by a reward model under `official`, else rated in the judge's own prompt."""
    for row in rows:
        for i, response in enumerate(row.responses):
            for sample in range(draws):
                own = judge_question(benchmark, row, protocol, (i,), sample, task="pointwise")
                if protocol == "official":
                    own = replace(own, prompt=row.question, places=row.places, response=response)
                yield own


def random_order(seed: int, row: Row, sample: int) -> tuple[int, ...]:
    """Return a uniform order of the row's responses, the same for the same seed, key and sample."""
    order = list(range(len(row.responses)))
    rng_for(seed, row.key, sample).shuffle(order)
    return tuple(order)
