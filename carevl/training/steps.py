"""One step of training: the loss of a micro-batch, and its metrics summed over the workers."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from functools import cache
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from carevl.training.objectives import preference_loss, token_loss

if TYPE_CHECKING:
    from carevl.settings.training import Dpo
    from carevl.training.items import Items

_PATIENCE = timedelta(hours=12)
"""How long workers wait for each other where one writes, or loads: a lost one is noticed at once all the same."""


@dataclass
class Sums:
    """Sums over the items of a step, on one worker or on all; `broken` are items without a finite loss."""

    loss: float = 0.0
    terms: dict[str, float] = field(default_factory=dict)
    broken: list[int] = field(default_factory=list)

    def __iadd__(self, other: Sums) -> Sums:
        self.loss += other.loss
        self.broken += other.broken
        for name, value in other.terms.items():
            self.terms[name] = self.terms.get(name, 0.0) + value
        return self


@dataclass(frozen=True)
class Objective:
    """The loss of a step's items, as shares that add up over micro-batches and workers.

    `pairs`, `chosen_tokens` and `target_tokens` count the whole step. A phase-1 item is a target; its weight is 1 in
    phase 1 and `replay_weight` in phase 2.
    """

    dpo: Dpo
    pairs: int
    chosen_tokens: float
    target_tokens: float

    @classmethod
    def of(cls, dpo: Dpo, items: Items, step: Sequence[int]) -> Objective:
        """Return the objective of a step."""
        phases, tokens = items.phases, items.answer_tokens
        pairs = [i for i in step if phases[i] == "dpo"]
        targets = [i for i in step if phases[i] == "sft"]
        return cls(dpo, len(pairs), sum(tokens[i] for i in pairs), sum(tokens[i] for i in targets))

    def compute_share(self, values: Tensor, items: Items, batch: Sequence[int]) -> tuple[Tensor, Sums]:
        """Return a micro-batch's share of the step's loss, and of the step's metrics.

        Metrics of pairs have TRL's names and values: means over the pairs of the step. `logps/chosen` and
        `logps/rejected` are log pi, summed over the tokens of a judgment; `rewards/chosen` and `rewards/rejected` are
        beta * (log pi - log pi_ref), `rewards/margins` chosen minus rejected, and `rewards/accuracies` the share of
        pairs with a margin above 0. `reference_gap`, which TRL lacks, is the mean of |log pi - log pi_ref| over both
        sides, in nats: 0 before the first step if the reference is that of this judge.

        Args:
            values: log-probability of every branch [M], in the order of `batch`.
        """
        phases = [items.phases[i] for i in batch]
        of_item = torch.split(values, [items.branches[i] for i in batch])
        pairs = [k for k, phase in enumerate(phases) if phase == "dpo"]
        targets = [k for k, phase in enumerate(phases) if phase == "sft"]
        loss, sums = values.new_zeros(()), Sums()
        if targets:  # those of phase 1, or replayed beside pairs
            share = token_loss(torch.cat([of_item[k] for k in targets]), self.target_tokens)
            loss = loss + (self.dpo.replay_weight if self.pairs else 1.0) * share
            sums.terms["target_loss"] = share.item()
        if pairs:
            reference = values.new_tensor([items.references[batch[k]] for k in pairs])
            chosen, rejected = torch.stack([of_item[k] for k in pairs]).unbind(1)
            terms = preference_loss(chosen, rejected, reference[:, 0], reference[:, 1], self.dpo.beta)
            nll = token_loss(chosen, self.chosen_tokens)
            loss = loss + terms.loss.sum() / self.pairs + self.dpo.nll_weight * nll
            gap = (torch.stack([chosen, rejected], dim=1) - reference).abs().mean(dim=1)
            margins = terms.chosen_reward - terms.rejected_reward
            means = {
                "preference_loss": terms.loss,
                "rewards/chosen": terms.chosen_reward,
                "rewards/rejected": terms.rejected_reward,
                "rewards/margins": margins,
                "rewards/accuracies": (margins > 0).float(),
                "logps/chosen": chosen,
                "logps/rejected": rejected,
                "reference_gap": gap,
            }
            # Divided by the pairs of the whole step, so that shares add up to the mean.
            sums.terms |= {name: value.sum().item() / self.pairs for name, value in means.items()}
            sums.terms["chosen_loss"] = nll.item()
        sums.loss = loss.item()
        if not math.isfinite(sums.loss):
            broken = [i for i, mine in zip(batch, of_item, strict=True) if not torch.isfinite(mine).all()]
            sums.broken = broken or list(batch)
        return loss, sums


def all_gather(value: Any, world: int) -> list[Any]:
    """Return the value of every worker, by rank; every worker has to call it, and waits for the others for hours.

    It goes through gloo whatever gradients go through: a wait in NCCL ends after the time that NCCL has, while worker 0
    writes what the others need not wait for.
    """
    import torch.distributed as dist

    values: list[Any] = [None] * world
    dist.all_gather_object(values, value, group=_host_group(dist.group.WORLD))
    return values


@cache
def _host_group(workers: Any) -> Any:
    """Return the group through which the workers of a process group exchange facts; all of them have to call it."""
    import torch.distributed as dist

    del workers
    return dist.new_group(backend="gloo", timeout=_PATIENCE)


def sum_shares(parts: Sequence[Sums]) -> Mapping[str, Any]:
    """Return the facts of the whole step: `loss`, its terms and metrics, and `broken`."""
    total = Sums()
    for part in parts:
        total += part
    return {"loss": total.loss, **total.terms, "broken": total.broken}
