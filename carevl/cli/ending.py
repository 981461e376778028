"""How a command ends: in one line and the exit status that `carevl.errors.STATUSES` lists, whatever happened."""

from __future__ import annotations

import os
import platform
import signal
import sys
import tempfile
import threading
import traceback
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import FrameType

import carevl
from carevl.errors import STATUSES, Ended, UserError, as_user_error, exit_status, hide_secrets

_SIGNALS = (signal.SIGTERM, signal.SIGHUP)


@contextmanager
def ending(program: str, faults: Path | None = None) -> Iterator[None]:
    """Run what a program does; an error or a signal ends the process in one line on stderr and an exit status.

    Args:
        program: its name, with which the line begins.
        faults: directory for the traceback of a fault of the program; null or not there: the temporary one.
    """
    _listen()
    try:
        yield
    except (Exception, KeyboardInterrupt) as error:
        sys.exit(report_end(program, error, faults))


def report_end(program: str, error: BaseException, faults: Path | None = None) -> int:
    """Print the line that an error ends a program in; return the exit status."""
    status = exit_status(error)
    if isinstance(error, KeyboardInterrupt):
        how = f"ended by {error}" if isinstance(error, Ended) else "interrupted"
        line = f"{how}; run the same command again to go on"
    elif isinstance(error, OSError):
        line = str(as_user_error(error))
    elif isinstance(error, UserError):
        line = str(error)
    else:
        line = _describe_fault(error, faults)
    print(f"{program}: {hide_secrets(line)}", file=sys.stderr, flush=True)
    return status


def list_statuses() -> str:
    """Return what the exit statuses say, as one text for help."""
    return "Exit status: " + "; ".join(f"{status} {meaning}" for status, meaning in STATUSES.items()) + "."


def _describe_fault(error: BaseException, directory: Path | None) -> str:
    """Return the line about an error that nobody foresaw; its traceback goes to a file, to stderr without a disk."""
    text = " ".join(str(error).split())[:300]
    named = f"{type(error).__name__}: {text}" if text else type(error).__name__
    about = f"carevl {carevl.__version__}, Python {platform.python_version()}, {platform.platform()}"
    report = hide_secrets(f"{about}\n\n{''.join(traceback.format_exception(error))}")
    for place in (directory, Path(tempfile.gettempdir())):
        with suppress(OSError):
            if place is not None and place.is_dir():
                handle, file = tempfile.mkstemp(prefix="carevl-fault-", suffix=".txt", dir=place)
                with os.fdopen(handle, "w", encoding="utf-8", errors="backslashreplace") as stream:
                    stream.write(report)
                return f"a fault of the program, {named}; report it with {file}, which says where it happened"
    print(report, file=sys.stderr)
    return f"a fault of the program, {named}; report it with what stands above"


def _listen() -> None:
    """Make SIGTERM and SIGHUP end the program as Ctrl-C does; one that is ignored, as under nohup, stays so."""
    if threading.current_thread() is not threading.main_thread():
        return
    for number in _SIGNALS:
        if signal.getsignal(number) is signal.SIG_DFL:
            signal.signal(number, _end)


def _end(number: int, frame: FrameType | None) -> None:
    del frame
    for other in _SIGNALS:
        signal.signal(other, signal.SIG_IGN)  # the end is on its way
    raise Ended(number)
