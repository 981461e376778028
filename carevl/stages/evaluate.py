"""Stage `evaluate`: a judge answers every question of a benchmark; each answer is a row of `predictions`.

A part holds a block of questions, all those about one image together, so that what they share is computed once.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.compute as pc

from carevl.benchmarks import BENCHMARKS
from carevl.benchmarks.answering import Answerer, answerer, is_endpoint, judge_questions
from carevl.benchmarks.asking import ProtocolName, Question
from carevl.benchmarks.predictions import SCHEMA, record_score, to_table
from carevl.benchmarks.protocol import Benchmark
from carevl.benchmarks.rows import Image, Row
from carevl.errors import UserError
from carevl.inference.engines import Scorer, scorer, weights_fingerprint
from carevl.inference.pools import Tally, Task, Work, run_tasks
from carevl.judging.prompts import PROMPT_VERSION
from carevl.runs import RunError, Table
from carevl.sources.images import ImageLimits, decode_rgb
from carevl.sources.rows import RowError

if TYPE_CHECKING:
    import PIL.Image

    from carevl.config import Judge

VERSION = 2
PART_QUESTIONS = 256
_QUESTIONS = pa.schema(
    [
        *(SCHEMA.field(name) for name in ("protocol", "key", "order", "sample")),
        ("task", pa.string()),
        ("prompt", pa.string()),
        ("image", pa.string()),  # key into images, null for a text-only question
        ("response", pa.string()),  # what a reward model has to score, else null
    ]
)
_IMAGES = pa.schema([("name", pa.string()), ("bytes", pa.large_binary())])


def facts(judge: Judge) -> dict[str, Any]:
    """What a judge's predictions depend on, apart from the questions."""
    return {
        "version": VERSION,
        "prompts": PROMPT_VERSION,
        "weights": weights_fingerprint(judge.path, judge.revision),
        **judge.model_dump(include={"engine", "dtype", "max_model_len", "max_tokens"}),
    }


def predict(
    judge: Judge,
    benchmark: Benchmark,
    rows: Sequence[Row],
    protocols: Sequence[ProtocolName],
    target: Table,
    say: Callable[[str, Tally, int], None],
    *,
    name: str | None = None,
    draws: int | None = None,
    seed: int = 0,
    max_error_fraction: float = 0.05,
    part_questions: int = PART_QUESTIONS,
    retry: bool = False,
) -> dict[str, int]:
    """Asks every question and writes the parts of `predictions` that are not there yet.

    Ray has to be running, unless the judge is an endpoint.

    Args:
        name: of the judge in the table; its path when absent.
        draws: judgments per row where the protocol draws several; the benchmark's own number when absent.
        max_error_fraction: share of the questions that may fail.
        part_questions: questions per part; more where one image has more.
        retry: ask those questions once more that failed in the parts that are there, and no others.

    Returns:
        rows_in (questions), rows_out (predictions), errors.

    Raises:
        UserError: a row has no image although the judge needs one.
        RunError: more questions failed than allowed; what is done stays.
    """
    drawn = benchmark.DRAWS if draws is None else draws
    blocks = list(_blocks(benchmark, rows, protocols, drawn, seed, part_questions))
    pending = {number: block for number, block in enumerate(blocks) if not target.part(number).exists()}
    made = Table(target.directory / "again") if retry else target
    if retry:
        shutil.rmtree(made.directory, ignore_errors=True)
        failed = {number: _failed(target.read(number), blocks[number]) for number in target.parts()}
        pending = {number: block for number, block in failed.items() if block}
    questions, images = Table(target.directory / "questions"), Table(target.directory / "images")
    _refuse_without_image(question for block in pending.values() for question in block)
    for number, block in pending.items():
        questions.write(number, _to_questions(block))
        images.write(number, _to_images(block))
    arguments = {"judge": judge, "benchmark": benchmark.NAME, "name": name or judge.path, "seed": seed}
    task = Task(
        name=f"evaluate/{name or judge.path}",
        make=work,
        arguments=arguments,
        sources={"questions": questions, "images": images},
        target=made,
        pool=judge.pool,
        key="key",
        identity=("protocol", "order", "sample"),
    )
    if is_endpoint(judge.path):
        _run_here(task, list(pending), say)
    elif pending:
        run_tasks([task], list(pending), 1.0, say)
    for number in pending if retry else ():
        target.write(number, _replaced(target.read(number), made.read(number)))
    for table in (questions, images, *([made] if retry else [])):
        shutil.rmtree(table.directory, ignore_errors=True)
    errors = [error for error in target.read(columns=["error"])["error"].to_pylist() if error is not None]
    total = sum(map(len, blocks))
    if len(errors) > max_error_fraction * total:
        raise RunError(
            f"{benchmark.NAME}: {len(errors)} of {total} questions failed, more than max_error_fraction = "
            f"{max_error_fraction:.1%} allows; the first: {errors[0]['message']}"
        )
    return {"rows_in": total, "rows_out": total, "errors": len(errors)}


def _run_here(task: Task, parts: Sequence[int], say: Callable[[str, Tally, int], None]) -> None:
    """As `run_tasks`, in this process: an endpoint needs neither actors nor, on other machines, its key."""
    answer, tally = task.make(**task.arguments), Tally()
    for number in parts:
        started = time.monotonic()
        rows = answer({name: table.read(number) for name, table in task.sources.items()})
        task.target.write(number, rows)
        errors = len(rows) - rows["error"].null_count
        tally.add(Tally(1, len(rows), len(rows), errors, time.monotonic() - started))
        say(task.name, tally, len(parts))


def _identities(predictions: pa.Table) -> list[tuple[Any, ...]]:
    rows = predictions.select(["protocol", "key", "order", "sample"]).to_pylist()
    return [(row["protocol"], row["key"], tuple(row["order"]), row["sample"]) for row in rows]


def _failed(predictions: pa.Table, block: Sequence[Question]) -> list[Question]:
    """Those questions of a part whose prediction has an error."""
    failed = set(_identities(predictions.filter(pc.is_valid(predictions["error"]))))
    return [q for q in block if (q.protocol, q.key, q.order, q.sample) in failed]


def _replaced(predictions: pa.Table, again: pa.Table) -> pa.Table:
    """A part with these predictions in place of those that they repeat."""
    new = set(_identities(again))
    kept = predictions.filter(pa.array([identity not in new for identity in _identities(predictions)], pa.bool_()))
    return pa.concat_tables([kept, again])


def _blocks(
    benchmark: Benchmark, rows: Sequence[Row], protocols: Sequence[ProtocolName], draws: int, seed: int, size: int
) -> Iterator[list[Question]]:
    """All questions, those about one image in one block; the same blocks for the same arguments."""
    together: dict[str, list[Row]] = {}
    for row in rows:
        together.setdefault(row.image.name if row.image else row.key, []).append(row)
    block: list[Question] = []
    for group in together.values():
        for protocol in protocols:
            block += benchmark.questions(group, protocol, draws=draws, seed=seed)
        if len(block) >= size:
            yield block
            block = []
    if block:
        yield block


def _refuse_without_image(asked: Iterable[Question]) -> None:
    for question in asked:
        if question.image is None and question.response is None:
            raise UserError(
                f"{question.benchmark}: {question.key} has no image and a vision-language judge needs one; leave such "
                "rows out, or let a text reward model score them under the protocol `official`"
            )


def _to_questions(block: Sequence[Question]) -> pa.Table:
    names = [name for name in _QUESTIONS.names if name != "image"]
    rows = [
        {**{name: getattr(question, name) for name in names}, "image": question.image.name if question.image else None}
        for question in block
    ]
    return pa.Table.from_pylist(rows, _QUESTIONS)


def _to_images(block: Sequence[Question]) -> pa.Table:
    images = {q.image.name: q.image for q in block if q.image is not None and q.response is None}
    return pa.Table.from_pylist([{"name": name, "bytes": _bytes(image)} for name, image in images.items()], _IMAGES)


def _bytes(image: Image) -> bytes:
    try:
        return image.read()
    except OSError:
        return b""


def work(judge: Judge, benchmark: str, name: str, seed: int) -> Work:
    """Returns what turns a part of questions and their images into a part of `predictions`.

    The judge is loaded as what the questions need: one that writes, or one that scores.
    """
    asked, module = _Loaded(judge), BENCHMARKS[benchmark]

    def answer(tables: Mapping[str, pa.Table]) -> pa.Table:
        questions = [_question(benchmark, row) for row in tables["questions"].to_pylist()]
        written = [question for question in questions if question.response is None]
        scored = [question for question in questions if question.response is not None]
        pictures = {row["name"]: _decode(row["bytes"]) for row in tables["images"].to_pylist()}
        made = judge_questions(asked.writer, name, module, written, pictures, seed) if written else []
        if scored:
            scores = asked.scorer.score([(question.prompt, question.response or "") for question in scored])
            made += [record_score(q, name, score) for q, score in zip(scored, scores, strict=True)]
        return to_table(made)

    return answer


class _Loaded:
    """A judge in the forms that were needed so far."""

    def __init__(self, judge: Judge) -> None:
        self.judge = judge

    @cached_property
    def writer(self) -> Answerer:
        return answerer(self.judge)

    @cached_property
    def scorer(self) -> Scorer:
        return scorer(self.judge)


def _question(benchmark: str, row: Mapping[str, Any]) -> Question:
    image = None if row["image"] is None else Image(row["image"])
    return Question(benchmark, **{**row, "order": tuple(row["order"]), "image": image})


def _decode(data: bytes) -> PIL.Image.Image | str:
    """The picture, or why there is none."""
    try:
        return decode_rgb(data, ImageLimits())
    except RowError as error:
        return str(error)
