"""What a checkpoint is judged by: verdicts on labelled pairs in both orders, or loss and form on what is held out."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch

from carevl.judging.prompts import Task, parse_judgment
from carevl.models.packing import Tree
from carevl.training.plain import separate
from carevl.training.steps import Objective, over_workers, summed

if TYPE_CHECKING:
    from carevl.training.loop import Loop

DEV = "dev"
"""Phase of an item whose two branches are the right and the wrong verdict of a labelled pair, shown in one order."""
_WRITTEN = 16
_FORM = 0.1


def look(loop: Loop) -> dict[str, Any]:
    """What is known of the judge at a checkpoint; every worker has to call it.

    Returns:
        `held_out`, where items are held out: the facts of a step that would hold all of them, and `parse_rate`;
        `dev_accuracy`, where there are labelled pairs.
    """
    facts: dict[str, Any] = {}
    loop.engine.eval()
    with torch.no_grad():
        if loop.held_out:
            facts["held_out"] = {**_losses(loop), "parse_rate": _parse_rate(loop)}
        if loop.dev:
            facts["dev_accuracy"] = _dev_accuracy(loop)
    loop.engine.train()
    return facts


def _losses(loop: Loop) -> Mapping[str, Any]:
    mine = loop.share(loop.held_out)
    objective = Objective.of(loop.assignment.training.dpo, loop.items, loop.held_out)
    shares = [objective.share(loop.engine(ready), loop.items, batch.items)[1] for batch, ready in loop.prepared(mine)]
    counted = [sums for batch, sums in zip(mine, shares, strict=True) if batch.weight]
    return summed([part for worker in over_workers(counted, loop.world) for part in worker])


def _dev_accuracy(loop: Loop) -> float:
    """Share of labelled pairs whose right verdict is more probable than the wrong one in both orders."""
    right: list[tuple[str, bool]] = []
    for batch, ready in loop.prepared(loop.share(loop.dev)):
        pairs = loop.engine(ready).view(-1, 2).tolist()
        right += [(loop.items.ids[i], yes > no) for i, (yes, no) in zip(batch.items, pairs, strict=True)]
    pairs_right: dict[str, bool] = {}
    for name, is_right in (answer for worker in over_workers(right, loop.world) for answer in worker):
        pairs_right[name] = pairs_right.get(name, True) and is_right
    return statistics.fmean(pairs_right.values())


def _parse_rate(loop: Loop) -> float:
    """Share of the first held-out prompts that the judge, greedily, answers in the form of their first judgment."""
    written: dict[int, bool] = {}
    most = 2 * max(max(loop.items.shapes[i].branches) for i in loop.held_out)
    for batch in loop.share(loop.held_out[:_WRITTEN]):
        trees = [loop.items.tree(i) for i in batch.items]
        texts = [loop.tokenizer.decode(ids, skip_special_tokens=True) for ids in _write(loop, trees, most)]
        for i, tree, text in zip(batch.items, trees, texts, strict=True):
            expected = loop.tokenizer.decode(tree.branches[0], skip_special_tokens=True)
            written[i] = form(text) is not None and form(text) == form(expected)
    everyone = {i: good for worker in over_workers(written, loop.world) for i, good in worker.items()}
    return statistics.fmean(everyone.values())


def _write(loop: Loop, trees: Sequence[Tree], most: int) -> list[list[int]]:
    """What the judge writes after prefixes, at most `most` tokens."""
    model = loop.judge.model
    prefixes = [Tree(tree.prefix, [[]], tree.image) for tree in trees]
    pictures = loop.items.pictures(prefixes, loop.image_processor)
    plain = separate(prefixes, pictures, model, left=True).to(loop.engine.device)
    end = trees[0].branches[0][-1]
    made = model.generate(
        input_ids=plain.ids,
        attention_mask=plain.attention,
        **plain.images(model),
        max_new_tokens=most,
        do_sample=False,
        repetition_penalty=1.0,
        eos_token_id=end,
        pad_token_id=end,
        synced_gpus=loop.world > 1 and loop.assignment.training.zero.stage == 3,
    )
    return made[:, plain.ids.shape[1] :].tolist()  # type: ignore[no-any-return]


def form(text: str) -> Task | None:
    """The task whose grammar a judgment follows, None without a verdict."""
    orders: dict[Task, tuple[int, ...]] = {
        "pairwise": (0, 1),
        "pointwise": (0,),
        "ranking": tuple(range(text.count(">") + 1)),
    }
    return next((task for task, order in orders.items() if parse_judgment(text, task, order).status == "ok"), None)


@dataclass
class Looks:
    """What was seen at checkpoints, by steps done; `patience` as in the settings."""

    patience: int
    seen: dict[int, Mapping[str, Any]] = field(default_factory=dict)

    @property
    def best(self) -> int | None:
        """Steps done at the best checkpoint, the earliest of several; None when nothing can be compared.

        The largest accuracy on labelled pairs where there are any, and among equals the smallest loss on what is held
        out. Otherwise the smallest loss among checkpoints that write verdicts nearly as often as the best does.
        """
        losses = {step: facts["held_out"]["loss"] for step, facts in self.seen.items() if "held_out" in facts}
        accuracies = {step: facts["dev_accuracy"] for step, facts in self.seen.items() if "dev_accuracy" in facts}
        if accuracies:
            return min(accuracies, key=lambda step: (-accuracies[step], losses.get(step, 0.0), step))
        rates = {step: facts["held_out"]["parse_rate"] for step, facts in self.seen.items() if "held_out" in facts}
        able = [step for step in losses if math.isfinite(losses[step]) and rates[step] >= max(rates.values()) - _FORM]
        return min(able, key=lambda step: (losses[step], step), default=None)

    @property
    def exhausted(self) -> bool:
        """Whether training should end: the last `patience` checkpoints brought nothing better."""
        best = self.best
        return best is not None and 0 < self.patience <= sum(step > best for step in self.seen)
