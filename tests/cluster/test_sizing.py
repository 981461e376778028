"""Sizes of pools that should finish together."""

import itertools

import pytest

from carevl.cluster.sizing import Demand, limit_preparers, share_actors, size_pools
from carevl.settings.models import Pool

GPU = {"CPU": 1.0, "GPU": 1.0}


def demand(name, seconds, each=GPU, most=100, fixed=None):
    return Demand(name, each, seconds, most, fixed)


def test_a_lone_pool_fills_the_cluster_up_to_what_it_can_use():
    nodes = [{"CPU": 8.0, "GPU": 4.0}] * 2
    assert size_pools([demand("a", 1.0)], nodes) == {"a": 8}
    assert size_pools([demand("a", 1.0, most=3)], nodes) == {"a": 3}


def test_pools_finish_together():
    nodes = [{"CPU": 8.0, "GPU": 4.0}] * 3
    assert size_pools([demand("slow", 30.0), demand("fast", 10.0), demand("middle", 20.0)], nodes) == {
        "slow": 6,
        "fast": 2,
        "middle": 4,
    }


def test_the_last_pool_to_finish_is_as_early_as_any_sharing_allows():
    seconds = {"a": 7.0, "b": 3.0, "c": 1.5}
    found = size_pools([demand(name, value, {"CPU": 1.0}) for name, value in seconds.items()], [{"CPU": 9.0}])
    best = min(
        max(value / n for value, n in zip(seconds.values(), counts, strict=True))
        for counts in itertools.product(range(1, 8), repeat=3)
        if sum(counts) <= 9
    )
    assert max(seconds[name] / n for name, n in found.items()) == pytest.approx(best)


def test_a_share_of_a_gpu_lies_on_one_gpu():
    assert size_pools([demand("a", 1.0, {"CPU": 0.0, "GPU": 0.6})], [{"GPU": 2.0}]) == {"a": 2}
    assert size_pools([demand("a", 1.0, {"GPU": 0.5})], [{"GPU": 2.0}]) == {"a": 4}
    assert size_pools([demand("a", 1.0, {"GPU": 2.0})], [{"GPU": 3.0}, {"GPU": 4.0}]) == {"a": 3}


def test_pools_without_gpus_leave_nodes_with_gpus_to_those_who_need_them():
    nodes = [{"CPU": 2.0, "GPU": 2.0}, {"CPU": 2.0}]
    assert size_pools([demand("gpu", 10.0), demand("cpu", 10.0, {"CPU": 1.0})], nodes) == {"gpu": 2, "cpu": 2}


def test_set_sizes_have_their_places_first_and_no_pool_is_left_without_an_actor():
    nodes = [{"CPU": 4.0, "GPU": 4.0}]
    assert size_pools([demand("set", 1.0, fixed=3), demand("auto", 9.0)], nodes) == {"auto": 1}
    assert size_pools([demand("set", 1.0, fixed=4), demand("auto", 9.0)], nodes) == {"auto": 1}
    assert size_pools([demand("set", 1.0, fixed=4)], nodes) == {}


def test_speeds_decide_between_pools_of_settings():
    pools = {"fast": Pool(concurrency="auto"), "slow": Pool(concurrency="auto"), "set": Pool(concurrency="1..2")}
    assert share_actors(pools, 16, {"fast": 30.0, "slow": 10.0}, [{"CPU": 10.0}]) == {"fast": 2, "slow": 6}
    pools["slow"] = Pool(concurrency="auto", preparers=4)
    assert share_actors(pools, 16, {"fast": 30.0, "slow": 10.0}, [{"CPU": 10.0}]) == {"fast": 1, "slow": 3}


def test_preparers_leave_room_for_an_engine_of_every_pool():
    judges = {name: Pool(num_cpus=4, num_gpus=1, preparers=3) for name in ("base", "phase1", "phase2")}
    assert limit_preparers(judges, 16, [{"CPU": 16.0, "GPU": 1.0}]) == {"base": 3, "phase1": 3, "phase2": 3}
    assert limit_preparers(judges, 16, [{"CPU": 12.0, "GPU": 1.0}]) == {"base": 2, "phase1": 2, "phase2": 2}
    assert limit_preparers(judges, 16, [{"CPU": 6.0, "GPU": 1.0}]) == dict.fromkeys(judges, 0)
    assert limit_preparers(judges, 1, [{"CPU": 16.0, "GPU": 1.0}]) == dict.fromkeys(judges, 1)
    with_cpus = [{"CPU": 4.0, "GPU": 1.0}, {"CPU": 9.0}]
    assert limit_preparers(judges, 16, with_cpus) == dict.fromkeys(judges, 3)
    assert limit_preparers(judges, 16, [{"CPU": 4.0, "GPU": 1.0}, {"CPU": 8.0}]) == dict.fromkeys(judges, 2)
    assert limit_preparers(judges, 16, [{"CPU": 9.0}]) == dict.fromkeys(judges, 3)  # the node with a GPU is yet to come
    assert limit_preparers({"mini": Pool()}, 16, [{"CPU": 2.0}]) == {"mini": 0}
