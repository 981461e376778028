"""Stages `evaluate/…`: base, phase-1 and phase-2 judge on every benchmark of the settings."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from carevl.benchmarks.diagnostics import count_stored
from carevl.benchmarks.run import VERSION, EvalSet, JudgeRun, predict
from carevl.benchmarks.suites import SUITES
from carevl.data.drawn import DataRoot
from carevl.judging.counts import describe, store
from carevl.models.locate import weights_fingerprint
from carevl.stages.base import Counts, RunContext, Stage, judge_pixels, serving_inputs
from carevl.stages.ingest import stamps
from carevl.stages.sampling import judge_inputs, judge_models, judge_reservations
from carevl.store.run import Run, RunError

if TYPE_CHECKING:
    from carevl.benchmarks.rows import Row
    from carevl.settings.data import Benchmark
    from carevl.settings.tree import Settings

JUDGES: dict[str, str | None] = {"base": None, "phase1": "sft", "phase2": "dpo"}
"""Judge to the stage that makes it."""


def benchmark_inputs(settings: Settings, root: DataRoot) -> dict[str, Any]:
    """Return what predictions depend on, apart from the judge."""
    tests = []
    for benchmark in settings.benchmarks:
        path, images = data_of(root, benchmark)
        tests.append(
            benchmark.model_dump(exclude={"final_path", "final_images"}) | {"files": stamps(root, path, images)}
        )
    return {"version": VERSION, "seed": settings.seed, "benchmarks": tests}


def with_test_data(settings: Settings) -> Settings:
    """Return the settings with every benchmark's test data in place of its development data.

    Raises:
        RunError: there is no benchmark, or one has no test data.
    """
    if not settings.benchmarks:
        raise RunError("the settings name no benchmarks, so there is no test data to evaluate on")
    tests = []
    for benchmark in settings.benchmarks:
        if benchmark.final_path is None:
            raise RunError(f"benchmark {benchmark.name} has no final_path, so there is no test data to evaluate on")
        tests.append(benchmark.model_copy(update={"path": benchmark.final_path, "images": benchmark.final_images}))
    return settings.model_copy(update={"benchmarks": tests})


def load(settings: Settings, run: Run, benchmark: Benchmark) -> list[Row]:
    """Return the labelled rows of a benchmark."""
    return SUITES[benchmark.name].load(*data_of(DataRoot.of(settings, run), benchmark))[: benchmark.rows]


def data_of(root: DataRoot, benchmark: Benchmark) -> tuple[Path, Path | None]:
    """Return where a benchmark's rows and images are."""
    images = None if benchmark.images is None else Path(benchmark.images)
    return Path(root.resolve(benchmark.path)), images


def run(context: RunContext) -> Counts:
    """Ask the pending judges the questions of every benchmark, side by side; a table of predictions each."""
    settings = context.settings
    eval_sets = [
        EvalSet(benchmark.name, load(settings, context.run, benchmark), benchmark.protocols, benchmark.draws)
        for benchmark in settings.benchmarks
    ]
    pixels, judge_runs = judge_pixels(settings), []
    for table in context.pending:
        name, target = _judge(table), context.table(table)
        judge, earlier = context.trained_judge(JUDGES[name]), context.earlier(table, target)
        judge_runs.append(JudgeRun(judge, name, target, pixels, earlier=earlier))
    counts = predict(
        judge_runs,
        eval_sets,
        context.pool_progress(),
        seed=settings.seed,
        max_error_fraction=settings.max_error_fraction,
        retry=context.retry,
    )
    return {table: {**counts[_judge(table)], "verdicts": _log_verdicts(context, table)} for table in context.pending}


def _log_verdicts(context: RunContext, table: str) -> dict[str, Any]:
    """Log how many of a judge's answers have a verdict, and return it for the manifest."""
    verdicts = count_stored(context.table(table))
    for line in describe(verdicts):
        context.log_for(table)(line)
    return store(verdicts)


def members(settings: Settings) -> list[str]:
    """Return the names of the judges that there are."""
    return [name for name, phase in JUDGES.items() if settings.has_phase2 or phase != "dpo"]


def _judge(table: str) -> str:
    return table.partition("/")[2]


def inputs(settings: Settings, table: str) -> dict[str, str]:
    """Return the phase that makes the judge; nothing for the base."""
    del settings
    phase = JUDGES[_judge(table)]
    return {} if phase is None else {phase: phase}


def fingerprint_inputs(settings: Settings, root: DataRoot, table: str) -> dict[str, Any]:
    """Return what the predictions of a judge depend on, apart from a training."""
    base = {"weights": weights_fingerprint(settings.judge.path, settings.judge.revision)}
    phase = JUDGES[_judge(table)]
    weights = base if phase is None else serving_inputs(settings, phase)
    return {"judge": judge_inputs(settings) | weights, **benchmark_inputs(settings, root)}


def row_facts(cause: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return what a prediction depends on: not which questions are asked."""
    return {name: value for name, value in cause.items() if name != "benchmarks"}


STAGE = Stage(
    name="evaluate",
    members=members,
    inputs=inputs,
    fingerprint_inputs=fingerprint_inputs,
    run=run,
    reservations=judge_reservations("evaluate"),
    models=judge_models,
    retryable="evaluate",
    row_facts=row_facts,
)
