"""What a stage is, and what it is handed when it runs."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from carevl.cluster.earlier_rows import EarlierTable
from carevl.cluster.jobs import PoolJob, Tally
from carevl.cluster.pools import run_jobs
from carevl.cluster.resources import supply
from carevl.models.engines.vllm_adapters import find_unread_adapters
from carevl.models.judge_spec import JudgeSpec
from carevl.models.locate import Weights, locate
from carevl.models.stored_weights import stored_dtype
from carevl.store.ingested import Ingested
from carevl.store.run import Run, fingerprint_of
from carevl.store.table import Table

if TYPE_CHECKING:
    from carevl.cluster.resources import Reservation
    from carevl.data.drawn import DataRoot
    from carevl.settings.models import Judge, Model
    from carevl.settings.training import Phase, Training
    from carevl.settings.tree import Settings
    from carevl.store.stage_key import StageKey
    from carevl.training.progress import Progress

Counts = Mapping[str, Mapping[str, Any]]
"""Table to what its manifest says of its rows: rows_in, rows_out, errors, and facts of its own."""


PARTS = ("part-*.parquet",)
"""The contents of a table that has its parts in its own directory."""


def no_members(settings: Settings) -> Sequence[str]:
    """Return the members of a stage that has one table."""
    del settings
    return ("",)


def phase2_members(settings: Settings) -> Sequence[str]:
    """Return the member of a stage that has one table, if there is a phase 2."""
    return ("",) if settings.has_phase2 else ()


def testimony_members(settings: Settings) -> Sequence[str]:
    """Return the member of a stage that has one table, if anybody testifies."""
    return ("",) if settings.testifies else ()


def no_reservations(settings: Settings) -> Sequence[Reservation]:
    """Return what a stage reserves that runs in the driver."""
    del settings
    return ()


@dataclass(frozen=True)
class LoadedModel:
    """A model whose weights a stage loads, and where to.

    Each of its actors or workers reserves `gpus` GPUs and holds the weights as numbers of `dtype` (`auto`: as they are
    stored), or one part of them where they are spread over `spread` GPUs. Where `bits` are given, most weights have so
    many.
    """

    setting: str
    model: Model
    reservation: str
    """Where the settings say what an actor or worker reserves."""
    dtype: str
    gpus: float
    spread: int
    relief: str
    """What would make the weights take less of a card."""
    bits: int | None = None
    phase: str = ""
    """The training phase that loads it; none where it answers."""
    training: Training | None = None
    """How that phase trains; None where it answers."""
    learns: bool = True
    """Whether the phase trains it, or asks it for log-probabilities alone."""


def no_models(settings: Settings, table: str) -> Sequence[LoadedModel]:
    """Return the models of a stage that loads none."""
    del settings, table
    return ()


def in_pool(setting: str, model: Model) -> LoadedModel:
    """Return a model that the actors of its own pool hold."""
    gpus, spread = model.pool.num_gpus, model.tensor_parallel
    relief = f"spread it with {setting}.tensor_parallel"
    return LoadedModel(setting, model, f"{setting}.pool", model.dtype, gpus, spread, relief)


def in_training(setting: str, model: Model, phase: str, training: Training) -> LoadedModel:
    """Return a model that the workers of a phase train."""
    spread = training.workers.count if training.spreads_weights else 1
    relief = f"spread it over more workers with {phase}.zero.stage 3"
    if training.lora and not training.base_bits:
        relief += f", set {phase}.lora.base_bits"
    gpus, bits = training.workers.num_gpus, training.base_bits
    return LoadedModel(setting, model, f"{phase}.workers", training.dtype, gpus, spread, relief, bits, phase, training)


def pixel_inputs(settings: Settings) -> dict[str, int]:
    """Return what a stage that reads pixels depends on of how they are read; nothing where images stay as they are."""
    pixels = settings.data.resize_pixels
    return {} if pixels is None else {"resize_pixels": pixels}


def asking_inputs(settings: Settings) -> dict[str, Any]:
    """Return how the judge is asked, where the settings say it; what its directory says is part of its weights."""
    asking = settings.judge.asking
    return {} if asking is None else {"asking": asking.model_dump(exclude_defaults=True)}


def judge_pixels(settings: Settings) -> int | None:
    """Return the most pixels of an image that the judge is shown: as set, or else as it was trained.

    What a judge was trained with is part of its weights' fingerprint.
    """
    pixels = settings.data.resize_pixels
    return JudgeSpec.of(settings.judge).resize_pixels if pixels is None else pixels


def reads(*tables: str, **roles: str) -> Callable[[Settings, str], Mapping[str, str]]:
    """Return the inputs of a stage that reads the same tables whatever the settings.

    Args:
        tables: tables that the stage calls by their own names.
        roles: what the stage calls a table, to its name.
    """
    inputs = {**{table: table for table in tables}, **roles}
    return lambda settings, table: inputs


def reads_items(*tables: str, **roles: str) -> Callable[[Settings, str], Mapping[str, str]]:
    """Return the inputs of a stage that reads items with their responses, and other tables as in `reads`."""
    rest = reads(*tables, **roles)

    def inputs(settings: Settings, table: str) -> Mapping[str, str]:
        return {**item_inputs(settings), **rest(settings, table)}

    return inputs


def item_inputs(settings: Settings) -> dict[str, str]:
    """Return the tables of the items: those of ingest, and those to which models gave responses, if they do."""
    return {name: name for name in ("ingest", *(("gather",) if settings.respond.models else ()))}


def without_inputs(cause: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return what rows depend on that are made of nothing but other rows, and by the settings."""
    return {name: value for name, value in cause.items() if name != "inputs"}


def is_16_bit(settings: Settings) -> bool:
    """Return whether the base judge is stored in 16 bits, or may be: a model that is not here, and trained in 16."""
    directory = Path(locate(settings.judge.path, settings.judge.revision))
    stored = stored_dtype(directory) if directory.is_dir() else None
    return (stored or settings.sft.dtype) in ("bfloat16", "float16")


def find_unserved(settings: Settings) -> str | None:
    """Return what has adapters that vLLM would leave out or compute as something else; None where there is nothing."""
    with_lora = [phase for phase in (settings.sft, settings.dpo) if phase.lora is not None]
    if any(phase.train != "language" for phase in with_lora):
        return "a vision tower or projector"
    return find_unread_adapters(settings.judge.path, settings.judge.revision) if with_lora else None


def serves_adapters(settings: Settings) -> bool:
    """Return whether judges that were trained with LoRA answer as base and adapter, not merged."""
    if settings.judge.serve != "auto":
        return settings.judge.serve == "adapter"
    return is_16_bit(settings) and not (settings.judge.engine == "vllm" and find_unserved(settings))


def serving_inputs(settings: Settings, phase: str | None) -> dict[str, Any]:
    """Return what the answers of the judge that a phase made depend on: in 16 bits, whether it was merged."""
    with_lora = phase is not None and getattr(settings, phase).lora is not None
    return {"serve": "adapter"} if with_lora and is_16_bit(settings) and serves_adapters(settings) else {}


def keeps_adapter(settings: Settings, before: Phase = "sft") -> bool:
    """Return whether DPO begins with an unmerged adapter, of the phase before it: in few bits, merging rounds it."""
    with_lora = getattr(settings, before).lora is not None and settings.dpo.lora is not None
    rounds = settings.dpo.dtype == "bfloat16" or settings.dpo.base_bits is not None or is_16_bit(settings)
    return with_lora and rounds


@dataclass(frozen=True)
class Stage:
    """One stage: what its tables depend on, what it asks of the cluster, and how they are made.

    A stage has one table, called as the stage is; or one for each of its members, called `STAGE/MEMBER`, which are made
    together. `plan`, `run`, `status`, `retry`, admission and the entry points in `ray_jobs/` are folds over a tuple of
    stages.
    """

    name: str
    inputs: Callable[[Settings, str], Mapping[str, str]]
    """(settings, table) to the tables that it is made from, by the role that they have there."""
    fingerprint_inputs: Callable[[Settings, DataRoot, str], Mapping[str, Any]]
    """(settings, where data lie, table) to everything else that its rows depend on, as JSON."""
    run: Callable[[RunContext], Counts]
    """Makes the tables of `RunContext.pending`."""
    reservations: Callable[[Settings], Sequence[Reservation]] = no_reservations
    models: Callable[[Settings, str], Sequence[LoadedModel]] = no_models
    """(settings, table) to the models whose weights are loaded to make it."""
    members: Callable[[Settings], Sequence[str]] = no_members
    retryable: str | None = None
    """Where failed rows can be made again alone: the name that their errors give the stage."""
    find_equal: Callable[[Run, StageKey], StageKey] | None = None
    """A key to that of a table which is there, or is begun, and whose rows are the same; itself where there is none."""
    row_facts: Callable[[Mapping[str, Any]], Mapping[str, Any]] | None = None
    """Fingerprint inputs, with those of its tables under `inputs`, to what every row depends on, whatever the others
    are: where it is equal in two tables, rows can be equal, too. None: no row is ever taken from an earlier table."""
    contents: Sequence[str] = ()
    """Patterns of the files below its directory that later stages read: where a table comes out as an earlier one, what
    was made from that stays. Nothing where no stage reads it, or where it says itself what it came out as."""
    directory: str | None = None
    """Where its tables lie in a run directory, if not by the stage's name."""
    errors_in: str = "."
    """Directory below a table's own whose rows carry its errors."""

    def tables(self, settings: Settings) -> list[str]:
        """Return the names of its tables."""
        return [_join(self.name, member) for member in self.members(settings)]

    def place(self, table: str) -> str:
        """Return the directory of one of its tables, below that of the run."""
        return _join(self.directory or self.name, table.removeprefix(self.name).removeprefix("/"))


_MOST_EARLIER = 8
"""Earlier tables that are looked through for rows; each costs reading a part."""


def _as_json(facts: Mapping[str, Any]) -> Any:
    return json.loads(json.dumps(facts))


def _join(stage: str, member: str) -> str:
    return f"{stage}/{member}" if member else stage


@dataclass
class RunContext:
    """A run at work: settings, tables, pools, and a way to tell how far it is."""

    settings: Settings
    run: Run
    keys: Mapping[str, StageKey]
    log: Callable[[str], None]
    pending: Sequence[str] = ()
    """The tables of the stage at work that have to be made."""
    stage: Stage | None = None
    """The stage at work."""
    phases: tuple[str, ...] = ("sft",)
    """The trainings before the stage at work, in order: the last one's judge is asked, and trained further."""
    retry: bool = False
    """Whether pools make the rows again that failed in them, and no others."""
    last_line: dict[str, float] = field(default_factory=dict)
    """When progress of a pool was last written, in seconds of the monotonic clock."""

    def table(self, name: str, *below: str) -> Table:
        """Return a table, or one of several below it."""
        return Table(self.run.table(self.keys[name]).directory.joinpath(*below))

    @property
    def ingested(self) -> Ingested:
        """Images and items."""
        return Ingested.of({name: self.table(name) for name in ("ingest", "gather") if name in self.keys})

    def earlier(self, name: str, target: Table, **sources: tuple[str, ...]) -> tuple[EarlierTable, ...]:
        """Return tables of this run whose rows may be those of a table at work, those made last first.

        Args:
            name: the table at work.
            target: itself, or the one below it that its pool makes.
            sources: what its rows depend on of other tables: name in the pool's job to the role among the stage's
                inputs, and what leads to a table below that.
        """
        stage, key = self.stage, self.keys[name]
        if stage is None or stage.row_facts is None or self.retry:
            return ()
        below = target.directory.relative_to(self.run.table(key).directory)
        facts, n_parts = _as_json(stage.row_facts(key.fingerprint_inputs)), self.settings.data.parts
        tables = []
        for table, cause in self.run.causes(key.stage):
            if table == self.run.table(key) or _as_json(stage.row_facts(cause)) != facts:
                continue
            versions = cause.get("inputs", {})
            if not {role for role, *_ in sources.values()} <= versions.keys():
                continue  # it was made before the stage had this input
            inputs = {role: self._input(stage, name, role, version) for role, version in versions.items()}
            if not any(inputs[role].is_remade_since(versions[role]) for role, *_ in sources.values()):
                below_inputs = {source: inputs[role].directory.joinpath(*at) for source, (role, *at) in sources.items()}
                of_job = {source: Table(place) for source, place in below_inputs.items() if place.is_dir()}
                ingested = inputs["ingest"].cause or {} if "ingest" in inputs else {"data": {"parts": None}}
                same_parts = ingested.get("data", {}).get("parts", n_parts) == n_parts
                tables.append(EarlierTable(Table(table.directory / below), of_job, same_parts=same_parts))
        return tuple(tables[:_MOST_EARLIER])

    def _input(self, stage: Stage, name: str, role: str, version: str) -> Table:
        """Return a table that one was made from, by its role there and its version."""
        place = self.keys[stage.inputs(self.settings, name)[role]].stage
        return self.run.table_of(place, fingerprint_of(version))

    def trained_judge(self, phase: str | None) -> Judge:
        """Return the judge that a phase made, or the base; with the settings of the base."""
        judge = self.settings.judge
        if phase is None:
            return judge
        adapter = self.table(phase, "adapter").directory.absolute()
        if not serves_adapters(self.settings) or not adapter.exists():
            return judge.model_copy(update={"path": str(self.merged_judge(phase))})
        return judge.model_copy(update={"path": self.start_of(phase)[0].path, "adapter": str(adapter)})

    def start_of(self, phase: str) -> tuple[Weights, Path | None]:
        """Return the judge that a phase begins with, and the adapter on top of it: None where all before is merged."""
        judge = self.settings.judge
        before = self.phases[: self.phases.index(phase)] if phase in self.phases else self.phases
        if not before:
            return Weights(judge.path, judge.revision, judge.trust_remote_code), None
        last = before[-1]
        if keeps_adapter(self.settings, "sft" if last == "sft" else "dpo"):
            return self.start_of(last)[0], self.table(last, "adapter").directory.absolute()
        return Weights(str(self.merged_judge(last)), code=judge.trust_remote_code), None

    def merged_judge(self, phase: str) -> Path:
        """Return the directory of the merged weights that a phase made."""
        return self.table(phase, "judge").directory.absolute()

    def run_pools(
        self, jobs: Sequence[PoolJob], parts: Sequence[int] | None = None, rates: Mapping[str, float] | None = None
    ) -> Counts:
        """Run jobs side by side over the given parts, or over every part of the items.

        Args:
            rates: rows per second of an actor of each job; they matter to pools of size `auto` only.
        """
        numbers = self.ingested.questions.parts() if parts is None else parts
        nodes = supply(self.settings.cluster, []).nodes
        allowed = self.settings.max_error_fraction
        jobs = [replace(job, retry=self.retry) for job in jobs]
        tallies = run_jobs(
            jobs,
            numbers,
            allowed,
            self.pool_progress(),
            rates=rates,
            nodes=nodes,
            stall_seconds=self.settings.cluster.stall_seconds,
        )
        return {name: tally.facts() for name, tally in tallies.items()}

    def pool_progress(self) -> Callable[[str, Tally, int], None]:
        """Return what logs pools at work, at most once a second for each: rows, rate, errors, time left.

        What a pool computes otherwise than the settings say is logged once, as soon as an actor says it.
        """
        started = time.monotonic()
        logged: dict[str, int] = {}

        def on_progress(name: str, tally: Tally, n_parts: int) -> None:
            elapsed = max(time.monotonic() - started, 1e-6)
            for sentence in tally.fallbacks[logged.get(name, 0) :]:
                self.log(f"{name:16s} {sentence}")
            logged[name] = len(tally.fallbacks)
            if self._is_too_soon(name, last=tally.parts == n_parts):
                return
            end = f"done in {elapsed:.0f} s"
            if tally.parts < n_parts:
                end = f"{elapsed / tally.parts * (n_parts - tally.parts):.0f} s left" if tally.parts else "begins"
            rate = tally.rows_out / elapsed
            taken = f"  {tally.rows_taken} of them from earlier tables" if tally.rows_taken else ""
            done = f"{tally.rows_out:7d} rows{taken}  {rate:8.1f} rows/s  {tally.errors} errors  {end}"
            self.log(f"{name:16s} {done}" + (f"  {tally.trouble}" if tally.trouble else ""))

        return on_progress

    def training_progress(self, stage: str) -> Callable[[Progress], None]:
        """Return what logs a training's steps."""
        return lambda progress: self.log(f"{stage:16s} {progress.line()}")

    def log_for(self, stage: str) -> Callable[[str], None]:
        """Return what logs lines of a stage."""
        return lambda line: self.log(f"{stage:16s} {line}")

    def _is_too_soon(self, name: str, *, last: bool) -> bool:
        """Return whether progress of this name was written less than a second ago; the last line is always written."""
        now = time.monotonic()
        if now - self.last_line.get(name, 0.0) < 1 and not last:
            return True
        self.last_line[name] = now
        return False
