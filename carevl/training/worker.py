"""A training worker under Ray Train: goes on from the last checkpoint, logs, checkpoints, exports."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping
from contextlib import nullcontext
from typing import Any

from carevl.errors import UserError, explain_full_disk
from carevl.models.device import device, reserve_device
from carevl.models.locate import ensure_local
from carevl.models.own_code import trust_own_code
from carevl.training.checkpoints import Checkpoints, NoRoomError, exclusive_lock
from carevl.training.interrupts import is_asked_to_stop
from carevl.training.judge import merge_judge
from carevl.training.loop import Loop, WorkerConfig
from carevl.training.progress import STEPS, StepLog
from carevl.training.steps import all_gather
from carevl.training.trackers import StepTracker
from carevl.training.validation import CheckpointSelector, validate


def run_worker(config: WorkerConfig) -> str | None:
    """Train to the end and export; return why it stopped early, None when it did not."""
    import ray.train
    import torch

    try:
        reserve_device(config.training.workers.num_gpus)
        # A node that lacks it fetches it before anybody waits for this worker in a collective.
        ensure_local(config.base.path, config.base.revision, code=config.base.code)
    except UserError as error:
        return f"cannot begin: {error}"
    context = ray.train.get_context()
    rank, world = context.get_world_rank(), context.get_world_size()
    join_workers(torch.distributed.get_backend())  # that of the group that Ray has made
    with exclusive_lock(config.out) if rank == 0 else nullcontext(), trust_own_code(config.base.code):
        if config.training.lora is not None and (config.out / "adapter").is_dir():
            if rank == 0:
                merge_judge(config.judge, config.out)  # what was trained is there whole, and only what is merged is not
            return None
        return run_until_full(Loop(config, rank, world))


def join_workers(backend: str) -> None:
    """Make DeepSpeed's process group of one that torch has, or that the environment describes.

    Without DeepSpeed's own reductions in shared memory: on a CPU it would compile them at first use, which takes a
    compiler and more than a minute, for nothing but workers without GPU that share a machine.
    """
    os.environ["DS_ACCELERATOR"] = device()  # by itself it takes any GPU that it sees, reserved or not
    import deepspeed

    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    deepspeed.init_distributed(dist_backend=backend)


def run_until_full(loop: Loop) -> str | None:
    """Return what `run_loop` returns, or a sentence about the disk where that is full: no try again would help."""
    try:
        return run_loop(loop)
    except Exception as error:
        full = explain_full_disk(error, loop.config.out)
        # Others may wait for this worker in a collective, unless all have stopped.
        if full is None or (loop.world > 1 and not isinstance(error, NoRoomError)):
            raise
        return f"stopped: {full}"


def run_loop(loop: Loop) -> str | None:
    """`run_worker`, inside an initialised process group."""
    config, training = loop.config, loop.config.training
    steps, per_epoch = config.schedule.steps, config.schedule.steps_per_epoch
    checkpoints = Checkpoints(config.out / "checkpoints", training.keep_checkpoints)
    try:
        done = checkpoints.restore(loop)
    except UserError as error:
        return f"cannot go on: {error}"
    log = StepLog(config.out / STEPS, done) if loop.rank == 0 else None
    tracker = StepTracker(training.tracker if loop.rank == 0 else "none", config.out, training.model_dump(mode="json"))
    # Worker 0 alone has the log; all have to select the same checkpoint and to end at the same step.
    selector = CheckpointSelector(training.patience, all_gather(log and log.validations(), loop.world)[0])
    while done < steps and not selector.exhausted:
        facts = {"step": done + 1, "epoch": done // per_epoch, **loop.step(done), **loop.remarks}
        if problem := _find_problem(loop, done, facts):
            tracker.finish()
            return f"stopped at step {done + 1}: {problem}"
        done += 1
        due = done % training.checkpoint_steps == 0 or done == steps
        if due and (loop.held_out or loop.dev):
            selector.validations[done] = validate(loop)
            facts |= selector.validations[done]
        if log is not None:
            log.write(facts)
            tracker.log(facts)
        asked = is_asked_to_stop(config.out, loop.rank, loop.world)
        if due or asked:
            checkpoints.save(loop, done, selector.best)
        if asked:
            tracker.finish()
            return f"stopped after step {done}, as it was asked to"
    tracker.finish()
    while (best := selector.best) is not None and best != done and not checkpoints.load(loop, best):
        del selector.validations[best]
    loop.export()
    return None


def _find_problem(loop: Loop, step: int, facts: Mapping[str, Any]) -> str | None:
    if facts["broken"]:
        return f"the loss is not a number for {', '.join(facts['broken'])}"
    if not math.isfinite(facts["gradient_norm"]):
        names = [loop.items.ids[i] for i in loop.config.schedule.step(step)]
        return f"the gradient is not a number; the step's items are {', '.join(names)}"
    # Before the first step the judge is the reference, up to rounding: in 8 bits inputs are rounded batch by batch.
    training = loop.config.training
    relative = 1e-4 if training.dtype == "float32" and training.base_bits != 8 else 0.03
    if step == 0 and facts.get("reference_gap", 0.0) > 1e-3 + relative * abs(facts.get("logps/chosen", 0.0)):
        return (
            f"the reference log-probabilities are {facts['reference_gap']:.3g} nats away from those of the judge; "
            "they were made with another judge, other settings or other rows: make them again"
        )
    return None
