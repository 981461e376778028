"""Kills processes of a small job at random moments, and looks at what it leaves: the tables of an undisturbed run.

python -m tests.chaos.kills --kills 100 --seed 1

Prints a JSON line per attempt (what was killed, in which stage, how it ended), and a summary.
"""

from __future__ import annotations

import argparse
import json
import random
import shutil
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

import psutil

from tests.chaos.job import KINDS, STAGES, STAGES_OF, Job, Process, find_difference, fingerprint

STATUSES = (0, 2, 3)
"""Exit statuses of an attempt whose driver was not killed: done, a sentence for the user, a fault of the machine."""
PATIENCE = 600.0
"""Seconds in which an attempt has to end, or to go on."""


@dataclass
class Attempt:
    """One call of `carevl run`: what was killed in it as (seconds, kind, stage), how it ended, and what is wrong."""

    kills: list[tuple[float, str, str]] = field(default_factory=list)
    status: int = 0
    seconds: float = 0.0
    last_line: str = ""
    problems: list[str] = field(default_factory=list)


def disturb(run_dir: Path, kinds: Sequence[str], draw: random.Random, most_kills: int) -> list[Attempt]:
    """Run the job until it is done, killing one process after another of the given kinds; none after `most_kills`."""
    attempts: list[Attempt] = []
    left = most_kills
    while not attempts or attempts[-1].status != 0:
        attempt = _attempt(run_dir, kinds, draw, left)
        attempts.append(attempt)
        left -= len(attempt.kills)
        if len(attempts) > most_kills + 5:
            attempt.problems.append("it does not come to an end")
            break
    return attempts


def _attempt(run_dir: Path, kinds: Sequence[str], draw: random.Random, most_kills: int) -> Attempt:
    job, attempt, started = Job(run_dir, run_dir.with_suffix(".log")), Attempt(), time.monotonic()
    driver_killed = False
    while job.driver.poll() is None and len(attempt.kills) < most_kills and not driver_killed:
        victim = _wait_for_victim(job, draw.choice(list(kinds)), draw)
        if victim is None:
            continue
        try:
            victim.process.kill()
        except psutil.NoSuchProcess:
            continue
        attempt.kills.append((round(time.monotonic() - started, 1), victim.kind, job.stage))
        driver_killed = victim.kind == "driver"
    try:
        attempt.status = job.wait(PATIENCE)
    except TimeoutError as error:
        attempt.status = -1
        attempt.problems.append(str(error))
    attempt.seconds = round(time.monotonic() - started, 1)
    attempt.last_line = job.output.strip().rpartition("\n")[2][:300]
    if attempt.status not in STATUSES and not driver_killed and attempt.status != -1:
        attempt.problems.append(f"it ended with status {attempt.status}")
    if not driver_killed and (noise := job.noise()) is not None:
        attempt.problems.append(f"printed: {noise}")
    return attempt


def _wait_for_victim(job: Job, kind: str, draw: random.Random) -> Process | None:
    """Return a process of a kind at a random moment of a stage that is still to come; None where there is none."""
    ahead = [stage for stage in STAGES_OF.get(kind, STAGES) if STAGES.index(stage) >= STAGES.index(job.stage)]
    if not ahead:
        _sleep(job, 0.1)
        return None
    stage, seconds, deadline = draw.choice(ahead), draw.uniform(0, 5), time.monotonic() + 15
    while job.driver.poll() is None and STAGES.index(job.stage) < STAGES.index(stage):
        _sleep(job, 0.2)
        deadline = time.monotonic() + 15
    while job.driver.poll() is None and time.monotonic() < deadline:
        if any(process.kind == kind for process in job.processes()):
            _sleep(job, seconds)
            return next((process for process in job.processes() if process.kind == kind), None)
        _sleep(job, 0.1)
    return None


def _sleep(job: Job, seconds: float) -> None:
    end = time.monotonic() + seconds
    while job.driver.poll() is None and time.monotonic() < end:
        time.sleep(0.1)


def make_reference(directory: Path) -> Path:
    """Return the directory of an undisturbed run."""
    job = Job(directory / "reference", directory / "reference.log")
    if job.wait(1200) != 0:
        raise RuntimeError(job.output[-3000:])
    return directory / "reference"


def copy_until(reference: Path, run_dir: Path, stage: str) -> None:
    """Copy what an undisturbed run had when it came to a stage."""
    later = STAGES[STAGES.index(stage) :]
    shutil.copytree(reference, run_dir, ignore=shutil.ignore_patterns(*later, "judge", "results.json", "run.lock"))


def main(arguments: Sequence[str], log: Callable[[str], None] = print) -> int:
    """Kill as often as the command line says; return an exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=100)
    parser.add_argument("--per-job", type=int, default=6, help="kills of a job before it is left to end")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--kinds", nargs="+", choices=KINDS, default=list(KINDS))
    parser.add_argument("--reference", type=Path, help="an undisturbed run of the job; it is made without this")
    parser.add_argument("--begin", choices=STAGES[2:], help="jobs begin at this stage, with the reference's tables")
    options = parser.parse_args(arguments)
    draw, killed, problems = random.Random(options.seed), Counter[str](), 0
    with tempfile.TemporaryDirectory() as scratch:
        directory = Path(scratch)
        reference = options.reference or make_reference(directory)
        expected, number = fingerprint(reference), 0
        while killed.total() < options.kills:
            run_dir = directory / f"run-{number}"
            if options.begin:
                copy_until(reference, run_dir, options.begin)
            attempts = disturb(run_dir, options.kinds, draw, min(options.per_job, options.kills - killed.total()))
            difference = find_difference(expected, fingerprint(run_dir))
            if difference is not None:
                attempts[-1].problems.append(difference)
            for attempt in attempts:
                log(json.dumps({"job": number, **asdict(attempt)}))
                killed.update(kind for _, kind, _ in attempt.kills)
                problems += len(attempt.problems)
            shutil.rmtree(run_dir)
            number += 1
    log(json.dumps({"jobs": number, "kills": dict(killed), "problems": problems}))
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
