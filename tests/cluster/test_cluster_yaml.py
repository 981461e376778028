"""The launcher file, checked offline by Ray's own reader of such files."""

import re
from pathlib import Path

import pytest
import yaml
from ray.autoscaler._private.util import prepare_config, validate_config

FILE = Path(__file__).parents[2] / "cluster.yaml"
GPU_LOCK = FILE.with_name("requirements-gpu.txt")


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
        commands = " ".join(prepared[f"{role}_setup_commands"])
        without_metrics = "RAY_enable_metrics_collection=0 DASHBOARD_METRIC_PORT=-1 AUTOSCALER_METRIC_PORT=-1"
        assert all(setting in commands for setting in ("RAY_AUTH_MODE=token", without_metrics))
    # Ray would run a type's own commands instead of the common ones.
    assert not any("worker_setup_commands" in kind for kind in prepared["available_node_types"].values())
    assert "/home/ubuntu/.ray/auth_token" in prepared["file_mounts"]
    [start] = [command for command in prepared["head_start_ray_commands"] if "--head" in command]
    assert re.findall(r"--dashboard-host=(\S+)", start) == ["127.0.0.1"]


def test_nodes_have_what_compiles_at_first_use_and_gpu_nodes_the_lock(launcher):
    [install] = [command for command in launcher["initialization_commands"] if "apt-get install" in command]
    assert {"python3-dev", "python3-venv", "build-essential"} <= set(install.split())
    [setup] = [command for command in launcher["setup_commands"] if "nvidia-smi" in command]
    assert "install --no-deps -r ~/carevl/requirements-gpu.txt" in setup


def test_the_lock_for_gpus_has_hashes_and_one_version_of_cuda():
    blocks = re.split(r"\n(?=\S)", GPU_LOCK.read_text())
    pins = {block.split("==")[0]: block for block in blocks if "==" in block.split("\n")[0] and block[0] != "#"}
    assert len(pins) > 200
    assert not [name for name, block in pins.items() if "--hash=sha256:" not in block]
    torch = ["cuda-toolkit", "nvidia-cuda-nvrtc", "nvidia-cuda-runtime"]
    compiler = ["nvidia-cuda-cccl", "nvidia-cuda-crt", "nvidia-cuda-nvcc", "nvidia-nvvm"]
    for name in torch + compiler:
        assert pins[name].startswith(f"{name}==13.0."), pins[name].split()[0]
