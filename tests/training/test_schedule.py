"""Every item once per epoch, for any number of workers, within the budget."""

from __future__ import annotations

from collections import Counter

import hypothesis.strategies as st
import pytest
from hypothesis import given, settings

from carevl.models.packing import Shape, computed_tokens
from carevl.training.schedule import Schedule, micro_batches


@given(n=st.integers(1, 40), batch=st.integers(1, 12), epochs=st.integers(1, 3), seed=st.integers(0, 5))
@settings(max_examples=60, deadline=None)
def test_every_item_is_seen_exactly_once_per_epoch(n, batch, epochs, seed):
    schedule = Schedule(n, batch, epochs, seed)
    for epoch in range(epochs):
        steps = range(epoch * schedule.steps_per_epoch, (epoch + 1) * schedule.steps_per_epoch)
        assert sorted(i for step in steps for i in schedule.step(step)) == list(range(n))
    assert schedule.steps == epochs * schedule.steps_per_epoch


def test_the_order_depends_on_seed_and_epoch_alone():
    schedule = Schedule(20, 6, 2, seed=1)
    orders = {seed: [Schedule(20, 6, 2, seed).step(k) for k in range(8)] for seed in (1, 2)}
    assert [schedule.step(k) for k in reversed(range(8))] == orders[1][::-1]
    assert orders[1] != orders[2]
    assert orders[1][:4] != orders[1][4:]


@given(sizes=st.lists(st.integers(1, 5), min_size=1, max_size=30), seed=st.integers(0, 5))
@settings(max_examples=60, deadline=None)
def test_groups_share_a_step_where_they_find_room_and_every_item_is_seen_once(sizes, seed):
    n = sum(sizes)
    schedule = Schedule(n, 6, 2, seed, together=tuple(sizes))
    group_of = [group for group, size in enumerate(sizes) for _ in range(size)]
    for epoch in range(2):
        steps = [schedule.step(epoch * schedule.steps_per_epoch + k) for k in range(schedule.steps_per_epoch)]
        assert sorted(i for step in steps for i in step) == list(range(n))
        assert [len(step) for step in steps[:-1]] == [6] * (len(steps) - 1)
        for step in steps:
            torn = {
                group
                for group in map(group_of.__getitem__, step)
                if sum(group_of[i] == group for i in step) < sizes[group]
            }
            assert len(torn) <= 2  # what the step before began, and what this one had no room for


def test_pairs_of_two_are_never_torn_when_they_fill_the_steps():
    schedule = Schedule(40, 8, 3, seed=2, together=(2,) * 16 + (1,) * 8)
    for step in map(schedule.step, range(schedule.steps)):
        assert all((i ^ 1) in step for i in step if i < 32)


@pytest.mark.parametrize("share", [0.5, 1.0, 2.0])
def test_replay_goes_round_evenly(share):
    schedule = Schedule(10, 4, 3, seed=0, n_replay=7, replay_share=share)
    seen = Counter(i for step in range(schedule.steps) for i in schedule.step(step))
    replayed = [seen[i] for i in range(10, 17)]
    assert sum(replayed) == 30 * share
    assert max(replayed) - min(replayed) <= 1
    assert all(seen[i] == 3 for i in range(10))
    assert all(any(i >= 10 for i in schedule.step(step)) for step in range(schedule.steps))


def test_as_many_steps_as_come_nearest_to_a_number_of_tokens():
    lengths = [10, 10, 10, 10]
    plain = Schedule(4, 2, 1, seed=0)
    steps = {tokens: plain.for_tokens(tokens, lengths).steps for tokens in (1, 29, 30, 31, 40, 100)}
    assert steps == {1: 1, 29: 1, 30: 2, 31: 2, 40: 2, 100: 5}
    longer = plain.for_tokens(100, lengths)
    assert [longer.step(k) for k in range(2)] == [plain.step(k) for k in range(2)]
    assert sorted(longer.step(2) + longer.step(3)) == [0, 1, 2, 3]


def test_replayed_tokens_count_as_well():
    schedule = Schedule(4, 2, 1, seed=0, n_replay=2, replay_share=1.0)
    assert schedule.for_tokens(240, [10] * 4 + [50] * 2).steps == 2


@given(
    lengths=st.lists(st.integers(1, 100), min_size=1, max_size=24),
    world=st.integers(1, 4),
    budget=st.integers(100, 400),
    packing=st.sampled_from(["shared", "plain"]),
)
@settings(max_examples=100, deadline=None)
def test_workers_share_a_step_within_the_budget(lengths, world, budget, packing):
    shapes = [Shape(tokens, (0,)) for tokens in lengths]
    workers = micro_batches(range(len(lengths)), shapes, world, budget, packing)
    assert len(workers) == world
    assert len({len(batches) for batches in workers}) == 1
    counted = [i for batches in workers for batch in batches if batch.weight == 1.0 for i in batch.items]
    assert sorted(counted) == list(range(len(lengths)))
    costs = [computed_tokens([shapes[i] for i in b.items], packing) for batches in workers for b in batches]
    assert max(costs) <= budget
    assert {batch.weight for batches in workers for batch in batches} <= {0.0, 1.0}
    if len(lengths) >= world and max(lengths) * 2 * len(lengths) < budget:
        assert all(batch.weight == 1.0 for batches in workers for batch in batches)


def test_batches_hold_items_of_like_length():
    lengths = [10, 90, 11, 89, 12, 88, 9, 91]
    [batches] = micro_batches(range(8), [Shape(tokens, (0,)) for tokens in lengths], 1, 364, "plain")
    assert [batch.items for batch in batches] == [[7, 1, 3, 5], [4, 2, 0, 6]]
