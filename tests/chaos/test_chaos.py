"""A small job under faults: it ends with the tables of an undisturbed run, and says what happened in a sentence.

A few of each here; `python -m tests.chaos.kills` and `python -m tests.chaos.damage` do hundreds.
"""

from __future__ import annotations

import os
import random
import shutil
import signal
import subprocess
import sys
import time

import pytest

from tests.chaos.damage import WAYS, find_files, kind_of, try_damage, ways_of
from tests.chaos.job import KINDS, STAGES, Job, find_difference, fingerprint
from tests.chaos.kills import PATIENCE, disturb

pytestmark = [pytest.mark.ray, pytest.mark.nightly, pytest.mark.fault]
BRIEF = ("route", "select")
"""Stages that take less than a second."""


@pytest.fixture(scope="module")
def reference(tmp_path_factory):
    """The directory of an undisturbed run."""
    directory = tmp_path_factory.mktemp("reference")
    job = Job(directory / "run", directory / "log")
    assert job.wait(1200) == 0, job.output[-3000:]
    return directory / "run"


@pytest.mark.parametrize("kind", KINDS)
def test_killed_processes_change_nothing(reference, tmp_path, kind):
    attempts = disturb(tmp_path / "run", [kind], random.Random(kind), 2)
    assert sum(len(attempt.kills) for attempt in attempts) == 2
    assert [problem for attempt in attempts for problem in attempt.problems] == []
    assert find_difference(fingerprint(reference), fingerprint(tmp_path / "run")) is None


@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGHUP, 129)])
def test_a_signal_in_any_stage_ends_a_run_in_one_line(reference, tmp_path, number, status):
    draw = random.Random(status)
    for stage in STAGES[1:]:
        job = Job(tmp_path / "run", tmp_path / "log")
        while STAGES.index(job.stage) < STAGES.index(stage) and job.driver.poll() is None:
            time.sleep(0.05)
        time.sleep(draw.uniform(0, 0.1 if stage in BRIEF else 1))
        os.kill(job.driver.pid, number)
        assert job.wait(PATIENCE) == status, job.output[-3000:]
        assert job.noise() is None
        assert list(job.processes()) == []
    assert Job(tmp_path / "run", tmp_path / "log").wait(600) == 0
    assert find_difference(fingerprint(reference), fingerprint(tmp_path / "run")) is None


def test_damage_of_every_kind_of_file_is_named(reference, tmp_path):
    run_dir, draw = tmp_path / "run", random.Random(1)
    shutil.copytree(reference, run_dir)
    files = {kind_of(run_dir, file): file for file in find_files(run_dir)}
    results = [
        try_damage(run_dir, file, ways_of(file)[n % len(ways_of(file))], draw, mend=False)
        for n, file in enumerate(files.values())
    ]
    assert [result for result in results if not result["named"] or result["traceback"]] == []


@pytest.mark.parametrize("way", WAYS)
def test_what_is_damaged_is_made_again(ray, reference, tmp_path, way):
    run_dir, draw = tmp_path / "run", random.Random(way)
    shutil.copytree(reference, run_dir)
    shutil.copy(run_dir / "settings.yaml", tmp_path)
    files = [file for file in find_files(run_dir) if way in ways_of(file)]
    tables = [file for file in files if file.suffix in (".parquet", ".safetensors")]
    for file in draw.sample(tables, 3):
        result = try_damage(run_dir, file, way, draw, mend=True)
        assert (result["named"], result["traceback"], result["stopped"], result["difference"]) == (
            True,
            False,
            None,
            None,
        )


_IN_NAMESPACE = ("unshare", "--user", "--map-root-user", "--mount")


def test_a_full_disk_is_named_and_costs_nothing(reference):
    if shutil.which("unshare") is None or subprocess.run([*_IN_NAMESPACE, "true"], check=False).returncode:
        pytest.skip("this system lets nobody mount a disk in a namespace of their own")
    command = [*_IN_NAMESPACE, sys.executable, "-m", "tests.chaos.full_disk", str(reference), "--seed", "1"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
