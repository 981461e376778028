"""Whether torch sees the GPUs that Ray offers: asked on every node before anything is loaded there."""

from __future__ import annotations

from carevl.errors import UserError
from carevl.models.device import is_rehearsal, reserve_device
from carevl.store.run import RunError

_TIMEOUT = 60.0
"""Seconds that nodes have for an answer; one whose GPUs are all taken is asked by its next actor."""


def check_gpus() -> None:
    """Ask every node of the joined cluster that offers a GPU whether torch sees one there; not in a rehearsal.

    Raises:
        RunError: a node's torch does not, which mostly is a driver that is broken or too old.
    """
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    if is_rehearsal() or not ray.is_initialized():
        return

    def ask() -> str:
        try:
            reserve_device(1)
        except UserError as error:
            return str(error)
        return ""

    # max_calls=1 ends the process with the task, so that it holds nothing on the GPU.
    task = ray.remote(num_cpus=0, num_gpus=1, max_calls=1)(ask)
    answers = [
        task.options(scheduling_strategy=NodeAffinitySchedulingStrategy(node["NodeID"], soft=False)).remote()
        for node in ray.nodes()
        if node["Alive"] and node["Resources"].get("GPU", 0) >= 1
    ]
    if not answers:
        return
    answered, waiting = ray.wait(answers, num_returns=len(answers), timeout=_TIMEOUT)
    for task_of_busy_node in waiting:
        ray.cancel(task_of_busy_node)
    if problems := [problem for problem in ray.get(answered) if problem]:
        raise RunError("\n".join(sorted(set(problems))))
