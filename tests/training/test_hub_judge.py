"""A judge that is named by hub id and commit, in training: the same as its directory, and the same facts everywhere."""

import json

import pytest
from huggingface_hub import constants

from carevl.errors import UserError
from carevl.miniworld.weights import WEIGHTS
from carevl.models.locate import Weights
from carevl.training.driver import prepare_training


@pytest.fixture
def commit(hub, judge):
    """The commit of the judge; its branch has moved on to other weights."""
    commit = hub.add("org/judge", judge, shards=2)
    hub.add("org/judge", WEIGHTS / "judge")
    return commit


def test_facts_of_a_training_name_the_commit_and_no_path_of_a_cache(
    hub, commit, sft_rows, write, quick, tmp_path, monkeypatch
):
    rows, out = [write(sft_rows)], tmp_path / "out"
    config, used, errors = prepare_training("sft", rows, "org/judge", out, quick(), revision=commit)
    assert (used, errors) == (8, [])
    assert config.base == Weights("org/judge", commit)
    assert config.judge.name == commit
    assert json.loads((out / "training.json").read_text())["facts"]["judge"] == f"org/judge@{commit}"
    # Another node, or another day: the cache lies elsewhere, and the training is the one that it was.
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "elsewhere"))
    again, *_ = prepare_training("sft", rows, "org/judge", out, quick(), revision=commit)
    assert again == config
    assert again.judge.is_relative_to(tmp_path / "elsewhere")
    with pytest.raises(UserError, match=r"no such directory, and the hub has no such model"):
        prepare_training("sft", rows, "org/nobody", tmp_path / "other", quick())


@pytest.mark.parametrize("stage", [0, 3])
def test_a_judge_of_the_hub_learns_what_its_directory_learns(
    stage, hub, commit, begin, judge, sft_rows, quick, tmp_path
):
    losses = []
    for name, source in (("directory", {"judge": judge}), ("hub", {"judge": "org/judge", "revision": commit})):
        loop, _ = begin("sft", sft_rows, quick(zero={"stage": stage}), out=tmp_path / name, **source)
        losses.append([loop.step(number)["loss"] for number in range(2)])
        loop.export()
        assert list((tmp_path / name / "judge").glob("model*.safetensors"))
    assert losses[0] == losses[1]
