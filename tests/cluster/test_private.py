"""A private Ray: whatever the environment says, nobody gets in without its token, and its files are its owner's."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from http.client import HTTPException
from pathlib import Path
from typing import Any

import grpc  # type: ignore[import-untyped]
import pytest

from carevl.cluster.connect import is_private
from carevl.cluster.private import _remove_abandoned
from carevl.settings.tree import Cluster

pytestmark = pytest.mark.ray

DRIVER = [sys.executable, "-m", "tests.cluster.private_driver"]
KNOWN = "0" * 64
HOSTILE = {"RAY_AUTH_MODE": "disabled", "RAY_AUTH_TOKEN": KNOWN, "RAY_ADDRESS": ""}
METHODS = (
    "NodeInfoGcsService/GetAllNodeInfo",
    "InternalKVGcsService/InternalKVKeys",
    "NodeManagerService/GetNodeStats",
    "ObjectManagerService/FreeObjects",
    "CoreWorkerService/GetCoreWorkerStats",
    "ReporterService/HealthCheck",
)
"""Of Ray's services, one or two each that do nothing."""
JOIN = "import ray, sys; ray.init(address=sys.argv[1]); print(ray.get(ray.remote(lambda: 1 + 1).remote()))"


class Driver:
    """A process with a private Ray, started in a hostile environment."""

    def __init__(self, directory: Path) -> None:
        token = directory / "token"
        token.write_text(KNOWN)
        environment = {**os.environ, **HOSTILE, "RAY_AUTH_TOKEN_PATH": str(token)}
        pipes: Any = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
        self.process: subprocess.Popen[str] = subprocess.Popen(DRIVER, env=environment, text=True, **pipes)
        self.facts: dict[str, Any] = json.loads(self._read())

    def listening(self) -> list[tuple[str, str, int]]:
        assert self.process.stdin is not None
        print(file=self.process.stdin, flush=True)
        return [(name, address, port) for name, address, port in json.loads(self._read())]

    def end(self, error: str = "") -> str:
        """End it, or let it end in an error; return what it printed on stderr."""
        return self.process.communicate(f"{error}\n" if error else "", timeout=120)[1]

    def _read(self) -> str:
        assert self.process.stdout is not None
        return self.process.stdout.readline()


@pytest.fixture(scope="module")
def driver(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Driver]:
    started = Driver(tmp_path_factory.mktemp("driver"))
    try:
        yield started
    finally:
        if started.process.poll() is None:
            started.end()


@pytest.fixture(scope="module")
def sockets(driver: Driver) -> list[tuple[str, str, int]]:
    """All that listens once every process of Ray's has begun."""
    seen: list[tuple[str, str, int]] = []
    for _ in range(10):
        time.sleep(2)
        before, seen = seen, driver.listening()
    assert before == seen
    assert {"gcs_server", "raylet"} <= {name for name, _, _ in seen}
    return seen


def test_every_socket_listens_on_loopback(sockets: list[tuple[str, str, int]]) -> None:
    assert [each for each in sockets if each[1] not in ("127.0.0.1", "::1", "::ffff:127.0.0.1")] == []


def test_no_page_is_shown_without_the_token(sockets: list[tuple[str, str, int]]) -> None:
    paths = ("", "metrics", "api/version", "api/jobs/")
    statuses = {(name, port, path): _get(port, path) for name, _, port in sockets for path in paths}
    assert {key: status for key, status in statuses.items() if status not in (401, None)} == {}


def _get(port: int, path: str) -> int | None:
    """Return the status of a page; None of what speaks no HTTP 1."""
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/{path}", timeout=5) as page:
            return int(page.status)
    except urllib.error.HTTPError as refused:
        return refused.code
    except (OSError, HTTPException):
        return None


@pytest.mark.parametrize("token", [None, KNOWN], ids=["without a token", "with the token of the environment"])
def test_no_service_answers_whoever_lacks_the_token(sockets: list[tuple[str, str, int]], token: str | None) -> None:
    answers = {}
    for name, _, port in sockets:
        with grpc.insecure_channel(f"127.0.0.1:{port}") as channel:
            for method in METHODS:
                answers[name, port, method] = _call(channel, f"/ray.rpc.{method}", token)
    assert [key for key, code in answers.items() if code == "OK"] == []
    speaking = {key[:2] for key, code in answers.items() if code == "UNAUTHENTICATED"}
    assert {name for name, _ in speaking} >= {"gcs_server", "raylet"}


def _call(channel: grpc.Channel, method: str, token: str | None) -> str:
    metadata = () if token is None else (("authorization", f"Bearer {token}"),)
    try:
        channel.unary_unary(method)(b"", timeout=5, metadata=metadata)
    except grpc.RpcError as error:
        return str(error.code().name)
    return "OK"


@pytest.mark.parametrize("environment", [{"RAY_AUTH_MODE": "disabled"}, {"RAY_AUTH_MODE": "token"}], ids=str)
def test_another_process_cannot_join(driver: Driver, environment: dict[str, str], tmp_path: Path) -> None:
    # Without this variable Ray looks for it at the machine's outer address, where nothing listens.
    own = {"RAY_AUTH_TOKEN": KNOWN, "HOME": str(tmp_path), "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0"}
    command = ["timeout", "30", sys.executable, "-c", JOIN, driver.facts["gcs"]]
    joined = subprocess.run(command, env=os.environ | own | environment, capture_output=True, check=False)
    assert (joined.returncode != 0, joined.stdout) == (True, b"")


def test_the_token_is_its_own_and_in_no_command(driver: Driver) -> None:
    assert len(driver.facts["token"]) == 64 != driver.facts["token"].count("0")
    assert not driver.facts["token_in_commands"]


def test_its_files_lie_in_a_directory_of_its_owner_that_goes_with_it(driver: Driver) -> None:
    directory = Path(driver.facts["directory"])
    assert driver.facts["mode"] == "0o700"
    assert list(directory.rglob("logs/*.log"))
    driver.end()
    assert not directory.exists()


def test_after_a_fault_its_logs_stay_and_the_error_names_them(tmp_path: Path) -> None:
    failing = Driver(tmp_path)
    directory = Path(failing.facts["directory"])
    printed = failing.end("RuntimeError")
    assert f"the logs of its Ray are kept in {directory}" in printed.splitlines()
    assert {entry.name for entry in directory.glob("r/session_*/*") if entry.is_dir()} == {"logs"}
    assert directory.stat().st_mode & 0o777 == 0o700
    token = failing.facts["token"].encode()
    assert [file for file in directory.rglob("*") if file.is_file() and token in file.read_bytes()] == []
    shutil.rmtree(directory)


def test_what_a_killed_process_has_left_goes_when_the_next_one_starts(tmp_path: Path) -> None:
    for name in ("killed", "next"):
        (tmp_path / name).mkdir()
    killed = Driver(tmp_path / "killed")
    directory = Path(killed.facts["directory"])
    killed.process.kill()
    killed.process.wait()
    assert directory.exists()
    following = Driver(tmp_path / "next")
    assert not directory.exists()
    assert Path(following.facts["directory"]).exists()
    following.end()


def test_what_a_starting_worker_makes_anew_after_the_end_goes_and_kept_logs_stay(tmp_path: Path) -> None:
    anew, kept, begun = (tmp_path / f"carevl-ray-{name}" for name in ("anew", "kept", "begun"))
    for directory in (anew, kept):
        (directory / "r" / "session_1" / "logs" / "old").mkdir(parents=True)
        (directory / "r" / "session_latest").symlink_to("session_1")
    (kept / "r" / "session_1" / "logs" / "raylet.out").touch()
    begun.mkdir()
    _remove_abandoned(tmp_path)
    assert set(tmp_path.iterdir()) == {kept, begun}


def test_a_thread_that_asks_ray_after_the_end_starts_no_other() -> None:
    code = (
        "from carevl.cluster.connect import ray_cluster; from carevl.settings.tree import Cluster\n"
        "with ray_cluster(Cluster(num_cpus=1)): import ray\n"
        "try: ray.put(1)\n"
        "except Exception as error: print(type(error).__name__)\n"
        "print(ray.is_initialized())"
    )
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=120)
    assert ended.stdout.split() == ["RaySystemError", "False"]


@pytest.mark.parametrize(
    ("address", "setting", "private"), [("", None, True), ("local", None, True), ("h:1", None, False)]
)
def test_an_empty_address_is_none(address: str, setting: str | None, private: bool, monkeypatch: Any) -> None:
    monkeypatch.setenv("RAY_ADDRESS", address)
    assert is_private(Cluster(address=setting)) == private
