"""What the stages reserve on Ray, against what the cluster has.

Ray waits for ever for an actor that no node can hold. `check` says so before anything starts.
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
class Need:
    """What a stage reserves: `least` to `most` actors, each of them on one node.

    `placement` is Ray's strategy for workers that have to start together, None for the actors of a pool, which start
    one by one. `setting` is where the reservation is written in the settings.
    """

    stage: str
    setting: str
    each: Resources
    least: int
    most: int
    placement: str | None = None

    def places(self, nodes: Sequence[Resources]) -> int:
        """How many of the actors fit on empty nodes, at most `most`."""
        fitting = [_fitting(self.each, node) for node in nodes]
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


def supply(cluster: Cluster, wanted: Iterable[Need]) -> Supply:
    """The nodes of the Ray cluster that is joined, else this machine; with them, those that the launcher may add.

    Args:
        wanted: the machine's GPUs are looked for only when something wants one; that imports torch.

    Raises:
        RunError: the launcher file cannot be read.
    """
    import ray

    may_come = _launcher_nodes(Path(cluster.launcher)) if cluster.launcher else []
    if ray.is_initialized():
        there = nodes_there()
        name = f"the Ray cluster of {len(there)} nodes"
    elif cluster.launcher:
        there, name = [], cluster.launcher
    else:
        there, name = [_this_machine(cluster, gpus=any(need.each.get("GPU") for need in wanted))], "this machine"
    # A node that is there may be one of those that may come.
    both = Counter(map(_hashable, there)) | Counter(map(_hashable, may_come))
    return Supply([dict(node) for node in both.elements()], name)


def nodes_there() -> list[Resources]:
    """The nodes of the Ray cluster that is joined."""
    import ray

    return [_countable(node["Resources"]) for node in ray.nodes() if node["Alive"]]


def needed(pool: Pool) -> Resources:
    """What each actor of a pool reserves."""
    return {"CPU": pool.num_cpus, "GPU": pool.num_gpus, **pool.resources}


def check(wanted: Iterable[Need], there: Supply) -> None:
    """Lets a run begin.

    Raises:
        RunError: what a stage reserves can never be had here; the message names every such stage.
    """
    problems = [problem for need in wanted if (problem := _problem(need, there))]
    if problems:
        raise RunError("; ".join(problems))


def describe(resources: Resources) -> str:
    """The amounts in words: `1 CPU, 0.5 GPU`."""
    return ", ".join(f"{amount:g} {name}" for name, amount in resources.items() if amount) or "nothing"


def _problem(need: Need, there: Supply) -> str | None:
    together = need.most if need.placement else 1
    places = need.places(there.nodes)
    if places >= together:
        return None
    advice = f"change {need.setting}, or join a cluster that has it"
    if need.placement and places:
        return (
            f"{need.stage}: {need.most} workers of {describe(need.each)} have to start together ({need.placement}), "
            f"and {there.name} has room for {places}; {advice}"
        )
    nodes = " or ".join(sorted({describe(node) for node in there.nodes}))
    return f"{need.stage}: needs {describe(need.each)} on one node, and {there.name} has {nodes or 'no node'}; {advice}"


def for_pool(stage: str, setting: str, pool: Pool) -> Need:
    least, most = pool.bounds
    return Need(stage, setting, needed(pool), least, most)


def for_workers(stage: str, setting: str, workers: Workers) -> Need:
    each = {"CPU": workers.num_cpus, "GPU": workers.num_gpus, **workers.resources}
    return Need(stage, setting, each, workers.count, workers.count, workers.placement)


def _fitting(each: Resources, node: Resources) -> float:
    """How many actors one empty node holds; fractions of a GPU do not reach over two of them."""
    room = math.inf
    for name, amount in each.items():
        if amount == 0:
            continue
        whole = name == "GPU" and amount < 1
        room = min(room, _times(1, amount) * int(node.get(name, 0)) if whole else _times(node.get(name, 0), amount))
    return room


def _times(have: float, amount: float) -> int:
    return math.floor(have / amount + 1e-9)


def _countable(resources: Mapping[str, Any]) -> Resources:
    hidden = ("node:", "memory", "object_store_memory", "accelerator_type:")
    return {name: float(amount) for name, amount in resources.items() if not name.startswith(hidden)}


def _hashable(resources: Resources) -> tuple[tuple[str, float], ...]:
    return tuple(sorted((name, float(amount)) for name, amount in resources.items() if amount))


def _this_machine(cluster: Cluster, gpus: bool) -> Resources:
    found = {"CPU": float(cluster.num_cpus or os.cpu_count() or 1)}
    if gpus:
        import torch

        found["GPU"] = float(torch.cuda.device_count())
    return found


def _launcher_nodes(file: Path) -> list[Resources]:
    """The head and the most workers of every type; Ray's own defaults where the file says nothing."""
    nodes: list[Resources] = []
    try:
        told = yaml.safe_load(file.read_text(encoding="utf-8"))
        limit = int(told.get("max_workers", 2))
        for name, kind in told["available_node_types"].items():
            count = 1 if name == told["head_node_type"] else min(int(kind.get("max_workers", limit)), limit)
            nodes += [dict(kind["resources"])] * count
    except (OSError, yaml.YAMLError, KeyError, TypeError, ValueError, AttributeError) as error:
        raise RunError(f"cluster.launcher: {file} is no cluster launcher file: {error!r}") from None
    return nodes
