"""Which rows of earlier tables a part takes over."""

from __future__ import annotations

from dataclasses import dataclass

import pyarrow as pa
import pytest

from carevl.cluster.earlier_rows import KNOWN, EarlierTable, Part
from carevl.cluster.jobs import PoolJob, Processor
from carevl.settings.models import Pool
from carevl.store.schemas import ERROR, row_error
from carevl.store.table import Table

ROWS = pa.schema([("key", pa.string()), ("error", ERROR)])
WORDS = pa.schema([("key", pa.string()), ("word", pa.string())])
OUT = pa.schema([("key", pa.string()), ("order", pa.list_(pa.int32())), ("text", pa.string()), ("error", ERROR)])
ORDERS = ((0, 1), (1, 0))


@dataclass
class Reading(Processor):
    """Is asked in both orders about a row and the word that another table has for it."""

    def row_inputs(self, tables):
        words = dict(zip(*tables["words"].to_pydict().values(), strict=True))
        rows = tables["rows"].to_pylist()
        return {(row["key"], order): words[row["key"]] for row in rows if row["error"] is None for order in ORDERS}

    def process(self, tables):
        raise NotImplementedError


def _write(table, part, rows, schema):
    table.write(part, pa.Table.from_pylist(rows, schema))
    return table


def _out(key, order, text, error=None):
    return {"key": key, "order": order, "text": text, "error": error}


@pytest.fixture
def job(tmp_path):
    """A job over the keys a to d, of which d has an error."""
    broken = row_error("test", "broken", "it is broken")
    rows = [{"key": key, "error": broken if key == "d" else None} for key in "abcd"]
    sources = {
        "rows": _write(Table(tmp_path / "rows"), 0, rows, ROWS),
        "words": _write(Table(tmp_path / "words"), 0, [{"key": key, "word": key.upper()} for key in "abcd"], WORDS),
    }
    return PoolJob("read", Reading(), sources, Table(tmp_path / "out"), Pool(), "key", ("order",), request=("order",))


def _earlier(job, rows, words="ABCD", part=0, name="earlier", **more):
    directory = job.target.directory.parent / name
    source = [{"key": word.lower(), "word": word if word in words else "another"} for word in "ABCD"]
    table = _write(Table(directory / "out"), part, rows, OUT)
    return EarlierTable(table, {"words": _write(Table(directory / "words"), part, source, WORDS)}, **more)


def _read(job, *earlier):
    return Part.read(PoolJob(**{**job.__dict__, "earlier": earlier}), 0)


def _names(table):
    return [(row["key"], tuple(row["order"])) for row in table.to_pylist()]


def test_without_earlier_tables_all_is_left(job):
    part = _read(job)
    assert (part.taken, part.rows_taken, part.left["rows"].num_rows) == (None, 0, 4)
    assert KNOWN not in part.left


def test_what_was_asked_alike_is_taken_and_the_rest_is_left(job):
    earlier = [_out(key, order, f"{key}{order[0]}") for key in "ab" for order in ORDERS][:-1]
    part = _read(job, _earlier(job, earlier))
    assert _names(part.taken) == [("a", (0, 1)), ("a", (1, 0)), ("b", (0, 1))]
    assert part.left["rows"]["key"].to_pylist() == ["b", "c", "d"]
    assert _names(part.left[KNOWN]) == _names(part.taken)
    made = pa.Table.from_pylist([_out("d", None, None), _out("b", (1, 0), "b1"), _out("c", (1, 0), "c1")], OUT)
    whole = part.in_order(PoolJob(**{**job.__dict__}), part.taken, made)
    assert whole["text"].to_pylist() == ["a0", "a1", "b0", "b1", "c1", None]


def test_what_read_other_words_is_asked_again(job):
    part = _read(job, _earlier(job, [_out(key, order, "x") for key in "ab" for order in ORDERS], words="BCD"))
    assert {key for key, _ in _names(part.taken)} == {"b"}


def test_what_failed_is_asked_again(job):
    failed = row_error("test", "engine", "it broke")
    rows = [_out("a", (0, 1), None, failed), _out("a", (1, 0), "a1"), *(_out("d", order, "d") for order in ORDERS)]
    assert _names(_read(job, _earlier(job, rows)).taken) == [("a", (1, 0))]


def test_the_first_table_that_has_a_row_gives_it(job):
    first = _earlier(job, [_out("a", (0, 1), "new")], name="new")
    second = _earlier(job, [_out("a", order, "old") for order in ORDERS], name="old")
    assert _read(job, first, second).taken["text"].to_pylist() == ["new", "old"]


def test_other_parts_are_looked_through_where_rows_lie_otherwise(job):
    rows = [_out("a", order, "a") for order in ORDERS]
    assert _read(job, _earlier(job, rows, part=3)).taken is None
    assert _read(job, _earlier(job, rows, part=4, same_parts=False)).rows_taken == 2


def test_a_table_that_cannot_be_read_gives_nothing(job):
    earlier = _earlier(job, [_out("a", order, "a") for order in ORDERS])
    earlier.rows.part(0).write_bytes(b"no parquet")
    assert _read(job, earlier).taken is None


def test_a_part_that_is_there_takes_nothing(job):
    _write(job.target, 0, [_out("a", (0, 1), "there")], OUT)
    assert _read(job, _earlier(job, [_out("a", order, "a") for order in ORDERS])).taken is None
