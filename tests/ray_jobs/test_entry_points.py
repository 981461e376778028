"""The entry points without a cluster: which there are, and how they refuse."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from carevl.stages import STAGES

pytestmark = pytest.mark.ray

JOBS = Path(__file__).parents[2] / "ray_jobs"
ALIASES = {"ingest", "caption", "score", "route", "demonstrate", "sft", "sample", "select", "dpo", "evaluate"}
"""Scripts name these; a new stage needs none, because stage.py runs any."""


def test_an_alias_of_a_stage_stops_there():
    scripts = {file.stem: file.read_text() for file in JOBS.glob("*.py")}
    assert scripts.keys() == ALIASES | {"pipeline", "stage"}
    assert {stage.name for stage in STAGES} >= ALIASES
    assert all(f'main("{stage}")' in scripts[stage] for stage in ALIASES)


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["--run-dir", "runs/x"], "--run-dir runs/x is relative"),
        (["--run-dir", "s3://bucket/x"], "only sources may lie in a bucket"),
        (["--run-dir", "/shared/x"], "no Ray cluster to join"),
        (["--run-dir", "/shared/x", "--settings", "mnii"], "did you mean the preset mini?"),
        (["--run-dir", "/shared/x", "--set", "seed=often"], "seed: "),
    ],
)
def test_a_mistake_ends_in_one_line_and_a_failing_exit_code(words, says, tmp_path):
    environment = {name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"}
    command = [sys.executable, JOBS / "select.py", *words]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=tmp_path, env=environment)
    assert done.returncode == 2
    [line] = done.stderr.splitlines()
    assert line.startswith("select.py: ")
    assert says in line


def test_one_script_runs_any_stage_and_refuses_a_name_that_is_none(tmp_path):
    environment = {name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"}
    for words, message in ((["score"], "no Ray cluster to join"), ([], "required: NAME"), (["--help"], "")):
        command = [sys.executable, JOBS / "stage.py", *words, "--run-dir", "/shared/x"]
        done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=tmp_path, env=environment)
        assert message in done.stderr
        assert done.returncode == (2 if message else 0)
