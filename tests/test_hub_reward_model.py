"""`RewardModel` by hub id: at a commit, at the newest commit of its branch, and offline with what the cache has."""

import shutil

import pytest
from huggingface_hub import constants
from PIL import Image

from carevl import RewardModel
from carevl.errors import UserError
from carevl.miniworld.weights import WEIGHTS
from carevl.models.locate import locate


def test_a_judge_of_the_hub_is_its_directory(hub, tmp_path, monkeypatch):
    commit = hub.add("org/judge", WEIGHTS / "judge")
    case = (Image.new("RGB", (64, 64), "red"), "How many circles are there?", "None.")
    expected = RewardModel(WEIGHTS / "judge").score(*case)
    assert RewardModel("org/judge", revision=commit).score(*case) == expected
    assert hub.unknown == []
    newer = hub.add("org/judge", WEIGHTS / "captioner")
    with pytest.raises(
        UserError, match=r"^judge\.path: org/nobody: there is no such directory, and the hub has no such"
    ):
        RewardModel("org/nobody")
    RewardModel("org/judge")
    assert locate("org/judge").endswith(newer)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    hub.forget()
    assert RewardModel("org/judge", revision=commit).score(*case) == expected
    assert hub.requests == []
    shutil.rmtree(tmp_path / "hf")
    with pytest.raises(UserError, match="HF_HUB_OFFLINE forbids to fetch it"):
        RewardModel("org/judge", revision=commit)
