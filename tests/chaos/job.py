"""A small job, its processes by kind, and what it leaves: the same however often it was disturbed."""

from __future__ import annotations

import hashlib
import json
import re
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import psutil

from carevl.training.progress import STEPS, read_log
from tests.helpers.small_run import SMALL

SETTINGS = (
    *SMALL,
    "miniworld.items=40",
    "miniworld.calibration_images=24",
    "data.parts=6",
    "sft.batch_size=4",
    "sft.epochs=2",
    "sft.checkpoint_steps=2",
    "sample.samples=2",
    "dpo.batch_size=4",
    "dpo.checkpoint_steps=2",
    "benchmarks.0.rows=6",
    "benchmarks.1.rows=6",
)
"""Every stage in about a minute, with several parts and checkpoints each."""

STAGES = (
    "start",
    "ingest",
    "caption",
    "score",
    "route",
    "demonstrate",
    "sft",
    "sample",
    "select",
    "dpo",
    "evaluate",
)
"""In their order; `start` is before the first line."""

STAGES_OF = {
    "actor": ("caption", "score", "demonstrate", "sample", "dpo", "evaluate"),
    "worker": ("sft", "dpo"),
    "controller": ("sft", "dpo"),
}
"""Kind of process to the stages that have one; all stages where it is not among them."""

KINDS = {
    "driver": r"^driver$",
    "actor": r"^ray::.*(PoolActor|Preparer)",
    "worker": r"^ray::RayTrainWorker",
    "controller": r"^ray::TrainController",
    "raylet": r"^raylet$",
    "agent": r"^ray::(DashboardAgent|RuntimeEnvAgent)|dashboard/agent\.py|runtime_env/agent/main\.py",
    "gcs": r"^gcs_server$",
}
"""Kind of process to a pattern of its name or command; agents give themselves a name once they are up."""

_RUN = re.compile(rb"/[^\s\"'`]*(?=/(?:sft|dpo)/[0-9a-f]{16}/)")
"""The run directory in a path of what was trained there; a copied run tells where it was before."""

_NOISE = re.compile(r"Traceback \(most recent call last\)|^\[\d{4}-\d\d-\d\d .* [EFC] \d+ \d+\]|^\*\*\* SIG", re.M)


@dataclass(frozen=True)
class Process:
    """A process of a job and what it is called."""

    kind: str
    process: psutil.Process


class Job:
    """`carevl run` in a process of its own, on a private Ray."""

    def __init__(self, run_dir: Path, log: Path, more: Sequence[str] = ()) -> None:
        self.run_dir, self.log = run_dir, log
        words = [word for setting in SETTINGS for word in ("--set", setting)]
        command = [
            str(Path(sys.executable).with_name("carevl")),
            "run",
            "mini",
            "--run-dir",
            str(run_dir),
            *words,
            *more,
        ]
        if (
            signal.getsignal(signal.SIGINT) is signal.SIG_IGN
        ):  # a shell's background jobs, and their children, ignore it
            signal.signal(signal.SIGINT, signal.default_int_handler)
        with log.open("ab") as stream:
            self.begin = stream.tell()
            self.driver = subprocess.Popen(command, stdout=stream, stderr=stream, stdin=subprocess.DEVNULL)

    @property
    def output(self) -> str:
        """What it has printed so far."""
        return self.log.read_bytes()[self.begin :].decode("utf-8", "replace")

    @property
    def stage(self) -> str:
        """The stage at work, by the last line that names one."""
        stages = re.findall(rf"^({'|'.join(STAGES[1:])})\b", self.output, re.M)
        return str(stages[-1]) if stages else STAGES[0]

    def processes(self) -> Iterator[Process]:
        """Yield the processes of a known kind that are alive."""
        if self.driver.poll() is None:
            yield Process("driver", psutil.Process(self.driver.pid))
            for process in psutil.Process(self.driver.pid).children(recursive=True):
                if (kind := _kind(process)) is not None:
                    yield Process(kind, process)

    def wait(self, timeout: float) -> int:
        """Return the exit status.

        Raises:
            TimeoutError: it has not ended; it is killed, with all its processes.
        """
        try:
            return self.driver.wait(timeout)
        except subprocess.TimeoutExpired:
            self.kill()
            raise TimeoutError(f"no end after {timeout:.0f} s; the log ends with:\n{self.output[-3000:]}") from None

    def kill(self) -> None:
        """Kill it and all its processes."""
        family = psutil.Process(self.driver.pid).children(recursive=True) if self.driver.poll() is None else []
        for process in [*family, *([psutil.Process(self.driver.pid)] if self.driver.poll() is None else [])]:
            try:
                process.kill()
            except psutil.NoSuchProcess:
                continue
        self.driver.wait(30)

    def noise(self) -> str | None:
        """Return the first line that no user should see: of a traceback, or of Ray's own logs; None without any."""
        output = self.output
        match = _NOISE.search(output)
        return None if match is None else output[match.start() : match.start() + 500]


def _kind(process: psutil.Process) -> str | None:
    try:
        title, command = process.name(), " ".join(process.cmdline())
    except (psutil.NoSuchProcess, psutil.ZombieProcess):
        return None
    for kind, pattern in KINDS.items():
        if re.search(pattern, title) or re.search(pattern, command):
            return kind
    return None


def fingerprint(run_dir: Path) -> dict[str, str]:
    """Return what a finished run has stored: file of a table below the run to a hash; losses of trainings by step.

    Tables that an earlier attempt left unfinished are not among them. Where a file tells where the run lies, as an
    adapter tells its base, that is left out.
    """
    stored: dict[str, str] = {}
    for file in sorted(run_dir.rglob("manifest.json")):
        table = file.parent
        for name, facts in json.loads(file.read_text())["files"].items():
            if name == STEPS:  # it has times
                continue
            place = table / name
            content = place.read_bytes() if place.suffix in (".md", ".json") and place.exists() else b""
            anywhere, tells = _RUN.subn(b"RUN", content)
            digest = hashlib.sha256(anywhere).hexdigest() if tells else facts["sha256"]
            stored[f"{table.relative_to(run_dir)}/{name}"] = digest
        if steps := read_log(table / STEPS):
            losses = {step["step"]: step["loss"] for step in steps}
            stored[f"{table.relative_to(run_dir)}/losses"] = json.dumps(losses)
    for file in sorted((run_dir / "judge").glob("*.safetensors")):
        stored[f"judge/{file.name}"] = hashlib.sha256(file.read_bytes()).hexdigest()
    return stored


def find_difference(expected: dict[str, str], stored: dict[str, str]) -> str | None:
    """Return what of two runs differs, in words; None where nothing does."""
    changed = [name for name in {**expected, **stored} if expected.get(name) != stored.get(name)]
    return f"{len(changed)} of {len(expected)} files differ: {', '.join(sorted(changed)[:5])}" if changed else None
