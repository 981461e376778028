"""A private Ray is private whatever the environment says: its token, where it listens, and where its files lie."""

from __future__ import annotations

import fcntl
import os
import secrets
import shutil
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

from carevl.errors import MachineError, exit_status

TOKEN = secrets.token_hex(32)
"""Drawn for this process, whose Ray keeps the first one that it reads."""
_ENVIRONMENT: dict[str, str | None] = {
    "RAY_AUTH_MODE": "token",
    "RAY_AUTH_TOKEN": TOKEN,
    "RAY_AUTH_TOKEN_PATH": None,
    # Ray's way to say that this machine is the whole cluster: every process of it listens on loopback alone.
    "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",
    # Pages of metrics ask for no token. Those of dashboard and autoscaler have no switch, and find no such port.
    "RAY_enable_metrics_collection": "0",
    "DASHBOARD_METRIC_PORT": "-1",
    "AUTOSCALER_METRIC_PORT": "-1",
}
"""Read when Ray is imported, and by its processes; None: not set."""
_LONGEST = 40
"""Characters of the directory: its sockets' paths are up to 66 longer, and a path of a socket has 107."""
_PREFIX, _INSIDE = "carevl-ray-", "r"
"""Ray lets everybody into the directory that it is given, so that is inside of ours."""
_HELD = "held"
"""A file in the directory, locked for as long as the process lives that has made it."""


@contextmanager
def private_ray() -> Iterator[Path]:
    """Set the environment of a private Ray; yield a directory for its files, inside of one of mode 0700.

    The directory is removed at the end, those of processes that were killed at the next start. Its logs stay where Ray,
    the machine or this program is at fault, and the error names them.
    """
    before = {name: os.environ.get(name) for name in _ENVIRONMENT}
    place = _place()
    _remove_abandoned(place)
    directory, held = _make_directory(place)
    _set(_ENVIRONMENT)
    try:
        yield directory / _INSIDE
    except Exception as error:
        if exit_status(error) in (1, 3) and _keep_logs(directory):
            said = f"the logs of its Ray are kept in {directory}"
            if isinstance(error, MachineError):
                error.args = (f"{error}; {said}",)
            else:
                error.add_note(said)
        else:
            _remove(directory)
        raise
    except BaseException:
        _remove(directory)
        raise
    else:
        _remove(directory)
    finally:
        held.close()
        _set(before)


def _set(environment: dict[str, str | None]) -> None:
    for name, value in environment.items():
        os.environ.pop(name, None)
        if value is not None:
            os.environ[name] = value


def _place() -> Path:
    place = os.environ.get("RAY_TMPDIR") or tempfile.gettempdir()
    return Path("/tmp" if len(place) + len(_PREFIX) + 11 > _LONGEST else place)


def _make_directory(place: Path) -> tuple[Path, BinaryIO]:
    """Return a new directory and the file that holds it."""
    directory = Path(tempfile.mkdtemp(prefix=_PREFIX, dir=place))
    unnamed = directory / ".held"
    held = unnamed.open("wb")
    fcntl.flock(held, fcntl.LOCK_EX)
    unnamed.rename(directory / _HELD)  # whoever sees it sees it locked
    return directory, held


def _remove_abandoned(place: Path) -> None:
    """Remove directories of this user whose processes are gone; those with kept logs have no file that holds them.

    Nor has one that was removed, and that a process of Ray which was just starting has made anew: it holds no log.
    """
    for file in place.glob(f"{_PREFIX}*/{_HELD}"):
        with suppress(OSError):
            if file.lstat().st_uid != os.geteuid() or file.parent.is_symlink():
                continue
            with file.open("rb") as held:
                fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
                shutil.rmtree(file.parent, ignore_errors=True)
    for inside in place.glob(f"{_PREFIX}*/{_INSIDE}"):
        directory = inside.parent
        with suppress(OSError):
            if (
                directory.lstat().st_uid == os.geteuid()
                and not (directory / _HELD).exists()
                and not any(each.is_file() for each in inside.rglob("*"))
            ):
                shutil.rmtree(directory, ignore_errors=True)


def _keep_logs(directory: Path) -> bool:
    """Remove all but logs, such as spilled objects; return whether there are any."""
    for entry in directory.glob(f"{_INSIDE}/session_*/*"):
        if entry.name != "logs" and entry.is_dir() and not entry.is_symlink():
            shutil.rmtree(entry, ignore_errors=True)
    (directory / _HELD).unlink(missing_ok=True)
    return any(directory.glob(f"{_INSIDE}/session_*/logs/*"))


def _remove(directory: Path) -> None:
    """Remove a directory that processes which are ending may still write to."""
    for _ in range(20):
        shutil.rmtree(directory, ignore_errors=True)
        if not directory.exists():
            return
        time.sleep(0.1)
