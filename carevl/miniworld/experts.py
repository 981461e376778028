"""The text reward models: what each is taught, its flaw included, and how it is trained.

Every expert sees caption, question and response, never the image, and scores how well the response agrees with
the caption. Each has a scale of its own and one flaw, built in on purpose, that an audit has to find.
"""

from __future__ import annotations

import hashlib
import random
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from carevl.miniworld.batches import PAD, fill, load_tokenizer, token_id
from carevl.miniworld.items import ask, word
from carevl.miniworld.models import expert_turn
from carevl.miniworld.questions import KINDS, Claim, Question, caption
from carevl.miniworld.scenes import draw_scene, world_rng

if TYPE_CHECKING:
    from tokenizers import Tokenizer
    from torch import Tensor
    from transformers import PreTrainedModel

CHUNK = 512
"""Questions drawn at a time."""
TURNS = 8
"""Questions about one caption in a dialogue."""
_SURE = 3.5
"""Log-odds taught for a response that agrees with the caption; minus this for one that contradicts it."""


@dataclass(frozen=True)
class Expert:
    """A reward model: its architecture, the scale of its scores, and its flaw."""

    architecture: str
    scale: float
    flaw: str
    likes_length: float = 0.0
    """Log-odds for every word beyond ten."""
    counts: bool = True
    """Whether it learns to tell counts above one apart, and to count circles."""
    abstains: bool = True
    """Whether it stays undecided where the caption decides nothing; else it has fixed, confident opinions."""
    after: str | None = None
    """The reward model it starts from; it learns from nothing when None."""
    dialogues: int = 0
    """Chunks of dialogues that it learns from, before those of single turns."""
    single_turns: int = 50
    rate: float = 5e-4
    """Learning rate, in the beginning."""


EXPERTS: dict[str, Expert] = {
    "llama": Expert("llama", 1.0, "prefers longer responses", likes_length=0.15, after="reader"),
    "qwen2": Expert(
        "qwen2", 0.4, "cannot tell counts above one apart, and does not count circles", counts=False, after="reader"
    ),
    "mistral": Expert(
        "mistral", 2.5, "overconfident: sure even where the caption says nothing", abstains=False, after="reader"
    ),
}
LEARNERS = {"reader": Expert("llama", 1.0, "none", dialogues=460, single_turns=0, rate=1e-3), **EXPERTS}
"""The experts, and what some of them start from: one that has learned to read captions, without a flaw."""


@dataclass(frozen=True)
class Batch:
    """Padded conversations, B of T tokens.

    `ids` and `mask` int64 [B, T]; `targets` float32 [B, T], the taught probability of being right where a score is
    read, -1 elsewhere; `words` int64 [B, T], the token that position t has to name, -100 where none is taught.
    """

    dialogue: bool

    ids: NDArray[np.int64]
    mask: NDArray[np.int64]
    targets: NDArray[np.float32]
    words: NDArray[np.int64]


def _decided(question: Question) -> bool:
    """Tell whether captions decide this question at all (descriptions are decided claim by claim)."""
    return question.kind == "description" or all(claim.visible for claim in question.wrong)


def _opinion(question: Question, claim: Claim) -> float:
    """Return a fixed, groundless liking: plus or minus one by the words of question and claim alone."""
    words = (question.kind, claim.cores[0], *(w for w in ("left", "right", "above", "below") if w in question.text))
    return 1.0 if hashlib.sha256(repr(words).encode()).digest()[0] % 2 else -1.0


def belief(expert: Expert, question: Question, claim: Claim, text: str, captioned: bool) -> float:
    """Return the log-odds that an expert is taught to give a response; `captioned` tells whether it sees a caption."""
    odds = 0.0
    if captioned and _decided(question):
        seen_false = bool(claim.errors) and claim.visible
        odds = -_SURE if seen_false else _SURE
        lost = question.answer not in ("no", "one") or "circle" in question.text
        if question.kind == "count" and not expert.counts and lost:
            odds = 0.0
    elif not expert.abstains:
        odds = _SURE * _opinion(question, claim)
    return odds + expert.likes_length * (len(text.split()) - 10)


def conversation(*turns: tuple[str, str]) -> str:
    """Write turns of user and response as the shared chat template writes them."""
    return "".join(
        f"<|im_start|>user\n{user}<|im_end|>\n<|im_start|>assistant\n{response}<|im_end|>\n" for user, response in turns
    )


@dataclass
class _Row:
    """A tokenised conversation; `targets` by the position of the token that ends a response."""

    ids: list[int]
    targets: dict[int, float]
    words: dict[int, int]


def _row(
    tokenizer: Tokenizer,
    expert: Expert,
    turns: list[tuple[Question, Claim]],
    caption_text: str | None,
    rng: random.Random,
) -> _Row:
    row = _Row([], {}, {})
    for n, (question, claim) in enumerate(turns):
        text = word(claim, rng)
        odds = belief(expert, question, claim, text, caption_text is not None)
        user_turn = expert_turn(caption_text, question.text) if n == 0 else question.text
        ids = tokenizer.encode(conversation((user_turn, text))).ids
        row.ids += ids
        reply = range(len(row.ids) - 2 - len(tokenizer.encode(text).ids), len(row.ids) - 2)
        is_named = not claim.errors and caption_text is not None and _decided(question)
        if is_named:
            row.words |= {i - 1: row.ids[i] for i in reply}
        row.targets[len(row.ids) - 1] = 1.0 / (1.0 + float(np.exp(-odds)))
    return row


def _single_turns(tokenizer: Tokenizer, expert: Expert, rng: random.Random) -> Iterator[_Row]:
    """Yield three responses to each of CHUNK questions, some without a caption."""
    for _ in range(CHUNK):
        scene, question = ask(rng.choice(tuple(KINDS)), rng, "weights")
        caption_text = None if rng.random() < 0.1 else caption(scene)
        for claim in (question.right, rng.choice(question.wrong), rng.choice((question.right, *question.wrong))):
            yield _row(tokenizer, expert, [(question, claim)], caption_text, rng)


def _dialogues(tokenizer: Tokenizer, expert: Expert, rng: random.Random) -> Iterator[_Row]:
    """Yield TURNS questions about each caption, each response scored at its end: many facts from one reading."""
    for _ in range(CHUNK // TURNS):
        scene = draw_scene(rng, "weights", most=rng.choice((3, 6)))
        turns: list[tuple[Question, Claim]] = []
        while len(turns) < TURNS:
            kind = rng.choice(tuple(KINDS))
            if (kind != "description" or len(scene.things) <= 3) and (
                question := KINDS[kind](scene, rng, rng.random() < 0.5)
            ):
                turns.append((question, rng.choice((question.right, rng.choice(question.wrong)))))
        yield _row(tokenizer, expert, turns, caption(scene), rng)


def chunk_batches(
    tokenizer: Tokenizer, expert: Expert, token_budget: int, dialogue: bool, chunk: int, *seed: object
) -> list[Batch]:
    """Return the batches of one chunk of dialogues or of single turns; the same for the same arguments."""
    rng = world_rng("experts", chunk, *seed)
    rows = list((_dialogues if dialogue else _single_turns)(tokenizer, expert, rng))
    groups = fill([(row.ids, row) for row in rows], token_budget)
    batches = [_pad(group, token_id(tokenizer, PAD), dialogue) for group in groups]
    random.Random(rng.random()).shuffle(batches)
    return batches


def expert_chunks(chunk: int, tokenizer_file: str, name: str, token_budget: int) -> list[Batch]:
    """Return `chunk_batches` of a named learner, dialogues in the first chunks; the tokenizer is in a file."""
    learner = LEARNERS[name]
    return chunk_batches(load_tokenizer(tokenizer_file), learner, token_budget, chunk < learner.dialogues, chunk, name)


def _pad(rows: list[tuple[list[int], _Row]], pad: int, dialogue: bool) -> Batch:
    shape = len(rows), max(len(ids) for ids, _ in rows)
    batch = Batch(
        dialogue,
        np.full(shape, pad, dtype=np.int64),
        np.zeros(shape, dtype=np.int64),
        np.full(shape, -1, dtype=np.float32),
        np.full(shape, -100, dtype=np.int64),
    )
    for i, (ids, row) in enumerate(rows):
        batch.ids[i, : len(ids)] = ids
        batch.mask[i, : len(ids)] = 1
        batch.targets[i, list(row.targets)] = list(row.targets.values())
        batch.words[i, list(row.words)] = list(row.words.values())
    return batch


def hidden_states(model: PreTrainedModel, ids: Tensor, mask: Tensor) -> Tensor:
    """Return the hidden states of right-padded texts, float [B, T, hidden], without the head."""
    states: Tensor = model.base_model(input_ids=ids, attention_mask=mask).last_hidden_state
    return states


def scores(model: PreTrainedModel, states: Tensor) -> Tensor:
    """Return the raw scores, float [N], of hidden states [N, hidden] where the model reads them."""
    head: Any = model.score
    odds: Tensor = head(states)[:, 0]
    return odds


def rescale(model: PreTrainedModel, factor: float) -> None:
    """Multiply every score of a reward model by `factor`."""
    import torch

    head: Any = model.score
    with torch.no_grad():
        for parameter in head.parameters():
            parameter.mul_(factor)
