"""Pieces of a large file that can be read one by one, anywhere: row groups of Parquet, bytes of a file of lines."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import pyarrow as pa
import pyarrow.fs as pafs
import pyarrow.parquet as pq

from carevl.data.json_rows import MAX_ROW_BYTES

_CHUNK_BYTES = 1 << 20
_LINES = (".jsonl", ".ndjson")


@dataclass(frozen=True)
class Span:
    """Row groups of a Parquet file, or bytes of a file of lines; `first` is the number of its first row in the file."""

    begin: int
    end: int
    first: int


class SpanStream:
    """The bytes of a span, as a stream of them."""

    def __init__(self, handle: pa.NativeFile, span: Span) -> None:
        handle.seek(span.begin)
        self._handle, self._left = handle, span.end - span.begin

    def read(self, nbytes: int, /) -> bytes:
        """Return so many bytes, fewer at the end."""
        data: bytes = self._handle.read(min(nbytes, self._left))
        self._left -= len(data)
        return data


def divide(filesystem: pafs.FileSystem, file: str, most_bytes: int) -> list[Span]:
    """Return spans of some `most_bytes` whose rows, in order, are those of the file.

    Files of other kinds, packed ones, and such as break off are not divided: there are no spans of them. Of lines every
    byte is read once to find them.
    """
    with filesystem.open_input_file(file) as handle:
        if file.lower().endswith(".parquet"):
            try:
                return list(_row_groups(pq.ParquetFile(handle).metadata, most_bytes))
            except (OSError, ValueError, pa.ArrowException):
                return []
        return list(_lines(handle, most_bytes)) if file.lower().endswith(_LINES) else []


def _row_groups(metadata: pq.FileMetaData, most_bytes: int) -> Iterator[Span]:
    groups = [metadata.row_group(number) for number in range(metadata.num_row_groups)]
    if sum(group.num_rows for group in groups) != metadata.num_rows:
        raise ValueError("its row groups are not its rows")
    begin = first = size = rows = 0
    for number, group in enumerate(groups):
        if size and size + group.total_byte_size > most_bytes:
            yield Span(begin, number, first)
            begin, first, size = number, rows, 0
        size += group.total_byte_size
        rows += group.num_rows
    if begin < len(groups):
        yield Span(begin, len(groups), first)


def _lines(handle: pa.NativeFile, most_bytes: int) -> Iterator[Span]:
    begin = first = rows = position = length = 0
    blank = True
    while chunk := handle.read(_CHUNK_BYTES):
        *whole, tail = chunk.split(b"\n")
        for piece in whole:
            length += len(piece)
            position += len(piece) + 1
            rows += not (blank and not piece.strip()) or length > MAX_ROW_BYTES
            length, blank = 0, True
            if position - begin >= most_bytes:
                yield Span(begin, position, first)
                begin, first = position, rows
        length += len(tail)
        position += len(tail)
        blank = blank and not tail.strip()
    if begin < position:
        yield Span(begin, position, first)
