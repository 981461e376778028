"""Writes the table of families in `docs/models.md`, measured on tiny models with random float32 weights.

python -m tests.training.family_table
"""

from __future__ import annotations

import re
import tempfile
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch.nn.functional import cross_entropy

from carevl.models import families
from carevl.models.families import family_of, find_family
from carevl.models.families.base import Family
from carevl.models.judge_files import load_processor
from carevl.models.packing import Tree
from carevl.models.prompts import EncodedPrompts, Prompt, encode_prompts
from carevl.models.tree_attention import cast_floats
from carevl.training.judge import load_judge
from carevl.training.plain import plain_log_probabilities, separate
from carevl.training.trial import try_packing
from tests.helpers.families import FAMILIES as WRITTEN
from tests.helpers.families import draw_picture, write_family

DOCUMENT = Path(__file__).parents[2] / "docs/models.md"
_BEGIN, _END = "<!-- python -m tests.training.family_table -->\n", "<!-- end -->\n"
_WORDS = ("The image shows a red square. Response 1 is better.", "Two circles, so the second one: 2")


@dataclass(frozen=True)
class Measured:
    """What holds for a family; differences are the largest between log-probabilities of judgments, in nats.

    `alone`, `joined` and `embedded` are shared prefixes against plain: each tree in a row of its own, several in one,
    and with images as embeddings alone; None where that ends in an error, or prefixes cannot be shared. `plain` is
    plain against the logits of the model's own forward pass, called as transformers' users do.
    """

    alone: float | None
    joined: float | None
    embedded: float | None
    plain: float


def measure(directory: Path) -> Measured:
    """Measure the model in a directory."""
    processor, model = load_processor(directory), load_judge(directory, "float32").eval()
    own = family_of(model)
    ways = {"alone": (False, False), "joined": (True, False), "embedded": (False, True)}
    shared = {name: _share(model, processor, own, *flags) for name, flags in ways.items()}
    return Measured(**shared, plain=_measure_plain(model, processor))


def _share(model: Any, processor: Any, own: Family, joins: bool, embeds: bool) -> float | None:
    members, name = families.FAMILIES._members, model.config.model_type
    before = dict(members)
    members[name] = replace(own, joins=joins, embeds=embeds)
    try:
        return try_packing(model, processor).difference
    finally:
        members.clear()
        members.update(before)


@torch.no_grad()
def _measure_plain(model: Any, processor: Any) -> float:
    """Return the largest difference of plain from transformers' own loss over labels, in nats."""
    prompts = [Prompt("How many red circles are there?"), Prompt("Is the answer right? Response 1: Two.")]
    images = [draw_picture(0), draw_picture(1, 112, 84)]
    tokenizer = processor.tokenizer
    trees = []
    for prompt, image, words in zip(prompts, images, _WORDS, strict=True):
        branch = [*tokenizer(words, add_special_tokens=False)["input_ids"], tokenizer.eos_token_id]
        trees.append(Tree(encode_prompts(processor, [prompt], [image]).ids[0], [branch], words))
    ours = plain_log_probabilities(model, separate(trees, model, encode_prompts(processor, prompts, images)))
    differences = []
    for tree, prompt, image, value in zip(trees, prompts, images, ours, strict=True):
        written: EncodedPrompts = encode_prompts(processor, [prompt], [image])
        whole = separate([tree], model, written)
        logits = model(
            input_ids=whole.ids, attention_mask=whole.attention, **cast_floats(whole.inputs, model.dtype)
        ).logits[0]
        n = len(tree.prefix)
        loss = cross_entropy(logits[n - 1 : -1].float(), whole.ids[0, n:], reduction="sum")
        differences.append(float((value + loss).abs()))
    return max(differences)


def row(name: str, model_type: str, measured: Measured) -> str:
    """Return a family's row of the table."""

    def cell(difference: float | None, used: bool) -> str:
        if difference is None:
            return "no"
        return f"{difference:.0e}" if difference < 1e-3 else f"no ({difference:.2f})" if not used else "WRONG"

    family = find_family(model_type)
    cells = [
        cell(measured.alone, True),
        cell(measured.joined, family.joins),
        cell(measured.embedded, family.embeds),
        f"{measured.plain:.0e}",
    ]
    return f"| `{name}` | {' | '.join(cells)} |"


def table(rows: list[str]) -> str:
    """Return the table with its header."""
    head = "| family | shared | several in a row | images as embeddings | plain |"
    return "\n".join([head, "|---|---|---|---|---|", *rows]) + "\n"


def stored_table() -> str:
    """Return the table that the document has."""
    found = re.search(re.escape(_BEGIN) + "(.*?)" + re.escape(_END), DOCUMENT.read_text(), flags=re.DOTALL)
    assert found is not None
    return found[1]


def main() -> None:
    """Measure all families, and write the document."""
    rows = []
    with tempfile.TemporaryDirectory() as directory:
        for name in WRITTEN:
            path = Path(directory) / name
            write_family(name, path)
            model_type = "llava" if name == "pixtral" else name
            rows.append(row(name, model_type, measure(path)))
    before, rest = DOCUMENT.read_text().split(_BEGIN)
    DOCUMENT.write_text(before + _BEGIN + table(rows) + _END + rest.split(_END)[1])
    print(table(rows))


if __name__ == "__main__":
    main()
