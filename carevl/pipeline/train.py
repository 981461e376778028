"""Train a judge on the targets and pairs of a finished run, whatever model it is; nothing but the two phases is run.

The judge of the run wrote the targets, and its phase-1 judge wrote the pairs. For another model both are off-policy: it
imitates, and prefers among, judgments that it would not have written itself. A whole run with it makes its own.

```
DIR/sft/FINGERPRINT/ · DIR/dpo/FINGERPRINT/ · DIR/judge/
```
"""

from __future__ import annotations

import shlex
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from carevl.cluster.connect import ray_cluster
from carevl.data.drawn import DataRoot
from carevl.models.locate import prepare_models
from carevl.pipeline.admission import admit
from carevl.pipeline.check import check_training
from carevl.pipeline.downloads import models_by_setting
from carevl.pipeline.keys import derive_keys, load_run
from carevl.pipeline.publish import publish
from carevl.pipeline.results import REHEARSAL
from carevl.pipeline.run import StageReport, run_stage
from carevl.settings.loader import fill, load_settings
from carevl.settings.tree import Settings
from carevl.stages import dpo, sft
from carevl.stages.base import RunContext
from carevl.store.run import Run, RunError
from carevl.store.stage_key import StageKey
from carevl.store.table import Table

if TYPE_CHECKING:
    from carevl.stages.base import Stage

PHASES = (sft.STAGE, dpo.STAGE)
_OF_TRAINING = ("judge", "sft", "dpo", "cluster")
"""Groups of settings that a training has of its own; the rest belongs to the rows."""
_FACTS = ("loss", "rewards/accuracies", "dev_accuracy", "parse_rate")
"""Facts of a last step that the card has."""


@dataclass(frozen=True)
class TrainingDirectory(Run):
    """A directory of trained judges; the tables that they are trained on lie in the directory of a run."""

    rows: Run

    def table_of(self, stage: str, fingerprint: str) -> Table:
        own = any(stage == phase.name for phase in PHASES)
        return super().table_of(stage, fingerprint) if own else self.rows.table_of(stage, fingerprint)


def training_settings(judge: str, rows: Path, source: str | None, overrides: Sequence[str]) -> tuple[Settings, Run]:
    """Return the settings of a training, and the run whose rows it is trained on.

    Args:
        judge: the model that is trained, as in the settings.
        rows: the directory of a run.
        source: a preset or a YAML file whose `judge`, `sft`, `dpo` and `cluster` hold; those of the run when None.
        overrides: as for `load_settings`.

    Raises:
        RunError: `rows` is not the directory of a run.
        SettingsError: as `load_settings`.
    """
    settings, run = load_run(rows)
    tree = settings.model_dump(mode="json")
    if source is not None:
        tree |= load_settings(source).model_dump(mode="json", include=set(_OF_TRAINING))
    tree["judge"] |= {"path": judge, "revision": None}
    return fill(Settings, tree, overrides), run


def train_judge(
    settings: Settings, rows: Run, out: Run, log: Callable[[str], None], until: str | None = None
) -> list[StageReport]:
    """Train the judge of the settings in both phases, and publish it as `out/judge`.

    Called again after an interruption it goes on; a phase that is finished is not trained again unless something that
    it depends on has changed.

    Args:
        rows: the run whose targets and pairs are trained on.
        until: the last phase, `sft` or `dpo`; both when None.

    Raises:
        SettingsError: the judge or the settings cannot be used; nothing was written.
        RunError: `out` is the directory of a run or held by another process, the run has no targets or no pairs, or a
            phase asks for more than the cluster has.
    """
    phases = PHASES if until is None else PHASES[: [phase.name for phase in PHASES].index(until) + 1]
    if out.settings.exists():
        raise RunError(f"{out.root} is the directory of a run, whose judge would be replaced; choose another --out")
    check_training(settings)
    found = find_rows(rows, phases)
    directory = TrainingDirectory(out.root, rows)
    if settings.cluster.rehearse:
        log(REHEARSAL)
    with directory.lock():
        keys = derive_keys(settings, directory, DataRoot.of(settings, rows), phases, found)
        names = [phase.name for phase in phases]
        pending = [name for name in names if directory.action(keys[name])[0] != "skip"]
        with ray_cluster(settings.cluster):
            admit(settings, pending, phases)
            if prepare_models(models_by_setting(settings, pending, phases), log):
                check_training(settings)  # with what could not be read of the judge before
            context = RunContext(settings, directory, keys, log)
            reports = [report for phase in phases for report in run_stage(context, phase)]
        writer = load_run(rows.root)[0].judge.path
        publish(
            [context.table(name).directory for name in names],
            settings.judge.path,
            out.root / "judge",
            directory.version(keys[names[-1]]),
            list(_figures(context, names)),
            method=_method(writer, names),
            measured="These are figures of the training; `carevl evaluate` asks the judge what a benchmark asks.",
        )
        log(f"{'judge':16s} {out.root / 'judge'}")
    return reports


def find_rows(rows: Run, phases: Sequence[Stage] = PHASES) -> dict[str, StageKey]:
    """Return the keys of the tables of a run that phases are trained on: its newest finished targets and pairs.

    Raises:
        RunError: there are none, or they are about other items; a sentence that says which.
    """
    targets = _finished(rows, "demonstrate", "targets", "phase 1")
    found = {"demonstrate": targets, "ingest": rows.origin(targets, "ingest")}
    if dpo.STAGE in phases:
        pairs = found["select"] = _finished(rows, "select", "", "phase 2")
        if rows.origin(pairs, "ingest")["fingerprint"] != found["ingest"]["fingerprint"]:
            raise RunError(
                f"{rows.root}: its pairs are about items of another reading of the sources than its targets; bring the "
                f"run up to date with: carevl run {rows.settings} --run-dir {rows.root}"
            )
    return {name: StageKey(manifest["stage"], manifest["cause"]) for name, manifest in found.items()}


def _finished(rows: Run, stage: str, below: str, phase: str) -> dict[str, Any]:
    """Return the manifest of the newest finished table of a stage that has rows for a phase."""
    what = {"demonstrate": "targets", "select": "pairs"}[stage]
    advice = "" if stage == "demonstrate" else "; --until sft trains phase 1 alone"
    manifest = rows.latest(stage)
    if manifest is None:
        raise RunError(
            f"{rows.root} has no {what} to train {phase} on: its stage {stage} is not finished; `carevl run` it first"
            f"{advice}"
        )
    table = Table(rows.table_of(stage, manifest["fingerprint"]).directory / below)
    if not any(table.read(number, ["item_id"]).num_rows for number in table.parts()):
        raise RunError(f"{rows.root} has no {what} to train {phase} on: its stage {stage} left none{advice}")
    return manifest


def _method(writer: str, phases: Sequence[str]) -> str:
    imitation = f"imitation of judgments of `{writer}` where text reward models are sure of the label (phase 1)"
    if phases[-1] == sft.STAGE.name:
        return imitation
    return (
        f"{imitation}, then DPO on judgments of the rest that `{writer}` wrote after its own phase 1 (phase 2). What "
        "another judge wrote is off-policy for this one"
    )


def _figures(context: RunContext, phases: Sequence[str]) -> Iterator[str]:
    if context.settings.cluster.rehearse:
        yield REHEARSAL
    for name in phases:
        manifest: Mapping[str, Any] = context.table(name).manifest or {}
        last = manifest["last_step"]
        facts = ", ".join(f"{fact} {last[fact]:.4g}" for fact in _FACTS if fact in last)
        yield f"{name:4s} {manifest['rows_out']} rows, {manifest['steps']} steps; at the last: {facts}"


def next_steps(settings: Settings, rows: Run, out: Run) -> Iterator[str]:
    """Yield the commands that ask the judge and evaluate it on the benchmarks of the rows' run."""
    judge = str(out.root / "judge")
    yield _command("judge", judge, "--image", "FILE", "--question", "TEXT", "--response", "TEXT", "--response", "TEXT")
    root = DataRoot.of(settings, rows)
    for benchmark in settings.benchmarks:
        images = [] if benchmark.images is None else ["--images", benchmark.images]
        place = ["--benchmark", benchmark.name, "--data", root.resolve(benchmark.path), *images]
        engine = ["--engine", settings.judge.engine]
        yield _command("evaluate", "--judge", judge, *place, *engine, "--out", f"{out.root}/eval/{benchmark.name}")


def _command(*words: str) -> str:
    return shlex.join(["carevl", *words])
