"""Stage `evaluate`: judges answer every question of some benchmarks; each answer is a row of `predictions`.

A part holds a block of questions, all those about one image together, so that what they share is computed once. All
judges are asked side by side, each in one pool, whatever the number of benchmarks: loading costs more than a small one.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.compute as pc

from carevl.benchmarks.answering import Answerer, answerer, is_endpoint, judge_questions
from carevl.benchmarks.predictions import record_score, to_table
from carevl.benchmarks.questions import Question
from carevl.benchmarks.rows import Image, Row
from carevl.benchmarks.suite import Suite
from carevl.benchmarks.suites import SUITES
from carevl.cluster.jobs import PoolJob, Processor, Tally
from carevl.cluster.pools import run_jobs
from carevl.data.images import ImageLimits
from carevl.data.pictures import decoded, picture
from carevl.data.rows import RowError
from carevl.errors import UserError
from carevl.judging.prompts import PROMPT_VERSION
from carevl.models.engines import Scorer, adapter_fingerprint, scorer, weights_fingerprint
from carevl.settings.data import ProtocolName
from carevl.store.run import RunError
from carevl.store.schemas import QUESTION_IMAGES, QUESTIONS
from carevl.store.table import Table

if TYPE_CHECKING:
    import PIL.Image

    from carevl.settings.models import Judge

VERSION = 3
PART_QUESTIONS = 256
_LIMITS = ImageLimits()


def facts(judge: Judge) -> dict[str, Any]:
    """What a judge's predictions depend on, apart from the questions."""
    return {
        "version": VERSION,
        "prompts": PROMPT_VERSION,
        "weights": weights_fingerprint(judge.path, judge.revision),
        **({} if judge.adapter is None else {"adapter": adapter_fingerprint(judge.adapter)}),
        **judge.model_dump(include={"engine", "dtype", "max_model_len", "max_tokens"}),
    }


@dataclass(frozen=True)
class Exam:
    """What is asked: the rows of a benchmark, by some protocols.

    `benchmark`: its name or import path, by which every actor imports the suite anew.
    `draws`: judgments per row where the protocol draws several; the suite's own number when None.
    """

    benchmark: str
    rows: Sequence[Row]
    protocols: Sequence[ProtocolName]
    draws: int | None = None

    @property
    def suite(self) -> Suite:
        """Who asks and reads the answers."""
        return SUITES[self.benchmark]


@dataclass(frozen=True)
class Asked:
    """Who is asked: a judge, what it is called in the table, and where its predictions are written."""

    judge: Judge
    name: str
    target: Table


def predict(
    judges: Sequence[Asked],
    exams: Sequence[Exam],
    say: Callable[[str, Tally, int], None],
    *,
    seed: int = 0,
    max_error_fraction: float = 0.05,
    part_questions: int = PART_QUESTIONS,
    retry: bool = False,
) -> dict[str, dict[str, int]]:
    """Asks every judge every question, and writes the parts of `predictions` that are not there yet.

    Ray has to be running, unless all judges are endpoints.

    Args:
        max_error_fraction: share of a judge's questions that may fail.
        part_questions: questions per part; more where one image has more.
        retry: ask those questions once more that failed in the parts that are there, and no others.

    Returns:
        Name of the judge to rows_in (questions), rows_out (predictions), errors.

    Raises:
        UserError: a row has no image although the judge needs one.
        RunError: more questions failed than allowed; what is done stays.
    """
    blocks = [block for exam in exams for block in _blocks(exam, seed, part_questions)]
    suites = _import_names(exams)
    if not blocks:
        for asked in judges:
            asked.target.write(0, to_table([]))  # a table without parts has no columns to read
        return {asked.name: {"rows_in": 0, "rows_out": 0, "errors": 0} for asked in judges}
    passes = [_Pass.of(asked, blocks, suites, seed, retry) for asked in judges]
    for asking in passes:
        _refuse_without_image(question for block in asking.pending.values() for question in block)
    for asking in passes:
        for number, block in asking.pending.items():
            asking.questions.write(number, _to_questions(block))
            asking.images.write(number, _to_images(block))
    pooled = [asking for asking in passes if asking.pending and not is_endpoint(asking.judge.path)]
    for asking in passes:
        if is_endpoint(asking.judge.path):
            _run_here(asking.job, say)
    if pooled:
        run_jobs([asking.job for asking in pooled], [], 1.0, say)
    total = sum(map(len, blocks))
    return {asking.name: asking.finish(total, max_error_fraction) for asking in passes}


@dataclass(frozen=True)
class _Pass:
    """A judge at work: the questions of every part that is still to be made."""

    name: str
    judge: Judge
    target: Table
    made: Table
    """Where new predictions are written: the target, or apart from it what was asked again."""
    pending: Mapping[int, list[Question]]
    suites: Mapping[str, str]
    """Name of a suite in the questions to what it is imported by."""
    seed: int

    @classmethod
    def of(
        cls, asked: Asked, blocks: Sequence[list[Question]], suites: Mapping[str, str], seed: int, retry: bool
    ) -> _Pass:
        target = asked.target
        if not retry:
            pending = {number: block for number, block in enumerate(blocks) if not target.part(number).exists()}
            return cls(asked.name, asked.judge, target, target, pending, suites, seed)
        again = Table(target.directory / "again")
        shutil.rmtree(again.directory, ignore_errors=True)
        failed = {number: _failed(target.read(number), blocks[number]) for number in target.parts()}
        pending = {number: block for number, block in failed.items() if block}
        return cls(asked.name, asked.judge, target, again, pending, suites, seed)

    @property
    def questions(self) -> Table:
        return Table(self.target.directory / "questions")

    @property
    def images(self) -> Table:
        return Table(self.target.directory / "images")

    @property
    def job(self) -> PoolJob:
        return PoolJob(
            name=f"evaluate/{self.name}",
            processor=AnswerProcessor(self.judge, self.name, self.suites, self.seed),
            sources={"questions": self.questions, "images": self.images},
            target=self.made,
            pool=self.judge.pool,
            key="key",
            identity=("benchmark", "protocol", "order", "sample"),
            parts=tuple(self.pending),
        )

    def finish(self, total: int, max_error_fraction: float) -> dict[str, int]:
        """Puts predictions that were asked again in their place, takes away what was only passed on, and counts."""
        target = self.target
        if self.made != target:
            for number in self.pending:
                target.write(number, _replaced(target.read(number), self.made.read(number)))
            shutil.rmtree(self.made.directory, ignore_errors=True)
        for table in (self.questions, self.images):
            shutil.rmtree(table.directory, ignore_errors=True)
        errors = [error for error in target.read(columns=["error"])["error"].to_pylist() if error is not None]
        if len(errors) > max_error_fraction * total:
            raise RunError(
                f"{self.name}: {len(errors)} of {total} questions failed, more than max_error_fraction = "
                f"{max_error_fraction:.1%} allows; the first: {errors[0]['message']}"
            )
        return {"rows_in": total, "rows_out": total, "errors": len(errors)}


def _run_here(job: PoolJob, say: Callable[[str, Tally, int], None]) -> None:
    """As `run_jobs`, in this process: an endpoint needs neither actors nor, on other machines, its key."""
    processor, tally, parts = job.processor.load(), Tally(), job.parts or ()
    for number in parts:
        started = time.monotonic()
        rows = processor.process({name: table.read(number) for name, table in job.sources.items()})
        job.target.write(number, rows)
        errors = len(rows) - rows["error"].null_count
        tally.add(Tally(1, len(rows), len(rows), errors, time.monotonic() - started))
        say(job.name, tally, len(parts))


def _identities(predictions: pa.Table) -> list[tuple[Any, ...]]:
    rows = predictions.select(["benchmark", "protocol", "key", "order", "sample"]).to_pylist()
    return [(row["benchmark"], row["protocol"], row["key"], tuple(row["order"]), row["sample"]) for row in rows]


def _failed(predictions: pa.Table, block: Sequence[Question]) -> list[Question]:
    """Those questions of a part whose prediction has an error."""
    failed = set(_identities(predictions.filter(pc.is_valid(predictions["error"]))))
    return [q for q in block if (q.benchmark, q.protocol, q.key, q.order, q.sample) in failed]


def _replaced(predictions: pa.Table, again: pa.Table) -> pa.Table:
    """A part with these predictions in place of those that they repeat."""
    new = set(_identities(again))
    kept = predictions.filter(pa.array([identity not in new for identity in _identities(predictions)], pa.bool_()))
    return pa.concat_tables([kept, again])


def _blocks(exam: Exam, seed: int, size: int) -> Iterator[list[Question]]:
    """All questions of an exam, those about one image in one block; the same blocks for the same arguments."""
    suite = exam.suite
    together: dict[str, list[Row]] = {}
    for row in exam.rows:
        together.setdefault(row.image.name if row.image else row.key, []).append(row)
    block: list[Question] = []
    for group in together.values():
        for protocol in exam.protocols:
            block += suite.questions(group, protocol, draws=exam.draws, seed=seed)
        if len(block) >= size:
            yield block
            block = []
    if block:
        yield block


def _import_names(exams: Sequence[Exam]) -> dict[str, str]:
    """Return the name of each suite, as its questions have it, with what actors import it by."""
    names: dict[str, str] = {}
    for exam in exams:
        other = names.setdefault(exam.suite.name, exam.benchmark)
        if other != exam.benchmark:
            raise UserError(f"benchmarks {other} and {exam.benchmark} are both called {exam.suite.name}; rename one")
    return names


def _refuse_without_image(asked: Iterable[Question]) -> None:
    for question in asked:
        if question.image is None and question.response is None:
            raise UserError(
                f"{question.benchmark}: {question.key} has no image and a vision-language judge needs one; leave such "
                "rows out, or let a text reward model score them under the protocol `official`"
            )


def _to_questions(block: Sequence[Question]) -> pa.Table:
    names = [name for name in QUESTIONS.names if name != "image"]
    rows = [
        {**{name: getattr(question, name) for name in names}, "image": question.image.name if question.image else None}
        for question in block
    ]
    return pa.Table.from_pylist(rows, QUESTIONS)


def _to_images(block: Sequence[Question]) -> pa.Table:
    images = {q.image.name: q.image for q in block if q.image is not None and q.response is None}
    return pa.Table.from_pylist(
        [{"name": name, "bytes": _bytes(image)} for name, image in images.items()], QUESTION_IMAGES
    )


def _bytes(image: Image) -> bytes:
    try:
        return image.read()
    except OSError:
        return b""


@dataclass
class AnswerProcessor(Processor):
    """Turns a part of questions and their images into a part of `predictions`.

    The judge is loaded as what the questions need: one that writes, or one that scores.
    """

    judge: Judge
    name: str
    suites: Mapping[str, str]
    """Name of a suite in the questions to what it is imported by."""
    seed: int

    @cached_property
    def writer(self) -> Answerer:
        """The judge as one that writes."""
        return answerer(self.judge)

    @cached_property
    def scorer(self) -> Scorer:
        """The judge as a text reward model."""
        return scorer(self.judge)

    def preprocess(self, tables: Mapping[str, pa.Table]) -> Mapping[str, pa.Table]:
        """Decode the pictures."""
        return {**tables, "images": decoded(tables["images"], limits=_LIMITS, key="name")}

    def process(self, tables: Mapping[str, pa.Table]) -> pa.Table:
        questions = [_question(row) for row in tables["questions"].to_pylist()]
        written = [question for question in questions if question.response is None]
        scored = [question for question in questions if question.response is not None]
        pictures = {row["name"]: _picture(row) for row in tables["images"].to_pylist()}
        suite = SUITES[self.suites[questions[0].benchmark]]  # a part is of one benchmark
        made = judge_questions(self.writer, self.name, suite, written, pictures, self.seed) if written else []
        if scored:
            scores = self.scorer.score([(question.prompt, question.response or "") for question in scored])
            made += [record_score(q, self.name, score) for q, score in zip(scored, scores, strict=True)]
        return to_table(made)


def _question(row: Mapping[str, Any]) -> Question:
    image = None if row["image"] is None else Image(row["image"])
    return Question(**{**row, "order": tuple(row["order"]), "image": image})


def _picture(row: Mapping[str, Any]) -> PIL.Image.Image | str:
    """The picture, or why there is none."""
    try:
        return picture(row, _LIMITS)
    except RowError as error:
        return str(error)
