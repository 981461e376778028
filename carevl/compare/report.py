"""A comparison's estimates as the tree of `compare.json`, as text for the terminal, and as pictures."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from carevl.benchmarks.rows import resampling_units
from carevl.compare.arms import OURS, Budget
from carevl.compare.outcomes import FIGURES, Outcomes, Resamples, estimate, over_seeds
from carevl.data.drawn import DataRoot
from carevl.data.images import image_id
from carevl.data.truth import read_truth
from carevl.pipeline import results
from carevl.stages.base import item_inputs
from carevl.stats.estimate import format_estimate
from carevl.training.progress import read_validations

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from carevl.compare.trials import ArmRunner, Trial
    from carevl.stats.bootstrap import FloatArray
    from carevl.stats.estimate import Estimate

Tree = dict[str, Any]


@dataclass(frozen=True)
class Cell:
    """An arm with one seed, and its outcomes on the benchmark."""

    trial: Trial
    outcomes: Outcomes

    @property
    def strict(self) -> float:
        """Return strict accuracy."""
        return float(self.outcomes["strict"].mean())


def build_tree(
    bench: ArmRunner,
    cells: Mapping[str, Sequence[Cell]],
    tried: Mapping[str, Mapping[float, float]],
    budgets: Sequence[Budget],
    routed: Mapping[str, Any],
) -> Tree:
    """Build what `compare.json` holds.

    Returns:
        `arms` and `differences` as `compare_arms`, each arm with its cost (`_cost`) and the strict accuracy
        of every learning rate that was `tried`; `routing`; `pairs` of CAREVL, means over seeds: how many there are, and
        where that is known the share whose chosen verdict is right, and how many of the others are ties; `tokens` that
        CAREVL trained on, by seed.
    """
    tree = compare_arms(bench, cells)
    for name, of_arm in cells.items():
        tree["arms"][name] |= _cost(bench, of_arm)
        if name in tried:
            tree["arms"][name]["tried"] = {f"{rate:g}": strict for rate, strict in tried[name].items()}
    ours = tree["arms"].get(OURS.name, {}).get("phase2", [])
    rights = [seed["right_way"]["value"] for seed in ours if "right_way" in seed]
    ties = _mean(seed["ties"] for seed in ours if "ties" in seed)
    pairs = {"count": _mean(seed["count"] for seed in ours), "right_way": _mean(rights), "ties": ties}
    inputs = {"settings": bench.settings.model_dump(mode="json"), "tokens": [asdict(budget) for budget in budgets]}
    return {**inputs, **tree, "routing": routed, "pairs": pairs}


def compare_arms(bench: ArmRunner, cells: Mapping[str, Sequence[Cell]]) -> Tree:
    """Estimate every arm on a benchmark, and how they differ.

    Returns:
        `arms`: per arm the figures of `outcomes.FIGURES`, and strict accuracy on the questions that a caption decides
        (`decidable`) and on the others, by `groups` and by `kinds`; each as `_stored`. `differences`: CAREVL less every
        other arm, and phase 1 less base, paired: both on the same resamples; `by_kind` of them: CAREVL less base.
        `judges`: arm to the fingerprint of its training, by seed.
    """
    subsets = _subsets(bench)
    n_seeds = max(map(len, cells.values()))
    drawn = Resamples.draw(n_seeds, resampling_units(bench.rows))
    values = {name: over_seeds([cell.outcomes for cell in of_arm]) for name, of_arm in cells.items()}
    arms = {name: _figures(drawn, value, subsets) for name, value in values.items()}
    differences: Tree = {}
    if OURS.name in values:
        means = {name: drawn.means(value["strict"]) for name, value in values.items()}
        others = [name for name in values if name != OURS.name]
        compared = [(OURS.name, name) for name in others]
        if means.keys() >= {"phase1", "base"}:
            compared.append(("phase1", "base"))
        differences = {f"{arm}_minus_{other}": _stored(means[arm] - means[other]) for arm, other in compared}
        if "base" in values:
            differences["by_kind"] = {
                kind: _stored(
                    drawn.means(_within(values[OURS.name]["strict"], rows))
                    - drawn.means(_within(values["base"]["strict"], rows))
                )
                for kind, rows in subsets["kinds"].items()
            }
    judges = {name: [cell.trial.made_by for cell in of_arm] for name, of_arm in cells.items()}
    return {"seeds": n_seeds, "rows": len(bench.rows), "judges": judges, "arms": arms, "differences": differences}


def _figures(drawn: Resamples, values: Outcomes, subsets: Mapping[str, Mapping[str, NDArray[np.bool_]]]) -> Tree:
    means = {name: drawn.means(values[name]) for name in FIGURES}
    means["ece"] = np.maximum(means["ece"], 0.0)  # the signs of its bins are the data's own, not a resample's
    figures: Tree = {name: _stored(mean) for name, mean in means.items()}
    strict = values["strict"]
    parts = {
        of: {name: _stored(drawn.means(_within(strict, rows))) for name, rows in named.items()}
        for of, named in subsets.items()
    }
    return {**figures, **parts.pop("caption"), **parts, "by_seed": strict.mean(axis=1).tolist()}


def _within(values: NDArray[np.float64], rows: NDArray[np.bool_]) -> NDArray[np.float64]:
    return np.where(rows, values, np.nan)


def _subsets(bench: ArmRunner) -> dict[str, dict[str, NDArray[np.bool_]]]:
    """Map `caption`, `groups` or `kinds` and a name to its rows, bool [n_rows]; only drawn worlds have kinds."""
    path = Path(DataRoot.of(bench.settings, bench.run).resolve(bench.benchmark.path))
    truths = read_truth(path.parent.parent)
    images = ["".join(image_id(image.read()) for image in row.images) for row in bench.rows]
    truth_of_row = [truths.get((image, row.question)) for image, row in zip(images, bench.rows, strict=True)]
    kinds = np.array([truth.kind if truth else "" for truth in truth_of_row])
    groups = np.array([row.group for row in bench.rows])
    return {
        "caption": {
            "decidable": np.array([truth is not None and truth.decidable for truth in truth_of_row]),
            "undecidable": np.array([truth is not None and not truth.decidable for truth in truth_of_row]),
        },
        "groups": {str(group): groups == group for group in np.unique(groups)},
        "kinds": {str(kind): kinds == kind for kind in np.unique(kinds) if kind},
    }


def _cost(bench: ArmRunner, cells: Sequence[Cell]) -> Tree:
    """Return tokens and steps by phase, sampled judgments, seconds by stage, and phase 2 by seed."""
    trials = [cell.trial for cell in cells]
    arm = trials[0].arm
    cost: Tree = {"about": arm.about}
    if not arm.trained:
        return cost
    cost["learning_rate_times"] = trials[-1].rate
    cost["tokens"] = _mean(trial.budget.total for trial in trials)
    cost["steps"] = _mean(sum(map(len, trial.phases.values())) for trial in trials)
    cost["seconds"] = trials[0].seconds(bench.run)
    if arm.judge == "phase2":
        cost["phase2"] = [_phase2(bench, trial) for trial in trials]
        cost["sampled_judgments"] = _mean(seed["sampled_judgments"] for seed in cost["phase2"])
    return cost


def _phase2(bench: ArmRunner, trial: Trial) -> Tree:
    """Count low pairs, judgments sampled of them, the pairs that they gave and from how many items, and the training.

    `guard` tells of the checkpoints that were looked at with what was held out or labelled: what was seen at each step,
    and the step whose judge was kept; None when there was nothing to look with.
    """
    from carevl.training.validation import CheckpointSelector

    tables = (*item_inputs(trial.settings), "route", "demonstrate", "select")
    causes = {name: trial.keys[name] for name in tables}
    figures = results.compute(trial.settings, bench.run, causes)
    sampled = (bench.run.table(trial.keys["sample"]).manifest or {})["rows_out"]
    log = trial.phases.get("dpo", [])
    seen = read_validations(log)
    guard = {"kept_step": CheckpointSelector(0, seen).best or len(log), "seen": seen} if seen else None
    low = {"low_pairs": figures["routing"]["low"], "sampled_judgments": sampled}
    return {"seed": trial.settings.seed, **low, **figures["pairs"], "steps": len(log), "guard": guard}


def _mean(numbers: Iterable[float]) -> float | None:
    values = list(numbers)
    return float(np.mean(values)) if values else None


_COLUMNS = ("strict", "single_order", "order_consistency", "ece", "decidable", "undecidable")


def format_lines(comparison: Tree) -> Iterator[str]:
    """Write the comparison in lines: means over rows and seeds with 95 % intervals."""
    yield from _table(comparison)
    yield from _costs(comparison["arms"])
    yield from _phase2_lines(comparison["arms"])
    yield from _routing(comparison["routing"], comparison["settings"]["router"]["precision"])
    for final in comparison["final"]:
        drawn = "" if final["world_seed"] is None else f", scenes of seed {final['world_seed']}"
        yield from ("", f"on test data, {final['time']}{drawn}{_other_judges(comparison, final)}")
        yield from _table(final)


def _other_judges(comparison: Tree, final: Tree) -> str:
    """Name the arms whose judges on test data are not those of the comparison with the same seeds."""
    before, now = final.get("judges", {}), comparison["judges"]
    other = [
        name
        for name in final["arms"]
        if name in now and any(a != b for a, b in zip(before.get(name, ["unknown"]), now[name], strict=False))
    ]
    return f"; by judges other than those above: {', '.join(other)}" if other else ""


def _costs(arms: Tree) -> Iterator[str]:
    trained = {name: arm for name, arm in arms.items() if "tokens" in arm}
    if trained:
        yield from (
            "",
            f"{'trained on, per seed':20s}{'tokens':>12s}{'steps':>8s}{'sampled':>9s}{'rate x':>8s}{'seconds':>9s}",
        )
    for name, arm in trained.items():
        seconds = sum(arm["seconds"].values())
        sampled = arm.get("sampled_judgments") or 0.0
        counts = f"{arm['tokens']:12.0f}{arm['steps']:8.0f}{sampled:9.0f}{arm['learning_rate_times']:8g}{seconds:9.0f}"
        yield f"{name:20s}{counts}"


def _phase2_lines(arms: Tree) -> Iterator[str]:
    for name, arm in arms.items():
        if seeds := arm.get("phase2"):
            rights = [seed["right_way"]["value"] for seed in seeds if "right_way" in seed]
            low, items, count = (_mean(seed[key] for seed in seeds) for key in ("low_pairs", "items", "count"))
            guarded = [seed for seed in seeds if seed["guard"]]
            early = sum(seed["guard"]["kept_step"] < seed["steps"] for seed in guarded)
            guard = f"; guard: an earlier judge kept with {early} of {len(guarded)} seeds" if guarded else ""
            ties = _of_ties(_mean(seed["ties"] for seed in seeds if "ties" in seed))
            right = f"{_share(_mean(rights))} the right way{ties}"
            yield f"{name:20s}{low:.0f} low pairs, {items:.0f} items gave {count:.0f} pairs, {right}{guard}"


def _routing(routing: Tree, precision: float) -> Iterator[str]:
    yield from ("", "the router")
    right = f"{_share(routing['high_precision'])} of them right{_of_ties(routing['high_ties'])}"
    yield f"  high: {_share(routing['coverage'])} of the pairs, {right}"
    guarantee = routing["promise"]
    yield (
        f"  guarantee of {precision:g}: kept in {_share(guarantee['kept'])} of {guarantee['resamples']} "
        f"calibration resamples (given in {_share(guarantee['promised'])})"
    )
    yield f"  {'threshold':>10s}{'coverage':>10s}{'precision':>11s}{'truly':>8s}"
    for point in routing["sweep"]:
        right = f"{_share(point['precision']):>11s}{_share(point['true_precision']):>8s}"
        yield f"  {point['threshold']:10.2f}{_share(point['coverage']):>10s}{right}"


def _table(comparison: Tree) -> Iterator[str]:
    over = "images and seeds" if comparison["seeds"] > 1 else "images; one seed says nothing of other seeds"
    yield f"{comparison['rows']} pairs, {comparison['seeds']} seeds; 95 % intervals over {over}"
    yield f"{'':20s}" + "".join(f"{name:>24s}" for name in _COLUMNS)
    for name, arm in comparison["arms"].items():
        yield f"{name:20s}" + "".join(f"{format_estimate(_estimate(arm[column])):>24s}" for column in _COLUMNS)
    yield ""
    for name, figure in comparison["differences"].items():
        if name != "by_kind":
            yield f"{name.replace('_minus_', ' - '):44s}{format_estimate(_estimate(figure), sign=True):>27s}"
    for kind, figure in comparison["differences"].get("by_kind", {}).items():
        yield f"{f'{OURS.name} - base, {kind}':44s}{format_estimate(_estimate(figure), sign=True):>27s}"


def _stored(means: FloatArray) -> Tree:
    """Estimate from resamples, under the names of `compare.json`."""
    value = estimate(means)
    return {"mean": value["value"], "low": value["low"], "high": value["high"]}


def _estimate(stored: Tree) -> Estimate:
    return {"value": stored["mean"], "low": stored["low"], "high": stored["high"]}


def _of_ties(n: float | None) -> str:
    """Return how many of the labels are ties, for a share that counts them as wrong."""
    return "" if n is None else f" (wrong: {n:.0f} on ties)"


def _share(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"


def draw(comparison: Tree, directory: Path) -> list[Path]:
    """Draw strict accuracy by arm, and by kind where kinds are known; return the files."""
    from carevl.plots.arms import draw_arms, draw_kinds

    arms = comparison["arms"]
    files = draw_arms(directory / "strict_by_arm", {name: _estimate(arm["strict"]) for name, arm in arms.items()})
    kinds = {
        name: {kind: _estimate(figure) for kind, figure in arm["kinds"].items()}
        for name, arm in arms.items()
        if arm["kinds"]
    }
    return files + (draw_kinds(directory / "strict_by_kind", kinds) if kinds else [])
