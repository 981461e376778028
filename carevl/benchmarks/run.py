"""Judges answer every question of some benchmarks; each answer is a row of `predictions`.

A part holds a block of questions, all those about the same images together, so that what they share is computed once.
All judges are asked side by side, each in one pool, whatever the number of benchmarks: loading costs more than a small
one.
"""

from __future__ import annotations

import math
import shutil
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import chain
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from carevl.benchmarks.answering import Answerer, judge_questions, load_judge
from carevl.benchmarks.predictions import Prediction, record_score, to_table
from carevl.benchmarks.question_tables import from_row, read_picture, to_images, to_questions, with_ids
from carevl.benchmarks.questions import Question, ask_as_trained, ask_for_scores
from carevl.benchmarks.retries import failed_questions, replace_predictions
from carevl.benchmarks.rows import Row
from carevl.benchmarks.scoring import judge_by_scores
from carevl.benchmarks.suite import Suite
from carevl.benchmarks.suites import SUITES
from carevl.cluster.earlier_rows import EarlierTable, known_requests
from carevl.cluster.jobs import PoolJob, Processor, Tally
from carevl.cluster.pools import run_jobs
from carevl.data.images import ImageLimits
from carevl.data.pictures import decode_images
from carevl.errors import UserError
from carevl.judging.prompts import PROMPT_VERSION
from carevl.models.engines import image_scorer, scorer
from carevl.models.engines.base import Scorer
from carevl.models.judge_spec import asking_of
from carevl.models.locate import adapter_fingerprint, weights_fingerprint
from carevl.models.row_errors import not_finite
from carevl.settings.asking import Asking
from carevl.settings.data import ProtocolName
from carevl.settings.models import MAX_IMAGES, Judge
from carevl.settings.requests import is_endpoint
from carevl.store.run import RunError
from carevl.store.table import Table, write_atomically

if TYPE_CHECKING:
    from carevl.models.engines.base import ImageScorer

VERSION = 3
LEAST_PART_QUESTIONS, PART_QUESTIONS, MOST_PART_QUESTIONS = 32, 256, 4096
"""Questions of a part; on GPUs up to so many, because an engine drains at the end of each."""
_ROUNDS = 4
_LIMITS = ImageLimits()


def judge_fingerprint_inputs(judge: Judge) -> dict[str, Any]:
    """Return what a judge's predictions depend on, apart from the questions.

    `max_images` is left out for endpoints: once it is raised, the same command asks them what it had refused.
    """
    bounded = judge.max_images != MAX_IMAGES and not is_endpoint(judge.path)
    return {
        "version": VERSION,
        "prompts": PROMPT_VERSION,
        "weights": weights_fingerprint(judge.path, judge.revision),
        **({} if judge.adapter is None else {"adapter": adapter_fingerprint(judge.adapter)}),
        **judge.model_dump(include={"engine", "dtype", "max_model_len", "max_tokens"}),
        **({"max_images": judge.max_images} if bounded else {}),
        **judge.computation,
    }


@dataclass(frozen=True)
class EvalSet:
    """Rows of a benchmark, and the protocols to ask about them by.

    `benchmark`: its name or import path, by which every actor imports the suite anew.
    `draws`: judgments per row where the protocol draws several; the suite's own number when None.
    """

    benchmark: str
    rows: Sequence[Row]
    protocols: Sequence[ProtocolName]
    draws: int | None = None

    @property
    def suite(self) -> Suite:
        """The benchmark itself."""
        return SUITES[self.benchmark]

    def questions(self) -> Iterator[Question]:
        """Yield every question, protocol by protocol."""
        for protocol in self.protocols:
            yield from self.suite.questions(self.rows, protocol, draws=self.draws)

    def blocks(self, seed: int, size: int) -> Iterator[list[Question]]:
        """Yield every question in blocks, those about the same images in one, and those about a row together.

        Equal for equal arguments.
        """
        suite = self.suite
        by_images: dict[str, list[Row]] = {}
        for row in self.rows:
            by_images.setdefault(row.shown, []).append(row)
        block: list[Question] = []
        for rows in by_images.values():
            of_rows: dict[str, list[Question]] = {}
            for protocol in self.protocols:
                for question in suite.questions(rows, protocol, draws=self.draws, seed=seed):
                    of_rows.setdefault(question.key, []).append(question)
            block += chain.from_iterable(of_rows.values())
            if len(block) >= size:
                yield block
                block = []
        if block:
            yield block


@dataclass(frozen=True)
class JudgeRun:
    """A judge to ask, its name in the table, and the table that its predictions are written to.

    `resize_pixels`: most pixels of an image that it is shown; None: as many as there are.
    `force_verdicts`: whether judgments that were cut before their verdicts are made to end with one.
    `earlier`: predictions of the same judge with the same seed, which a pool takes over; an endpoint is asked all.
    """

    judge: Judge
    name: str
    target: Table
    resize_pixels: int | None = None
    force_verdicts: bool = False
    earlier: tuple[EarlierTable, ...] = ()


def predict(
    judges: Sequence[JudgeRun],
    eval_sets: Sequence[EvalSet],
    on_progress: Callable[[str, Tally, int], None],
    *,
    seed: int = 0,
    max_error_fraction: float = 0.05,
    part_questions: int | None = None,
    retry: bool = False,
    log: Callable[[str], None] = lambda _: None,
) -> dict[str, dict[str, Any]]:
    """Ask every judge every question, and write the parts of `predictions` that are missing.

    Questions to an endpoint that failed in the parts that exist are asked once more, too. Ray has to be running, unless
    all judges are endpoints.

    Args:
        max_error_fraction: share of a judge's questions that may fail.
        part_questions: questions per part, more where one image has more; None: as `size_parts` finds.
        retry: ask those questions once more that failed in the parts that exist, and no others.
        log: told how many questions to an endpoint are asked again.

    Returns:
        Name of the judge to rows_in (questions), rows_out (predictions), errors, rows_taken (predictions that this
        call took from earlier tables); and fallbacks, if there were any.

    Raises:
        UserError: a row has no image although its benchmark is about images, or two benchmarks have one name.
        RunError: more questions failed than allowed; what is done stays.
    """
    suites = _import_names(eval_sets)
    total = sum(1 for eval_set in eval_sets for _ in eval_set.questions())
    if not total:
        for judge in judges:
            judge.target.write(0, to_table([]))  # a table without parts has no columns to read
        return {judge.name: {"rows_in": 0, "rows_out": 0, "errors": 0, "rows_taken": 0} for judge in judges}
    sizes = [part_questions or size_parts(judge, total) for judge in judges]
    blocks_of = {
        size: [block for eval_set in eval_sets for block in eval_set.blocks(seed, size)] for size in set(sizes)
    }
    rows = {(eval_set.suite.name, row.key): row for eval_set in eval_sets for row in eval_set.rows}
    passes = [
        _Pass.of(judge, _in_words_of(judge.judge, blocks_of[size], rows), suites, seed, retry)
        for judge, size in zip(judges, sizes, strict=True)
    ]
    about_images = {each.suite.name for each in eval_sets if not each.suite.has_text_only}
    for each in passes:
        asked = (question for block in each.pending.values() for question in block)
        _refuse_without_image(question for question in asked if question.benchmark in about_images)
    for each in passes:
        for number, block in each.pending.items():
            images = to_images(block)
            identified = with_ids(block, images, suites[block[0].benchmark])  # a part is of one benchmark
            each.questions.write(number, to_questions(identified))
            each.images.write(number, images)
    for each in passes:
        if each.asked_again:
            log(f"{each.run.name}: {each.asked_again} questions that failed are asked again; answers are kept")
    pooled = [each for each in passes if each.pending and not is_endpoint(each.run.judge.path)]
    for each in passes:
        if is_endpoint(each.run.judge.path):
            _run_here(each.job, on_progress)
    tallies = run_jobs([each.job for each in pooled], [], 1.0, on_progress) if pooled else {}
    counts = {}
    for each in passes:
        tally = tallies.get(each.job.name, Tally())
        facts = {"fallbacks": tally.fallbacks} if tally.fallbacks else {}
        taken = {"rows_taken": tally.rows_taken}
        counts[each.run.name] = each.finish(total, max_error_fraction) | taken | facts
    return counts


def _in_words_of(
    judge: Judge, blocks: Sequence[list[Question]], rows: Mapping[tuple[str, str], Row]
) -> list[list[Question]]:
    """Return questions as a judge is asked; an endpoint's is told by the settings alone."""
    if judge.scoring is not None:
        return [[ask_for_scores(q, rows[q.benchmark, q.key]) for q in block] for block in blocks]
    asking = (judge.asking or Asking()) if is_endpoint(judge.path) else asking_of(judge)
    return [[ask_as_trained(q, rows[q.benchmark, q.key], asking) for q in block] for block in blocks]


def size_parts(run: JudgeRun, total: int) -> int:
    """Return the questions of a part: as many as the parts have that are there, else enough for every actor on a GPU.

    Those of an endpoint are a few rounds of requests, so that a process that is killed costs few answers.

    Args:
        total: questions in all.
    """
    note, pool = run.target.directory / ".part_questions", run.judge.pool
    if note.exists():
        return int(note.read_text())
    here = is_endpoint(run.judge.path)
    if run.target.parts() or not (pool.num_gpus or here):
        return PART_QUESTIONS
    size = min(max(math.ceil(total / pool.bounds[1]), PART_QUESTIONS), MOST_PART_QUESTIONS)
    if here:
        size = min(max(_ROUNDS * run.judge.requests.concurrency, LEAST_PART_QUESTIONS), PART_QUESTIONS)
    write_atomically(note, str(size).encode())
    return size


@dataclass(frozen=True)
class _Pass:
    """A judge at work: the questions of every part that is missing, or those to ask once more."""

    run: JudgeRun
    output: Table
    """The table of new predictions: the run's target, or apart from it those of a retry."""
    pending: Mapping[int, list[Question]]
    asked_again: int
    """Questions among them whose predictions in the target are errors."""
    suites: Mapping[str, str]
    """Name of a suite in the questions to what it is imported by."""
    seed: int

    @classmethod
    def of(
        cls, run: JudgeRun, blocks: Sequence[list[Question]], suites: Mapping[str, str], seed: int, retry: bool
    ) -> _Pass:
        target, output, here = run.target, run.target, is_endpoint(run.judge.path)
        missing = {number: block for number, block in enumerate(blocks) if not target.is_made(number)}
        failed = failed_questions(target, blocks, run.judge.max_images) if retry or here else {}
        if retry and not here:
            output = Table(target.directory / "again")
            shutil.rmtree(output.directory, ignore_errors=True)
        pending = {**failed, **({} if retry else missing)}
        return cls(run, output, pending, sum(map(len, failed.values())), suites, seed)

    @property
    def questions(self) -> Table:
        return Table(self.run.target.directory / "questions")

    @property
    def images(self) -> Table:
        return Table(self.run.target.directory / "images")

    @property
    def job(self) -> PoolJob:
        return PoolJob(
            name=f"evaluate/{self.run.name}",
            processor=AnswerProcessor(
                self.run.judge, self.run.name, self.suites, self.seed, self.run.resize_pixels, self.run.force_verdicts
            ),
            sources={"questions": self.questions, "images": self.images},
            target=self.output,
            pool=self.run.judge.pool,
            key="key",
            identity=("benchmark", "protocol", "order", "sample"),
            parts=tuple(self.pending),
            request=("question_id",),
            earlier=self.run.earlier,
        )

    def finish(self, total: int, max_error_fraction: float) -> dict[str, int]:
        """Put the predictions of a retry in their place, remove what was only passed on, and count."""
        target = self.run.target
        if self.output != target:
            for number in self.pending:
                target.write(number, replace_predictions(target.read(number), self.output.read(number)))
            shutil.rmtree(self.output.directory, ignore_errors=True)
        for table in (self.questions, self.images):
            shutil.rmtree(table.directory, ignore_errors=True)
        errors = [error for error in target.read(columns=["error"])["error"].to_pylist() if error is not None]
        if len(errors) > max_error_fraction * total:
            way_on = "; the same command asks them again, and no others" if is_endpoint(self.run.judge.path) else ""
            raise RunError(
                f"{self.run.name}: {len(errors)} of {total} questions failed, more than max_error_fraction = "
                f"{max_error_fraction:.1%} allows; the first: {errors[0]['message']}{way_on}"
            )
        return {"rows_in": total, "rows_out": total, "errors": len(errors)}


def _run_here(job: PoolJob, on_progress: Callable[[str, Tally, int], None]) -> None:
    """Do as `run_jobs`, in this process: an endpoint needs neither actors nor, on other machines, its key.

    Answers to questions of a part that is there take the place of their errors: what was answered is never lost.
    """
    processor, tally, parts = job.processor.load(), Tally(), job.parts or ()
    for number in parts:
        started = time.monotonic()
        rows = processor.process({name: table.read(number) for name, table in job.sources.items()})
        errors = len(rows) - rows["error"].null_count
        known = job.target.read(number) if job.target.is_made(number) else None
        job.target.write(number, rows if known is None else replace_predictions(known, rows))
        seconds = time.monotonic() - started
        tally.add(Tally(parts=1, rows_in=len(rows), rows_out=len(rows), errors=errors, busy_seconds=seconds))
        on_progress(job.name, tally, len(parts))


def _import_names(eval_sets: Sequence[EvalSet]) -> dict[str, str]:
    """Return the name of each suite, as its questions have it, with what actors import it by."""
    names: dict[str, str] = {}
    for eval_set in eval_sets:
        name, path = eval_set.suite.name, eval_set.benchmark
        other = names.setdefault(name, path)
        if other != path:
            raise UserError(f"benchmarks {other} and {path} are both called {name}; rename one")
    return names


def _refuse_without_image(questions: Iterable[Question]) -> None:
    for question in questions:
        if not question.images and question.response is None:
            raise UserError(
                f"{question.benchmark}: {question.key} has no image, and this benchmark asks about images; leave such "
                "rows out, or let a text reward model score them under the protocol `official`"
            )


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
    resize_pixels: int | None = None
    force_verdicts: bool = False

    @cached_property
    def writer(self) -> Answerer:
        """Load the judge as one that writes."""
        return load_judge(self.judge)

    @cached_property
    def scorer(self) -> Scorer:
        """Load the judge as a text reward model."""
        return scorer(self.judge)

    @cached_property
    def image_scorer(self) -> ImageScorer:
        """Load the judge as one that scores and sees the image."""
        return image_scorer(self.judge)

    def preprocess(self, tables: Mapping[str, pa.Table]) -> Mapping[str, pa.Table]:
        """Decode the pictures that the questions show."""
        shown = {name for names in tables["questions"]["images"].to_pylist() for name in names}
        images = decode_images(tables["images"], shown, _LIMITS, "name", self.resize_pixels)
        return {**tables, "images": images}

    def row_inputs(self, tables: Mapping[str, pa.Table]) -> Mapping[tuple[Any, ...], Any]:
        """Nothing but the question: its id is a hash of all that it shows."""
        return {(row["key"], row["question_id"]): None for row in tables["questions"].to_pylist()}

    def process(self, tables: Mapping[str, pa.Table]) -> pa.Table:
        known = known_requests(tables)
        left = (row for row in tables["questions"].to_pylist() if (row["key"], row["question_id"]) not in known)
        questions = [from_row(row) for row in left]
        shown = {image.name for question in questions for image in question.images}
        images = (row for row in tables["images"].to_pylist() if row["name"] in shown)
        pictures = {row["name"]: read_picture(row, _LIMITS, self.resize_pixels) for row in images}
        most = self.judge.max_images
        if self.judge.scoring is not None:
            return to_table(judge_by_scores(self.image_scorer, self.name, questions, pictures, most))
        written = [question for question in questions if question.response is None]
        scored = [question for question in questions if question.response is not None]
        suite = SUITES[self.suites[questions[0].benchmark]]  # a part is of one benchmark
        predictions: list[Prediction] = []
        if written:
            predictions += judge_questions(
                self.writer,
                self.name,
                suite,
                written,
                pictures,
                self.seed,
                max_images=most,
                force_verdicts=self.force_verdicts,
            )
        if scored:
            scores = self.scorer.score([(question.prompt, question.response or "") for question in scored])
            if not all(map(math.isfinite, scores)):
                raise UserError(not_finite(f"{self.judge.path} gives scores that are not finite").message)
            predictions += [record_score(q, self.name, score) for q, score in zip(scored, scores, strict=True)]
        return to_table(predictions)
