"""Addresses without a Ray: one sentence that says which it is, before Ray waits for it."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from carevl.cluster.reach import check_address
from carevl.errors import MachineError
from carevl.settings.loader import load_settings
from carevl.store.run import Run, RunError


@contextmanager
def silent_listener() -> Iterator[str]:
    with socket.create_server(("", 0)) as listener:
        yield f"127.0.0.1:{listener.getsockname()[1]}"


@contextmanager
def web_server() -> Iterator[str]:
    with ThreadingHTTPServer(("", 0), BaseHTTPRequestHandler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"127.0.0.1:{server.server_port}"
        server.shutdown()


def test_nothing_listens(free_port):
    with pytest.raises(MachineError, match=r"no Ray cluster can be reached at 127\.0\.0\.1:\d+: nothing listens there"):
        check_address(f"127.0.0.1:{free_port()}")


def test_a_listener_that_says_nothing():
    with (
        silent_listener() as address,
        pytest.raises(MachineError, match="no answer in 5 s: the head is gone, or a fire"),
    ):
        check_address(address)


def test_something_else_answers():
    with web_server() as address, pytest.raises(RunError, match="is not the head of a Ray cluster; check the address"):
        check_address(address)


def test_a_dashboards_address():
    with pytest.raises(RunError, match=r"is a dashboard, which takes jobs"):
        check_address("http://127.0.0.1:8265")


def test_no_address():
    with pytest.raises(RunError, match="nohost is no address of a Ray cluster"):
        check_address("nohost")


@pytest.mark.ray
@pytest.mark.parametrize("command", ["plan", "run", "retry"])
def test_commands_say_so_before_anything_else(command, free_port, tmp_path):
    settings = load_settings("mini", [f"cluster.address='127.0.0.1:{free_port()}'"])
    Run(tmp_path).remember(settings.model_dump(mode="json"))
    words = [str(tmp_path)] if command == "retry" else [str(tmp_path / "settings.yaml"), "--run-dir", str(tmp_path)]
    script = "from carevl.cli import main; main()"
    done = subprocess.run(
        [sys.executable, "-c", script, command, *words], capture_output=True, text=True, check=False, timeout=120
    )
    assert done.returncode == 3
    [line] = done.stderr.splitlines()
    assert "nothing listens there: the head is gone, or the address is another" in line
    assert done.stdout == ""


@pytest.mark.nightly
def test_another_token_is_named(head):
    environment = {name: value for name, value in head.environment.items() if name != "RAY_AUTH_TOKEN_PATH"}
    environment |= {"RAY_AUTH_TOKEN": "ab" * 32, "RAY_ADDRESS": "auto"}
    done = subprocess.run(
        [sys.executable, "-c", "from carevl.cli import main; main()", "plan", "mini"],
        env=environment | {"HOME": os.devnull},
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    assert done.returncode == 2
    assert "the Ray cluster at auto wants another token" in done.stderr
