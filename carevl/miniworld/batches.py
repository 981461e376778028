"""Lessons as arrays: tokenised, sorted by length, filled up to a token budget, made in a process of their own."""

from __future__ import annotations

import multiprocessing
import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from PIL.Image import Resampling

from carevl.miniworld.scenes import CELL, GRID, SIDE, world_rng

if TYPE_CHECKING:
    from PIL.Image import Image
    from tokenizers import Tokenizer

    from carevl.miniworld.lessons import Turn
    from carevl.miniworld.schooling import Course

CHUNK = 512
"""Lessons drawn at a time; a resumed training starts again at the beginning of a chunk."""
_PATCH = CELL // 2
PAD = "<|endoftext|>"
_OPEN, _CLOSE, _IMAGE = "<|im_start|>", "<|im_end|>", "<|image_pad|>"


@dataclass(frozen=True)
class Batch:
    """Padded sequences. B sequences of T tokens.

    `ids` int64 [B, T]; `images` float32 [B, 36, 768] (patches in the order of Qwen2-VL's processor, values -1 to 1,
    one frame); `targets` int64 [B, T], the token that position t has to predict, -100 where nothing is taught;
    `verdicts` bool [B, T], where that token is a digit of a verdict.
    """

    ids: NDArray[np.int64]
    images: NDArray[np.float32]
    targets: NDArray[np.int64]
    verdicts: NDArray[np.bool_]


def patches(image: Image) -> NDArray[np.float32]:
    """Return an image, resized to SIDE x SIDE, as float32 [36, 768] patches of one frame, as our processor has them."""
    shown = image if image.size == (SIDE, SIDE) else image.resize((SIDE, SIDE), Resampling.BICUBIC)
    pixels = np.asarray(shown, dtype=np.float32) / 127.5 - 1.0
    blocks = pixels.reshape(GRID, 2, _PATCH, GRID, 2, _PATCH, 3)
    return np.ascontiguousarray(blocks.transpose(0, 3, 1, 4, 6, 2, 5)).reshape(4 * GRID * GRID, 3 * _PATCH * _PATCH)


def token_id(tokenizer: Tokenizer, token: str) -> int:
    """Return the id of a token that the tokenizer must have."""
    number = tokenizer.token_to_id(token)
    if number is None:
        raise ValueError(f"the tokenizer has no token {token!r}")
    return int(number)


_Encoded = tuple[list[int], list[int], list[bool]]


def _encode(turns: Sequence[Turn], tokenizer: Tokenizer, digits: set[int], marker: int) -> _Encoded:
    ids: list[int] = []
    targets: list[int] = []
    verdicts: list[bool] = []
    for n, turn in enumerate(turns):
        image = f"<|vision_start|>{_IMAGE * GRID * GRID}<|vision_end|>" if n == 0 else ""
        question = tokenizer.encode(f"{_OPEN}user\n{image}{turn.prompt}{_CLOSE}\n{_OPEN}assistant\n").ids
        reply = tokenizer.encode(f"{turn.reply}{_CLOSE}").ids
        start = reply.index(marker) if marker in reply else len(reply)
        verdict = [i >= start and token in digits for i, token in enumerate(reply)]
        taught = [-100 if v and not turn.verdict_shown else token for token, v in zip(reply, verdict, strict=True)]
        ids += question + reply + tokenizer.encode("\n").ids
        targets += [-100] * (len(question) - 1) + taught + [-100, -100]
        verdicts += [False] * (len(question) - 1) + verdict + [False, False]
    return ids, targets, verdicts


def _pad(rows: list[tuple[list[int], list[int], list[bool], NDArray[np.float32]]], pad: int) -> Batch:
    width = max(len(row[0]) for row in rows)
    ids = np.full((len(rows), width), pad, dtype=np.int64)
    targets = np.full((len(rows), width), -100, dtype=np.int64)
    verdicts = np.zeros((len(rows), width), dtype=np.bool_)
    for i, (row_ids, row_targets, row_verdicts, _) in enumerate(rows):
        ids[i, : len(row_ids)] = row_ids
        targets[i, : len(row_targets)] = row_targets
        verdicts[i, : len(row_verdicts)] = row_verdicts
    return Batch(ids, np.stack([row[3] for row in rows]), targets, verdicts)


def fill(rows: list[Any], token_budget: int) -> Iterator[list[Any]]:
    """Yield rows (each begins with its token ids) in groups of like length within a budget, padding included."""
    rows, start = sorted(rows, key=lambda row: len(row[0])), 0
    for end in range(1, len(rows) + 1):
        if end == len(rows) or (end + 1 - start) * len(rows[end][0]) > token_budget:
            yield rows[start:end]
            start = end


def chunk_batches(
    tokenizer: Tokenizer, course: Course, mix: dict[str, float], token_budget: int, chunk: int, *seed: object
) -> list[Batch]:
    """Return the batches of one chunk of CHUNK lessons; the same for the same arguments.

    Args:
        course: what draws the lessons.
        mix: lesson name to its weight.
        token_budget: most tokens of a batch, padding included.
    """
    rng = world_rng("lessons", chunk, *seed)
    digits = {token_id(tokenizer, str(d)) for d in range(10)}
    marker = tokenizer.encode("Overall").ids[0]
    rows = []
    for name in rng.choices(list(mix), weights=list(mix.values()), k=CHUNK):
        image, turns = course.draw(name, rng)
        rows.append((*_encode(turns, tokenizer, digits, marker), patches(image)))
    batches = [_pad(group, token_id(tokenizer, PAD)) for group in fill(rows, token_budget)]
    random.Random(rng.random()).shuffle(batches)
    return batches


def lesson_chunks(
    chunk: int, tokenizer_file: str, course: Course, mix: dict[str, float], token_budget: int, *seed: object
) -> list[Batch]:
    """Return `chunk_batches` with the tokenizer read from its file."""
    return chunk_batches(load_tokenizer(tokenizer_file), course, mix, token_budget, chunk, *seed)


@cache
def load_tokenizer(file: str) -> Tokenizer:
    """Return the fast tokenizer in a tokenizer.json, read once per process."""
    from tokenizers import Tokenizer

    return Tokenizer.from_file(file)


def _produce(make: Callable[..., list[Any]], arguments: tuple[Any, ...], chunk: int, out: Any) -> None:
    while True:
        out.put((chunk, make(chunk, *arguments)))
        chunk += 1


def ahead(
    make: Callable[..., list[Any]], arguments: tuple[Any, ...], first_chunk: int
) -> Iterator[tuple[int, list[Any]]]:
    """Yield (chunk number, `make(chunk, *arguments)`), without end, prepared ahead by another process."""
    context = multiprocessing.get_context("spawn")
    queue: Any = context.Queue(maxsize=3)
    worker = context.Process(target=_produce, args=(make, arguments, first_chunk, queue), daemon=True)
    worker.start()
    try:
        while True:
            yield queue.get()
    finally:
        worker.terminate()
