"""A private Ray that is slow to start."""

from __future__ import annotations

import pytest
import ray as ray_library

from carevl.cluster.connect import ray_cluster
from carevl.settings.tree import Cluster
from carevl.store.run import RunError

SLOW = Exception("The current node timed out during startup. This could happen because the GCS is overloaded.")


@pytest.fixture
def starts(monkeypatch):
    """What every start of Ray raises, or None where it comes up; nothing is started."""
    outcomes, made = [], []

    def start(**arguments):
        made.append(arguments)
        if (outcome := outcomes.pop(0)) is not None:
            raise outcome

    monkeypatch.setattr(ray_library, "init", start)
    monkeypatch.setattr(ray_library, "is_initialized", lambda: False)
    monkeypatch.setattr(ray_library, "shutdown", lambda: None)
    return outcomes, made


def test_it_is_started_again(starts, caplog):
    outcomes, made = starts
    outcomes += [SLOW, None]
    with ray_cluster(Cluster()):
        pass
    assert len(made) == 2
    assert "it is started again" in caplog.text


def test_after_three_times_it_is_given_up_in_a_sentence(starts):
    outcomes, _ = starts
    outcomes += [SLOW, SLOW, SLOW]
    with (
        pytest.raises(RunError, match="Ray has not started on this machine in 3 tries; it is too busy"),
        ray_cluster(Cluster()),
    ):
        pass


def test_what_else_is_wrong_is_not_tried_again(starts):
    outcomes, made = starts
    outcomes += [ValueError("num_cpus is negative")]
    with pytest.raises(ValueError, match="negative"), ray_cluster(Cluster()):
        pass
    assert len(made) == 1
