"""GPUs that the driver lists and torch does not see: why, in a sentence. The driver's tool is a script here."""

import os

import pytest
import torch

from carevl.models.nvidia import Gpu, explain_unseen, find_unseen, list_gpus
from carevl.pipeline.plan import plan_lines
from carevl.settings.loader import load_settings
from carevl.store.run import Run, RunError

H100 = Gpu("NVIDIA H100 80GB HBM3", "535.183.01", "81559 MiB")
OUTPUT = "NVIDIA H100 80GB HBM3, 535.183.01, 81559 MiB\nNVIDIA H100 80GB HBM3, 535.183.01, 81559 MiB\n"


@pytest.fixture
def nvidia_smi(tmp_path, monkeypatch):
    """Puts a tool on PATH that prints what the real one does, and ends so."""

    def install(output=OUTPUT, status=0):
        (tmp_path / "bin").mkdir()
        (tmp_path / "output").write_text(output)
        script = tmp_path / "bin" / "nvidia-smi"
        wanted = "--query-gpu=name,driver_version,memory.total --format=csv,noheader"
        script.write_text(f'#!/bin/sh\n[ "$*" = "{wanted}" ] || exit 2\ncat {tmp_path}/output\nexit {status}\n')
        script.chmod(0o755)
        monkeypatch.setenv("PATH", f"{script.parent}{os.pathsep}{os.environ['PATH']}")

    return install


def test_the_driver_s_list_is_read(nvidia_smi):
    nvidia_smi()
    assert list_gpus() == [H100, H100]


def test_a_driver_that_does_not_answer_lists_nothing(nvidia_smi):
    nvidia_smi("NVIDIA-SMI has failed because it couldn't communicate with the NVIDIA driver.\n", 9)
    assert list_gpus() == []


def test_a_machine_without_the_tool_has_none(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    assert list_gpus() == []
    assert find_unseen() is None


@pytest.mark.parametrize(
    ("driver", "cuda", "advice"),
    [
        ("580.95.05", None, "it is a build without CUDA: install carevl[gpu] there"),
        ("535.183.01", "13.0", "it is built for CUDA 13.0 (driver 580 or newer), and the driver there is 535.183.01"),
        ("580.95.05", "13.0", "for which the driver there, 580.95.05, is new enough"),
        ("535.183.01", "12.6", "for which the driver there, 535.183.01, is new enough"),
        (None, "13.0", "check there that nvidia-smi lists the GPU and that its driver is new enough for CUDA 13.0"),
    ],
)
def test_the_advice_follows_from_driver_and_build(driver, cuda, advice):
    assert advice in explain_unseen([] if driver is None else [Gpu("NVIDIA L40S", driver, "46068 MiB")], cuda)


@pytest.mark.skipif(torch.cuda.is_available(), reason="torch sees a GPU here")
def test_plan_says_why_listed_gpus_cannot_be_used(nvidia_smi, tmp_path):
    nvidia_smi()
    (tmp_path / "pairs.jsonl").write_text("{}")
    sources = [f"data.sources=[{{path: {tmp_path}/pairs.jsonl}}]", "benchmarks=[]"]
    reserved = load_settings("mini", [*sources, "sft.workers.num_gpus=1", "sft.workers.count=1"])
    with pytest.raises(RunError) as refused:
        list(plan_lines(reserved, Run(tmp_path / "run"), False, print))
    sentence = str(refused.value).splitlines()[0]
    assert sentence.startswith("this machine: nvidia-smi lists 2 GPU (NVIDIA H100 80GB HBM3, 81559 MiB, driver 535.183")
    assert f"and torch {torch.__version__} sees none; it is a build without CUDA: install carevl[gpu]" in sentence
    list(plan_lines(load_settings("mini", sources), Run(tmp_path / "run"), False, print))
