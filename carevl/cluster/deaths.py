"""Processes that die at a part: each death is counted before it can happen, and a part of many is split down to a row.

A process that the system kills, or that crashes, says nothing. So it leaves a note before it begins with something, and
takes it away after: the notes that are there when a part is begun are those of processes that died at it.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc

from carevl.models.row_errors import EngineLostError
from carevl.store.parts import encode_part, read_part
from carevl.store.table import write_atomically

MOST = 3
"""Processes that may die at a part until it is split, or while they load."""
_MOST_AT_ROW = 2
"""Processes that may die at a row alone until it carries the error."""
_MOST_ROWS = 8
"""Rows of a part that are looked for one by one; after them, all rows of a piece at which a process died are failed."""
_LOST = "lost"


@dataclass(frozen=True)
class Notes:
    """The notes of a table's directory. Those of earlier attempts, and of nodes that are gone, are no deaths.

    `attempt` names a pass of a pool, `process` this process, `node` where it is.
    """

    directory: Path
    attempt: str
    process: str
    node: str
    find_nodes: Callable[[], set[str]]
    """Returns the nodes that are alive."""

    def _file(self, name: str) -> Path:
        return self.directory / f".deaths-{name}"

    def _lines(self, name: str, *, all_attempts: bool = False) -> list[list[str]]:
        file = self._file(name)
        lines = [line.split() for line in file.read_text().splitlines()] if file.exists() else []
        if not lines:
            return []
        nodes = self.find_nodes()
        return [line for line in lines if line[2] in nodes and (all_attempts or line[0] == self.attempt)]

    def processes(self, name: str) -> list[str]:
        """Return the processes of this attempt that died at something."""
        return [line[1] for line in self._lines(name)]

    def lost(self, name: str) -> int:
        """Return how many of them said that their engine was lost."""
        return sum(_LOST in line for line in self._lines(name))

    def count(self, name: str) -> int:
        """Return how many processes died at something, whatever the attempt."""
        return len(self._lines(name, all_attempts=True))

    @contextmanager
    def watch(self, name: str) -> Iterator[None]:
        """Leave a note as long as the block runs; where the engine is lost, it stays."""
        lines = [" ".join(line) for line in self._lines(name, all_attempts=True)]
        mine = f"{self.attempt} {self.process} {self.node}"
        write_atomically(self._file(name), "\n".join([*lines, mine]).encode())
        try:
            yield
        except EngineLostError:
            write_atomically(self._file(name), "\n".join([*lines, f"{mine} {_LOST}"]).encode())
            raise
        except BaseException:
            self.forget(name)
            raise
        self.forget(name)

    def forget(self, name: str) -> None:
        """Remove the note about something."""
        self._file(name).unlink(missing_ok=True)


@dataclass(frozen=True)
class Split:
    """A part in pieces, each of which is stored when it is made.

    `process` makes the rows of some keys, `fail` rows that carry the error.
    """

    notes: Notes
    part: str
    process: Callable[[Sequence[str]], pa.Table]
    fail: Callable[[Sequence[str], int], pa.Table]

    def make(self, keys: Sequence[str]) -> pa.Table:
        """Return the rows of all keys; processes may die on the way, and the next goes on."""
        place = _place(self.notes.directory, self.part, keys)
        place.mkdir(parents=True, exist_ok=True)
        half = -(-len(keys) // 2)
        pieces = [(0, half), (half, len(keys))] if len(keys) > 1 else [(0, 1)]
        tables = [table for start, stop in pieces if start < stop for table in self._pieces(place, keys, start, stop)]
        return pa.concat_tables(tables, promote_options="permissive")

    def _pieces(self, place: Path, keys: Sequence[str], start: int, stop: int) -> Iterator[pa.Table]:
        file, name = place / f"{start}-{stop}.parquet", f"{self.part}-{start}-{stop}"
        if file.exists():
            yield read_part(file)
            return
        died, failed = self.notes.count(name), len(list(place.glob("*.failed")))
        if died and stop - start > 1 and failed < _MOST_ROWS:
            half = (start + stop + 1) // 2
            yield from self._pieces(place, keys, start, half)
            yield from self._pieces(place, keys, half, stop)
            return
        piece = keys[start:stop]
        if died >= (_MOST_AT_ROW if stop - start == 1 else 1):
            rows = self.fail(piece, died)
            file.with_suffix(".failed").touch()
        else:
            with self.notes.watch(name):
                rows = self.process(piece)
        write_atomically(file, encode_part(rows))
        self.notes.forget(name)
        yield rows


def _place(directory: Path, part: str, keys: Sequence[str]) -> Path:
    """Return where the pieces of these rows lie."""
    return directory / f".split-{part}-{sha256(chr(0).join(keys).encode('utf-8', 'surrogatepass')).hexdigest()[:8]}"


def is_split(directory: Path, part: str) -> bool:
    """Return whether an earlier process has begun to make a part in pieces."""
    return any(directory.glob(f".split-{part}-*"))


def forget_part(directory: Path, part: str) -> None:
    """Remove what was noted and kept of a part, which is stored."""
    for note in directory.glob(f".deaths-{part}*"):
        note.unlink(missing_ok=True)
    for place in directory.glob(f".split-{part}-*"):
        shutil.rmtree(place, ignore_errors=True)


def forget_loads(directory: Path) -> None:
    """Remove the notes of earlier attempts' actors about loading."""
    for note in directory.glob(".deaths-load-*"):
        note.unlink(missing_ok=True)


def select(rows_in: Mapping[str, pa.Table], key: str, keys: Sequence[str] | pa.Array) -> dict[str, pa.Table]:
    """Return the input of some keys: the rows of the first table that have them, and the others whole."""
    name, first = next(iter(rows_in.items()))
    return {**rows_in, name: first.filter(pc.is_in(first[key], pa.array(keys, pa.string())))}
