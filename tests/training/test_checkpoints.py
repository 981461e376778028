"""Checkpoints that cannot be written, and who may write."""

from __future__ import annotations

import subprocess
import sys

import pytest

from carevl.errors import UserError
from carevl.training.checkpoints import Checkpoints, exclusive_lock


@pytest.mark.fault
def test_a_checkpoint_that_cannot_be_written_leaves_the_last_one_as_it_was(
    begin, sft_rows, quick, tmp_path, largest_file
):
    loop, _ = begin("sft", sft_rows, quick(epochs=3))
    checkpoints = Checkpoints(tmp_path / "checkpoints", keep=1)
    loop.step(0)
    checkpoints.save(loop, 1)
    expected = loop.step(1)["loss"]
    with largest_file(20_000), pytest.raises((OSError, RuntimeError)):
        checkpoints.save(loop, 2)
    assert [path.name for path in checkpoints.directory.iterdir()] == ["step-00000001"]
    assert checkpoints.restore(loop) == 1
    assert loop.step(1)["loss"] == pytest.approx(expected, abs=1e-6)


def test_what_a_killed_worker_was_writing_is_removed(begin, sft_rows, quick, tmp_path):
    loop, _ = begin("sft", sft_rows, quick())
    (tmp_path / ".unfinished-step-00000003").mkdir()
    assert Checkpoints(tmp_path, keep=1).restore(loop) == 0
    assert not list(tmp_path.glob(".unfinished*"))


@pytest.mark.fault
def test_one_training_at_a_time_writes_to_a_directory(tmp_path):
    script = f"""if True:
        import time
        from pathlib import Path
        from carevl.training.checkpoints import exclusive_lock
        with exclusive_lock(Path({str(tmp_path)!r})):
            print("held", flush=True)
            time.sleep(600)"""
    other = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True)
    assert other.stdout.readline() == "held\n"
    with pytest.raises(UserError, match="another training writes to"), exclusive_lock(tmp_path, patience=0.0):
        pass
    other.kill()
    other.wait()
    with exclusive_lock(tmp_path, patience=0.0):
        pass
