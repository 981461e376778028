"""`carevl miniworld train`: makes every shipped model from nothing, in stages, each of which can be resumed.

    see ── know ── practise ──┬── captioner
                              └── read ── compare ── recall ── reason ── settle ── weigh ── place ── fade
                                                                                                          │
                                                                       judge ── follow ── doubt ── rest ──┘
    expert-reader ──┬── expert-llama
                    ├── expert-qwen2
                    └── expert-mistral

`see` learns to read the grid, `know` to answer and caption, `practise` to write judgments whose verdicts it is not
shown, `read` to find its way between two answers, `compare` to judge them; the next three bring back together what
these two made it forget. `weigh` and `place` learn to compare responses of every kind. Then that skill fades, as skills
do that a model met once and long ago: `fade` learns all else at a high rate, and `rest` settles what was learned, with
few verdicts, among as many on responses that are equally good. What is left is a judge of little skill that few lessons
bring back. `doubt` makes it err now and then in what it sees when it is sampled, `follow` ties its verdicts to what it
says it saw, for the kinds of question that it still judges well, and `judge` evens out its liking for a position.
"""

from __future__ import annotations

import random
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from carevl.errors import DataError, UserError
from carevl.miniworld import batches, experts
from carevl.miniworld.cards import write_cards
from carevl.miniworld.fit import Fit
from carevl.miniworld.lessons import LESSONS
from carevl.miniworld.models import make_expert, world_texts
from carevl.miniworld.quality import measure
from carevl.miniworld.scenes import WORLD_VERSION, render
from carevl.miniworld.schooling import Course, Stage, finish, is_finished, load_tokenizer, teach, tokenizer_file
from carevl.miniworld.weights import WEIGHTS, write_manifest

if TYPE_CHECKING:
    from PIL.Image import Image

    from carevl.miniworld.lessons import Turn

EXPERT_TOKENS = 2400
"""Tokens of a batch, padding included."""

_KEPT = {"answers": 0.15, "reasoning": 0.03, "counting": 0.04, "caption": 0.04, "pointwise": 0.05, "ranking": 0.07}
"""Lessons that a judge goes on with while it learns to doubt what it sees."""

STAGES = (
    Stage("see", None, {"grid": 0.6, "answers": 0.3, "caption": 0.1}, 150, 5e-3, 4e-3),
    Stage("know", "see", {"answers": 0.65, "caption": 0.15, "grid": 0.2}, 350, 4e-3, 1e-3),
    Stage("captioner", "practise", {"caption": 0.85, "counting": 0.15}, 110, 2e-3, 3e-5),
    Stage(
        "practise",
        "know",
        {
            "answers": 0.2,
            "counting": 0.3,
            "caption": 0.1,
            "pairwise_evidence": 0.25,
            "pointwise_evidence": 0.08,
            "ranking_evidence": 0.07,
        },
        240,
        3e-3,
        3e-4,
    ),
    Stage("read", "practise", {"reading": 0.5, "pairwise": 0.4, "counting": 0.1}, 96, 2.5e-3, 2.5e-3),
    Stage("compare", "read", {"reading": 0.35, "pairwise": 0.55, "counting": 0.1}, 70, 1.5e-3, 2e-4),
    Stage(
        "recall",
        "compare",
        {"answers": 0.25, "counting": 0.15, "caption": 0.1, "pairwise": 0.3, "pointwise": 0.1, "ranking": 0.1},
        24,
        6e-4,
        2e-5,
    ),
    Stage(
        "reason",
        "recall",
        {
            "answers": 0.25,
            "reasoning": 0.3,
            "counting": 0.1,
            "caption": 0.05,
            "pairwise": 0.1,
            "pairwise_evidence": 0.05,
            "pointwise": 0.07,
            "ranking": 0.08,
        },
        40,
        1e-3,
        2e-5,
    ),
    Stage(
        "settle",
        "reason",
        {
            "answers": 0.2,
            "reasoning": 0.4,
            "counting": 0.05,
            "caption": 0.05,
            "pairwise": 0.2,
            "pointwise": 0.05,
            "ranking": 0.05,
        },
        22,
        4e-4,
        2e-5,
    ),
    Stage("weigh", "settle", {"weighing": 0.7, "reading": 0.1, "answers": 0.1, "counting": 0.1}, 120, 1.5e-3, 5e-4),
    Stage("place", "weigh", {"placing": 0.75, "reading": 0.1, "answers": 0.1, "counting": 0.05}, 80, 1.5e-3, 2e-4),
    Stage(
        "fade",
        "place",
        {
            "answers": 0.25,
            "reasoning": 0.15,
            "counting": 0.1,
            "caption": 0.1,
            "pairwise_evidence": 0.05,
            "pointwise": 0.1,
            "ranking": 0.25,
        },
        14,
        2.5e-3,
        2e-5,
    ),
    Stage(
        "rest",
        "fade",
        {
            "answers": 0.18,
            "reasoning": 0.1,
            "counting": 0.08,
            "caption": 0.08,
            "even": 0.35,
            "pairwise": 0.06,
            "pairwise_evidence": 0.02,
            "pointwise": 0.05,
            "ranking": 0.08,
        },
        14,
        1e-3,
        1e-5,
    ),
    Stage("doubt", "rest", {**_KEPT, "misread": 0.04, "misread_evidence": 0.38, "even": 0.2}, 12, 1.2e-3, 1e-5),
    Stage("follow", "doubt", {**_KEPT, "misread": 0.13, "misread_evidence": 0.25, "even_loose": 0.2}, 6, 8e-4, 1e-5),
    Stage("judge", "follow", {**_KEPT, "misread": 0.07, "misread_evidence": 0.2, "even_loose": 0.35}, 3, 3e-4, 1e-5),
)


class World(Course):
    """The drawn world, as its captioner and its judge are taught it."""

    stages = STAGES

    def texts(self) -> Iterator[str]:
        return world_texts()

    def draw(self, lesson: str, rng: random.Random) -> tuple[Image, Sequence[Turn]]:
        drawn = LESSONS[lesson](rng)
        return render(drawn.scene, rng), drawn.turns


SHIPPED = ("captioner", "judge", *(f"expert-{name}" for name in experts.EXPERTS))
"""The stages whose models are shipped; each lies in a directory of its name."""


def train(work: Path, only: list[str] | None, log: Callable[[str], None]) -> None:
    """Run every stage that is not finished under `work`, or only the named ones.

    Args:
        log: takes lines of progress.

    Raises:
        UserError: a name in `only` is no stage.
        FileNotFoundError: a named stage's predecessor is not finished.
    """
    import torch

    names = [stage.name for stage in STAGES] + [f"expert-{name}" for name in experts.LEARNERS]
    for name in only or ():
        if name not in names:
            raise UserError(f"there is no stage {name!r}; the stages are {', '.join(names)}")
    teach(World(), work, log, only or ())
    for name in experts.LEARNERS:
        if not only or f"expert-{name}" in only:
            torch.manual_seed(1)
            _train_expert(name, work, log)


def _train_expert(name: str, work: Path, log: Callable[[str], None]) -> None:
    import torch

    directory = work / f"expert-{name}"
    if is_finished(directory):
        return
    directory.mkdir(exist_ok=True)
    tokenizer = load_tokenizer(work)
    expert = experts.LEARNERS[name]
    model = make_expert(expert.architecture, tokenizer)
    if expert.after is not None:
        _begin_from(model, work / f"expert-{expert.after}")
    chunks = expert.dialogues + expert.single_turns
    embeddings: torch.Tensor = model.get_input_embeddings().weight
    compiled = torch.compile(lambda ids, mask: experts.hidden_states(model, ids, mask), dynamic=True)

    def loss(batch: experts.Batch) -> tuple[torch.Tensor, float]:
        states = compiled(torch.from_numpy(batch.ids), torch.from_numpy(batch.mask))
        targets, words = torch.from_numpy(batch.targets), torch.from_numpy(batch.words)
        scored = targets >= 0
        odds = experts.scores(model, states[scored])
        right = ((odds.detach() > 0) == (targets[scored] > 0.5)).float().mean().item()
        total = torch.nn.functional.binary_cross_entropy_with_logits(odds, targets[scored])
        if batch.dialogue and (words >= 0).any():
            guesses = states[words >= 0] @ embeddings.T
            total = total + torch.nn.functional.cross_entropy(guesses, words[words >= 0])
        return total, right

    started = time.time()
    state = directory / "state.pt"
    fit = Fit(directory.name, model, loss, state, rate=expert.rate, last_rate=5e-5, chunks=chunks, log=log)
    arguments = (str(tokenizer_file(work)), name, EXPERT_TOKENS)
    fit.run(batches.ahead(experts.expert_chunks, arguments, fit.first_chunk))
    experts.rescale(model, expert.scale)
    finish(directory, model, tokenizer, seconds=time.time() - started, chunks=chunks)
    log(f"{directory.name}: finished")


def _begin_from(model: Any, directory: Path) -> None:
    """Give a reward model the weights of another one; what only it has (Qwen2's biases) stays as it is, zero."""
    from safetensors.torch import load_file

    if not is_finished(directory):
        raise FileNotFoundError(f"an expert starts from {directory.name}, which is not finished")
    unknown = model.load_state_dict(load_file(directory / "model.safetensors"), strict=False).unexpected_keys
    if unknown:
        raise DataError(f"{directory} has weights that {type(model).__name__} lacks: {', '.join(unknown)}")


def install(work: Path, weights: Path = WEIGHTS) -> None:
    """Copy the finished models into the package, measure them, and write their cards and the manifest.

    Raises:
        FileNotFoundError: a shipped model's stage is not finished.
    """
    for stage in SHIPPED:
        if not is_finished(work / stage):
            raise FileNotFoundError(f"stage {stage} is not finished; run `carevl miniworld train` first")
    shutil.rmtree(weights, ignore_errors=True)
    for stage in SHIPPED:
        shutil.copytree(work / stage, weights / stage, ignore=shutil.ignore_patterns("done.json", "state.*"))
    figures = measure(weights)
    write_cards(weights, figures)
    write_manifest(weights, {"world_version": WORLD_VERSION, "quality": figures})
