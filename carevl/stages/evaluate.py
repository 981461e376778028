"""Stages `evaluate/…`: base, phase-1 and phase-2 judge on every benchmark of the settings."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from carevl.benchmarks import BENCHMARKS
from carevl.benchmarks.run import VERSION, Asked, Exam, predict
from carevl.data.drawn import DataRoot
from carevl.stages.ingest import stamps
from carevl.store.run import Run, RunError

if TYPE_CHECKING:
    from carevl.benchmarks.rows import Row
    from carevl.settings import Settings
    from carevl.settings.data import Benchmark
    from carevl.settings.models import Judge
    from carevl.stages.base import Context

JUDGES: dict[str, str | None] = {"base": None, "phase1": "sft", "phase2": "dpo"}
"""Judge to the stage that makes it."""


def facts(settings: Settings, root: DataRoot) -> dict[str, Any]:
    """What predictions depend on, apart from the judge."""
    tests = []
    for benchmark in settings.benchmarks:
        path, images = data_of(root, benchmark)
        tests.append(
            benchmark.model_dump(exclude={"final_path", "final_images"}) | {"files": stamps(root, path, images)}
        )
    return {"version": VERSION, "seed": settings.seed, "benchmarks": tests}


def final(settings: Settings) -> Settings:
    """The settings with every benchmark's test data in place of its development data.

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


def load(settings: Settings, where: Run, benchmark: Benchmark) -> list[Row]:
    """The labelled rows of a benchmark."""
    return BENCHMARKS[benchmark.name].load(*data_of(DataRoot.of(settings, where), benchmark))[: benchmark.rows]


def data_of(root: DataRoot, benchmark: Benchmark) -> tuple[Path, Path | None]:
    """Where a benchmark's rows and images are."""
    images = None if benchmark.images is None else Path(benchmark.images)
    return Path(root.resolve(benchmark.path)), images


def run_evaluations(context: Context, judges: Mapping[str, Judge], *, retry: bool = False) -> dict[str, dict[str, int]]:
    """Asks judges the questions of every benchmark, side by side; a table of predictions each.

    Args:
        judges: stage to judge.
        retry: as for `predict`.

    Returns:
        Stage to its counts.
    """
    settings = context.settings
    tests = [
        Exam(BENCHMARKS[benchmark.name], load(settings, context.where, benchmark), benchmark.protocols, benchmark.draws)
        for benchmark in settings.benchmarks
    ]
    counts = predict(
        [Asked(judge, name.split("/")[1], context.table(name)) for name, judge in judges.items()],
        tests,
        context.progress(),
        seed=settings.seed,
        max_error_fraction=settings.max_error_fraction,
        retry=retry,
    )
    return {name: counts[name.split("/")[1]] for name in judges}
