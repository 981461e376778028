"""Trains and asks: one arm, with one seed and one learning rate, to its outcomes on the benchmark."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any

import pyarrow.compute as pc

from carevl.benchmarks.predictions import from_table
from carevl.compare import outcomes
from carevl.compare.arms import OURS, Arm, Budget, with_seed
from carevl.compare.experts import probabilities
from carevl.compare.stages import DATA_STAGES, PHASE1, arm_stages, choosing, on_benchmark, run_tables
from carevl.pipeline.keys import stage_keys
from carevl.stages import evaluate
from carevl.stages.base import RunContext
from carevl.store.damage import DamagedError
from carevl.store.listing import find_problems
from carevl.store.run import Run
from carevl.training.progress import STEPS, read_log

if TYPE_CHECKING:
    from carevl.benchmarks.rows import Row
    from carevl.settings.data import Benchmark
    from carevl.settings.tree import Settings
    from carevl.stages.base import Stage
    from carevl.store.stage_key import StageKey
    from carevl.store.table import Table


@dataclass(frozen=True)
class Trial:
    """A judge that was made.

    `judge` names it as `evaluate/…` does: an arm of phase 2 without a single pair to prefer ends with `phase1`.
    `phases` has the log of each training, a list of the facts of its steps.
    """

    arm: Arm
    number: int
    """Of the seed, from 0."""
    rate: float
    settings: Settings
    keys: Mapping[str, StageKey]
    judge: str
    phases: Mapping[str, list[dict[str, Any]]] = field(default_factory=dict)

    @property
    def budget(self) -> Budget:
        """Tokens that were trained on."""
        tokens = {name: sum(facts["tokens"] for facts in log) for name, log in self.phases.items()}
        return Budget(tokens.get("sft", 0), tokens.get("dpo", 0))

    @property
    def made_by(self) -> str | None:
        """The fingerprint of the last training; equal for equal judges, None for an arm that is not trained."""
        return self.keys[list(self.phases)[-1]].fingerprint if self.phases else None

    def seconds(self, run: Run) -> dict[str, float]:
        """Return seconds that each stage took when it was made, those that other arms share too."""
        second = (*choosing(self.settings), "dpo") if self.arm.judge == "phase2" else ()
        manifests = {name: run.table(self.keys[name]).manifest for name in (*PHASE1, *second, f"evaluate/{self.judge}")}
        return {name.split("/")[0]: manifest["seconds"] for name, manifest in manifests.items() if manifest}


@dataclass(frozen=True)
class ArmRunner:
    """Makes trials in a run directory, whose lock is held."""

    settings: Settings
    run: Run
    log: Callable[[str], None]
    path: str | None = None
    """Of other data to ask about than the development data, with their `images`."""
    images: str | None = None

    @cached_property
    def shared(self) -> Mapping[str, StageKey]:
        """Keys of items, captions and scores, which are made when first asked for."""
        keys = stage_keys(self.settings, self.run, DATA_STAGES)
        run_tables(RunContext(self.settings, self.run, keys, self.log), ["ingest"], DATA_STAGES)
        # Only after reading is it known whether the rows are those of an earlier reading.
        keys = stage_keys(self.settings, self.run, DATA_STAGES)
        run_tables(RunContext(self.settings, self.run, keys, self.log), list(keys), DATA_STAGES)
        return keys

    @property
    def benchmark(self) -> Benchmark:
        """What judges are asked about."""
        return self._tests(self.settings).benchmarks[0]

    @cached_property
    def rows(self) -> list[Row]:
        """The benchmark's rows."""
        return evaluate.load(self.settings, self.run, self.benchmark)

    def routed(self, number: int) -> RunContext:
        """Return CAREVL's tables with the seed of this number, the router's made."""
        context = self._context(self._plan(OURS, number, 1.0, None))
        run_tables(context, ["router"], arm_stages())
        return context

    def train(self, arm: Arm, number: int, rate: float = 1.0, budget: Budget | None = None) -> Trial:
        """Make an arm's judge with the seed of this number."""
        trial = self._plan(arm, number, rate, budget)
        if not arm.trained:
            return trial
        context, stages = self._context(trial), arm_stages(arm.labels, oracle=arm.oracle)
        run_tables(context, PHASE1, stages)
        judge, trained = "phase1", ["sft"]
        if arm.judge == "phase2":
            run_tables(context, choosing(trial.settings), stages)
            if (context.table("select").manifest or {})["rows_out"]:
                run_tables(context, ["dpo"], stages)
                judge, trained = "phase2", ["sft", "dpo"]
            else:
                context.log("no pair of judgments to prefer: phase 2 leaves the judge as it is")
        logs = {name: read_steps(context.table(name)) for name in trained}
        return replace(trial, judge=judge, phases=logs)

    def ask(self, trial: Trial) -> outcomes.Outcomes:
        """Return what the benchmark's rows say of a trial's judge."""
        tests = self._tests(trial.settings)
        if trial.arm.judge == "experts":
            context = replace(self._context(trial), keys=self.shared)
            return outcomes.of_probabilities(self.rows, probabilities(context, tests, self.rows))
        stages = arm_stages(trial.arm.labels, self.path, self.images, oracle=trial.arm.oracle)
        keys = self._keys(trial.settings, stages)
        table = f"evaluate/{trial.judge}"
        context = replace(self._context(trial), settings=tests, keys=keys)
        run_tables(context, [table], stages)
        predictions = context.table(table).read()
        return outcomes.of_predictions(
            self.rows, from_table(predictions.filter(pc.equal(predictions["protocol"], "strict")))
        )

    def _plan(self, arm: Arm, number: int, rate: float, budget: Budget | None) -> Trial:
        settings = arm.settings(with_seed(self.settings, number), rate, budget)
        keys = self._keys(settings, arm_stages(arm.labels, self.path, self.images, oracle=arm.oracle))
        return Trial(arm, number, rate, settings, keys, "base")

    def _keys(self, settings: Settings, stages: Sequence[Stage]) -> Mapping[str, StageKey]:
        return stage_keys(settings, self.run, stages, decided=self.shared)

    def _tests(self, settings: Settings) -> Settings:
        return on_benchmark(settings, self.path, self.images)

    def _context(self, trial: Trial) -> RunContext:
        name = f"{trial.arm.name}, seed {trial.settings.seed}"
        rate = "" if trial.rate == 1 else f", rate x {trial.rate:g}"
        return RunContext(trial.settings, self.run, trial.keys, lambda line: self.log(f"{name}{rate}: {line}"))


def read_steps(training: Table) -> list[dict[str, Any]]:
    """Return the facts of the steps of a finished training, by which tokens are counted.

    Raises:
        DamagedError: its log is not what was written, or is gone; no repair of a run brings it back.
    """
    listed = (training.manifest or {}).get("files", {})
    for name, problem in find_problems(training.directory, {STEPS: listed.get(STEPS, {})}, verify=True).items():
        way_out = f"tokens are counted by it: remove {training.directory}, which is then trained again"
        raise DamagedError(training.directory / name, problem, way_out)
    return read_log(training.directory / STEPS)
