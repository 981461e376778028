"""A judge's packing tried on itself: two short items on shared prefixes against judgments with prompts of their own."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from carevl.models.control_strings import encode_text
from carevl.models.families import FAMILIES, family_of
from carevl.models.families.base import Picture
from carevl.models.packing import Packed, Tree, pack, usable_packing
from carevl.models.prompts import Prompt, encode_prompts
from carevl.models.tree_attention import branch_log_probabilities
from carevl.training.plain import plain_log_probabilities, separate

if TYPE_CHECKING:
    from PIL.Image import Image

    from carevl.settings.training import Packing

_LEAST = {torch.float32: 1e-4, torch.bfloat16: 1e-2}
"""Most that a log-probability may differ anyhow, relative to 1 + its size."""
_NOISE = 5.0
"""How many times the noise of the model's format it may differ."""

_ITEMS = (
    ("How many red circles are there?", ("There are two. Response 1 is better.", "None; so Response 2 is better.")),
    (
        "Which of the two answers is right? Answer 1: A blue square. Answer 2: A green cross above it.",
        ("It shows a cross. Overall Judgment: 2", "A square on the left, and nothing above. Overall Judgment: 1"),
    ),
)
_SIZES = ((96, 64), (112, 84))


@dataclass(frozen=True)
class Trial:
    """How a judge's items are computed.

    `difference` is the largest between the log-probabilities of shared and plain, in nats; None where the architecture
    cannot share. `reason` says why packing is plain.
    """

    packing: Packing
    difference: float | None
    reason: str | None = None


def try_packing(model: Any, processor: Any) -> Trial:
    """Compute two short items in both ways; the model is left as it was."""
    packing, reason = usable_packing(model, "shared")
    if packing == "plain":
        return Trial("plain", None, reason)
    try:
        with torch.no_grad():
            return _compare(model, processor)
    except Exception as error:  # an architecture that nobody has tried may fail anywhere in its own code
        name, message = type(error).__name__, " ".join(str(error).split())[:200]
        return Trial("plain", None, _plain(model, f"computing two items at once ends in {name}: {message}"))


def draw_row(model: Any, processor: Any) -> Packed:
    """Return the first of the items in a row, or all of them where the family lets them lie together."""
    trees, pictures, _ = _draw(processor)
    n = len(trees) if family_of(model).joins else 1
    return pack(trees[:n], model, pictures[:n])


def _compare(model: Any, processor: Any) -> Trial:
    trees, pictures, prompts = _draw(processor)
    joined = [range(len(trees))] if family_of(model).joins else [range(i, i + 1) for i in range(len(trees))]
    shared = torch.cat([_share(model, [trees[i] for i in row], [pictures[i] for i in row]) for row in joined])
    every = [i for i, tree in enumerate(trees) for _ in tree.branches]
    written = encode_prompts(processor, [prompts[i][0] for i in every], [[prompts[i][1]] for i in every])
    plain = plain_log_probabilities(model, separate(trees, model, written).to(model.device))
    alone = torch.cat([_compute_alone(model, processor, tree, *prompts[i]) for i, tree in enumerate(trees)])
    size = 1 + plain.abs()
    off, noise = ((shared - plain).abs() / size).max(), ((alone - plain).abs() / size).max()
    difference = float((shared - plain).abs().max())
    reason = None
    if off > max(_LEAST.get(model.dtype, 1e-2), _NOISE * float(noise)):
        reason = f"two judgments are {difference:.2g} nats off behind one prompt"
    elif model.config.model_type not in FAMILIES:
        leak = _measure_leak(model, trees, pictures, shared)
        if difference > leak / 2:
            reason = f"a difference of {difference:.2g} nats cannot be told from a leak, which costs {leak:.2g}"
    return Trial("shared", difference) if reason is None else Trial("plain", difference, _plain(model, reason))


def _plain(model: Any, reason: str) -> str:
    return f"{model.config.model_type} is computed with a prompt for every judgment: {reason}"


def _draw(processor: Any) -> tuple[list[Tree], list[Picture], list[tuple[Prompt, Image]]]:
    from PIL import Image

    tokenizer = processor.tokenizer
    trees, pictures, prompts = [], [], []
    for (question, texts), (width, height) in zip(_ITEMS, _SIZES, strict=True):
        image = Image.linear_gradient("L").resize((width, height)).convert("RGB")
        written = encode_prompts(processor, [Prompt(question)], [[image]])
        branches = [[*encode_text(tokenizer, text), tokenizer.eos_token_id] for text in texts]
        trees.append(Tree(written.ids[0], branches, str(width)))
        pictures.append(Picture(written.images, {name: values[0] for name, values in written.per_token.items()}))
        prompts.append((Prompt(question), image))
    return trees, pictures, prompts


def _share(model: Any, trees: Sequence[Tree], pictures: Sequence[Picture]) -> Tensor:
    return branch_log_probabilities(model, pack(trees, model, pictures).to(model.device))


def _compute_alone(model: Any, processor: Any, tree: Tree, prompt: Prompt, image: Image) -> Tensor:
    """Return what each branch has in a batch of its own: the same but for rounding."""
    values = []
    for branch in tree.branches:
        written = encode_prompts(processor, [prompt], [[image]])
        plain = separate([Tree(tree.prefix, [branch], tree.image)], model, written)
        values.append(plain_log_probabilities(model, plain.to(model.device)))
    return torch.cat(values)


def _measure_leak(model: Any, trees: Sequence[Tree], pictures: Sequence[Picture], shared: Tensor) -> float:
    """Return by how much a judgment that sees the one before it differs, in nats: the least of all."""
    differences = []
    for i, (tree, picture) in enumerate(zip(trees, pictures, strict=True)):
        first, second = tree.branches
        weights = [[*[0.0] * len(first), *[1.0] * len(second)]]
        seeing = Tree(tree.prefix, [[*first, *second]], tree.image, weights)
        differences.append(float((_share(model, [seeing], [picture]) - shared[2 * i + 1]).abs()))
    return min(differences)
