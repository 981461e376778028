"""Layouts of the result files that benchmarks' own scripts and other harnesses write.

A suite names those that hold answers to its rows (`Suite.layouts`). A file's layout is found by the fields of its first
record. docs/benchmarks.md says where each was read.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from carevl.benchmarks.rows import Record, Row


@dataclass(frozen=True)
class FileAnswer:
    """An answer in a result file.

    `order`: indices of the row's responses as they were shown; `answer`: the judge's text, empty where there is none,
    or the score that a reward model gave the one response of `order`.
    """

    row: Row
    order: tuple[int, ...]
    answer: str | float


class RowIndex:
    """Rows of a benchmark, to be found by what a result file keeps of them."""

    def __init__(self, rows: Sequence[Row]) -> None:
        self.rows = rows
        self._by_key = {row.key: row for row in rows}
        self._by_id: dict[str, list[Row]] = defaultdict(list)
        for row in rows:
            self._by_id[row.native_id].append(row)

    def with_key(self, key: str) -> Row | None:
        """Return the row of this key, None if it is not among the rows."""
        return self._by_key.get(key)

    def with_id(self, native_id: object) -> list[Row]:
        """Return the rows of this id of the benchmark's own."""
        return self._by_id[str(native_id)]

    def only(self, rows: Sequence[Row], record: Record) -> Row | None:
        """Return the one row, None if there is none.

        Raises:
            ValueError: there are several; the message names the record.
        """
        if len(rows) > 1:
            names = ", ".join(row.key for row in rows[:3])
            raise ValueError(f"{record.location}: fits {len(rows)} rows of the benchmark: {names}")
        return rows[0] if rows else None


def _whole(record: Record) -> Iterable[Record]:
    return (record,)


@dataclass(frozen=True)
class Layout:
    """A kind of result file."""

    name: str
    """Who writes it, for messages."""
    fields: tuple[str, ...]
    """What it is found by: a record has all of them."""
    read: Callable[[Iterable[Record], RowIndex], Iterator[FileAnswer]]
    """Yield the answers to these rows, leave out those to others; raises ValueError where a field is missing or of
    another kind."""
    split: Callable[[Record], Iterable[Record]] = _whole
    """Take apart a record that holds several; yield nothing where it cannot."""
    draws_by_order: bool = False
    """Whether several answers to a row are several draws only if they were shown in one order."""


def own_script(
    name: str,
    fields: tuple[str, ...],
    read_row: Callable[[Record], Row],
    answers: Callable[[Record], Iterable[tuple[tuple[int, ...], str | float]]],
    *,
    split: Callable[[Record], Iterable[Record]] = _whole,
    draws_by_order: bool = False,
) -> Layout:
    """Return the layout of a script that writes every row again, with its answers beside the row's own fields.

    Args:
        read_row: of a record; its responses may be in another order than those of the row asked for.
        answers: of a record, each as the order shown (of its own responses) with text or score.
        split, draws_by_order: as in `Layout`.
    """

    def read(records: Iterable[Record], rows: RowIndex) -> Iterator[FileAnswer]:
        for record in records:
            written = read_row(record)
            if row := rows.with_key(written.key):
                for shown, answer in answers(record):
                    order = tuple(row.responses.index(written.responses[i]) for i in shown)
                    yield FileAnswer(row, order, answer)

    return Layout(name, fields, read, split, draws_by_order)


NO_IMAGES = Path()
"""Where image paths of a result file begin: no image of it is read."""
