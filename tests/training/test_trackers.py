"""Trackers through accelerate, and the picture of a curve."""

from __future__ import annotations

from importlib.util import find_spec

import numpy as np
import pytest
from PIL import Image

from carevl.errors import UserError
from carevl.plots.training_curve import draw_training_curve
from carevl.training.progress import read_log
from carevl.training.trackers import check_tracker
from carevl.training.worker import run_loop


@pytest.mark.parametrize("name", ["mlflow", "wandb"])
def test_a_tracker_that_is_not_installed_is_refused_in_one_line(name):
    if find_spec(name):
        pytest.skip(f"{name} is installed")
    with pytest.raises(UserError, match=rf"^tracker: {name} is not installed; .*$"):
        check_tracker(name)


def test_steps_reach_tensorboard(begin, sft_rows, quick):
    loop, _ = begin("sft", sft_rows, quick(tracker="tensorboard"))
    assert run_loop(loop) is None
    out = loop.config.out
    written = b"".join(events.read_bytes() for events in (out / "tracker").rglob("events.out.*"))
    assert written.count(b"seconds/forward") == len(read_log(out / "steps.jsonl"))


def test_a_picture_has_a_panel_for_each_kind_of_figure(tmp_path):
    sft = [{"step": n, "loss": 3.0 / n} | ({"held_out": {"loss": 2.0}} if n == 10 else {}) for n in range(1, 30)]
    dpo = [{**facts, "rewards/margins": 0.1, "rewards/chosen": -0.1, "rewards/rejected": -2.0} for facts in sft]
    heights = []
    for name, curve in (("sft", sft), ("dpo", dpo)):
        draw_training_curve(tmp_path / f"{name}.png", curve)
        with Image.open(tmp_path / f"{name}.png") as image:
            heights.append(image.height)
            grey = np.asarray(image.convert("L"))
            assert min(grey[0, 0], grey[-1, 0]) > 240
    assert heights[1] > 2 * heights[0]
