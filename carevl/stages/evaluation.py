"""Stages `evaluate/…`: base, phase-1 and phase-2 judge on every benchmark of the settings."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from carevl.benchmarks import BENCHMARKS
from carevl.runs import Run, RunError
from carevl.stages import evaluate
from carevl.stages.ingest import resolve, stamps

if TYPE_CHECKING:
    from carevl.benchmarks.rows import Row
    from carevl.config import Benchmark, Judge, Settings
    from carevl.stages.context import Context

JUDGES: dict[str, str | None] = {"base": None, "phase1": "sft", "phase2": "dpo"}
"""Judge to the stage that makes it."""


def facts(settings: Settings, where: Run) -> dict[str, Any]:
    """What predictions depend on, apart from the judge."""
    tests = []
    for benchmark in settings.benchmarks:
        path, images = data_of(settings, where, benchmark)
        tests.append(benchmark.model_dump(exclude={"final_path", "final_images"}) | {"files": stamps(path, images)})
    return {"version": evaluate.VERSION, "seed": settings.seed, "benchmarks": tests}


def final(settings: Settings) -> Settings:
    """The settings with every benchmark's test data in place of its development data.

    Raises:
        RunError: a benchmark has no test data.
    """
    tests = []
    for benchmark in settings.benchmarks:
        if benchmark.final_path is None:
            raise RunError(f"benchmark {benchmark.name} has no final_path, so there is no test data to evaluate on")
        tests.append(benchmark.model_copy(update={"path": benchmark.final_path, "images": benchmark.final_images}))
    return settings.model_copy(update={"benchmarks": tests})


def load(settings: Settings, where: Run, benchmark: Benchmark) -> list[Row]:
    """The labelled rows of a benchmark."""
    return BENCHMARKS[benchmark.name].load(*data_of(settings, where, benchmark))[: benchmark.rows]


def data_of(settings: Settings, where: Run, benchmark: Benchmark) -> tuple[Path, Path | None]:
    """Where a benchmark's rows and images are."""
    images = None if benchmark.images is None else Path(benchmark.images)
    return Path(resolve(settings, where, benchmark.path)), images


def run_evaluation(context: Context, name: str, judge: Judge, *, retry: bool = False) -> dict[str, int]:
    """Asks a judge the questions of every benchmark; one table of predictions each.

    Args:
        retry: as for `evaluate.predict`.
    """
    counts = {"rows_in": 0, "rows_out": 0, "errors": 0}
    settings = context.settings
    for benchmark in settings.benchmarks:
        done = evaluate.predict(
            judge,
            BENCHMARKS[benchmark.name],
            load(settings, context.where, benchmark),
            benchmark.protocols,
            context.table(name, benchmark.name),
            context.progress(),
            name=name.removeprefix("evaluate/"),
            draws=benchmark.draws,
            seed=settings.seed,
            max_error_fraction=settings.max_error_fraction,
            retry=retry,
        )
        for key in counts:
            counts[key] += done[key]
    return counts
