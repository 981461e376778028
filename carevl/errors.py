"""The exceptions whose message is for the person at the command line, and the exit statuses that they end in."""

from __future__ import annotations

import csv
import difflib
import errno
import os
import re
import shutil
import signal
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

STATUSES: Mapping[int, str] = {
    0: "done",
    1: "a fault of the program: one line names it, and the file that has its traceback",
    2: "something to change, as one line says: an argument, a setting, a file",
    3: "the machine failed: a disk is full, a stored file is damaged, or a node or a process of Ray is gone; "
    "give the same command again",
    129: "ended by SIGHUP",
    130: "ended by Ctrl-C",
    143: "ended by SIGTERM, which Slurm and Kubernetes send",
}
"""What the exit status of a command and of an entry point of `ray_jobs/` says."""

_FULL = {errno.ENOSPC: "the disk is full", errno.EDQUOT: "the quota is used up", errno.EFBIG: "no larger file may be"}
FULL_DISK_ADVICE = "make room"
"""The end of every sentence about a full disk."""
_FAILING = (errno.EIO, errno.ENODEV, errno.ENXIO, errno.ESTALE, errno.EREMOTEIO, errno.ETIMEDOUT, errno.ENOLINK)
_FULL_TEXTS = ("No space left on device", "Disk quota exceeded", "File too large", "PytorchStreamWriter failed writing")
"""How libraries without an errno say it: torch, safetensors."""
_UNREADABLE = (ValueError, NotImplementedError, ArithmeticError, EOFError, RecursionError, csv.Error)
"""What readers of files raise in their own words, those of Arrow among them."""
_MISFIT = (LookupError, TypeError, AttributeError)
"""What looking into a file raises that has another content than expected."""


_PASSWORD = re.compile(r"(?<=://)[^/\s@'\"]+(?=@)")
"""Of an address: user and password."""
_SECRET = re.compile(r"(TOKEN|KEY|SECRET|PASSWORD)S?$", re.IGNORECASE)
"""Of the name of an environment variable whose value nobody may see."""
_LEAST = 8
"""Characters of a value that is taken for a secret; shorter ones stand in words."""


class UserError(Exception):
    """Something that a person can mend: the message says what was found, where, and what to do."""


class SettingsError(UserError):
    """A setting that cannot be used."""


class DataError(UserError, ValueError):
    """Data that cannot be used; a ValueError for scripts that use the library."""


class MachineError(UserError):
    """What failed under a command that nothing is wrong with: a node, a disk, a process of Ray."""


class Ended(KeyboardInterrupt):
    """A signal that ends the command; whatever is ready for Ctrl-C is ready for it."""

    def __init__(self, number: int) -> None:
        super().__init__(signal.Signals(number).name)
        self.number = number


def exit_status(error: BaseException) -> int:
    """Return the status, one of `STATUSES`, of a command that an error ends."""
    if isinstance(error, KeyboardInterrupt):
        return 128 + (error.number if isinstance(error, Ended) else signal.SIGINT)
    if isinstance(error, OSError):
        return 3 if error.errno in (*_FULL, *_FAILING) else 2
    if isinstance(error, UserError):
        return 3 if isinstance(error, MachineError) else 2
    return 1


def explain_full_disk(error: BaseException | None, directory: Path) -> str | None:
    """Return a sentence about the disk that has no room for what was written; None where that is not what went wrong.

    Args:
        error: it, or one that it came from, is looked at.
        directory: where was written, for an error that names no file.
    """
    while error is not None:
        number = error.errno if isinstance(error, OSError) else None
        if number in _FULL or any(text in str(error) for text in _FULL_TEXTS):
            named = isinstance(error, OSError) and isinstance(error.filename, str | os.PathLike)
            file = Path(error.filename) if named else directory  # type: ignore[attr-defined]
            problem = _FULL.get(number or errno.ENOSPC, "")
            return f"{file} cannot be written: {problem} ({_free(file)} free); {FULL_DISK_ADVICE}"
        error = error.__cause__ or error.__context__
    return None


def _free(file: Path) -> str:
    """Return the bytes that are free on a file's disk, in words."""
    place = next((each for each in (file, *file.absolute().parents) if each.exists()), Path("/"))
    return f"{shutil.disk_usage(place).free / 1e6:,.1f} MB"


def as_user_error(error: OSError) -> UserError:
    """Return what the system refused as an error whose status says whether the machine is why."""
    if (full := explain_full_disk(error, Path.cwd())) is not None:
        return MachineError(full)
    names = [str(name) for name in (error.filename, error.filename2) if name is not None]
    text = f"{', '.join(names)}: {error.strerror}" if names and error.strerror else " ".join(str(error).split())
    return MachineError(text) if error.errno in _FAILING else UserError(text)


@contextmanager
def reading(place: str | Path) -> Iterator[None]:
    """Name the file or directory that a library cannot make sense of, in place of what the library raises.

    Raises:
        DataError: the message begins with the place, unless that of the library does.
    """
    try:
        yield
    except UserError:
        raise
    except OSError as error:
        if error.filename is not None or error.errno is None:
            raise
        raise as_user_error(OSError(error.errno, error.strerror or str(error), str(place))) from error
    except Exception as error:
        text = " ".join(str(error).split())[:500]
        if isinstance(error, _MISFIT) or not text:
            text = f"not what is expected there ({type(error).__name__}: {text})"
        elif not isinstance(error, _UNREADABLE) and type(error).__module__.partition(".")[0] != "safetensors":
            raise
        raise DataError(text if text.startswith(str(place)) else f"{place}: {text}") from error


def suggest(name: str, names: Iterable[str], otherwise: str, *, kind: str = "", cutoff: float = 0.6) -> str:
    """Return the end of a message about a name that nothing has: the name that was probably meant, or `otherwise`.

    Args:
        kind: put before the suggested name.
        cutoff: likeness from which a name is suggested, 0 to 1.
    """
    near = difflib.get_close_matches(name, names, 1, cutoff=cutoff)
    return f"did you mean {kind}{near[0]}?" if near else otherwise


def has_password(address: str) -> bool:
    """Return whether an address holds a user or a password."""
    return _PASSWORD.search(address) is not None


def hide_secrets(text: str) -> str:
    """Return a text without what addresses hold of users and passwords, and without secrets of the environment."""
    for name, value in os.environ.items():
        if _SECRET.search(name) and len(value) >= _LEAST:
            text = text.replace(value, f"[{name}]")
    return _PASSWORD.sub("[hidden]", text)
