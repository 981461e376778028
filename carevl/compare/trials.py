"""Trains and asks: one arm, with one seed and one learning rate, to its outcomes on the benchmark."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any

import pyarrow.compute as pc

from carevl.benchmarks.predictions import from_table
from carevl.compare import outcomes
from carevl.compare.arms import OURS, Arm, Budget, with_seed
from carevl.compare.chain import Causes, asked, chain, data, on_benchmark
from carevl.compare.experts import probabilities
from carevl.compare.stages import makers, run_stages
from carevl.stages import evaluate
from carevl.stages.base import Context
from carevl.stages.makers import MAKERS
from carevl.store.run import Run
from carevl.training.progress import read_log

if TYPE_CHECKING:
    from carevl.benchmarks.rows import Row
    from carevl.settings import Settings
    from carevl.settings.data import Benchmark

Say = Callable[[str], None]
_PHASE1 = ("router", "judgments", "route", "demonstrate", "sft")
_PHASE2 = ("sample", "select", "dpo")


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
    causes: Causes
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
        return self.causes[list(self.phases)[-1]].fingerprint if self.phases else None

    def seconds(self, where: Run) -> dict[str, float]:
        """Seconds that each stage took when it was made, those that other arms share too."""
        second = _PHASE2 if self.arm.judge == "phase2" else ()
        made = {name: where.table(self.causes[name]).manifest for name in (*_PHASE1, *second, f"evaluate/{self.judge}")}
        return {name.split("/")[0]: manifest["seconds"] for name, manifest in made.items() if manifest}


@dataclass(frozen=True)
class Bench:
    """Makes trials in a run directory, whose lock is held."""

    settings: Settings
    where: Run
    say: Say
    path: str | None = None
    """Of other data to ask about than the development data, with their `images`."""
    images: str | None = None

    @cached_property
    def shared(self) -> Causes:
        """Items, captions and scores, made when first asked for."""
        causes = data(self.settings, self.where)
        run_stages(Context(self.settings, self.where, causes, self.say), list(causes), MAKERS)
        return data(self.settings, self.where)

    @property
    def benchmark(self) -> Benchmark:
        """What judges are asked about."""
        return self._tests(self.settings).benchmarks[0]

    @cached_property
    def rows(self) -> list[Row]:
        """The benchmark's rows."""
        return evaluate.load(self.settings, self.where, self.benchmark)

    def routed(self, number: int) -> Context:
        """CAREVL's stages with the seed of this number, the router's made."""
        trial = self._begun(OURS, number, 1.0, None)
        run_stages(self._context(trial), ["router"], makers(None))
        return self._context(trial)

    def train(self, arm: Arm, number: int, rate: float = 1.0, budget: Budget | None = None) -> Trial:
        """Makes an arm's judge with the seed of this number."""
        trial = self._begun(arm, number, rate, budget)
        if not arm.trained:
            return trial
        context, making = self._context(trial), makers(arm.labels)
        run_stages(context, _PHASE1, making)
        judge, trained = "phase1", ["sft"]
        if arm.judge == "phase2":
            *choosing, training = _PHASE2
            run_stages(context, choosing, making)
            if (context.table("select").manifest or {})["rows_out"]:
                run_stages(context, [training], making)
                judge, trained = "phase2", ["sft", "dpo"]
            else:
                context.say("no pair of judgments to prefer: phase 2 leaves the judge as it is")
        logs = {name: read_log(context.table(name).directory / "steps.jsonl") for name in trained}
        return replace(trial, judge=judge, phases=logs)

    def ask(self, trial: Trial) -> outcomes.Outcomes:
        """What the benchmark's rows say of a trial's judge."""
        tests = self._tests(trial.settings)
        if trial.arm.judge == "experts":
            context = replace(self._context(trial), causes=self.shared)
            return outcomes.of_probabilities(self.rows, probabilities(context, tests, self.rows))
        causes = asked(trial.causes, tests, self.where)
        name = f"evaluate/{trial.judge}"
        context = replace(self._context(trial), settings=tests, causes=causes)
        run_stages(context, [name], MAKERS)
        predictions = context.table(name).read()
        return outcomes.of_predictions(
            self.rows, from_table(predictions.filter(pc.equal(predictions["protocol"], "strict")))
        )

    def _begun(self, arm: Arm, number: int, rate: float, budget: Budget | None) -> Trial:
        settings = arm.settings(with_seed(self.settings, number), rate, budget)
        causes = chain(settings, arm.labels, self.where, self.shared)
        return Trial(arm, number, rate, settings, asked(causes, self._tests(settings), self.where), "base")

    def _tests(self, settings: Settings) -> Settings:
        return on_benchmark(settings, self.path, self.images)

    def _context(self, trial: Trial) -> Context:
        who = f"{trial.arm.name}, seed {trial.settings.seed}"
        rate = "" if trial.rate == 1 else f", rate x {trial.rate:g}"
        return Context(trial.settings, self.where, trial.causes, lambda line: self.say(f"{who}{rate}: {line}"))
