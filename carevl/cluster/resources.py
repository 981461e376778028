"""What the stages reserve on Ray, against what the cluster has.

Ray waits for ever for an actor that no node can hold. `check` refuses such a run before anything starts.
"""

from __future__ import annotations

import math
import os
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from carevl.store.run import RunError

if TYPE_CHECKING:
    from carevl.settings.models import Pool
    from carevl.settings.training import Workers
    from carevl.settings.tree import Cluster

Resources = Mapping[str, float]
"""Name of a resource to its amount: `CPU`, `GPU`, or a custom one."""


@dataclass(frozen=True)
class Reservation:
    """`least` to `most` actors for a stage, each of them on one node.

    `resources` are those of one actor. `placement` is Ray's strategy for workers that have to start together, None for
    the actors of a pool, which start one by one. `setting` is where the reservation is written in the settings.
    """

    stage: str
    setting: str
    resources: Resources
    least: int
    most: int
    placement: str | None = None

    def count_fitting(self, nodes: Sequence[Resources]) -> int:
        """Return how many of the actors fit on empty nodes, at most `most`."""
        fitting = [_count_fitting(self.resources, node) for node in nodes]
        match self.placement:
            case "STRICT_PACK":
                places = max(fitting, default=0)
            case "STRICT_SPREAD":
                places = sum(places > 0 for places in fitting)
            case _:
                places = sum(fitting)
        return int(min(places, self.most))


@dataclass(frozen=True)
class Supply:
    """The nodes that there are or can be, and what they are called in messages."""

    nodes: Sequence[Resources]
    name: str


def supply(cluster: Cluster, reservations: Iterable[Reservation]) -> Supply:
    """Return the nodes of the joined Ray cluster, else this machine; with them, those that the launcher may add.

    Args:
        reservations: the machine's GPUs are looked for only when one of them has any; that imports torch.

    Raises:
        RunError: the launcher file cannot be read.
    """
    import ray

    may_come = _launcher_nodes(Path(cluster.launcher)) if cluster.launcher else []
    if ray.is_initialized():
        nodes = list_nodes()
        name = f"the Ray cluster of {len(nodes)} nodes"
    elif cluster.launcher:
        nodes, name = [], cluster.launcher
    else:
        gpus = any(reservation.resources.get("GPU") for reservation in reservations)
        nodes, name = [_this_machine(cluster, gpus=gpus)], "this machine"
    # A joined node may be one of those that may come: a union of multisets counts such a node once.
    both = Counter(map(_hashable, nodes)) | Counter(map(_hashable, may_come))
    return Supply([dict(node) for node in both.elements()], name)


def card_memory(cluster: Cluster) -> int | None:
    """Return the bytes of memory of the smallest GPU: of this machine, if the run will be here, else by the settings.

    None where neither says it.
    """
    from carevl.cluster.connect import is_private

    stated = None if cluster.gpu_memory_gb is None else int(cluster.gpu_memory_gb * 1e9)
    if not is_private(cluster):
        return stated
    import torch

    cards = [torch.cuda.get_device_properties(n).total_memory for n in range(torch.cuda.device_count())]
    return min(cards, default=stated)


def list_nodes() -> list[Resources]:
    """Return the nodes of the Ray cluster that is joined."""
    import ray

    return [_countable(node["Resources"]) for node in ray.nodes() if node["Alive"]]


def actor_resources(pool: Pool) -> Resources:
    """Return the resources that each actor of a pool reserves."""
    return {"CPU": pool.num_cpus, "GPU": pool.num_gpus, **pool.resources}


def check(reservations: Iterable[Reservation], capacity: Supply) -> None:
    """Check that everything can be reserved.

    Raises:
        RunError: what a stage reserves can never be had here; the message names every such stage.
    """
    if problems := find_unplaceable(reservations, capacity):
        raise RunError("; ".join(problems))


def find_unplaceable(reservations: Iterable[Reservation], capacity: Supply) -> list[str]:
    """Return a sentence for every reservation that can never be had."""
    return [problem for reservation in reservations if (problem := _find_problem(reservation, capacity))]


def describe(resources: Resources) -> str:
    """Return the amounts in words: `1 CPU, 0.5 GPU`."""
    return ", ".join(f"{amount:g} {name}" for name, amount in resources.items() if amount) or "nothing"


def _find_problem(reservation: Reservation, capacity: Supply) -> str | None:
    together = reservation.most if reservation.placement else 1
    fitting, each = reservation.count_fitting(capacity.nodes), describe(reservation.resources)
    if fitting >= together:
        return None
    advice = f"change {reservation.setting}, or join a cluster that has it"
    if reservation.placement and fitting:
        return (
            f"{reservation.stage}: {reservation.most} workers of {each} have to start together "
            f"({reservation.placement}), and {capacity.name} has room for {fitting}; {advice}"
        )
    nodes = " or ".join(sorted({describe(node) for node in capacity.nodes}))
    return f"{reservation.stage}: needs {each} on one node, and {capacity.name} has {nodes or 'no node'}; {advice}"


def for_pool(stage: str, setting: str, pool: Pool) -> Reservation:
    """Return what the actors of a stage's pool reserve."""
    least, most = pool.bounds
    return Reservation(stage, setting, actor_resources(pool), least, most)


def for_workers(stage: str, setting: str, workers: Workers) -> Reservation:
    """Return what a stage's training workers reserve, which have to start together."""
    resources = {"CPU": workers.num_cpus, "GPU": workers.num_gpus, **workers.resources}
    return Reservation(stage, setting, resources, workers.count, workers.count, workers.placement)


def _count_fitting(resources: Resources, node: Resources) -> float:
    """Return how many actors one empty node holds; fractions of a GPU do not reach over two of them."""
    room = math.inf
    for name, amount in resources.items():
        if amount == 0:
            continue
        whole = name == "GPU" and amount < 1
        room = min(room, _times(1, amount) * int(node.get(name, 0)) if whole else _times(node.get(name, 0), amount))
    return room


def _times(have: float, amount: float) -> int:
    return math.floor(have / amount + 1e-9)  # 0.3 goes into 0.9 three times, whatever floats hold


def _countable(resources: Mapping[str, Any]) -> Resources:
    hidden = ("node:", "memory", "object_store_memory", "accelerator_type:")
    return {name: float(amount) for name, amount in resources.items() if not name.startswith(hidden)}


def _hashable(resources: Resources) -> tuple[tuple[str, float], ...]:
    return tuple(sorted((name, float(amount)) for name, amount in resources.items() if amount))


def _this_machine(cluster: Cluster, gpus: bool) -> Resources:
    resources = {"CPU": float(cluster.num_cpus or os.cpu_count() or 1)}
    if cluster.num_gpus is not None:
        resources["GPU"] = float(cluster.num_gpus)
    elif gpus:
        import torch

        resources["GPU"] = float(torch.cuda.device_count())
    return resources


def _launcher_nodes(file: Path) -> list[Resources]:
    """Return the head and the most workers of every type; with Ray's own defaults where the file leaves them open."""
    nodes: list[Resources] = []
    try:
        launcher = yaml.safe_load(file.read_text(encoding="utf-8"))
        limit = int(launcher.get("max_workers", 2))
        for name, kind in launcher["available_node_types"].items():
            count = 1 if name == launcher["head_node_type"] else min(int(kind.get("max_workers", limit)), limit)
            nodes += [dict(kind["resources"])] * count
    except (OSError, yaml.YAMLError, KeyError, TypeError, ValueError, AttributeError) as error:
        raise RunError(f"cluster.launcher: {file} is no cluster launcher file: {error!r}") from None
    return nodes
