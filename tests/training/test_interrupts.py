"""Trainings that are interrupted, whose controller is killed, and whose disk is full."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import psutil
import pytest

from carevl.errors import FULL_DISK_ADVICE
from carevl.training.driver import train
from carevl.training.interrupts import run_interruptible, stop_file
from carevl.training.progress import read_log
from carevl.training.worker import run_until_full


@pytest.fixture
def heeded():
    """Ctrl-C is heeded, as it is not by what a shell has started in the background."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


def test_an_interrupt_tells_the_workers_and_waits_for_them(heeded, tmp_path):
    ended = threading.Event()

    def fit() -> None:
        os.kill(os.getpid(), signal.SIGINT)
        while not stop_file(tmp_path).exists():
            time.sleep(0.01)
        ended.set()

    with pytest.raises(KeyboardInterrupt):
        run_interruptible(fit, tmp_path)
    assert ended.is_set()
    assert run_interruptible(lambda: stop_file(tmp_path).exists(), tmp_path) is False


def test_what_a_training_raises_is_raised_in_the_main_thread(tmp_path):
    def fit() -> None:
        raise LookupError(threading.current_thread().name)

    with pytest.raises(LookupError) as raised:
        run_interruptible(fit, tmp_path)
    assert str(raised.value) != threading.main_thread().name


def test_a_full_disk_ends_a_training_in_a_sentence(begin, sft_rows, quick, largest_file, tmp_path):
    loop, _ = begin("sft", sft_rows, quick(epochs=4, checkpoint_steps=2))
    with largest_file(20_000):
        sentence = run_until_full(loop)
    assert sentence is not None
    assert sentence.startswith("stopped: ")
    assert "no larger file may be" in sentence or "the disk is full" in sentence
    assert " MB free); " in sentence
    assert sentence.endswith(FULL_DISK_ADVICE)
    assert not list((tmp_path / "out" / "checkpoints").glob("step-*"))


def _drive(rows, judge, out, training):
    script = Path(__file__).with_name("train_driver.py")
    command = [sys.executable, str(script), "sft", str(rows), str(judge), str(out), training.model_dump_json()]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


@pytest.mark.fault
@pytest.mark.train
def test_a_training_that_is_ended_writes_a_checkpoint_and_is_taken_up_there(judge, sft_rows, write, quick, tmp_path):
    training = quick(epochs=12, checkpoint_steps=1000)
    rows, out = write(sft_rows), tmp_path / "ended"
    first = _drive(rows, judge, out, training)
    while len(read_log(out / "steps.jsonl")) < 3:
        assert first.poll() is None
        time.sleep(0.02)
    family = psutil.Process(first.pid).children(recursive=True)
    first.send_signal(signal.SIGTERM)
    _, printed = first.communicate(timeout=120)
    assert first.returncode == 143
    assert "train: ended by SIGTERM; run the same command again to go on" in printed.splitlines()
    assert psutil.wait_procs(family, timeout=60)[1] == []
    [checkpoint] = (out / "checkpoints").glob("step-*")
    steps = int(checkpoint.name.removeprefix("step-"))
    assert 3 <= steps == len(read_log(out / "steps.jsonl"))
    second = _drive(rows, judge, out, training)
    second.communicate(timeout=300)
    assert second.returncode == 0
    assert [facts["step"] for facts in read_log(out / "steps.jsonl")] == list(range(1, 25))


@pytest.mark.nightly
@pytest.mark.fault
@pytest.mark.train
def test_a_training_whose_controller_is_killed_goes_on(ray, judge, sft_rows, write, quick, tmp_path):
    from ray.util import placement_group_table

    training = quick(epochs=20, checkpoint_steps=4)
    out, killed = tmp_path / "killed", []

    def kill_the_controller() -> None:
        while len(read_log(out / "steps.jsonl")) < 9:
            time.sleep(0.02)
        family = psutil.Process().children(recursive=True)
        [controller] = [process for process in family if "TrainController" in process.name()]
        controller.kill()
        killed.append(len(read_log(out / "steps.jsonl")))

    threading.Thread(target=kill_the_controller, daemon=True).start()
    done = train("sft", [write(sft_rows)], judge, out, training)
    assert 9 <= killed[0] < 40
    assert [facts["step"] for facts in done.curve] == list(range(1, 41))
    groups = placement_group_table().values()
    assert {group["state"] for group in groups} == {"REMOVED"}  # also that of the controller that is gone
