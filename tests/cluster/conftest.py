"""A head with a dashboard and token, and one run that was submitted to it as a job."""

from __future__ import annotations

import os
import secrets
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest

REPOSITORY = Path(__file__).parents[2]
BIN = Path(sys.executable).parent
SMALL = [
    "items=60",
    "miniworld.items=60",
    "miniworld.calibration_images=20",
    "data.parts=16",
    "captioner.engine=transformers",
    "captioner.pool.num_cpus=0.5",
    "experts.1.pool.batch_size=1",  # slow, so that its node can be taken away in the middle
    "router.policy=mean_margin",
    "router.threshold=0.7",
    "judge.pool.concurrency=1",
    "demonstrate.samples=2",
    "sft.epochs=1",
    "sample.samples=4",
    "select.min_gap=0.1",
    "dpo.epochs=1",
    "benchmarks=[{name: vl-rewardbench, path: 'miniworld:dev/vl_rewardbench.parquet', "
    "final_path: 'miniworld:test/vl_rewardbench.parquet', rows: 4}]",
]


@pytest.fixture(scope="session")
def words() -> Callable[..., list[str]]:
    """The arguments of an entry point: a run directory, the settings that all runs here share, and more of them."""

    def make(run: Path, *more: str) -> list[str]:
        return ["--run-dir", str(run), *(word for override in (*SMALL, *more) for word in ("--set", override))]

    return make


@dataclass(frozen=True)
class Head:
    """A Ray head that wants a token, and the environment of those who have it."""

    dashboard: str
    environment: dict[str, str]

    def submit(self, script: str, words: list[str]) -> subprocess.CompletedProcess[str]:
        """Submits an entry point of this repository as a job, and waits for its end."""
        command = [BIN / "ray", "job", "submit", "--address", self.dashboard, "--working-dir", REPOSITORY, "--"]
        command += ["python", f"ray_jobs/{script}", *words]
        return subprocess.run(command, env=self.environment, capture_output=True, text=True, check=False, timeout=600)


@pytest.fixture(scope="session")
def head(ray_directory: Callable[[], Any], free_port: Callable[[], str]) -> Iterator[Head]:
    with ray_directory() as directory:
        token = directory / "token"
        token.touch(mode=0o600)
        token.write_text(secrets.token_hex(32))
        environment = {
            **{name: value for name, value in os.environ.items() if name != "RAY_AUTH_TOKEN"},
            "RAY_AUTH_MODE": "token",
            "RAY_AUTH_TOKEN_PATH": str(token),
            "RAY_TMPDIR": str(directory),
            "PATH": f"{BIN}{os.pathsep}{os.environ['PATH']}",
        }
        dashboard = free_port()
        command = [BIN / "ray", "start", "--head", "--block", "--num-cpus=2", "--disable-usage-stats"]
        command += ["--node-ip-address=127.0.0.1", "--dashboard-host=127.0.0.1", f"--dashboard-port={dashboard}"]
        command += ["--min-worker-port=0", "--max-worker-port=0", f"--temp-dir={directory}"]
        ports = ("port", "ray-client-server-port", "dashboard-agent-listen-port", "dashboard-agent-grpc-port")
        command += [f"--{name}={free_port()}" for name in ports]
        with (directory / "head.log").open("w") as log:
            started = subprocess.Popen(command, env=environment, stdout=log, stderr=log)
        made = Head(f"http://127.0.0.1:{dashboard}", environment)
        try:
            _wait_until_it_answers(made, started, directory / "head.log")
            yield made
        finally:
            started.kill()  # what it has started goes with the directory
            started.wait()


def _wait_until_it_answers(head: Head, started: subprocess.Popen[bytes], log: Path) -> None:
    deadline = time.monotonic() + 180
    while True:
        assert started.poll() is None, log.read_text()
        assert time.monotonic() < deadline, log.read_text()
        try:
            httpx.get(f"{head.dashboard}/api/version", timeout=5)
        except httpx.TransportError:
            time.sleep(0.5)
        else:
            return


@dataclass(frozen=True)
class Submitted:
    """A job that ran to the end, and its run directory."""

    job: subprocess.CompletedProcess[str]
    run: Path


@pytest.fixture(scope="session")
def submitted(head: Head, words: Callable[..., list[str]], tmp_path_factory: pytest.TempPathFactory) -> Submitted:
    """The whole pipeline and an evaluation on test data, as a job that nothing disturbed."""
    run = tmp_path_factory.mktemp("submitted") / "run"
    return Submitted(head.submit("pipeline.py", [*words(run), "--final"]), run)
