"""The marker of a published judge: what it was made from, and the files that it consists of."""

from __future__ import annotations

from pathlib import Path

from carevl.store.damage import DamagedError, encode_json, read_json
from carevl.store.listing import describe, find_problems
from carevl.store.table import write_atomically

MARKER = "judge.json"
INJECTION = "injection.json"
"""What `carevl audit --judge` has measured of the judge."""
_WAY_OUT = "`carevl run` publishes the judge again"
_REWRITTEN = (MARKER, INJECTION, "README.md")
"""What is written beside the weights later on."""


def mark(directory: Path, version: str, base: str) -> None:
    """Write the marker of a judge whose files are in place.

    Args:
        version: of the phase that made it, as `Run.version` gives it.
        base: the model that phase 1 began with.
    """
    names = [file.relative_to(directory).as_posix() for file in sorted(directory.rglob("*")) if file.is_file()]
    files = describe(directory, [name for name in names if name not in _REWRITTEN])
    write_atomically(directory / MARKER, encode_json({"fingerprint": version, "base": base, "files": files}))


def published_version(directory: Path) -> str | None:
    """Return the version that is published in a directory; None where none is, or not whole."""
    if not (directory / MARKER).is_file() or find_damage(directory):
        return None
    return str(read_json(directory / MARKER, _WAY_OUT).get("fingerprint"))


def find_damage(directory: Path, *, verify: bool = False) -> dict[str, str]:
    """Return what is the matter with the files of a published judge, as `find_problems`; nothing of other models."""
    marker = directory / MARKER
    if not marker.is_file():
        return {}
    try:
        files = read_json(marker, _WAY_OUT).get("files", {})
    except DamagedError as error:
        return {MARKER: error.problem}
    return find_problems(directory, files, verify=verify)


def refuse_damaged(directory: Path) -> None:
    """Refuse a published judge of which files are missing or cut.

    Raises:
        DamagedError: there are some; it names the first.
    """
    for name, problem in find_damage(directory).items():
        raise DamagedError(directory / name, problem, _WAY_OUT)
