"""Where files lie: the filesystem of a path, the files below a directory, and what tells that they were changed."""

from __future__ import annotations

import os
import posixpath
from collections.abc import Iterator
from dataclasses import dataclass

import pyarrow.fs as pafs

from carevl.data.hub_files import SCHEME, locate_on_hub
from carevl.errors import DataError


class SourceError(DataError):
    """A source that cannot be read at all: nothing at its path, or no file of a known kind."""


@dataclass(frozen=True)
class FoundFile:
    """A file below a directory. On local disk, bytes of its path that are not UTF-8 are lone surrogates."""

    path: str
    size: int
    mtime_ns: int


def locate(path: str, filesystem: pafs.FileSystem | None = None) -> tuple[pafs.FileSystem, str]:
    """Return the filesystem of a path and the path within it; `s3://…` and other URIs choose their own filesystem.

    Raises:
        HubDataError: `hf://…` that names no data set.
    """
    if filesystem is None and path.startswith(SCHEME):
        filesystem, path = locate_on_hub(path)
    elif filesystem is None:
        filesystem, path = pafs.FileSystem.from_uri(path) if "://" in path else (pafs.LocalFileSystem(), path)
    while isinstance(filesystem, pafs.SubTreeFileSystem):
        filesystem, path = filesystem.base_fs, posixpath.join(filesystem.base_path, path)
    return filesystem, path.rstrip("/") or "/"


def files_below(filesystem: pafs.FileSystem, directory: str) -> list[FoundFile]:
    """List all files below a directory, sorted by path. Links are followed, each directory is entered once.

    Raises:
        SourceError: a directory cannot be listed.
    """
    if isinstance(filesystem, pafs.LocalFileSystem):
        found = list(_walk(directory, {os.path.realpath(directory)}))
    else:
        below = filesystem.get_file_info(pafs.FileSelector(directory, recursive=True))
        files = (entry for entry in below if entry.type == pafs.FileType.File)
        found = [FoundFile(entry.path, entry.size, entry.mtime_ns or 0) for entry in files]
    return sorted(found, key=lambda file: file.path)


def _walk(directory: str, entered: set[str]) -> Iterator[FoundFile]:
    # pyarrow's own listing fails as a whole at one name that is not UTF-8, and goes round in circles of links.
    try:
        entries = list(os.scandir(directory))
    except OSError as failure:
        raise SourceError(f"{directory}: the directory cannot be listed: {failure.strerror}") from None
    for entry in entries:
        path = posixpath.join(directory, entry.name)
        if entry.is_dir():
            real = os.path.realpath(path)
            if real not in entered:
                entered.add(real)
                yield from _walk(path, entered)
        elif entry.is_file():
            facts = entry.stat()
            yield FoundFile(path, facts.st_size, facts.st_mtime_ns)


def stamp(filesystem: pafs.FileSystem, path: str) -> list[int]:
    """Return the number of the files at a path (or below it), their bytes, and when the youngest was changed, in ns.

    All are 0 where nothing is.
    """
    if filesystem.get_file_info(path).type == pafs.FileType.Directory:
        files = files_below(filesystem, path)
        return [len(files), sum(file.size for file in files), max((file.mtime_ns for file in files), default=0)]
    info = filesystem.get_file_info(path)
    return [1, info.size, info.mtime_ns or 0] if info.type == pafs.FileType.File else [0, 0, 0]
