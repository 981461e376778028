"""The presets for GPUs: what they name and what they reserve. No model of theirs is loaded."""

import re
from pathlib import Path

import pytest

from carevl.cluster import resources
from carevl.errors import SettingsError
from carevl.models.engines.vllm_arguments import card_share
from carevl.pipeline.admission import reservations
from carevl.pipeline.plan import plan_run, unpinned
from carevl.settings.loader import load_settings
from carevl.store.run import Run, RunError

LAUNCHER = str(Path(__file__).parents[2] / "cluster.yaml")


def _models(settings):
    return [settings.captioner, settings.judge, *settings.experts]


@pytest.mark.parametrize("preset", ["single-gpu", "multi-node", "small-gpu"])
def test_models_are_of_the_hub_and_pinned_to_a_commit_or_reported(preset):
    settings = load_settings(preset)
    for model in _models(settings):
        assert re.fullmatch(r"[\w.-]+/[\w.-]+", model.path)
        assert model.revision is None or re.fullmatch(r"[0-9a-f]{40}", model.revision)
        assert not model.trust_remote_code
    loose = [model.path for model in _models(settings) if model.revision is None]
    assert [line.split(": ")[1].split()[0] for line in unpinned(settings)] == loose
    assert len({expert.path for expert in settings.experts}) >= 3


def test_the_cluster_has_the_captioner_and_the_experts_of_one_gpu():
    single, multi = load_settings("single-gpu"), load_settings("multi-node")
    for one, other in zip([single.captioner, *single.experts], [multi.captioner, *multi.experts], strict=True):
        assert one.model_copy(update={"pool": other.pool}) == other


def test_small_gpu_runs_on_a_machine_with_one_gpu_and_every_expert_has_all_of_it():
    settings = load_settings("small-gpu")
    resources.check(reservations(settings), resources.Supply([{"CPU": 8, "GPU": 1}], "a machine"))
    assert {card_share(model) for model in _models(settings)} == {1}


def test_single_gpu_runs_on_a_machine_with_one_gpu_and_its_experts_at_the_same_time():
    settings = load_settings("single-gpu")
    wanted, machine = reservations(settings), resources.Supply([{"CPU": 16, "GPU": 1}], "a machine")
    resources.check(wanted, machine)
    experts = [need for need in wanted if need.stage.startswith("score/")]
    assert sum(need.resources["GPU"] * need.least for need in experts) <= 1


def test_multi_node_runs_on_the_nodes_of_the_launcher_file_and_not_without_them(monkeypatch):
    monkeypatch.setattr("ray.is_initialized", lambda: False)  # another test of this process may hold one
    settings = load_settings("multi-node", [f"cluster.launcher={LAUNCHER}"])
    wanted = reservations(settings)
    there = resources.supply(settings.cluster, wanted)
    resources.check(wanted, there)
    assert {need.stage: need.count_fitting(there.nodes) for need in wanted if need.placement} == {"sft": 4, "dpo": 4}
    resources.check(wanted, resources.Supply([{"CPU": 48.0, "GPU": 4.0}], "one node"))
    with pytest.raises(RunError, match="sft: 4 workers of 8 CPU, 1 GPU have to start together"):
        resources.check(wanted, resources.Supply([{"CPU": 24.0, "GPU": 2.0}] * 8, "nodes of two GPUs"))


@pytest.mark.parametrize("preset", ["single-gpu", "multi-node", "small-gpu"])
def test_the_data_has_to_be_named(preset, tmp_path):
    with pytest.raises(SettingsError, match=r"SET-data\.sources\.0\.path"):
        plan_run(load_settings(preset), Run(tmp_path))


def test_experts_that_share_a_gpu_share_its_memory():
    settings = load_settings("multi-node")
    assert {card_share(expert) for expert in settings.experts} == {0.5}
    assert card_share(settings.captioner) == 1
    assert card_share(load_settings("mini", ["captioner.engine=vllm"]).captioner) == 1
