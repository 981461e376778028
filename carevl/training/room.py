"""The room on the cluster that the workers of a training reserve: waited for with words, let go after a loss."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field

from carevl.errors import MachineError
from carevl.settings.training import Workers


def reserved(workers: Workers) -> dict[str, float]:
    """Return what every worker reserves, by the name of the resource."""
    resources = {"CPU": workers.num_cpus, "GPU": workers.num_gpus, **workers.resources}
    return {name: amount for name, amount in resources.items() if amount}


@dataclass
class RoomWatch:
    """What is done while the workers of a training wait for room: Ray tries again without a word, and for ever.

    Args:
        log: called with a line about the wait, with one that says what the last one said once a minute.
        limit: seconds that they may wait.
    """

    workers: Workers
    log: Callable[[str], None] | None
    limit: float
    last: str = field(default="", init=False)
    last_time: float = field(default=0.0, init=False)
    since: float | None = field(default=None, init=False)

    def look(self) -> None:
        """Say what the workers wait for, if they do.

        Raises:
            MachineError: they have waited for longer than the limit.
        """
        line, now = describe_wait(self.workers), time.monotonic()
        if line is None:
            self.since = None
            return
        self.since = now if self.since is None else self.since
        if now - self.since > self.limit:
            raise MachineError(
                f"given up after {(now - self.since) / 3600:.1f} hours (cluster.stall_hours): {line.partition(';')[0]}"
            )
        if self.log is not None and (line != self.last or now - self.last_time >= 60):
            self.log(line)
            self.last, self.last_time = line, now


def describe_wait(workers: Workers) -> str | None:
    """Return a line about what workers ask for and what there is; None when none are waiting for a place."""
    import ray

    if all(state not in ("PENDING", "RESCHEDULING") for state in _groups(workers).values()):
        return None
    asked, total, free = reserved(workers), ray.cluster_resources(), ray.available_resources()
    has = ", ".join(f"{total.get(name, 0.0):g} {name} ({free.get(name, 0.0):g} free)" for name in asked)
    nodes = sum(node["Alive"] for node in ray.nodes())
    return (
        f"waits for room: {workers.count} x {_amounts(asked)} have to start together, and the "
        f"{nodes} node{'s' * (nodes != 1)} of the cluster have {has}; it begins when there is room"
    )


def _amounts(resources: Mapping[str, float]) -> str:
    return " and ".join(f"{amount:g} {name}" for name, amount in resources.items())


@contextmanager
def freed_after_loss(workers: Workers) -> Iterator[None]:
    """Let go of what workers reserve within this context, if Ray's controller is lost in it, or they are given up.

    Ray frees it only with the whole job, or by an actor that asks the dashboard, which a private Ray has not.
    """
    import ray
    from ray.exceptions import RayActorError
    from ray.util.placement_group import PlacementGroup, remove_placement_group

    before = _groups(workers)
    try:
        yield
    except (RayActorError, MachineError):
        job = ray.get_runtime_context().get_job_id()
        for group, state in _groups(workers).items():
            if group not in before and group.endswith(job) and state != "REMOVED":
                remove_placement_group(PlacementGroup(ray.PlacementGroupID.from_hex(group)))
        raise


def _groups(workers: Workers) -> dict[str, str]:
    """Return the placement groups of so many workers that reserve as much: their ids, in hex, and states."""
    from ray.util import placement_group_table

    bundles = [reserved(workers)] * workers.count
    groups = placement_group_table()
    return {name: group["state"] for name, group in groups.items() if list(group["bundles"].values()) == bundles}
