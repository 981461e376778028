"""The process that a person starts: it has the program run in a child, and speaks where the child cannot.

Ray's core ends a process from C++, without an exception, when its node or the cluster's head is lost, and so does a
system that has no memory left. What the child's libraries write past Python to stderr goes to a file.
"""

from __future__ import annotations

import ctypes
import os
import signal
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import NoReturn

_SET_DEATH_SIGNAL, _SET_SUBREAPER = 1, 36  # of prctl(2)
_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
_KEPT = (1, 3)
"""Statuses after which the file with what libraries wrote is kept."""
_LOST = (
    ("Failed to connect to GCS", "the head of Ray does not answer any more"),
    ("local Raylet is dead", "Ray's process on this machine (raylet) has ended"),
    ("marked dead", "Ray has lost this machine"),
)
"""What Ray's core writes before it ends the process, and what that says."""


def supervise(program: str, run: Callable[[], None]) -> NoReturn:
    """Run a program in a child process, and exit with its status.

    If the child is gone without a word, what it has started is ended, and a line says what was lost: exit status 3.

    Args:
        program: its name, with which lines begin.
        run: what it does; it may raise SystemExit, and has to print its errors itself.
    """
    watched = [number for number in _SIGNALS if signal.getsignal(number) is not signal.SIG_IGN]
    _prctl(_SET_SUBREAPER, 1)  # what the child leaves behind becomes ours
    signal.pthread_sigmask(signal.SIG_BLOCK, [*watched, signal.SIGCHLD])
    words = os.pipe()
    handle, name = tempfile.mkstemp(prefix="carevl-log-", suffix=".txt")
    parent, child = os.getpid(), os.fork()
    if child == 0:
        _prctl(_SET_DEATH_SIGNAL, signal.SIGKILL)
        if os.getppid() != parent:
            os._exit(1)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, [*watched, signal.SIGCHLD])
        _divert_stderr(handle)
        try:
            run()
        finally:
            sys.stdout.flush()
            os.write(words[1], b".")  # whatever is to be said is said
        sys.exit(0)
    os.close(handle)
    os.set_blocking(words[0], False)
    code, received = _wait(child, watched)
    with suppress(BlockingIOError):
        if os.read(words[0], 1):
            _drop(Path(name), keep=code in _KEPT)
            sys.exit(code if code >= 0 else 128 - code)
    _end_descendants()
    print(f"{program}: {_describe_loss(code, received, Path(name))}", file=sys.stderr, flush=True)
    sys.exit(3 if received is None else 128 + received)


def _divert_stderr(log: int) -> None:
    """Leave stderr to Python, and give a file to what libraries write past it."""
    sys.stderr.flush()
    sys.stderr = open(os.dup(2), "w", buffering=1, encoding="utf-8", errors="backslashreplace")  # noqa: SIM115
    os.dup2(log, 2)
    os.close(log)


def _wait(child: int, watched: list[signal.Signals]) -> tuple[int, int | None]:
    """Pass signals on until the child ends; return its exit code, negative for a signal, and the last one passed on."""
    received: int | None = None
    while True:
        info = signal.sigwaitinfo([*watched, signal.SIGCHLD])
        if info.si_signo == signal.SIGCHLD:
            ended, status = os.waitpid(child, os.WNOHANG)
            if ended:
                return os.waitstatus_to_exitcode(status), received
            continue
        received = info.si_signo
        if info.si_code <= 0:  # sent by a process; what a terminal sends, the child has already
            with suppress(ProcessLookupError):
                os.kill(child, received)


def _end_descendants(seconds: float = 10.0) -> None:
    """Kill what the child has started; nothing of it is of use to anybody."""
    children = Path(f"/proc/self/task/{os.getpid()}/children")
    deadline = time.monotonic() + seconds
    while (left := children.read_text().split() if children.exists() else []) and time.monotonic() < deadline:
        for process in map(int, left):
            with suppress(ProcessLookupError):
                os.kill(process, signal.SIGKILL)
        for process in map(int, left):
            with suppress(ChildProcessError):
                os.waitpid(process, 0)


def _describe_loss(code: int, received: int | None, log: Path) -> str:
    """Return a sentence about a child that ended without a word; the file with the libraries' own words is kept."""
    if received is not None:
        _drop(log, keep=False)
        how = "interrupted" if received == signal.SIGINT else f"ended by {signal.Signals(received).name}"
        return f"{how}; run the same command again to go on"
    text = log.read_text(encoding="utf-8", errors="replace")
    problem = next((meaning for sign, meaning in _LOST if sign in text), "")
    if code == -signal.SIGKILL:
        problem = "the process was killed (SIGKILL), mostly because the machine has no memory left"
    elif code < 0:
        problem = f"the process has crashed ({signal.Signals(-code).name})"
    elif not problem:
        problem = "Ray has ended the process"
    said = f"; {log} has what libraries wrote" if _drop(log, keep=True) else ""
    return f"{problem}; finished parts and checkpoints stay: run the same command again to go on{said}"


def _drop(log: Path, *, keep: bool) -> bool:
    """Remove the file unless it is to be kept and holds something; return whether it is there."""
    if keep and log.stat().st_size:
        return True
    log.unlink(missing_ok=True)
    return False


def _prctl(option: int, value: int) -> None:
    ctypes.CDLL(None).prctl(option, value, 0, 0, 0)
