"""States of a training as files: everything comes back, and nothing that is loaded is code."""

from __future__ import annotations

import pickle
import subprocess
from collections import OrderedDict
from pathlib import Path
from typing import Any

import pytest
import torch
from deepspeed.runtime.fp16.loss_scaler import DynamicLossScaler, LossScaler

from carevl.training.state_files import check_state, load_state, save_state


def test_a_state_comes_back_as_it_was(tmp_path):
    flat = torch.arange(12, dtype=torch.bfloat16)
    tied = torch.randn(3, 2)
    state: dict[str, Any] = {
        "module": OrderedDict({"a": flat[:4].view(2, 2), "b": flat[4:], "c": tied, "d": tied, "e": tied.T}),
        "optimizer": {
            "state": {0: {"step": torch.tensor(3.0), "exp_avg": torch.zeros(0)}},
            "param_groups": [
                {"lr": 0.1 + 0.2, "betas": (0.9, 0.999), "amsgrad": False, "foreach": None, "params": [0]}
            ],
            "loss_scaler": LossScaler(1.0),
            "param_slice_mappings": object(),
        },
        "ds_config": object(),
        "steps_done": 7,
    }
    save_state(state, tmp_path / "state")
    check_state(tmp_path / "state")
    loaded = load_state(tmp_path / "state")
    assert loaded["optimizer"].pop("loss_scaler").loss_scale == 1.0
    tensors = loaded.pop("module")
    for name, expected in state["module"].items():
        assert tensors[name].dtype == expected.dtype
        assert torch.equal(tensors[name], expected)
    moments = loaded["optimizer"]["state"][0]
    assert (moments.pop("step").item(), moments.pop("exp_avg").shape) == (3.0, (0,))
    groups = state["optimizer"]["param_groups"]
    assert loaded == {"optimizer": {"state": {0: {}}, "param_groups": groups}, "steps_done": 7}


@pytest.mark.parametrize("value", [object(), {1, 2}, DynamicLossScaler(1.0, 2.0, 1, 1.0, 1, False)])
def test_what_is_no_data_is_refused(tmp_path, value):
    with pytest.raises(TypeError, match="a checkpoint cannot hold"):
        save_state({"state": [value]}, tmp_path / "state")
    assert not (tmp_path / "state").exists()


class _Malicious:
    def __init__(self, file: Path) -> None:
        self.file = file

    def __reduce__(self):
        return subprocess.check_call, (["touch", str(self.file)],)


def test_a_pickle_is_refused_and_does_not_run(tmp_path):
    torch.save({"module": _Malicious(tmp_path / "ran")}, tmp_path / "zip")
    torch.save({"module": _Malicious(tmp_path / "ran")}, tmp_path / "plain", _use_new_zipfile_serialization=False)
    (tmp_path / "pickle").write_bytes(pickle.dumps(_Malicious(tmp_path / "ran")))
    for name in ("zip", "plain", "pickle"):
        for read in (check_state, load_state):
            with pytest.raises(ValueError, match="holds no state of a training"):
                read(tmp_path / name)
    assert not (tmp_path / "ran").exists()
    torch.load(tmp_path / "zip", weights_only=False)
    assert (tmp_path / "ran").exists()  # as it would have


@pytest.mark.fault
def test_a_state_that_cannot_be_written_is_the_systems_error(tmp_path, largest_file):
    with largest_file(1000), pytest.raises(OSError, match="state"):
        save_state({"module": torch.zeros(1000)}, tmp_path / "state")
