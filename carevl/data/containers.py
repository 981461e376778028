"""Files into rows: Parquet, JSON, JSON Lines, CSV, Arrow and WebDataset tar, row by row.

A JSON file may be an object with the rows in a list (`LISTS`). A row that is itself a list, `[question, answer,
image_id]` as in the package easy-vqa, has these columns.

A file of any size needs the memory of a few rows (Parquet: of one row group at most). Nothing here raises on bad
content: a row that cannot be read is a record with an error, and so is the place where a file breaks off.
"""

from __future__ import annotations

import functools
import posixpath
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import pyarrow.fs as pafs
import pyarrow.parquet as pq

from carevl.data.csv_rows import csv_rows
from carevl.data.files import SourceError, files_below
from carevl.data.json_rows import LostRowsError, find_list, json_values, line_values
from carevl.data.rows import Row, RowError, clean
from carevl.data.spans import Span, SpanStream
from carevl.data.tar_rows import IMAGE_ENDINGS, tar_samples
from carevl.data.video_files import VIDEO_ENDINGS

_BATCH = 16
_BUFFER_BYTES = 1 << 20
_FOOTED = b"ARROW1\0\0"
"""The first bytes of an Arrow file with a footer."""
_TEXTS = (
    (pa.types.is_string, pa.binary()),
    (pa.types.is_large_string, pa.large_binary()),
    (pa.types.is_string_view, pa.binary_view()),
)
LISTS = {"questions": "question", "images": "file_name", "data": "question"}
"""Name of a list that has the rows of a JSON object (`questions` of VQA, `images` of COCO) to a column of these."""
_LISTED_COLUMNS = {"question": str, "answer": str, "image_id": int}
_NOT_DATA = {"dataset_info.json", "dataset_infos.json", "dataset_dict.json", "state.json"}


@dataclass(frozen=True)
class Record:
    """A row of a file, or the error that stands in its place."""

    number: int
    """Position in the file, counted from 0."""
    row: Row | None
    error: RowError | None = None


def list_files(filesystem: pafs.FileSystem, path: str, skip: Collection[str] = ()) -> list[str]:
    """List the data files at a path, sorted: the file itself, or those below a directory. Hidden files are left out.

    Args:
        skip: files that are not data (of captions, of annotations).

    Raises:
        SourceError: there is nothing at the path, or no file of a known kind.
    """
    return list_and_pass_over(filesystem, path, skip)[0]


def list_and_pass_over(
    filesystem: pafs.FileSystem, path: str, skip: Collection[str] = ()
) -> tuple[list[str], dict[str, int]]:
    """Return what `list_files` returns, and the endings of the other files below a directory with their numbers.

    Images, videos and hidden files are not among these.

    Raises:
        SourceError: as `list_files`.
    """
    info = filesystem.get_file_info(path)
    if info.type == pafs.FileType.NotFound:
        raise SourceError(f"{path}: no such file or directory")
    if info.type != pafs.FileType.Directory:
        if _container(path) is None:
            raise SourceError(f"{path}: not a known kind of file; known: {', '.join(CONTAINERS)}")
        return [path], {}
    files = [file.path for file in files_below(filesystem, path)]
    seen = [file for file in files if not is_hidden(file[len(path) :]) and file not in skip]
    data = [file for file in seen if _container(file)]
    if not data:
        raise SourceError(f"{path}: {len(files)} files, none of a known kind; known: {', '.join(CONTAINERS)}")
    endings = (posixpath.splitext(file)[1].lower() for file in seen if not _container(file))
    others = Counter(
        clean(ending) for ending in endings if ending.removeprefix(".") not in (*IMAGE_ENDINGS, *VIDEO_ENDINGS)
    )
    return data, dict(sorted(others.items()))


def read_records(filesystem: pafs.FileSystem, file: str, span: Span | None = None) -> Iterator[Record]:
    """Read the rows of a file that `list_files` named, each exactly once and in order.

    Where the file breaks off, there is an error for every row that is lost, as far as their number is known.

    Args:
        span: of the file, as `spans.divide` returns it; None: all of it.
    """
    read = _container(file)
    assert read is not None
    if span is not None:
        read = functools.partial(_parquet if read is _parquet else _span_of_lines, span=span)
    number = 0 if span is None else span.first
    try:
        if clean(file) != file:
            raise ValueError("its name is not UTF-8; rename it")
        for record in read(filesystem, file):
            number = record.number + 1
            yield record
    except Exception as failure:  # damaged files make their libraries raise nearly anything
        lost = failure.rows if isinstance(failure, LostRowsError) else 1
        yield from (Record(number + n, None, _broken(failure)) for n in range(lost))


def _broken(failure: Exception) -> RowError:
    kind = "" if isinstance(failure, ValueError) else f"{type(failure).__name__}: "
    return RowError("file", f"the file cannot be read from here on: {kind}{failure}; mend the file"[:1000])


def is_hidden(path: str) -> bool:
    """Tell whether a file is none of data by its path below a source: hidden, or what `datasets` writes beside them."""
    return posixpath.basename(path) in _NOT_DATA or any(part.startswith((".", "_")) for part in path.split("/"))


def is_data_file(file: str) -> bool:
    """Tell whether the ending of a file's name is that of a kind that is read."""
    return _container(file) is not None


def _parquet(filesystem: pafs.FileSystem, file: str, span: Span | None = None) -> Iterator[Record]:
    """Yield the rows; a row group that cannot be read gives one error per row that it holds, and the next is tried."""
    # pyarrow would otherwise hold the column chunks of a whole row group: gigabytes where rows have images.
    with filesystem.open_input_file(file) as handle:
        table = pq.ParquetFile(handle, buffer_size=_BUFFER_BYTES, pre_buffer=False, page_checksum_verification=True)
        sizes = [table.metadata.row_group(group).num_rows for group in range(table.num_row_groups)]
        if sum(sizes) != table.metadata.num_rows:
            raise ValueError(f"it says that it has {table.metadata.num_rows} rows, its row groups {sum(sizes)}")
        begin, stop, end = (0, len(sizes), 0) if span is None else (span.begin, span.end, span.first)
        for group, size in list(enumerate(sizes))[begin:stop]:
            number, end = end, end + size
            try:
                for batch in table.iter_batches(_BATCH, row_groups=[group], use_threads=False):
                    for record in _batch_records(batch, number):
                        yield record
                        number = record.number + 1
                if number < end:
                    raise ValueError(f"it says that it has {size} rows, of which {end - number} are missing")
            except (OSError, ValueError, pa.ArrowException) as failure:
                message = f"row group {group} of the file cannot be read: {failure}; mend the file"[:1000]
                yield from (Record(n, None, RowError("row", message)) for n in range(number, end))


def _arrow(filesystem: pafs.FileSystem, file: str) -> Iterator[Record]:
    """Yield the rows of a stream (`datasets`), or of the stream inside a file with a footer (Feather, `write_ipc`)."""
    with filesystem.open_input_file(file) as handle:
        has_footer = handle.read(len(_FOOTED)) == _FOOTED
        handle.seek(len(_FOOTED) if has_footer else 0)
        with pa.ipc.open_stream(handle) as batches:
            number = 0
            for batch in batches:
                yield from _checked_records(batch, number)
                number += batch.num_rows
        if handle.size() - handle.tell() != (_footer_bytes(handle) if has_footer else 0):
            raise ValueError("its batches end before it does")


def _footer_bytes(handle: pa.NativeFile) -> int:
    """Return how long the end of a file with a footer is: the footer, its length in 4 bytes, and 6 bytes ARROW1."""
    here = handle.tell()
    handle.seek(max(0, handle.size() - 10))
    size = int.from_bytes(handle.read(4), "little")
    handle.seek(here)
    return size + 10


def _checked_records(batch: pa.RecordBatch, number: int) -> Iterator[Record]:
    batch.validate()
    damaged = _damaged_columns(batch)
    whole = batch.drop_columns(list(damaged))
    for start in range(0, batch.num_rows, _BATCH):
        for record in _batch_records(whole.slice(start, _BATCH), number + start):
            yield Record(record.number, {**(record.row or {}), **damaged})


def _damaged_columns(batch: pa.RecordBatch) -> dict[str, RowError]:
    """Return the columns whose values are said to lie where there are none; to read one kills the process."""
    damaged = {}
    for name, column in zip(batch.schema.names, batch.columns, strict=True):
        try:
            column.view(_with_bytes(column.type)).validate(full=True)
        except (ValueError, pa.ArrowException) as failure:
            damaged[name] = RowError("row", f"the column `{name}` is damaged: {failure}; mend the file")
    return damaged


def _with_bytes(kind: pa.DataType) -> pa.DataType:
    """Return the type with bytes for texts: text that is not UTF-8 is no more than an error of its cell."""
    for is_text, of_bytes in _TEXTS:
        if is_text(kind):
            return of_bytes
    if pa.types.is_struct(kind):
        return pa.struct([field.with_type(_with_bytes(field.type)) for field in kind])
    if pa.types.is_list(kind):
        return pa.list_(kind.value_field.with_type(_with_bytes(kind.value_type)))
    if pa.types.is_large_list(kind):
        return pa.large_list(kind.value_field.with_type(_with_bytes(kind.value_type)))
    return kind


def _batch_records(batch: pa.RecordBatch, number: int) -> Iterator[Record]:
    """Yield the rows of a batch.

    What has no Python value (text that is not UTF-8, a date beyond the calendar) is a RowError in its cell, and so is
    a column of which there are several: neither costs a row that is read without it.
    """
    repeated = {name: n for name, n in Counter(batch.schema.names).items() if n > 1}
    errors = {name: RowError("format", f"the column `{name}` stands {n} times") for name, n in repeated.items()}
    if repeated:
        batch = batch.select([n for n, name in enumerate(batch.schema.names) if name not in repeated])
    try:
        rows = batch.to_pylist() if batch.num_columns else [{} for _ in range(batch.num_rows)]
    except (ValueError, OverflowError, pa.ArrowException):
        rows = [{name: _cell(name, batch[name], n) for name in batch.schema.names} for n in range(batch.num_rows)]
    yield from (Record(number + n, row | errors) for n, row in enumerate(rows))


def _cell(name: str, column: pa.Array, n: int) -> object:
    try:
        return column[n].as_py()
    except (ValueError, OverflowError, pa.ArrowException) as failure:
        return RowError("row", f"`{name}` has a value that cannot be read: {failure}")


def _streamed(read: Callable[[Any], Iterable[Any]], filesystem: pafs.FileSystem, file: str) -> Iterator[Record]:
    """Yield the rows of a file that is read front to back, unpacked by the ending of its name."""
    with filesystem.open_input_stream(file, buffer_size=_BUFFER_BYTES) as handle:
        yield from _numbered(read(handle))


def _json(filesystem: pafs.FileSystem, file: str) -> Iterator[Record]:
    yield from _streamed(functools.partial(json_values, name=list_of_rows(filesystem, file)), filesystem, file)


def list_of_rows(filesystem: pafs.FileSystem, file: str) -> str | None:
    """Return the name of the list that has the rows of a file that is a JSON object, None for other files."""
    if _container(file) is not _json:
        return None
    with suppress(Exception), filesystem.open_input_stream(file, buffer_size=_BUFFER_BYTES) as handle:
        return find_list(handle, LISTS)
    return None  # damaged, which reading the rows will tell


def _span_of_lines(filesystem: pafs.FileSystem, file: str, span: Span) -> Iterator[Record]:
    with filesystem.open_input_file(file) as handle:
        yield from _numbered(line_values(SpanStream(handle, span)), span.first)


def _numbered(values: Iterable[Any], first: int = 0) -> Iterator[Record]:
    for number, value in enumerate(values, first):
        if isinstance(value, RowError):
            yield Record(number, None, value)
        elif isinstance(value, dict):
            yield Record(number, value)
        elif _is_listed(value):
            yield Record(number, dict(zip(_LISTED_COLUMNS, value, strict=True)))
        else:
            yield Record(number, None, RowError("row", f"a row should be an object, found {type(value).__name__}"))


def _is_listed(value: object) -> bool:
    kinds = _LISTED_COLUMNS.values()
    return isinstance(value, list) and len(value) == len(kinds) and all(map(isinstance, value, kinds))


_Reader = Callable[[pafs.FileSystem, str], Iterator[Record]]
_READERS: dict[str, Callable[[Any], Iterable[Any]]] = {
    ".jsonl": line_values,
    ".ndjson": line_values,
    ".csv": csv_rows,
    ".tsv": functools.partial(csv_rows, delimiter="\t"),
    ".tar": tar_samples,
}
_STREAMED: dict[str, _Reader] = {
    ".json": _json,
    **{ending: functools.partial(_streamed, read) for ending, read in _READERS.items()},
}
CONTAINERS: dict[str, _Reader] = {
    ".parquet": _parquet,
    ".arrow": _arrow,
    ".tgz": _STREAMED[".tar"],
    **{f"{ending}{packed}": read for ending, read in _STREAMED.items() for packed in ("", ".gz", ".bz2", ".zst")},
}
"""Ending of a file's name to its reader, a pure function of the file (and of a span, for Parquet and plain lines)."""


def _container(file: str) -> _Reader | None:
    return next((read for ending, read in CONTAINERS.items() if file.lower().endswith(ending)), None)
