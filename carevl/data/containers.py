"""Files into rows: Parquet, JSON, JSON Lines, Arrow (`datasets.save_to_disk`) and WebDataset tar, row by row.

A file of any size needs the memory of a few rows (Parquet: of one row group at most). Nothing here raises on bad
content: a row that cannot be read is a record with an error, and so is the place where a file breaks off.
"""

from __future__ import annotations

import posixpath
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import pyarrow.fs as pafs
import pyarrow.parquet as pq

from carevl.data.json_rows import json_values, line_values
from carevl.data.rows import Row, RowError
from carevl.data.tar_rows import tar_samples
from carevl.errors import DataError

_BATCH = 16
_BUFFER_BYTES = 1 << 20
_NOT_DATA = {"dataset_info.json", "dataset_infos.json", "dataset_dict.json", "state.json"}


class SourceError(DataError):
    """A source that cannot be read at all: nothing at its path, or no file of a known kind."""


@dataclass(frozen=True)
class Record:
    """A row of a file, or the error that stands in its place."""

    number: int
    """Position in the file, counted from 0."""
    row: Row | None
    error: RowError | None = None


def locate(path: str, filesystem: pafs.FileSystem | None = None) -> tuple[pafs.FileSystem, str]:
    """Return the filesystem of a path and the path within it; `s3://…` and other URIs choose their own filesystem."""
    if filesystem is None:
        filesystem, path = pafs.FileSystem.from_uri(path) if "://" in path else (pafs.LocalFileSystem(), path)
    while isinstance(filesystem, pafs.SubTreeFileSystem):
        filesystem, path = filesystem.base_fs, posixpath.join(filesystem.base_path, path)
    return filesystem, path.rstrip("/") or "/"


def list_files(filesystem: pafs.FileSystem, path: str, skip: str | None = None) -> list[str]:
    """List the data files at a path, sorted: the file itself, or those below a directory. Hidden files are left out.

    Args:
        skip: a file that is not data (a captions file).

    Raises:
        SourceError: there is nothing at the path, or no file of a known kind.
    """
    info = filesystem.get_file_info(path)
    if info.type == pafs.FileType.NotFound:
        raise SourceError(f"{path}: no such file or directory")
    if info.type != pafs.FileType.Directory:
        if _container(path) is None:
            raise SourceError(f"{path}: not a known kind of file; known: {', '.join(CONTAINERS)}")
        return [path]
    below = filesystem.get_file_info(pafs.FileSelector(path, recursive=True))
    files = sorted(entry.path for entry in below if entry.type == pafs.FileType.File)
    data = [file for file in files if _container(file) and not _hidden(file[len(path) :]) and file != skip]
    if not data:
        raise SourceError(f"{path}: {len(files)} files, none of a known kind; known: {', '.join(CONTAINERS)}")
    return data


def stamp(filesystem: pafs.FileSystem, path: str) -> list[int]:
    """Return the number of the files at a path (or below it), their bytes, and when the youngest was changed, in ns.

    All are 0 where nothing is.
    """
    entries = filesystem.get_file_info([path])
    if entries[0].type == pafs.FileType.Directory:
        entries = filesystem.get_file_info(pafs.FileSelector(path, recursive=True))
    files = [info for info in entries if info.type == pafs.FileType.File]
    return [len(files), sum(info.size for info in files), max((info.mtime_ns or 0 for info in files), default=0)]


def read_records(filesystem: pafs.FileSystem, file: str) -> Iterator[Record]:
    """Read the rows of a file that `list_files` named, each exactly once and in order."""
    read = _container(file)
    assert read is not None
    number = 0
    try:
        for record in read(filesystem, file):
            number = record.number + 1
            yield record
    except Exception as failure:  # damaged files make their libraries raise nearly anything
        yield Record(number, None, _broken(failure))


def _broken(failure: Exception) -> RowError:
    return RowError("file", f"cannot be read from here on: {type(failure).__name__}: {failure}"[:1000])


def _hidden(path: str) -> bool:
    return posixpath.basename(path) in _NOT_DATA or any(part.startswith((".", "_")) for part in path.split("/"))


def _parquet(filesystem: pafs.FileSystem, file: str) -> Iterator[Record]:
    """Yield the rows; a row group that cannot be read gives one error per row that it holds, and the next is tried."""
    # pyarrow would otherwise hold the column chunks of a whole row group: gigabytes where rows have images.
    with filesystem.open_input_file(file) as handle:
        table = pq.ParquetFile(handle, buffer_size=_BUFFER_BYTES, pre_buffer=False)
        end = 0
        for group in range(table.num_row_groups):
            number, end = end, end + table.metadata.row_group(group).num_rows
            try:
                for batch in table.iter_batches(_BATCH, row_groups=[group], use_threads=False):
                    for record in _batch_records(batch, number):
                        yield record
                        number = record.number + 1
            except (OSError, ValueError, pa.ArrowException) as failure:
                yield from (Record(n, None, _broken(failure)) for n in range(number, end))


def _arrow(filesystem: pafs.FileSystem, file: str) -> Iterator[Record]:
    with filesystem.open_input_stream(file, compression=None) as handle, pa.ipc.open_stream(handle) as batches:
        number = 0
        for batch in batches:
            for start in range(0, batch.num_rows, _BATCH):
                yield from _batch_records(batch.slice(start, _BATCH), number + start)
            number += batch.num_rows


def _batch_records(batch: pa.RecordBatch, number: int) -> Iterator[Record]:
    """Yield the rows of a batch; those that have no Python value (text that is not UTF-8) become errors one by one."""
    try:
        rows = batch.to_pylist()
    except (ValueError, OverflowError, pa.ArrowException):
        yield from (_lone_record(batch.slice(n, 1), number + n) for n in range(batch.num_rows))
        return
    yield from (Record(number + n, row) for n, row in enumerate(rows))


def _lone_record(batch: pa.RecordBatch, number: int) -> Record:
    try:
        return Record(number, batch.to_pylist()[0])
    except (ValueError, OverflowError, pa.ArrowException) as failure:
        return Record(number, None, RowError("row", f"the row has a value that cannot be read: {failure}"))


def _lines(filesystem: pafs.FileSystem, file: str) -> Iterator[Record]:
    with filesystem.open_input_stream(file, buffer_size=_BUFFER_BYTES) as handle:
        yield from _numbered(line_values(handle))


def _json(filesystem: pafs.FileSystem, file: str) -> Iterator[Record]:
    with filesystem.open_input_stream(file, buffer_size=_BUFFER_BYTES) as handle:
        yield from _numbered(json_values(handle))


def _tar(filesystem: pafs.FileSystem, file: str) -> Iterator[Record]:
    with filesystem.open_input_stream(file, compression=None, buffer_size=_BUFFER_BYTES) as handle:
        yield from _numbered(tar_samples(handle))


def _numbered(values: Iterable[Any]) -> Iterator[Record]:
    for number, value in enumerate(values):
        if isinstance(value, RowError):
            yield Record(number, None, value)
        elif isinstance(value, dict):
            yield Record(number, value)
        else:
            yield Record(number, None, RowError("row", f"a row should be an object, found {type(value).__name__}"))


CONTAINERS: dict[str, Callable[[pafs.FileSystem, str], Iterator[Record]]] = {
    ".parquet": _parquet,
    ".arrow": _arrow,
    ".json": _json,
    ".jsonl": _lines,
    ".jsonl.gz": _lines,
    ".jsonl.bz2": _lines,
    ".tar": _tar,
    ".tar.gz": _tar,
    ".tgz": _tar,
}
"""Ending of a file's name to its reader."""


def _container(file: str) -> Callable[[pafs.FileSystem, str], Iterator[Record]] | None:
    return next((read for ending, read in CONTAINERS.items() if file.lower().endswith(ending)), None)
