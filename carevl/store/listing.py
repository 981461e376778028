"""Lists of files with their sizes and hashes, and what of a list is no longer true."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from pathlib import Path, PurePath
from typing import Any

from carevl.store.damage import DamagedError, hash_file
from carevl.store.parts import check_part, count_rows, read_seal

Listing = Mapping[str, Mapping[str, Any]]
"""Path below a directory to `bytes`, `sha256`, and of a part `rows`; the hash of a part is that of its seal."""


def is_part(name: str) -> bool:
    """Return whether a path is that of a part of a table."""
    path = Path(name)
    return path.name.startswith("part-") and path.suffix == ".parquet"


def describe(directory: Path, names: Iterable[str]) -> Listing:
    """Return a listing of files. The hash of a part is as old as the part: later damage is not taken for it."""
    described = {}
    for name in names:
        file = directory / name
        rows = {"rows": count_rows(file)} if is_part(name) else {}
        seal = read_seal(file) if is_part(name) else None
        described[name] = {**rows, "bytes": file.stat().st_size, "sha256": seal or hash_file(file)}
    return described


def find_problems(directory: Path, listing: Listing, *, verify: bool) -> dict[str, str]:
    """Return the files that are not as they are listed, and what is the matter with each, in words.

    Args:
        verify: whether all bytes are read; else names and sizes are compared.
    """
    problems = {name: _find_problem(directory / name, facts, verify=verify) for name, facts in listing.items()}
    return {name: problem for name, problem in problems.items() if problem is not None}


def _find_problem(file: Path, facts: Mapping[str, Any], *, verify: bool) -> str | None:
    if not file.is_file():
        return "is missing"
    size = file.stat().st_size
    if size != facts.get("bytes", size):
        return f"is damaged: it has {size} bytes, not {facts['bytes']}"
    if not verify:
        return None
    try:
        digest = _hash(file)
    except DamagedError as error:
        return error.problem
    return None if digest == facts.get("sha256", digest) else "is damaged: its checksum does not fit"


def _hash(file: Path) -> str:
    """Return the hash of a file as it is listed, after comparing a part with its seal."""
    if is_part(file.name):
        check_part(file)
        if (seal := read_seal(file)) is not None:
            return seal
    return hash_file(file)


def hash_contents(listing: Listing, patterns: Iterable[str]) -> str:
    """Return a SHA-256 of names and hashes of the listed files that match, in hex digits."""
    contents = hashlib.sha256()
    for name in sorted(listing):
        if any(PurePath(name).match(pattern) for pattern in patterns):
            contents.update(f"{name} {listing[name]['sha256']}\n".encode())
    return contents.hexdigest()


def called(name: str) -> str:
    """Return what a listed file is called: `part 3`, `part 3 of images`, or its path."""
    path = Path(name)
    if not is_part(name):
        return name
    below = f" of {path.parent}" if path.parent.name else ""
    return f"part {int(path.stem.removeprefix('part-'))}{below}"


def describe_problems(problems: Mapping[str, str], most: int = 3) -> str:
    """Return what `find_problems` found, in words: `part 3 is missing; judge/config.json is damaged: …`."""
    shown = [f"{called(name)} {problem}" for name, problem in list(problems.items())[:most]]
    more = [f"{len(problems) - most} more files"] if len(problems) > most else []
    return "; ".join(shown + more)
