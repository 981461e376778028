"""Tokens and steps of a trial are counted by the log of its training, which has to be what was written."""

from __future__ import annotations

import pytest

from carevl.compare.trials import read_steps
from carevl.store.damage import DamagedError
from carevl.store.table import Table
from carevl.training.progress import STEPS, StepLog


@pytest.fixture
def training(tmp_path):
    """A finished training of two steps."""
    table = Table(tmp_path / "sft" / "f")
    log = StepLog(table.directory / STEPS, 0)
    for step in (1, 2):
        log.write({"step": step, "tokens": 300})
    table.finish({"stage": "sft"})
    return table


def test_the_steps_of_a_training_are_read(training):
    assert read_steps(training) == [{"step": 1, "tokens": 300}, {"step": 2, "tokens": 300}]


def test_a_log_that_an_earlier_version_did_not_list_is_read(training):
    training.finish({"stage": "sft"}, {})
    assert [facts["step"] for facts in read_steps(training)] == [1, 2]


def test_a_log_with_another_number_of_tokens_is_refused(training):
    file = training.directory / STEPS
    file.write_bytes(file.read_bytes().replace(b"300", b"301", 1))
    with pytest.raises(DamagedError, match=rf"{STEPS} is damaged: .* remove {training.directory}, which is then"):
        read_steps(training)


def test_a_log_that_is_gone_is_refused(training):
    (training.directory / STEPS).unlink()
    with pytest.raises(DamagedError, match=rf"{STEPS} is missing; tokens are counted by it"):
        read_steps(training)
    training.finish({"stage": "sft"})  # as a repair does, which does not train again for it
    with pytest.raises(DamagedError, match=rf"{STEPS} is missing"):
        read_steps(training)
