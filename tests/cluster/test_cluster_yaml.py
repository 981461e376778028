"""The launcher file, checked offline by Ray's own reader of such files."""

import re
from pathlib import Path

import pytest
import yaml
from ray.autoscaler._private.util import prepare_config, validate_config

FILE = Path(__file__).parents[2] / "cluster.yaml"


@pytest.fixture
def launcher():
    return yaml.safe_load(FILE.read_text())


def test_ray_accepts_it(launcher):
    prepared = prepare_config(launcher)
    validate_config(prepared)
    kinds = prepared["available_node_types"]
    assert prepared["head_node_type"] in kinds
    workers = {name: kind for name, kind in kinds.items() if name != prepared["head_node_type"]}
    assert sorted(kind["resources"].get("GPU", 0) > 1 for kind in workers.values()) == [False, True]
    assert all(kind["min_workers"] < kind["max_workers"] <= prepared["max_workers"] for kind in workers.values())


def test_a_misspelt_field_would_not_be_accepted(launcher):
    launcher["available_node_types"]["gpu-worker"]["max_worker"] = 1
    with pytest.raises(Exception, match="max_worker"):
        validate_config(prepare_config(launcher))


def test_every_node_shows_the_token_and_only_the_head_itself_sees_the_dashboard(launcher):
    prepared = prepare_config(launcher)
    for role in ("head", "worker"):
        assert any("RAY_AUTH_MODE=token" in command for command in prepared[f"{role}_setup_commands"])
    # Ray would run a type's own commands instead of the common ones.
    assert not any("worker_setup_commands" in kind for kind in prepared["available_node_types"].values())
    assert "/home/ubuntu/.ray/auth_token" in prepared["file_mounts"]
    [start] = [command for command in prepared["head_start_ray_commands"] if "--head" in command]
    assert re.findall(r"--dashboard-host=(\S+)", start) == ["127.0.0.1"]
