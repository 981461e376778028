"""Writes the table of families in `docs/models.md`, measured on tiny models with random float32 weights.

python -m tests.training.family_table [--vllm]

Without --vllm, which takes half a minute for each family, the cells of that column stay what they are.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch.nn.functional import cross_entropy

from carevl.models import families
from carevl.models.engines import generator
from carevl.models.engines.base import GenerationRequest
from carevl.models.engines.parity import keep_references
from carevl.models.engines.transformers import ImageTextGenerator
from carevl.models.engines.vllm import VllmGenerator
from carevl.models.families import family_of, find_family
from carevl.models.families.base import Family
from carevl.models.judge_files import load_processor
from carevl.models.locate import Weights
from carevl.models.packing import Tree, usable_packing
from carevl.models.prompts import Prompt, encode_prompts
from carevl.models.tree_attention import cast_floats
from carevl.settings.models import Judge, Pool
from carevl.training.judge import export, load_judge, log_probabilities
from carevl.training.plain import plain_log_probabilities, separate
from carevl.training.skeleton import load_skeleton
from carevl.training.trial import try_packing
from tests.helpers.families import FAMILIES as WRITTEN
from tests.helpers.families import draw_picture, write_family
from tests.training.packed_step import WEIGHTS, Difference, PackedStep

DOCUMENT = Path(__file__).parents[2] / "docs/models.md"
_BEGIN, _END = "<!-- python -m tests.training.family_table -->\n", "<!-- end -->\n"
_WORDS = ("The image shows a red square. Response 1 is better.", "Two circles, so the second one: 2")
_REPLIES = ("1", "2", "A", "Yes", "No", "The")
_HEAD = (
    "family",
    "shared",
    "several in a row",
    "images as embeddings",
    "plain",
    "LoRA",
    "full",
    "merged",
    "transformers",
    "vLLM",
)


@dataclass(frozen=True)
class Measured:
    """What holds for a family; differences are the largest between log-probabilities, in nats.

    `alone`, `joined` and `embedded` are judgments on shared prefixes against plain: each tree in a row of its own,
    several in one, and with images as embeddings alone; None where that ends in an error, or prefixes cannot be shared.
    `plain` is plain against the logits of the model's own forward pass, called as transformers' users do. `lora` and
    `full` are gradients, as a share of the largest: of a step of DPO shared against plain, or, where prefixes cannot be
    shared, of SFT plain against the model's own loss over labels. `merged` is the exported judge against base and
    adapter. `transformers` are first tokens of replies in that engine, in a batch, against the forward pass.
    """

    alone: float | None
    joined: float | None
    embedded: float | None
    plain: float
    lora: float
    full: float
    merged: float
    transformers: float


def measure(directory: Path) -> Measured:
    """Measure the model in a directory."""
    processor, model = load_processor(directory), load_judge(directory, "float32").eval()
    own = family_of(model)
    ways = {"alone": (False, False), "joined": (True, False), "embedded": (False, True)}
    shared = {name: _share(model, processor, own, *flags) for name, flags in ways.items()}
    return Measured(
        **shared,
        plain=_measure_plain(model, processor),
        lora=_measure_gradients(directory, "lora"),
        full=_measure_gradients(directory, "full"),
        merged=_measure_merged(directory),
        transformers=_measure_engine(directory, model, processor),
    )


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
        trees.append(Tree(encode_prompts(processor, [prompt], [[image]]).ids[0], [branch], words))
    written = encode_prompts(processor, prompts, [[image] for image in images])
    ours = plain_log_probabilities(model, separate(trees, model, written))
    differences = []
    for tree, prompt, image, value in zip(trees, prompts, images, ours, strict=True):
        whole = separate([tree], model, encode_prompts(processor, [prompt], [[image]]))
        logits = model(
            input_ids=whole.ids, attention_mask=whole.attention, **cast_floats(whole.inputs, model.dtype)
        ).logits[0]
        n = len(tree.prefix)
        loss = cross_entropy(logits[n - 1 : -1].float(), whole.ids[0, n:], reduction="sum")
        differences.append(float((value + loss).abs()))
    return max(differences)


def _measure_gradients(directory: Path, weights: str) -> float:
    if usable_packing(load_skeleton(directory), "shared")[0] == "shared":
        step = PackedStep(directory, "dpo", WEIGHTS[weights])
        return Difference.between(step.compute("shared"), step.compute("plain")).gradients
    step = PackedStep(directory, "sft", WEIGHTS[weights])
    return Difference.between(step.compute("plain"), step.compute_by_labels()).gradients


@torch.no_grad()
def _measure_merged(directory: Path) -> float:
    step = PackedStep(directory, "sft", WEIGHTS["lora"])
    with tempfile.TemporaryDirectory() as out:
        export(step.trained, None, Weights.of(str(directory)), Path(out))
        merged = load_judge(Path(out) / "judge", "float32").eval()
    differences = []
    for i in range(len(step.items)):
        batch = step.items.collate([i], step.processor, step.model, "plain")
        adapted, whole = (log_probabilities(model, batch) for model in (step.model.eval(), merged))
        differences.append(float((adapted - whole).abs().max()))
    return max(differences)


@torch.no_grad()
def _measure_engine(directory: Path, model: Any, processor: Any) -> float:
    images = (draw_picture(0), draw_picture(1, 112, 84))
    requests = [GenerationRequest((image,), "How many squares are there in the image?") for image in images]
    replies = ImageTextGenerator(directory).generate(requests, max_tokens=1, logprob_texts=_REPLIES)
    differences = []
    for request, reply in zip(requests, replies, strict=True):
        written = encode_prompts(processor, [request.turn], [list(request.images)])
        whole = separate([Tree(written.ids[0], [[]], "image")], model, written)
        inputs = cast_floats(whole.inputs, model.dtype)
        logits = model(input_ids=whole.ids, attention_mask=whole.attention, **inputs).logits[0, -1].float()
        tokens = [processor.tokenizer(text, add_special_tokens=False)["input_ids"][0] for text in _REPLIES]
        differences.append((logits.log_softmax(-1)[tokens] - torch.tensor(reply.logprobs[0])).abs().max())
    return float(max(differences))


def measure_vllm(directory: Path) -> str:
    """Return the cell of vLLM: its largest difference from transformers, and whether judges run there for it."""
    judge = Judge(path=str(directory), engine="vllm", max_model_len=1024, pool=Pool(batch_size=8))
    with tempfile.TemporaryDirectory() as kept, keep_references(Path(kept)):
        engine = generator(judge)
        known = [json.loads(file.read_text())["difference"] for file in Path(kept).glob(".parity-*.json")]
    if isinstance(engine, VllmGenerator):
        engine.close()
        return _number(known[0])
    return f"no ({known[0]:.2f})" if known else "no"


def _number(difference: float) -> str:
    return f"{difference:.0e}"


def row(name: str, model_type: str, measured: Measured, vllm: str) -> str:
    """Return a family's row of the table."""

    def cell(difference: float | None, used: bool) -> str:
        if difference is None:
            return "no"
        return _number(difference) if difference < 1e-3 else f"no ({difference:.2f})" if not used else "WRONG"

    family = find_family(model_type)
    others = (measured.plain, measured.lora, measured.full, measured.merged, measured.transformers)
    cells = [
        cell(measured.alone, True),
        cell(measured.joined, family.joins),
        cell(measured.embedded, family.embeds),
        *(_number(difference) for difference in others),
        vllm,
    ]
    return f"| `{name}` | {' | '.join(cells)} |"


def table(rows: list[str]) -> str:
    """Return the table with its header."""
    return "\n".join([f"| {' | '.join(_HEAD)} |", "|---" * len(_HEAD) + "|", *rows]) + "\n"


def stored_table() -> str:
    """Return the table that the document has."""
    found = re.search(re.escape(_BEGIN) + "(.*?)" + re.escape(_END), DOCUMENT.read_text(), flags=re.DOTALL)
    assert found is not None
    return found[1]


def _stored_vllm() -> Mapping[str, str]:
    rows = [line.strip("| ").split(" | ") for line in stored_table().splitlines()[2:]]
    return {cells[0].strip("`"): cells[-1] for cells in rows if len(cells) == len(_HEAD)}


def _measure_vllm_apart(directory: Path) -> str:
    """Measure in a process of its own: vLLM stays in the one that it began in."""
    command = [sys.executable, "-m", "tests.training.family_table", "--vllm-of", str(directory)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return done.stdout.strip().splitlines()[-1]


def main(*arguments: str) -> None:
    """Measure all families, and write the document."""
    if arguments[:1] == ("--vllm-of",):
        print(measure_vllm(Path(arguments[1])))
        return
    rows, kept = [], _stored_vllm()
    with tempfile.TemporaryDirectory() as directory:
        for name in WRITTEN:
            path = Path(directory) / name
            write_family(name, path)
            vllm = _measure_vllm_apart(path) if "--vllm" in arguments else kept.get(name, "not tried")
            rows.append(row(name, "llava" if name == "pixtral" else name, measure(path), vllm))
            print(rows[-1], file=sys.stderr, flush=True)
    before, rest = DOCUMENT.read_text().split(_BEGIN)
    DOCUMENT.write_text(before + _BEGIN + table(rows) + _END + rest.split(_END)[1])


if __name__ == "__main__":
    main(*sys.argv[1:])
