"""What fits where, worked out by hand; and the messages about what does not."""

import pytest

from carevl.cluster.resources import Reservation, Supply, check, supply
from carevl.pipeline.admission import admit, reservations
from carevl.settings.loader import load_settings
from carevl.store.run import RunError

NODES = [{"CPU": 8.0, "GPU": 2.0}, {"CPU": 4.0}, {"CPU": 8.0, "GPU": 1.0, "disk": 1.0}]


@pytest.mark.parametrize(
    ("each", "most", "placement", "places"),
    [
        ({"CPU": 1}, 100, None, 20),
        ({"CPU": 3}, 100, None, 2 + 1 + 2),
        ({"CPU": 0.5}, 3, None, 3),
        ({"CPU": 1, "GPU": 1}, 100, None, 3),
        ({"CPU": 1, "GPU": 0.33}, 100, None, 6 + 3),
        ({"CPU": 0, "GPU": 0.6}, 100, None, 3),  # no actor sits on two GPUs
        ({"CPU": 0, "GPU": 2}, 100, None, 1),
        ({"CPU": 1, "disk": 1}, 100, None, 1),
        ({"CPU": 1, "tape": 1}, 100, None, 0),
        ({"CPU": 0}, 7, None, 7),
        ({"CPU": 1}, 100, "PACK", 20),
        ({"CPU": 1}, 100, "STRICT_PACK", 8),
        ({"CPU": 1}, 100, "STRICT_SPREAD", 3),
        ({"CPU": 1, "GPU": 1}, 100, "STRICT_SPREAD", 2),
    ],
)
def test_how_many_actors_fit_on_empty_nodes(each, most, placement, places):
    assert Reservation("stage", "stage.pool", each, 1, most, placement).count_fitting(NODES) == places
    assert Reservation("stage", "stage.pool", each, 1, most, placement).count_fitting([]) == 0 or each == {"CPU": 0}


def test_a_pool_waits_for_room_but_training_workers_start_together():
    there = Supply(NODES, "the Ray cluster of 3 nodes")
    check([Reservation("score/a", "experts.0.pool", {"GPU": 1}, 8, 8)], there)
    with pytest.raises(RunError) as caught:
        check([Reservation("sft", "sft.workers", {"GPU": 1}, 8, 8, "PACK")], there)
    assert str(caught.value) == (
        "sft: 8 workers of 1 GPU have to start together (PACK), and the Ray cluster of 3 nodes has room for 3; "
        "change sft.workers, or join a cluster that has it"
    )


def test_every_stage_that_can_never_start_is_named_with_what_to_change():
    overrides = [
        "captioner.engine=vllm",
        "captioner.tensor_parallel=4",
        "captioner.pool.num_gpus=4",
        "experts.2.pool.resources={tpu: 1}",
        "dpo.workers.count=3",
        "dpo.workers.num_cpus=1",
    ]
    with pytest.raises(RunError) as caught:
        check(reservations(load_settings("mini", overrides)), Supply([{"CPU": 2}], "this machine"))
    assert str(caught.value).split("; ") == [
        "caption: needs 1 CPU, 4 GPU on one node, and this machine has 2 CPU",
        "change captioner.pool, or join a cluster that has it",
        "score/mistral: needs 0.5 CPU, 1 tpu on one node, and this machine has 2 CPU",
        "change experts.2.pool, or join a cluster that has it",
        "dpo: 3 workers of 1 CPU have to start together (PACK), and this machine has room for 2",
        "change dpo.workers, or join a cluster that has it",
    ]


def test_stages_that_need_not_run_reserve_nothing():
    settings = load_settings(
        "mini",
        ["captioner.engine=vllm", "captioner.tensor_parallel=4", "captioner.pool.num_gpus=4", "cluster.num_cpus=2"],
    )
    assert [need.stage for need in reservations(settings, ["route", "sft", "evaluate/base"])] == ["sft", "evaluate"]
    admit(settings, ["route", "sft"])
    with pytest.raises(RunError, match="caption: needs 1 CPU, 4 GPU"):
        admit(settings, ["caption"])


def test_nodes_that_the_launcher_may_start_count_as_there(tmp_path, monkeypatch):
    monkeypatch.setattr("ray.is_initialized", lambda: False)  # another test of this process may hold one
    file = tmp_path / "cluster.yaml"
    file.write_text(
        "max_workers: 3\nhead_node_type: head\navailable_node_types:\n"
        "  head: {resources: {CPU: 0}}\n  small: {max_workers: 9, resources: {CPU: 4}}\n"
        "  large: {max_workers: 1, resources: {CPU: 8, GPU: 2}}\n"
    )
    settings = load_settings("mini", [f"cluster.launcher={file}"])
    nodes = supply(settings.cluster, []).nodes
    assert sorted(nodes, key=str) == [{"CPU": 4}, {"CPU": 4}, {"CPU": 4}, {"CPU": 8, "GPU": 2}, {}]
    file.write_text("head_node_type: head\n")
    with pytest.raises(RunError, match=r"cluster\.launcher: .*cluster\.yaml is no cluster launcher file"):
        supply(settings.cluster, [])
