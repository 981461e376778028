"""A training worker under Ray Train: goes on from the last checkpoint, logs, checkpoints, exports."""

from __future__ import annotations

import math
from collections.abc import Mapping
from contextlib import nullcontext
from typing import Any, Literal

from carevl.errors import UserError
from carevl.training.checkpoints import Checkpoints, held
from carevl.training.loop import Assignment, Loop
from carevl.training.progress import StepLog
from carevl.training.steps import over_workers
from carevl.training.trackers import Tracked
from carevl.training.validation import Looks, look


def run_worker(assignment: Assignment) -> str | None:
    """Trains to the end and exports; returns why it stopped early, None when it did not."""
    import ray.train

    context = ray.train.get_context()
    rank, world = context.get_world_rank(), context.get_world_size()
    join_workers(assignment.training.workers.backend)
    with held(assignment.out) if rank == 0 else nullcontext():
        return run_loop(Loop(assignment, rank, world))


def join_workers(backend: Literal["nccl", "gloo"]) -> None:
    """Makes DeepSpeed's process group of one that torch has, or that the environment describes.

    Without DeepSpeed's own reductions in shared memory: on a CPU it would compile them at first use, which takes a
    compiler and more than a minute, for nothing but workers without GPU that share a machine.
    """
    import deepspeed

    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    deepspeed.init_distributed(dist_backend=backend)


def run_loop(loop: Loop) -> str | None:
    """`run_worker`, inside an initialised process group."""
    assignment, training = loop.assignment, loop.assignment.training
    steps, per_epoch = assignment.schedule.steps, assignment.schedule.steps_per_epoch
    checkpoints = Checkpoints(assignment.out / "checkpoints", training.keep_checkpoints)
    try:
        done = checkpoints.restore(loop)
    except UserError as error:
        return f"cannot go on: {error}"
    log = StepLog(assignment.out / "steps.jsonl", done) if loop.rank == 0 else None
    tracker = Tracked(training.tracker if loop.rank == 0 else "none", assignment.out, training.model_dump(mode="json"))
    looks = Looks(training.patience, over_workers(log and log.looks(), loop.world)[0])
    while done < steps and not looks.exhausted:
        facts = {"step": done + 1, "epoch": done // per_epoch, **loop.step(done)}
        if problem := _problem(loop, done, facts):
            tracker.finish()
            return f"stopped at step {done + 1}: {problem}"
        done += 1
        due = done % training.checkpoint_steps == 0 or done == steps
        if due and (loop.held_out or loop.dev):
            looks.seen[done] = look(loop)
            facts |= looks.seen[done]
        if log is not None:
            log.write(facts)
            tracker.log(facts)
        if due:
            checkpoints.save(loop, done, looks.best)
    tracker.finish()
    if looks.best not in (None, done):
        checkpoints.load(loop, looks.best)
    loop.export()
    return None


def _problem(loop: Loop, step: int, facts: Mapping[str, Any]) -> str | None:
    if facts["broken"]:
        return f"the loss is not a number for {', '.join(facts['broken'])}"
    if not math.isfinite(facts["gradient_norm"]):
        names = [loop.items.ids[i] for i in loop.assignment.schedule.step(step)]
        return f"the gradient is not a number; the step's items are {', '.join(names)}"
    relative = 1e-4 if loop.assignment.training.dtype == "float32" else 0.03
    if step == 0 and facts.get("drift", 0.0) > 1e-3 + relative * abs(facts.get("chosen_log_probability", 0.0)):
        return (
            f"the reference log-probabilities are {facts['drift']:.3g} nats away from those of the judge; "
            "they were made with another judge, other settings or other rows: make them again"
        )
    return None
