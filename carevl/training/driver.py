"""Trains a judge in one phase on the Ray cluster that is joined."""

from __future__ import annotations

import hashlib
import itertools
import os
import pickle
import shutil
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from carevl.errors import FULL_DISK_ADVICE, MachineError, UserError, explain_full_disk
from carevl.models.adapter_files import write_base
from carevl.models.families import family_of
from carevl.models.judge_files import load_processor
from carevl.models.judge_spec import JudgeSpec
from carevl.models.locate import Weights, adapter_fingerprint
from carevl.models.own_code import trust_own_code
from carevl.models.packing import usable_packing
from carevl.models.prompts import ask_as
from carevl.settings.asking import Asking
from carevl.settings.training import Phase, Training
from carevl.store.damage import encode_json, read_json
from carevl.store.listing import Listing, describe, find_problems
from carevl.store.table import write_atomically
from carevl.training.adapters import ROUNDING, Rounding
from carevl.training.checkpoints import report_damaged
from carevl.training.encoder import Encoder, read_rows
from carevl.training.engine import select_backend
from carevl.training.interrupts import run_interruptible
from carevl.training.items import Items, split_holdout
from carevl.training.loop import WorkerConfig
from carevl.training.progress import STEPS, Progress, follow_log, read_log
from carevl.training.quantized import check_bitsandbytes
from carevl.training.record import FILE, TokenBounds, learned_differences
from carevl.training.room import RoomWatch, freed_after_loss, reserved
from carevl.training.schedule import Schedule
from carevl.training.skeleton import load_skeleton
from carevl.training.stored_layout import StoredLayout
from carevl.training.trackers import check_tracker
from carevl.training.trainable import TRAINED, changed_weights, describe_trained
from carevl.training.validation import DEV

_GROUP_TIMEOUT = 2 * 3600
"""Seconds that workers wait in a collective: DeepSpeed lets all wait while one writes a checkpoint of all weights."""


class TrainingError(UserError):
    """A training that stopped; the last good checkpoint is kept."""


@dataclass(frozen=True)
class Trained:
    """The outcome of a training.

    `judge` is a Hugging Face directory with merged weights; `adapter` one for PEFT, None without LoRA. `items` counts
    the rows that were used, replay not among them; `errors` are rows that were left out, as {row, item_id, error}.
    `curve` has the facts of every step, as `steps.jsonl` holds them. `rounding` is what the format of the merged
    weights loses, None where nothing was merged.
    """

    judge: Path
    adapter: Path | None
    items: int
    errors: list[dict[str, Any]]
    curve: list[dict[str, Any]]
    rounding: Rounding | None = None


def train(
    phase: Phase,
    rows: Sequence[Path],
    judge: str | Path,
    out: Path,
    training: Training,
    *,
    revision: str | None = None,
    adapter: Path | None = None,
    replay: Sequence[Path] = (),
    dev: Sequence[Path] = (),
    resize_pixels: int | None = None,
    asking: Asking | None = None,
    trust_remote_code: bool = False,
    on_progress: Callable[[Progress], None] | None = None,
    log: Callable[[str], None] | None = None,
    stall_seconds: float = 6 * 3600,
) -> Trained:
    """Train `judge` on parquet rows.

    Called again with the same rows, judge and settings, it goes on from the last checkpoint in `out`; a training that
    is finished is only read. What of its weights is gone is exported again: `judge/` from `adapter/` where that is
    there, else both from the last checkpoint.

    Args:
        rows: files with the columns of `encoder.COLUMNS`; for dpo also those of `encoder.REFERENCE`, which
            workers under ZeRO 3 compute themselves.
        judge: a directory, a hub id, or a path with a scheme.
        out: directory that all workers see; it receives `judge/`, `adapter/`, `steps.jsonl`, `curve.png`
            and the checkpoints.
        revision: commit of a judge from the hub.
        adapter: directory of a LoRA adapter that the training begins with, on top of `judge`; with LoRA only.
        replay: rows of phase 1 to mix into every step of dpo.
        dev: labelled pairs: rows with the columns of dpo, whose `chosen` is the right verdict and `rejected` the wrong
            one; a row for each order, with the same `item_id`. The checkpoint that is best there is exported.
        resize_pixels: larger images are resized to so many pixels; `judge/` and `adapter/` keep it for their users.
        asking: how prompts are written, which `judge/` and `adapter/` keep, too; None: as carevl asks.
        trust_remote_code: whether Python code that comes with the judge may run.
        on_progress: called with the last steps every few seconds, from a thread of its own.
        log: called with a line while the workers wait for room on the cluster.
        stall_seconds: how long they may wait for it.

    Raises:
        UserError: rows, judge or settings cannot be used, or `out` holds another training.
        TrainingError: the loss was not a number, or more workers were lost than allowed.
        MachineError: the disk is full, there was no room for the workers for too long, or Ray's controller of the
            training was lost more often than workers may be.
    """
    config, used, errors = prepare_training(
        phase,
        rows,
        judge,
        out,
        training,
        revision=revision,
        adapter=adapter,
        replay=replay,
        dev=dev,
        resize_pixels=resize_pixels,
        asking=asking,
        trust_remote_code=trust_remote_code,
    )
    out = config.out
    if not _is_exported(out, training):
        with (
            follow_log(out / STEPS, config.schedule.steps, training.dpo.beta, on_progress),
            report_damaged(out / "checkpoints", log),
        ):
            stopped = _fit(config, RoomWatch(training.workers, log, stall_seconds))
        if curve := read_log(out / STEPS):
            from carevl.plots.training_curve import draw_training_curve  # matplotlib is loaded where it is needed

            draw_training_curve(out / "curve.png", curve)
        if stopped:
            kind = MachineError if stopped.endswith(FULL_DISK_ADVICE) else TrainingError
            raise kind(f"{phase} {stopped}; the last good checkpoint is kept in {out}")
        if (out / "adapter").is_dir():
            write_base(out / "adapter", config.base.fingerprint)
    trained = None if training.lora is None else out / "adapter"
    for directory in (out / "judge", trained):
        if directory is not None:
            JudgeSpec(resize_pixels=resize_pixels, asking=asking or Asking()).write(directory)
    return Trained(out / "judge", trained, used, errors, read_log(out / STEPS), Rounding.read(out / ROUNDING))


def prepare_training(
    phase: Phase,
    rows: Sequence[Path],
    judge: str | Path,
    out: Path,
    training: Training,
    *,
    revision: str | None = None,
    adapter: Path | None = None,
    replay: Sequence[Path] = (),
    dev: Sequence[Path] = (),
    resize_pixels: int | None = None,
    asking: Asking | None = None,
    trust_remote_code: bool = False,
) -> tuple[WorkerConfig, int, list[dict[str, Any]]]:
    """Check and encode everything that workers need, into `out/data`; arguments and errors as for `train`.

    Returns:
        The workers' configuration, the number of rows that are used, and those that are left out, as in `Trained`.
    """
    check_tracker(training.tracker)
    if training.base_bits is not None:
        check_bitsandbytes()
    base, out = Weights.of(judge, revision, code=trust_remote_code), out.resolve()
    spec = JudgeSpec(resize_pixels=resize_pixels, asking=asking or Asking())
    adapter = None if adapter is None else adapter.resolve()
    record, facts = out / FILE, _facts(phase, rows, base, adapter, training, replay, dev, spec)
    if record.exists():
        stored = read_json(record, "remove it: the next start writes it anew and goes on")
        if changed := learned_differences(out, stored["facts"], facts, "settings"):
            if any((out / name).exists() for name in ("judge", "adapter", "checkpoints")):
                raise UserError(f"{out} holds another training ({'; '.join(changed)}); choose or empty a directory")
        elif (out / TRAINED).exists() and _is_whole(out / "data", stored.get("data", {})):
            schedule = Schedule(**{**stored["schedule"], "together": tuple(stored["schedule"].get("together", ()))})
            config = WorkerConfig(base, out / "data", out, schedule, training, adapter, spec.asking)
            return config, stored["rows"], stored["errors"]
    shutil.rmtree(out / "data", ignore_errors=True)  # that of an earlier version, or what was begun
    data = out / "data"
    with trust_own_code(base.code):
        schedule, used, errors, bounds = _encode(phase, rows, base.directory, data, training, replay, dev, spec)
    stored = {"facts": facts, "schedule": asdict(schedule), "rows": used, "errors": errors}
    stored["data"] = describe(data, [file.name for file in sorted(data.iterdir())])
    stored["batch_tokens"] = bounds.facts
    write_atomically(record, encode_json(stored))
    return WorkerConfig(base, data, out, schedule, training, adapter, spec.asking), used, errors


def _is_exported(out: Path, training: Training) -> bool:
    """Return whether everything that a training exports is there; a directory appears whole."""
    exported = ["judge"] if training.lora is None else ["judge", "adapter", ROUNDING]
    return all((out / name).exists() for name in exported)


def _is_whole(data: Path, listing: Listing) -> bool:
    """Return whether encoded items are of this version, and what was written; an earlier version listed nothing."""
    return not find_problems(data, listing, verify=True) and Items.are_current(data)


def _facts(
    phase: Phase,
    rows: Sequence[Path],
    base: Weights,
    adapter: Path | None,
    training: Training,
    replay: Sequence[Path],
    dev: Sequence[Path],
    spec: JudgeSpec,
) -> dict[str, Any]:
    """Return what the curve depends on: not the number of workers, nor how often there are checkpoints."""
    contents = {"rows": rows, "replay": replay, "dev": dev}
    hashes = {name: [_hash(file) for file in files] for name, files in contents.items()}
    weights = {"judge": base.fingerprint}
    if adapter is not None:
        weights["adapter"] = adapter_fingerprint(str(adapter))
    asked = spec.model_dump(mode="json", exclude_defaults=True)
    return {"phase": phase, **weights, **hashes, "settings": training.learned(), **asked}


def _hash(file: Path) -> str:
    if not file.is_file():
        raise UserError(f"{file}: there is no such file with rows to train on")
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()[:16]


def _encode(
    phase: Phase,
    rows: Sequence[Path],
    judge: Path,
    data: Path,
    training: Training,
    replay: Sequence[Path],
    dev: Sequence[Path],
    spec: JudgeSpec,
) -> tuple[Schedule, int, list[dict[str, Any]], TokenBounds]:
    """Write items into `data`; return the steps, of the rows what `prepare_training` does, and bounds."""
    model, processor = load_skeleton(judge), ask_as(load_processor(judge), spec.asking)
    trained = describe_trained(model, training)
    StoredLayout(judge).check(changed_weights(model, training))
    encoder = Encoder(
        processor,
        training.batch_tokens,
        packing=usable_packing(model, training.packing)[0],
        verdict_weight=training.verdict_weight,
        resize_pixels=spec.resize_pixels,
        mixes_sizes=family_of(model).mixes_sizes,
    )
    table = read_rows(rows, phase, reference=phase == "dpo" and not training.spreads_weights)
    items, images, errors = encoder.encode(table, phase)
    used = table.num_rows - len(errors)
    if not items:
        raise UserError(f"none of the {len(errors)} rows can be trained on; the first: {errors[0]['error']['message']}")
    held_out: list[dict[str, Any]] = []
    if training.holdout:
        items, held_out = split_holdout(items, training.holdout, training.seed)
    replayed: list[dict[str, Any]] = []
    if phase == "dpo" and replay and training.dpo.replay_share:
        replayed, more, failed = encoder.encode(read_rows(replay, "sft", reference=False), "sft")
        images |= more
        errors += failed
    labelled: list[dict[str, Any]] = []
    if dev:
        labelled, more, failed = encoder.encode(read_rows(dev, "dpo", reference=False), "dpo")
        images |= more
        errors += failed
    labelled = [item | {"phase": DEV} for item in labelled]
    encoded = Items.of([*items, *replayed, *held_out, *labelled], images)
    encoded.save(data)
    trained.write(data.parent / TRAINED)
    schedule = Schedule(
        len(items),
        training.batch_size,
        training.epochs,
        training.seed,
        len(replayed),
        training.dpo.replay_share,
        together=tuple(len(list(group)) for _, group in itertools.groupby(items, key=lambda item: item["item_id"])),
    )
    if training.tokens is not None:
        schedule = schedule.for_tokens(training.tokens, encoded.lengths)
    return schedule, used, errors, TokenBounds.of(encoder)


def _fit(config: WorkerConfig, room: RoomWatch) -> str | None:
    """Run the workers; return why they stopped early, None when they did not.

    Raises:
        TrainingError: more workers were lost than allowed.
        MachineError: for lack of disk or room; or Ray's controller of the training was lost as often.
    """
    from ray.exceptions import RayActorError
    from ray.train.v2.api.exceptions import TrainingFailedError

    workers = config.training.workers
    most = workers.max_failures
    for lost in itertools.count(1):
        try:
            with freed_after_loss(workers):
                stopped: str | None = run_interruptible(_trainer(config).fit, config.out, room.look).return_value
            return stopped
        except TrainingFailedError as error:
            cause = _cause(error)
            full = explain_full_disk(RuntimeError(cause), config.out)
            kind = TrainingError if full is None else MachineError
            raise kind(
                f"the training was given up after {most} lost workers: {full or cause}; "
                f"the last good checkpoint is kept in {config.out}"
            ) from error
        except RayActorError as error:
            if lost > most >= 0:
                raise MachineError(
                    f"the training was given up: Ray's controller of it was lost {lost} times, mostly for lack of "
                    f"memory; the last good checkpoint is kept in {config.out}"
                ) from error
    raise AssertionError


def _trainer(config: WorkerConfig) -> Any:
    """Return Ray's trainer of the workers."""
    from ray.train import ScalingConfig
    from ray.train.torch import TorchTrainer

    from carevl.training.process_group import GroupConfig

    def work(loop_config: dict[str, bytes]) -> str | None:
        from carevl.training.worker import run_worker

        return run_worker(pickle.loads(loop_config["config"]))

    workers = config.training.workers
    return TorchTrainer(
        work,
        # In bytes, which Ray's controller passes on without importing all that they need.
        train_loop_config={"config": pickle.dumps(config)},
        torch_config=GroupConfig(backend=select_backend(workers), timeout_s=_GROUP_TIMEOUT),
        scaling_config=ScalingConfig(
            num_workers=workers.count,
            use_gpu=workers.num_gpus > 0,
            resources_per_worker=reserved(workers),
            placement_strategy=workers.placement,
        ),
        run_config=_run_config(config),
    )


def _run_config(config: WorkerConfig) -> Any:
    """Return how Ray runs the workers: where it keeps its files, how often it begins again, and their environment."""
    from ray.train import FailureConfig, RunConfig

    workers = config.training.workers
    environment: dict[str, str] = {}
    if workers.num_gpus and not {"PYTORCH_ALLOC_CONF", "PYTORCH_CUDA_ALLOC_CONF"} & os.environ.keys():
        # Rows of ever other lengths would leave the GPU's memory in pieces.
        environment["PYTORCH_ALLOC_CONF"] = "expandable_segments:True"
    return RunConfig(
        name=".ray",
        storage_path=str(config.out),
        failure_config=FailureConfig(max_failures=workers.max_failures),
        worker_runtime_env={"env_vars": environment} if environment else None,
    )


def _cause(error: Any) -> str:
    """Return one line: the last of the first worker that failed."""
    failures = getattr(error, "worker_failures", None) or {0: error}
    lines = str(failures[min(failures)]).strip().splitlines()
    return lines[-1] if lines else type(error).__name__
