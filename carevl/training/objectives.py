"""The losses, as pure functions of log-probabilities.

n pairs or targets; log-probabilities are sums over the tokens of a judgment, in nats.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor
from torch.nn.functional import logsigmoid


def token_loss(log_probabilities: Tensor, tokens: float) -> Tensor:
    """Return the mean negative log-likelihood of a token: that of targets [n] over `tokens`, those of the whole step.

    Both count tokens by their weights. The shares of a step's micro-batches add up to the step's loss.
    """
    return -log_probabilities.sum() / tokens


@dataclass(frozen=True)
class Preference:
    """Of every pair, float [n]: loss, and the implicit rewards beta * (log pi - log pi_ref)."""

    loss: Tensor
    chosen_reward: Tensor
    rejected_reward: Tensor


def preference_loss(
    chosen: Tensor, rejected: Tensor, reference_chosen: Tensor, reference_rejected: Tensor, beta: float
) -> Preference:
    """Return the sigmoid loss of DPO, -log sigmoid(reward of chosen - reward of rejected) (arXiv 2305.18290, eq. 7).

    Args:
        chosen, rejected: log-probabilities under the judge in training [n].
        reference_chosen, reference_rejected: the same under the reference [n].
    """
    chosen_reward = beta * (chosen - reference_chosen)
    rejected_reward = beta * (rejected - reference_rejected)
    return Preference(-logsigmoid(chosen_reward - rejected_reward), chosen_reward, rejected_reward)
