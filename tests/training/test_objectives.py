"""Losses against numbers worked out by hand."""

from __future__ import annotations

import math

import pytest
import torch

from carevl.settings.training import Dpo
from carevl.training.items import Items
from carevl.training.objectives import preference_loss, token_loss
from carevl.training.steps import Objective, sum_shares


def _item(name, phase, branches, reference=()):
    return {
        "item_id": name,
        "phase": phase,
        "image": None,
        "prefix": [1, 2],
        "branches": branches,
        "reference": list(reference),
    }


ITEMS = Items.of(
    [
        _item("p", "dpo", [[3, 4], [5, 6, 7]], (-2.0, -3.0)),
        _item("t", "sft", [[3, 4, 5, 6]]),
        _item("q", "dpo", [[3, 4, 5], [5]], (-1.0, -1.0)),
    ],
    {},
)
VALUES = torch.tensor([-1.0, -4.0, -6.0, -2.0, -1.5])


def test_token_loss_is_a_mean_over_tokens():
    assert token_loss(torch.tensor([-6.0, -2.0]), 16).item() == pytest.approx(0.5)


def test_preference_loss_of_two_pairs():
    chosen, rejected = torch.tensor([-1.0, -2.0]), torch.tensor([-4.0, -1.5])
    terms = preference_loss(chosen, rejected, torch.tensor([-2.0, -1.0]), torch.tensor([-3.0, -1.0]), beta=0.5)
    assert terms.chosen_reward.tolist() == [0.5, -0.5]
    assert terms.rejected_reward.tolist() == [-0.5, -0.25]
    assert terms.loss.tolist() == pytest.approx([math.log(1 + math.exp(-1.0)), math.log(1 + math.exp(0.25))])


def test_a_judge_that_equals_its_reference_starts_at_log_2():
    same = torch.tensor([-3.0])
    assert preference_loss(same, same, same, same, beta=0.1).loss.item() == pytest.approx(math.log(2))


def _expected(dpo):
    preference = (math.log(1 + math.exp(-1.0)) + math.log(1 + math.exp(0.25))) / 2
    return preference + dpo.nll_weight * (1.0 + 2.0) / 5 + dpo.replay_weight * 6.0 / 4


@pytest.mark.parametrize("cut", [[[0, 1, 2]], [[0], [1], [2]], [[0, 1], [2]]])
def test_shares_of_micro_batches_add_up_to_the_loss_of_the_step(cut):
    dpo = Dpo(beta=0.5, nll_weight=0.3, replay_weight=0.7)
    objective = Objective.of(dpo, ITEMS, [0, 1, 2])
    values = {0: VALUES[:2], 1: VALUES[2:3], 2: VALUES[3:]}
    shares = [objective.compute_share(torch.cat([values[i] for i in batch]), ITEMS, batch) for batch in cut]
    facts = sum_shares([sums for _, sums in shares])
    assert sum(loss.item() for loss, _ in shares) == pytest.approx(_expected(dpo))
    assert facts["loss"] == pytest.approx(_expected(dpo))
    assert facts["rewards/accuracies"] == pytest.approx(0.5)
    assert facts["rewards/margins"] == pytest.approx((1.0 - 0.25) / 2)
    assert facts["logps/chosen"] == pytest.approx(-1.5)
    assert facts["logps/rejected"] == pytest.approx(-2.75)
    assert facts["rewards/chosen"] == pytest.approx((0.5 - 0.5) / 2)
    assert facts["rewards/rejected"] == pytest.approx((-0.5 - 0.25) / 2)
    assert facts["reference_gap"] == pytest.approx((1.0 + 0.75) / 2)
    assert facts["broken"] == []


def test_targets_have_weight_one_in_phase_1():
    objective = Objective.of(Dpo(replay_weight=0.1), ITEMS, [1])
    assert objective.compute_share(VALUES[2:3], ITEMS, [1])[0].item() == pytest.approx(1.5)


@pytest.mark.parametrize(("place", "item"), [(0, 0), (1, 0), (2, 1), (4, 2)])
def test_items_without_a_finite_loss_are_named(place, item):
    values = VALUES.clone()
    values[place] = math.nan
    _, sums = Objective.of(Dpo(), ITEMS, [0, 1, 2]).compute_share(values, ITEMS, [0, 1, 2])
    assert sums.broken == [item]
