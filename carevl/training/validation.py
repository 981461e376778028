"""Validates checkpoints by verdicts on labelled pairs, or by loss and form on held-out items, and selects the best."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch

from carevl.judging.verdicts import recognise_verdict
from carevl.models.tree_attention import cast_floats
from carevl.training.engine import gather_where_read
from carevl.training.steps import Objective, all_gather, sum_shares

if TYPE_CHECKING:
    from carevl.training.loop import Loop

DEV = "dev"
"""Phase of an item whose two branches are the right and the wrong verdict of a labelled pair, shown in one order."""
_N_WRITTEN = 16
"""Held-out prompts that the judge answers."""
_PARSE_RATE_SLACK = 0.1
"""How far below the best parse rate a checkpoint may lie and still be selected."""


def validate(loop: Loop) -> dict[str, Any]:
    """Measure the judge at a checkpoint; every worker has to call it.

    Returns:
        `held_out`, where items are held out: the facts of a step that would hold all of them, and `parse_rate`;
        `dev_accuracy`, where there are labelled pairs.
    """
    facts: dict[str, Any] = {}
    loop.engine.eval()
    with torch.no_grad():
        if loop.held_out:
            facts["held_out"] = {**_compute_losses(loop), "parse_rate": _measure_parse_rate(loop)}
        if loop.dev:
            facts["dev_accuracy"] = _measure_accuracy(loop)
    loop.engine.train()
    return facts


def _compute_losses(loop: Loop) -> Mapping[str, Any]:
    mine = loop.shard(loop.held_out)
    objective = Objective.of(loop.config.training.dpo, loop.items, loop.held_out)
    counted = []
    for batch, loaded in loop.prefetch(mine):
        _, sums = objective.compute_share(loop.engine(loaded), loop.items, batch.items)
        counted += [sums] if batch.weight else []
    return sum_shares([part for worker in all_gather(counted, loop.world) for part in worker])


def _measure_accuracy(loop: Loop) -> float:
    """Return the share of labelled pairs whose right verdict is more probable than the wrong one in both orders."""
    right: list[tuple[str, bool]] = []
    for batch, loaded in loop.prefetch(loop.shard(loop.dev)):
        pairs = loop.engine(loaded).view(-1, 2).tolist()
        right += [(loop.items.ids[i], yes > no) for i, (yes, no) in zip(batch.items, pairs, strict=True)]
    pairs_right: dict[str, bool] = {}
    for name, is_right in (answer for worker in all_gather(right, loop.world) for answer in worker):
        pairs_right[name] = pairs_right.get(name, True) and is_right
    return statistics.fmean(pairs_right.values())


def _measure_parse_rate(loop: Loop) -> float:
    """Return the share of the first held-out prompts that the judge, greedily, answers in the form of their target."""
    written: dict[int, bool] = {}
    max_tokens = 2 * max(max(loop.items.shapes[i].branches) for i in loop.held_out)
    for batch in loop.shard(loop.held_out[:_N_WRITTEN]):
        tokenizer = loop.processor.tokenizer
        texts = [tokenizer.decode(ids, skip_special_tokens=True) for ids in _write(loop, batch.items, max_tokens)]
        for i, text in zip(batch.items, texts, strict=True):
            expected = tokenizer.decode(loop.items.tree(i).branches[0], skip_special_tokens=True)
            recognised, target = recognise_verdict(text), recognise_verdict(expected)
            written[i] = recognised is not None and target is not None and recognised[0] == target[0]
    everyone = {i: good for worker in all_gather(written, loop.world) for i, good in worker.items()}
    return statistics.fmean(everyone.values())


def _write(loop: Loop, batch: Sequence[int], max_tokens: int) -> list[list[int]]:
    """Let the judge answer the prompts of items, greedily; return its tokens."""
    model = loop.judge.model
    plain = loop.items.write_prompts(batch, loop.processor, model).to(loop.engine.device)
    end = loop.items.tree(batch[0]).branches[0][-1]
    with gather_where_read(loop.engine):
        sequences = model.generate(
            input_ids=plain.ids,
            attention_mask=plain.attention,
            **cast_floats(plain.inputs, model.dtype),
            max_new_tokens=max_tokens,
            do_sample=False,
            repetition_penalty=1.0,
            eos_token_id=end,
            pad_token_id=end,
            synced_gpus=loop.world > 1 and loop.config.training.zero.stage == 3,
        )
    return sequences[:, plain.ids.shape[1] :].tolist()  # type: ignore[no-any-return]


@dataclass
class CheckpointSelector:
    """Selects a checkpoint by the facts that `validate` returned, by steps done; `patience` as in the settings."""

    patience: int
    validations: dict[int, Mapping[str, Any]] = field(default_factory=dict)

    @property
    def best(self) -> int | None:
        """Steps done at the best checkpoint, the earliest of several; None when nothing can be compared.

        The largest accuracy on labelled pairs where there are any, and among equals the smallest loss on what is held
        out. Otherwise the smallest loss among checkpoints that write verdicts nearly as often as the best does.
        """
        held_out = {step: facts["held_out"] for step, facts in self.validations.items() if "held_out" in facts}
        labelled = {step: facts for step, facts in self.validations.items() if "dev_accuracy" in facts}
        losses = {step: facts["loss"] for step, facts in held_out.items()}
        accuracies = {step: facts["dev_accuracy"] for step, facts in labelled.items()}
        if accuracies:
            return min(accuracies, key=lambda step: (-accuracies[step], losses.get(step, 0.0), step))
        rates = {step: facts["parse_rate"] for step, facts in held_out.items()}
        least = max(rates.values(), default=0.0) - _PARSE_RATE_SLACK
        well_formed = [step for step in losses if math.isfinite(losses[step]) and rates[step] >= least]
        return min(well_formed, key=lambda step: (losses[step], step), default=None)

    @property
    def exhausted(self) -> bool:
        """Whether training should end: the last `patience` checkpoints brought nothing better."""
        best = self.best
        return best is not None and 0 < self.patience <= sum(step > best for step in self.validations)
