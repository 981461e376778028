"""CSV and TSV as a stream of rows: the first line names the columns, every cell is text, an empty one is null."""

from __future__ import annotations

import csv
from collections import Counter
from collections.abc import Iterator

from carevl.data.json_rows import MAX_ROW_BYTES, LostRowsError, Stream, not_utf8, raw_lines
from carevl.data.rows import RowError

csv.field_size_limit(MAX_ROW_BYTES)  # a cell may be an image in base64


def csv_rows(stream: Stream, delimiter: str = ",") -> Iterator[dict[str, str | RowError | None] | RowError]:
    """Yield the rows of a file as RFC 4180 has them; RowError for one that has other cells than the first line names.

    Raises:
        LostRowsError: the first line cannot be read.
        ValueError: a quote does not close, or a line is over MAX_ROW_BYTES; the rows before have been given.
    """
    records = _records(stream, delimiter)
    _, names = next(records, (1, []))
    if isinstance(names, RowError):
        lost = sum(1 for _ in records)
        raise LostRowsError(f"no columns are named, {lost} rows are lost: {names.message}", max(1, lost))
    for line, cells in records:
        if isinstance(cells, RowError):
            yield cells
        elif len(cells) != len(names):
            yield RowError("row", f"line {line} has {len(cells)} cells, the first line names {len(names)} columns")
        else:
            yield _row(names, cells)


def _records(stream: Stream, delimiter: str) -> Iterator[tuple[int, list[str] | RowError]]:
    """Yield (number of its first line, cells) of every record that is not blank."""
    reader = csv.reader(_texts(stream), delimiter=delimiter, strict=True)
    while True:
        first = reader.line_num + 1
        try:
            cells = next(reader)
        except StopIteration:
            return
        except csv.Error as failure:
            if "end of data" in str(failure):
                lost = reader.line_num - first + 1
                raise ValueError(f"a quote in line {first} does not close; {lost} lines are lost") from None
            yield first, RowError("row", f"line {first} is not CSV: {failure}")
            continue
        if cells:
            damage = next(filter(None, map(_damage, cells)), None)
            yield first, cells if damage is None else RowError("row", f"line {first}: {damage}")


def _damage(cell: str) -> str | None:
    """Return what is wrong with a cell. No writer of CSV puts NUL there: it is of lost blocks, or of UTF-16."""
    return "the row has NUL bytes; write the file anew as UTF-8" if "\0" in cell else not_utf8(cell)


def _row(names: list[str], cells: list[str]) -> dict[str, str | RowError | None]:
    row: dict[str, str | RowError | None] = {
        name: cell or None for name, cell in zip(names, cells, strict=True) if name
    }
    repeated = {name: RowError("format", f"the column `{name}` stands {n} times") for name, n in _repeated(names)}
    return row | repeated


def _repeated(names: list[str]) -> Iterator[tuple[str, int]]:
    return ((name, n) for name, n in Counter(names).items() if n > 1 and name)


def _texts(stream: Stream) -> Iterator[str]:
    for n, line in enumerate(raw_lines(stream)):
        if isinstance(line, RowError):
            raise ValueError(line.message)
        text = line.decode("utf-8-sig" if n == 0 else "utf-8", "surrogateescape")
        yield text + "\n"
