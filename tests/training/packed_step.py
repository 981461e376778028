"""The loss of a step and its gradients with shared prefixes, and with a prompt for every judgment."""

from __future__ import annotations

import io
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import torch

from carevl.judging.prompts import judge_prompt, write_judgment
from carevl.models.judge_files import load_processor
from carevl.models.packing import row_tokens
from carevl.models.tree_attention import cast_floats
from carevl.settings.training import Lora, Packing, Phase, Training
from carevl.training.encoder import REFERENCE, Encoder
from carevl.training.items import Items
from carevl.training.judge import load_judge, log_probabilities
from carevl.training.schedule import micro_batches
from carevl.training.steps import Objective
from carevl.training.trainable import make_trainable
from tests.helpers.families import draw_picture

if TYPE_CHECKING:
    from PIL.Image import Image

WEIGHTS = {"lora": Training(lora=Lora(rank=4, alpha=8)), "full": Training(lora=None, train="all")}
"""What is trained: adapters on the language model, or all weights, those of the vision tower among them."""
_CASES = (
    (draw_picture(0), "How many red circles are there?", ("Two.", "There are three of them."), "The image shows two."),
    (draw_picture(1, 112, 84), "Is it blue?", ("It is, and so is the square.", "No."), "There is a blue square."),
    (draw_picture(2, 56, 112), "What is above the cross?", ("A cat.", "Nothing."), "Nothing is above the green cross."),
)


Draw = Callable[[Phase], list[dict[str, Any]]]
"""Gives the rows of a phase."""


@dataclass(frozen=True)
class Step:
    """A step's log-probabilities (nats, float32 [M]), its loss, and gradients by the name of the weight."""

    values: torch.Tensor
    loss: float
    gradients: Mapping[str, torch.Tensor]


@dataclass(frozen=True)
class Difference:
    """The largest between two steps: of log-probabilities and loss in nats, of gradients as a share of the largest."""

    values: float
    loss: float
    gradients: float

    @classmethod
    def between(cls, ours: Step, theirs: Step) -> Difference:
        """Compare two steps of the same weights."""
        assert ours.gradients.keys() == theirs.gradients.keys()
        scale = max(float(gradient.abs().max()) for gradient in theirs.gradients.values())
        off = max(float((ours.gradients[name] - theirs.gradients[name]).abs().max()) for name in theirs.gradients)
        values = float((ours.values - theirs.values).abs().max())
        return cls(values, abs(ours.loss - theirs.loss), off / scale)


class PackedStep:
    """A step over three drawn items, of two judgments each.

    Args:
        judge: a directory.
        training: what is trained; adapters are drawn at random, as those of a new one compute nothing.
        draw: gives the rows of a phase.
    """

    def __init__(self, judge: Path, phase: Phase, training: Training, draw: Draw | None = None) -> None:
        self.processor = load_processor(judge)
        self.model: Any = load_judge(judge, "float32").train()
        self.training = training
        self.trained = make_trainable(self.model, training)
        torch.manual_seed(0)
        for name, weight in self.trained.named_parameters():
            if ".lora_B." in name:
                torch.nn.init.normal_(weight, std=0.05)
        encoder = Encoder(self.processor, 10**6)
        rows = (draw or draw_rows)(phase)
        if phase == "dpo":
            rows = self._refer(encoder, rows)
        self.items = _encode(encoder, rows, phase)

    def compute(self, packing: Packing) -> Step:
        """Compute the step, in rows of several items where they may lie in one."""
        every = range(len(self.items))
        most = row_tokens(self.model, packing, 10**6)
        [batches] = micro_batches(every, self.items.shapes, 1, most, packing, kinds=self.items.n_images)
        objective = Objective.of(self.training.dpo, self.items, every)
        self.model.zero_grad()
        values: dict[int, torch.Tensor] = {}
        loss = 0.0
        for batch in batches:
            packed = self.items.collate(batch.items, self.processor, self.model, packing)
            computed = log_probabilities(self.model, packed)
            share, sums = objective.compute_share(computed, self.items, batch.items)
            share.backward()
            loss += sums.loss
            values |= zip(batch.items, computed.detach().view(-1, 2), strict=True)
        return Step(torch.cat([values[i] for i in every]), loss, self._gradients())

    def compute_by_labels(self) -> Step:
        """Compute a step of sft through the loss that the model itself has of labels, one judgment at a time."""
        self.model.zero_grad()
        values = []
        for i in range(len(self.items)):
            tree = self.items.tree(i)
            for branch in tree.branches:
                one = replace(self.items, items=_alone(self.items.items, i, branch))
                plain = one.collate([0], self.processor, self.model, "plain")
                labels = torch.full_like(plain.ids, -100)
                labels[0, len(tree.prefix) :] = plain.ids[0, len(tree.prefix) :]
                inputs = cast_floats(plain.inputs, self.model.dtype)
                output = self.model(input_ids=plain.ids, attention_mask=plain.attention, labels=labels, **inputs)
                values.append(-output.loss * len(branch))
        sums = torch.stack(values)
        loss = -sums.sum() / sum(self.items.answer_tokens)
        loss.backward()
        return Step(sums.detach(), loss.item(), self._gradients())

    def _gradients(self) -> dict[str, torch.Tensor]:
        return {name: w.grad.clone() for name, w in self.trained.named_parameters() if w.grad is not None}

    def _refer(self, encoder: Encoder, rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
        """Add log-probabilities of a reference that differs, so that no reward is 0."""
        items = _encode(encoder, rows, "dpo")
        with torch.no_grad():
            each = [items.collate([i], self.processor, self.model, "plain") for i in range(len(items))]
            values = torch.cat([log_probabilities(self.model, plain) for plain in each])
            pairs = values.view(-1, 2) + torch.tensor([-2.0, 3.0])
        return [row | dict(zip(REFERENCE, pair, strict=True)) for row, pair in zip(rows, pairs.tolist(), strict=True)]


def _encode(encoder: Encoder, rows: Sequence[dict[str, Any]], phase: Phase) -> Items:
    encoded, images, errors = encoder.encode(pa.Table.from_pylist(list(rows)), phase)
    assert errors == []
    return Items.of(encoded, images)


def _alone(items: pa.Table, i: int, branch: list[int]) -> pa.Table:
    row = items.slice(i, 1).to_pylist()[0] | {"branches": [branch]}
    return pa.Table.from_pylist([row], items.schema)


def draw_rows(phase: Phase) -> list[dict[str, Any]]:
    """Return rows of three items: in sft two targets each, in dpo a chosen and a rejected judgment."""
    rows = []
    for number, (image, question, responses, evidence) in enumerate(_CASES):
        prompt = judge_prompt("pairwise", question, responses)
        row = {"item_id": str(number), "image": _file(image), "prompt": prompt}
        rows += _with_judgments(row, phase, evidence)
    return rows


def draw_conversations(phase: Phase, *, text_only: bool = True, one_size: bool = False) -> list[dict[str, Any]]:
    """Return rows as `draw_rows` of items with three images in place, with one in each of two turns, and with none."""
    sizes = [(112, 112)] * 3 if one_size else [(112, 112), (112, 84), (56, 112)]
    files = [_file(draw_picture(n, *size)) for n, size in enumerate(sizes)]
    turns = [
        {"role": "user", "text": "What is it?", "places": [0]},
        {"role": "assistant", "text": "A red circle.", "places": []},
    ]
    several = "Which of  and  is most like ?"
    contents = [
        {"images": files, "prompt": several, "places": [9, 14, 28], "turns": []},
        {"images": files[1:], "prompt": "And what is in  now?", "places": [15], "turns": turns},
        *([{"images": [], "prompt": "Is a square round?", "places": [], "turns": []}] if text_only else []),
    ]
    rows = []
    for number, row in enumerate(contents):
        rows += _with_judgments({"item_id": str(number), **row}, phase, f"There are {number + 2} red circles.")
    return rows


def _file(image: Image) -> bytes:
    file = io.BytesIO()
    image.save(file, "PNG")
    return file.getvalue()


def _with_judgments(row: dict[str, Any], phase: Phase, evidence: str) -> list[dict[str, Any]]:
    judgments = [write_judgment(evidence, winner=1), write_judgment(f"{evidence} So it is.", winner=2)]
    if phase == "sft":
        return [row | {"target": text} for text in judgments]
    return [row | dict(zip(("chosen", "rejected"), judgments, strict=True))]
