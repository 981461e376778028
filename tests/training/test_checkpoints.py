"""Checkpoints that cannot be written or are damaged, and who may write."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest
import torch

from carevl.errors import UserError
from carevl.store.listing import describe
from carevl.training.checkpoints import Checkpoints, exclusive_lock, report_damaged


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


def _flip(file):
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 1
    file.write_bytes(data)


def _pickle(file):
    torch.save({"module": _Malicious(file.parent / "ran")}, file)


class _Malicious:
    def __init__(self, file):
        self.file = file

    def __reduce__(self):
        return subprocess.check_call, (["touch", str(self.file)],)


DAMAGE = {
    "deleted": (lambda file: file.unlink(), "is missing"),
    "emptied": (lambda file: file.write_bytes(b""), "has 0 bytes"),
    "cut": (lambda file: file.write_bytes(file.read_bytes()[:-1]), "bytes, not"),
    "flipped": (_flip, "its checksum does not fit"),
    "a pickle": (_pickle, "bytes, not"),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_checkpoint_is_put_aside_and_the_one_before_taken(begin, sft_rows, quick, tmp_path, damage):
    loop, _ = begin("sft", sft_rows, quick(epochs=3))
    checkpoints, lines = Checkpoints(tmp_path / "checkpoints", keep=2), []
    loop.step(0)
    checkpoints.save(loop, 1)
    expected = loop.step(1)["loss"]
    checkpoints.save(loop, 2)
    break_file, problem = DAMAGE[damage]
    [state] = checkpoints.directory.glob("step-00000002/*/*.pt")
    break_file(state)
    with report_damaged(checkpoints.directory, lines.append):
        assert checkpoints.restore(loop) == 1
    assert not list(tmp_path.rglob("ran"))
    assert {path.name for path in checkpoints.directory.iterdir()} == {"step-00000001", "damaged-step-00000002"}
    [line] = lines
    assert line.startswith(f"the checkpoint of step 2 is put aside as {checkpoints.directory}/damaged-step-00000002: ")
    assert problem in line
    assert loop.step(1)["loss"] == pytest.approx(expected, abs=1e-6)
    checkpoints.save(loop, 2)
    assert checkpoints.restore(loop) == 2


def test_where_no_checkpoint_is_whole_training_begins_anew(begin, sft_rows, quick, tmp_path):
    loop, _ = begin("sft", sft_rows, quick(epochs=3))
    checkpoints = Checkpoints(tmp_path / "checkpoints", keep=2)
    loop.step(0)
    checkpoints.save(loop, 1)
    about = checkpoints.directory / "step-00000001" / "about.json"
    about.write_text('{"workers": 1}')
    assert checkpoints.restore(loop) == 0
    assert "pickles" in (checkpoints.directory / "damaged-step-00000001" / "problem.txt").read_text()


def test_a_pickle_with_a_fitting_hash_does_not_run_either(begin, sft_rows, quick, tmp_path):
    loop, _ = begin("sft", sft_rows, quick(epochs=3))
    checkpoints = Checkpoints(tmp_path / "checkpoints", keep=2)
    checkpoints.save(loop, 1)
    directory = checkpoints.directory / "step-00000001"
    [state] = directory.glob("*/*.pt")
    _pickle(state)
    files = describe(directory, [str(state.relative_to(directory))])
    (directory / "about.json").write_text(json.dumps({"workers": 1, "files": files}))
    assert checkpoints.restore(loop) == 0
    assert not list(tmp_path.rglob("ran"))


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
