"""Ray in tests: one token for all, and clusters of several raylets on this machine."""

from __future__ import annotations

import os
import resource
import shutil
import socket
import tempfile
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psutil
import pytest

from carevl.cluster.private import TOKEN

if TYPE_CHECKING:
    from ray.cluster_utils import Cluster

pytest_plugins = [
    "tests.helpers.families.fixture",
    "tests.helpers.hub",
    "tests.helpers.pairs",
    "tests.helpers.own_suite",
    "tests.helpers.predictions",
    "tests.helpers.small_run",
    "tests.helpers.sources",
    "tests.helpers.tiers",
]

# Weights and processors of tests lie on this machine. One thread is what Ray's workers have, and what tests that run
# side by side leave each other. Processes that tests start inherit both.
os.environ |= {"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
# Ray reads its token once per process: every Ray that is started from this one has the same.
os.environ |= {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": TOKEN}


@contextmanager
def _ray_directory() -> Iterator[Path]:
    directory = Path(tempfile.mkdtemp(prefix="ray-"))  # a short path: Ray's sockets lie below it
    try:
        yield directory
    finally:
        left = [process for process in psutil.process_iter(["cmdline"]) if str(directory) in str(process.info)]
        for process in left:
            process.kill()
        psutil.wait_procs(left, 10)
        shutil.rmtree(directory, ignore_errors=True)


@pytest.fixture(scope="session")
def ray_directory() -> Callable[[], AbstractContextManager[Path]]:
    """Opens a directory for one Ray; processes of that Ray that are left at the end are killed."""
    return _ray_directory


@contextmanager
def _largest_file(size: int) -> Iterator[None]:
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)


@pytest.fixture(scope="session")
def largest_file() -> Callable[[int], AbstractContextManager[None]]:
    """Makes the system refuse to write files beyond so many bytes, as it does when a disk is full.

    Only as long as it is open: what pytest itself writes to may be larger.
    """
    return _largest_file


@pytest.fixture(scope="session")
def free_port() -> Callable[[], str]:
    """Gives a port that nobody listens on."""

    def port() -> str:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            return str(free.getsockname()[1])

    return port


class Raylets:
    """A cluster to which raylets are added, and from which they are taken without warning."""

    def __init__(self, cluster: Cluster) -> None:
        self.cluster = cluster

    @property
    def address(self) -> str:
        """Where drivers join."""
        return str(self.cluster.address)

    def add(self, **resources: float) -> Any:
        """A raylet with one CPU and custom resources; the first is the head."""
        quiet = {"include_dashboard": False, "dashboard_agent_listen_port": None}
        return self.cluster.add_node(num_cpus=1, resources=resources, **quiet)

    def kill(self, raylet: Any) -> None:
        """Takes a raylet away with all that runs on it, by SIGKILL."""
        self.cluster.remove_node(raylet, allow_graceful=False)

    def busy(self, raylet: Any, title: str) -> bool:
        """Whether a worker whose title begins with `ray::` and `title` runs on a raylet."""
        [process] = raylet.all_processes["raylet"]
        workers = psutil.Process(process.process.pid).children(recursive=True)
        return any(worker.cmdline()[:1] and worker.cmdline()[0].startswith(f"ray::{title}") for worker in workers)


@pytest.fixture
def raylets(monkeypatch: pytest.MonkeyPatch, ray_directory: Callable[[], Any]) -> Iterator[Raylets]:
    """A cluster without nodes yet. Only other processes may join it: this one may hold a Ray of another test."""
    from ray.cluster_utils import Cluster

    with ray_directory() as directory:
        monkeypatch.setenv("RAY_TMPDIR", str(directory))
        cluster = Cluster()
        yield Raylets(cluster)
        cluster.shutdown()
