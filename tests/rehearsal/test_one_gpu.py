"""The presets for one GPU as they are, from the hub to a judge, where no GPU is."""

from __future__ import annotations

import shutil

import pytest

from carevl.settings.loader import load_settings
from carevl.store.table import Table
from tests.helpers.rehearsal import (
    CAREVL,
    FEW_PAIRS,
    LEARNED,
    Rehearsal,
    check_offline,
    check_rehearsal,
    data_of,
    environment_for,
    words_of,
)

pytestmark = [pytest.mark.train, pytest.mark.nightly]
PRETENDED = ["cluster.num_cpus=16", "cluster.num_gpus=1"]


CASES = [
    ("single-gpu", "as in the preset"),
    ("single-gpu", "with labels and a benchmark"),
    ("small-gpu", "as in the preset"),
]


@pytest.fixture(scope="module", params=CASES, ids=" ".join)
def rehearsal(request, hub, world, tmp_path_factory):
    preset, data = request.param
    directory = tmp_path_factory.mktemp(preset)
    overrides = [*data_of(world, labels=data.startswith("with")), *PRETENDED, *LEARNED, *FEW_PAIRS]
    command = [CAREVL, "run", preset, "--rehearse", *words_of(overrides)]
    rehearsal = Rehearsal(command, directory / "run", environment_for(hub, directory / "hf"))
    done = rehearsal.run_again()
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stderr.splitlines()[0].startswith("a rehearsal: ")
    return rehearsal


def test_it_ends_in_a_judge_and_says_everywhere_that_it_is_a_rehearsal(rehearsal):
    check_rehearsal(rehearsal.run)


def test_offline_the_same_command_makes_nothing_again_and_goes_on_where_something_is_missing(rehearsal, hub):
    expert = load_settings(rehearsal.command[2]).experts[0].name
    hub.forget()
    check_offline(rehearsal)
    [before] = [Table(directory).read() for directory in rehearsal.run.glob(f"score/{expert}/*")]
    shutil.rmtree(rehearsal.run / "score" / expert)
    done = rehearsal.run_again("--until", "score", HF_HUB_OFFLINE="1")
    assert done.returncode == 0, done.stdout + done.stderr
    [after] = [Table(directory).read() for directory in rehearsal.run.glob(f"score/{expert}/*")]
    assert after.num_rows == before.num_rows
    assert not hub.requests
