"""`carevl compare` from beginning to end: tries on the first seed, every arm with every seed, figures, test data."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from multiprocessing.pool import ThreadPool
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from carevl.compare import report, routing
from carevl.compare.arms import OURS, RATES, Arm, Budget, at_threshold, chosen
from carevl.compare.guarantee import RESAMPLES, to_train
from carevl.compare.report import Cell
from carevl.compare.stages import BENCHMARK, on_benchmark
from carevl.compare.trials import ArmRunner
from carevl.data.drawn import draw
from carevl.models.locate import prepare_models
from carevl.pipeline.admission import admit
from carevl.pipeline.check import check_record, check_settings
from carevl.pipeline.downloads import models_by_setting
from carevl.pipeline.keys import stage_keys
from carevl.pipeline.results import COMPARISON
from carevl.settings.schemes import split_scheme
from carevl.store.damage import encode_json, read_json
from carevl.store.run import Run, RunError
from carevl.store.table import write_atomically

if TYPE_CHECKING:
    from carevl.settings.tree import Settings

Argument = TypeVar("Argument")
Result = TypeVar("Result")


@dataclass(frozen=True)
class Plan:
    """What is compared.

    `tries` learning rates of each arm are tried on the first of `seeds` seeds; `sweep` also trains at two other
    thresholds of the router; `resamples` of the calibration tell whether a guaranteed precision is kept; `at_once` arms
    are made side by side.
    """

    arms: Sequence[str] = ()
    seeds: int = 5
    tries: int = 2
    sweep: bool = False
    resamples: int = RESAMPLES
    at_once: int = 1


@dataclass(frozen=True)
class Final:
    """Test data: scenes drawn anew with this seed, or the benchmark's own test data without one."""

    world_seed: int | None


def check(settings: Settings, plan: Plan, final: Final | None) -> None:
    """Refuse what cannot be compared, before anything runs.

    Raises:
        UserError: an arm or number that there is not; settings without labelled data, benchmark or test data, or that
            no run can use.
    """
    check_settings(settings)
    chosen(plan.arms)
    if not 1 <= plan.tries <= len(RATES):
        raise RunError(f"compare: --tries {plan.tries}: there are 1 to {len(RATES)} learning rates to try")
    if plan.seeds < 1:
        raise RunError(f"compare: --seeds {plan.seeds}: at least one seed is needed")
    if not any(source.labels for source in settings.data.sources):
        raise RunError(
            "compare: no source has labels, so whether the router keeps its guarantee cannot be measured; give "
            "labelled data with data.sources.N.labels: true"
        )
    if settings.rounds > 1:
        raise RunError(f"compare: arms are trained in one round, and rounds is {settings.rounds}; set it to 1")
    [benchmark] = on_benchmark(settings).benchmarks
    if final is None:
        return
    drawn = split_scheme(benchmark.path) is not None
    if drawn and final.world_seed is None:
        raise RunError("compare: --final draws fresh test scenes; name their seed with --world-seed N")
    if not drawn and final.world_seed is not None:
        raise RunError(f"compare: --world-seed draws scenes, and {BENCHMARK} reads {benchmark.path}; leave it out")
    if not drawn and benchmark.final_path is None:
        raise RunError(f"compare: benchmark {BENCHMARK} has no final_path, so there is no test data to evaluate on")


def compare(
    settings: Settings, run: Run, plan: Plan, final: Final | None, log: Callable[[str], None]
) -> dict[str, Any]:
    """Make what is not there, computes every figure from stored rows, and writes `compare.json` and its pictures.

    Returns:
        What `compare.json` holds; see `report.build_tree`.

    Raises:
        UserError: as `check`, another process holds the run directory, or a stage cannot be made.
    """
    check(settings, plan, final)
    with run.lock():
        check_record(settings, run)
        draw(settings, run)
        tables = list(stage_keys(settings, run))
        admit(settings, tables)
        prepare_models(models_by_setting(settings, tables), log)
        if not run.settings.exists():
            run.remember(settings.model_dump(mode="json"))
        runner = ArmRunner(settings, run, log)
        routed = routing.measure(runner, plan.seeds, plan.resamples)
        comparison = _Comparison(runner, plan)
        arms = chosen(plan.arms)
        if plan.sweep:
            arms += [at_threshold(threshold) for threshold in to_train(routed["sweep"], routed["coverage"])]
        cells = comparison.all(arms)
        figures = report.build_tree(
            runner, cells, comparison.tried, [comparison.budgets[n] for n in sorted(comparison.budgets)], routed
        )
        file = run.root / COMPARISON
        stored = read_json(file, "move it away, with the figures on test data that it lists") if file.exists() else {}
        figures["final"] = stored.get("final", [])
        _write(file, figures)
        if final is not None:
            figures["final"].append(_final(runner, cells, final, plan.at_once))
            _write(file, figures)
        for picture in report.draw(figures, run.root / "figures"):
            log(f"wrote {picture}")
        log(f"wrote {file}")
    return figures


def _write(file: Path, figures: dict[str, Any]) -> None:
    write_atomically(file, encode_json(figures))


@dataclass
class _Comparison:
    """Every arm with every seed."""

    runner: ArmRunner
    plan: Plan
    tried: dict[str, dict[float, float]] = field(default_factory=dict)
    """Arm to its learning rates, with the strict accuracy of each on the first seed."""
    budgets: dict[int, Budget] = field(default_factory=dict)
    """Tokens that CAREVL trained on, by number of the seed."""

    def all(self, arms: Sequence[Arm]) -> dict[str, list[Cell]]:
        """Arm to its trials, one per seed."""
        trained = list(arms)
        if any(arm.tokens != "own" for arm in arms) and OURS not in trained:
            self.runner.log(f"{OURS.name} is trained as well: its tokens are the budget of the other arms")
            trained.append(OURS)
        others = [arm for arm in trained if arm != OURS]
        cells: dict[str, dict[int, Cell]] = {arm.name: {} for arm in trained}
        later = range(1, self.plan.seeds)
        # Tries come first, and with each seed CAREVL, whose tokens are the budget of the others.
        for lot in (
            [(arm, 0) for arm in trained if arm == OURS],
            [(arm, 0) for arm in others],
            [(arm, number) for number in later for arm in trained if arm == OURS],
            [(arm, number) for number in later for arm in others],
        ):
            for arm, number, cell, seconds in self._make_lot(lot, cells):
                cells[arm.name][number] = cell
                if arm == OURS:
                    self.budgets[number] = cell.trial.budget
                    if number == 0:
                        self._log_cost(cell, trained)
                n_done = sum(map(len, cells.values()))
                about = f"[{n_done}/{len(trained) * self.plan.seeds}] {arm.name}, seed {number}"
                self.runner.log(f"{about}: strict {cell.strict:.3f}, {seconds:.0f} s")
        return {arm.name: [cells[arm.name][number] for number in range(self.plan.seeds)] for arm in arms}

    def _make_lot(
        self, lot: Sequence[tuple[Arm, int]], cells: dict[str, dict[int, Cell]]
    ) -> Iterator[tuple[Arm, int, Cell, float]]:
        """Make cells that need nothing of each other, `at_once` side by side; yield each with its seconds."""

        def make(assignment: tuple[Arm, int]) -> tuple[Arm, int, Cell, float]:
            arm, number = assignment
            started = time.monotonic()
            return arm, number, self._cell(arm, number, cells[arm.name].get(0)), time.monotonic() - started

        yield from _run_side_by_side(make, lot, self.plan.at_once)

    def _cell(self, arm: Arm, number: int, of_first_seed: Cell | None) -> Cell:
        if not arm.trained:
            return of_first_seed if arm.judge == "base" and of_first_seed else self._trial(arm, number, 1.0)
        if number == 0:
            cells = [self._trial(arm, 0, rate) for rate in self._rates(arm)]
            self.tried[arm.name] = {cell.trial.rate: cell.strict for cell in cells}
            return max(cells, key=lambda cell: cell.strict)
        rates = self.tried[arm.name]
        return self._trial(arm, number, max(rates, key=lambda rate: rates[rate]))

    def _rates(self, arm: Arm) -> Sequence[float]:
        """Return the learning rates that an arm tries; another threshold takes the one that suited ours."""
        if arm.labels is not None and arm.labels.rule == "threshold":
            ours = self.tried[OURS.name]
            return [max(ours, key=lambda rate: ours[rate])]
        return RATES[: self.plan.tries]

    def _trial(self, arm: Arm, number: int, rate: float) -> Cell:
        trial = self.runner.train(arm, number, rate, self.budgets.get(number))
        return Cell(trial, self.runner.ask(trial))

    def _log_cost(self, cell: Cell, arms: Sequence[Arm]) -> None:
        """Return the measured seconds of CAREVL, and what that means for all arms and seeds."""
        took = cell.trial.seconds(self.runner.run)
        asking, ours = took.get("evaluate", 0.0), sum(took.values())
        labelling = took.get("judgments", 0.0)
        training = took.get("sft", 0.0) + took.get("dpo", 0.0) + asking
        others = sum(
            training if arm.judge == "phase1" else took.get("dpo", 0.0) + asking
            for arm in arms
            if arm.trained and arm != OURS
        )
        seconds = self.plan.seeds * (ours + others) + (self.plan.tries - 1) * (ours + others - labelling)
        stages = ", ".join(f"{name} {took[name]:.0f}" for name in took if took[name] >= 1)
        minutes, at_once = seconds / 60, self.plan.at_once
        shared = "" if at_once == 1 else f", {minutes / at_once:.0f} min if {at_once} at once do not slow each other"
        self.runner.log(
            f"{OURS.name} took {ours:.0f} s with one seed ({stages}); {len(arms)} arms with {self.plan.seeds} seeds "
            f"and {self.plan.tries} tries: about {minutes:.0f} min of work{shared}, less what is there already"
        )


def _run_side_by_side(make: Callable[[Argument], Result], lot: Iterable[Argument], at_once: int) -> Iterator[Result]:
    """Yield what is made of each of a lot, `at_once` of them side by side."""
    if at_once == 1:
        yield from map(make, lot)
        return
    with ThreadPool(at_once) as pool:  # of daemon threads: an interrupt does not wait for them
        yield from pool.imap_unordered(make, lot)


def _final(runner: ArmRunner, cells: dict[str, list[Cell]], final: Final, at_once: int) -> dict[str, Any]:
    """Evaluate the trained judges on test data."""
    [benchmark] = on_benchmark(runner.settings).benchmarks
    path, images = benchmark.final_path, benchmark.final_images
    scheme = split_scheme(benchmark.path)
    if scheme is not None and final.world_seed is not None:
        path = str(scheme[0].draw_test(runner.run.root, final.world_seed))
    tests = replace(runner, path=path, images=images)
    distinct = {id(cell): cell for of_arm in cells.values() for cell in of_arm}  # base is one cell for all seeds

    def ask(cell: Cell) -> tuple[int, Cell]:
        return id(cell), Cell(cell.trial, tests.ask(cell.trial))

    answers = dict(_run_side_by_side(ask, distinct.values(), at_once))
    answered = {name: [answers[id(cell)] for cell in of_arm] for name, of_arm in cells.items()}
    when = datetime.now(UTC).isoformat(timespec="seconds")
    return {"time": when, "world_seed": final.world_seed, "data": path, **report.compare_arms(tests, answered)}
