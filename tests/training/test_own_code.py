"""A judge that comes with Python code of its own: run where the settings trust it, refused in a sentence elsewhere."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from functools import partial
from pathlib import Path

import pytest

from carevl.errors import UserError
from carevl.models.judge_files import check_judge
from carevl.store.run import Run
from carevl.training.inspection import inspect_judge
from carevl.training.judge import load_judge
from carevl.training.skeleton import load_skeleton
from tests.helpers.finished_run import QUICK, copy_first_part

CAREVL = Path(sys.executable).with_name("carevl")
CONFIGURATION = """
from transformers import Qwen2VLConfig


class OwnConfig(Qwen2VLConfig):
    model_type = "own_vl"
"""
MODEL = """
from transformers import Qwen2VLForConditionalGeneration

from .configuration_own import OwnConfig


class OwnForConditionalGeneration(Qwen2VLForConditionalGeneration):
    config_class = OwnConfig
"""


@pytest.fixture(scope="module")
def own(family_directory, tmp_path_factory):
    """The tiny Qwen2-VL as a class of its own that no transformers has."""
    from safetensors.torch import save_file
    from transformers import AutoModelForImageTextToText

    directory = tmp_path_factory.mktemp("own") / "judge"
    shutil.copytree(family_directory("qwen2_vl"), directory)
    # Names of published files are turned into those of the class by architecture, and nobody knows this one.
    model = AutoModelForImageTextToText.from_pretrained(directory)
    (directory / "model.safetensors").unlink()
    save_file({name: weight.data for name, weight in model.named_parameters()}, directory / "model.safetensors")
    (directory / "configuration_own.py").write_text(CONFIGURATION)
    (directory / "modeling_own.py").write_text(MODEL)
    file = directory / "config.json"
    config = json.loads(file.read_text()) | {"model_type": "own_vl", "architectures": ["OwnForConditionalGeneration"]}
    config["auto_map"] = {
        "AutoConfig": "configuration_own.OwnConfig",
        "AutoModelForImageTextToText": "modeling_own.OwnForConditionalGeneration",
    }
    file.write_text(json.dumps(config))
    return directory


def test_code_that_nobody_trusts_is_refused_and_nobody_is_asked(own, monkeypatch):
    monkeypatch.setattr("builtins.input", lambda *_: pytest.fail("somebody was asked at the terminal"))
    with pytest.raises(UserError, match="Python code that comes with it, which is not run; set judge"):
        check_judge(str(own))
    with pytest.raises(UserError, match="needs Python code"):
        inspect_judge(str(own))


@pytest.mark.parametrize("load", [load_skeleton, partial(load_judge, dtype="float32")], ids=["skeleton", "judge"])
def test_no_loader_of_training_runs_it_or_asks(own, load, monkeypatch, tmp_path):
    judge = tmp_path / "judge"
    shutil.copytree(own, judge)
    for code in judge.glob("*_own.py"):
        code.write_text(f"import pathlib\npathlib.Path({str(tmp_path / 'sprung')!r}).touch()\n{code.read_text()}")
    monkeypatch.setattr("builtins.input", lambda *_: pytest.fail("somebody was asked at the terminal"))
    with pytest.raises(ValueError, match="trust_remote_code"):
        load(judge)
    assert not (tmp_path / "sprung").exists()


def test_a_judge_with_code_of_its_own_is_tried_as_any_other(own):
    check_judge(str(own), code=True)
    inspection = inspect_judge(str(own), code=True)
    assert (inspection.family, inspection.packing) == ("own_vl", "shared")
    assert inspection.difference < 1e-4


@pytest.mark.train
@pytest.mark.nightly
def test_it_is_trained_and_asked_by_what_is_exported(own, tmp_path):
    from carevl import RewardModel

    run = copy_first_part(tmp_path / "rows")
    command = [CAREVL, "train", own, "--rows", run.root, "--out", tmp_path / "out"]
    command += [word for each in QUICK for word in ("--set", each)]
    refused = subprocess.run(command, capture_output=True, text=True, check=False, stdin=subprocess.DEVNULL)
    assert (refused.returncode, "set judge.trust_remote_code: true" in refused.stderr) == (2, True)
    assert "Traceback" not in refused.stderr
    trusted = [*command, "--set", "judge.trust_remote_code=true"]
    done = subprocess.run(trusted, capture_output=True, text=True, check=False, stdin=subprocess.DEVNULL)
    assert done.returncode == 0, done.stderr
    judge = Run(tmp_path / "out").root / "judge"
    assert (judge / "modeling_own.py").is_file()
    model = RewardModel(judge, max_tokens=8, max_model_len=2048, trust_remote_code=True)
    assert model.judge(_picture(), "What is it?", ("A cat.", "A dog.")).status in ("ok", "none", "truncated")


def _picture():
    from PIL import Image

    return Image.new("RGB", (56, 56), "red")
