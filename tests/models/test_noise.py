"""Noise by counter: draws that follow the softmax, independent of each other, and the same in every batch."""

import numpy as np
import pytest
import torch
from scipy import stats

from carevl.models.decoding import Texts
from carevl.models.noise import exponential_noise

CPU = torch.device("cpu")
DRAWS = 20_000


def _tokens(logits, seeds, temperature=1.0, top_p=1.0):
    """One token for each seed from the same logits, drawn as decoding draws them."""
    texts = Texts([0] * len(seeds), seeds, temperature, top_p, [])
    ids = torch.zeros(len(seeds), 1, dtype=torch.int64)
    return texts.draw(range(len(seeds)), ids, logits.expand(len(seeds), -1)).numpy()


@pytest.mark.parametrize("temperature", [0.7, 1.0, 2.0])
def test_draws_follow_the_softmax(temperature):
    logits = torch.linspace(2, -3, 12)
    counts = np.bincount(_tokens(logits, range(DRAWS), temperature), minlength=12)
    expected = torch.softmax(logits / temperature, 0).double().numpy() * DRAWS
    assert stats.chisquare(counts, expected * (DRAWS / expected.sum())).pvalue > 0.01


def test_of_many_unlikely_tokens_each_is_drawn_as_often_as_it_should():
    logits = torch.cat([torch.tensor([7.0]), torch.zeros(20_000)])  # e^7 against 20,000: 0.052 of the probability
    drawn = _tokens(logits, range(1500))
    share = np.exp(7) / (np.exp(7) + 20_000)
    assert stats.binomtest(int((drawn == 0).sum()), len(drawn), share).pvalue > 0.01
    tail = drawn[drawn > 0] - 1
    assert stats.chisquare(np.bincount(tail * 10 // 20_000, minlength=10)).pvalue > 0.01


def test_draws_of_one_seed_follow_the_softmax_position_by_position():
    logits = torch.tensor([[1.0, 0.0, -1.0, 0.5]]).expand(8, -1)
    texts = Texts([0] * 8, range(8), 1.0, 1.0, [])
    ids = torch.zeros(8, 1, dtype=torch.int64)
    drawn = np.array([texts.draw(range(8), ids, logits).tolist() for _ in range(1000)])
    expected = torch.softmax(logits[0], 0).double().numpy()
    assert stats.chisquare(np.bincount(drawn.ravel()), expected / expected.sum() * drawn.size).pvalue > 0.01
    pairs = np.zeros((4, 4))
    np.add.at(pairs, (drawn[:-1].ravel(), drawn[1:].ravel()), 1)  # one position and the next
    assert stats.chi2_contingency(pairs).pvalue > 0.01
    pairs = np.zeros((4, 4))
    np.add.at(pairs, (drawn[:, :-1].ravel(), drawn[:, 1:].ravel()), 1)  # one seed and the next
    assert stats.chi2_contingency(pairs).pvalue > 0.01


def test_noise_is_exponential_and_uncorrelated_between_seeds_positions_and_tokens():
    noise = exponential_noise([*range(200), *[7] * 200], [0] * 200 + [*range(1, 201)], 500, CPU).double().numpy()
    assert stats.kstest(noise.ravel(), "expon").pvalue > 0.01
    assert np.isfinite(noise).all()
    uniform = np.exp(-noise) - 0.5
    correlation = np.corrcoef(uniform)[np.triu_indices(400, 1)] * np.sqrt(500)  # each a standard normal
    assert abs(correlation.mean()) < 0.02
    assert correlation.std() == pytest.approx(1, abs=0.02)
    between_tokens = np.corrcoef(uniform.T)[np.triu_indices(500, 1)] * np.sqrt(400)
    assert between_tokens.std() == pytest.approx(1, abs=0.02)


def test_noise_depends_on_seed_position_and_token_alone():
    seeds, positions = [3, 2**40 + 3, 3, 9], [0, 0, 1, 0]
    together = exponential_noise(seeds, positions, 100_000, CPU)  # in several chunks
    for row, (seed, position) in enumerate(zip(seeds, positions, strict=True)):
        assert torch.equal(exponential_noise([seed], [position], 100_000, CPU)[0], together[row])
        assert torch.equal(exponential_noise([seed], [position], 50, CPU)[0], together[row, :50])
    assert len(torch.unique(together[:, :1000])) > 3990


def test_noise_stays_the_same_from_version_to_version():
    noise = exponential_noise([0, 123456789], [0, 5], 4, CPU)
    expected = [0.3976915, 3.6314909, 0.0442948, 0.3829457, 0.1870831, 0.5093547, 1.8897532, 3.2862167]
    assert noise.flatten().tolist() == pytest.approx(expected, rel=1e-5)
