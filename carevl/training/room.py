"""The room on the cluster that the workers of a training reserve: waited for with words, let go after a loss."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager

from carevl.periodic import call_every
from carevl.settings.training import Workers


def reserved(workers: Workers) -> dict[str, float]:
    """Return what every worker reserves, by the name of the resource."""
    resources = {"CPU": workers.num_cpus, "GPU": workers.num_gpus, **workers.resources}
    return {name: amount for name, amount in resources.items() if amount}


@contextmanager
def follow_start(workers: Workers, log: Callable[[str], None] | None, every: float = 20.0) -> Iterator[None]:
    """Say what the workers of a training wait for, as long as they do: Ray tries again without a word.

    Args:
        every: seconds between looks; a line that says what the last one said is written once a minute.
    """
    if log is None:
        yield
        return
    last, since = "", 0.0

    def look() -> None:
        nonlocal last, since
        since += every
        line = describe_wait(workers)
        if line is not None and (line != last or since >= 60):
            log(line)
            last, since = line, 0.0

    with call_every(every, look):
        yield


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
    """Let go of what workers reserve within this context, if Ray's controller of their training is lost in it.

    Ray frees it only with the whole job, or by an actor that asks the dashboard, which a private Ray has not.
    """
    import ray
    from ray.exceptions import RayActorError
    from ray.util.placement_group import PlacementGroup, remove_placement_group

    before = _groups(workers)
    try:
        yield
    except RayActorError:
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
