"""Engines that fail in the ways that engines do."""

from __future__ import annotations

import pytest
import torch

from carevl.errors import UserError
from carevl.models.row_errors import Failure, SomeRowsError, retry_and_bisect


class Engine:
    """Doubles numbers; it dies of some rows, stumbles over a call, and holds only so many rows at a time."""

    def __init__(self, deadly=(), stumbles=0, room=100):
        self.deadly, self.stumbles, self.room, self.calls = set(deadly), stumbles, room, []

    def __call__(self, rows):
        self.calls.append(list(rows))
        if self.stumbles:
            self.stumbles -= 1
            raise RuntimeError("the wire broke")
        if len(rows) > self.room:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB")
        if self.deadly.intersection(rows):
            raise RuntimeError("kernel fault\nwith a trace of many lines")
        return [2 * row for row in rows]


def test_a_good_batch_runs_once():
    engine = Engine()
    assert retry_and_bisect(engine, [1, 2, 3]) == [2, 4, 6]
    assert engine.calls == [[1, 2, 3]]
    assert retry_and_bisect(engine, []) == []


def test_a_stumble_is_tried_again_whole():
    engine = Engine(stumbles=1)
    assert retry_and_bisect(engine, [1, 2]) == [2, 4]
    assert engine.calls == [[1, 2]] * 2


def test_the_one_guilty_row_carries_the_error():
    rows = list(range(16))
    results = retry_and_bisect(Engine(deadly=[11]), rows)
    assert results[11] == Failure("engine", "RuntimeError: kernel fault")
    assert [value for i, value in enumerate(results) if i != 11] == [2 * row for row in rows if row != 11]


def test_memory_that_runs_out_is_relieved_before_anything_is_split():
    engine = Engine(room=2)

    def reduce_batch_size():
        engine.room *= 2
        return engine.room <= 8

    assert retry_and_bisect(engine, [1, 2, 3, 4, 5, 6, 7], reduce_batch_size) == [2, 4, 6, 8, 10, 12, 14]
    assert engine.calls == [[1, 2, 3, 4, 5, 6, 7]] * 3


def test_memory_that_cannot_be_relieved_splits_the_batch():
    assert retry_and_bisect(Engine(room=2), [1, 2, 3, 4, 5]) == [2, 4, 6, 8, 10]
    [failure] = retry_and_bisect(Engine(room=0), [1])
    assert failure.kind == "out of memory"


def test_rows_that_the_engine_refuses_do_not_cost_the_others_a_second_run():
    calls = []

    def engine(rows):
        calls.append(rows)
        raise SomeRowsError([2, None, 6], {1: Failure("too long", "900 tokens")})

    assert retry_and_bisect(engine, [1, 2, 3]) == [2, Failure("too long", "900 tokens"), 6]
    assert len(calls) == 1


def test_a_wrong_count_is_a_failure():
    def engine(rows):
        return [2 * row for row in rows if row != 3]

    assert retry_and_bisect(engine, [1, 2, 3]) == [
        2,
        4,
        Failure("engine", "ValueError: the engine gave 0 results for 1 rows"),
    ]


def test_wrong_settings_stop_the_run():
    def engine(rows):
        raise UserError("no such model")

    with pytest.raises(UserError, match="no such model"):
        retry_and_bisect(engine, [1, 2])
