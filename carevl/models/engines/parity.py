"""The scores that an engine is held against: transformers computes them once per expert, however many actors it has."""

from __future__ import annotations

import fcntl
import gc
import hashlib
import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING

from carevl.errors import UserError
from carevl.models.conversations import Conversation
from carevl.models.locate import loading_arguments, model_directory
from carevl.store.table import write_atomically

if TYPE_CHECKING:
    from carevl.settings.models import Model

SAMPLE: list[Conversation] = [
    (f"{caption}\nHow many circles are there?", response)
    for caption in ("A blue square.", "Two red circles are to the left of a green triangle, above a yellow cross.")
    for response in ("None.", "There are two circles, and both of them are red.", "I see 7 circles, I think.")
]
"""What engine and reference both score before work begins; short enough for any expert."""

_NOISE = 4.0
"""Differences are allowed up to so many times those that the reference itself shows between batches, in 16 bits."""

_directory: ContextVar[Path | None] = ContextVar("references", default=None)


@dataclass(frozen=True)
class Reference:
    """Scores of the sample under transformers, and the most that one of them differs alone and beside the others.

    `noise` is 0 in float32, where the tolerance holds as it is.
    """

    scores: list[float]
    noise: float


@contextmanager
def keep_references(directory: Path) -> Iterator[None]:
    """Keep the references of what is loaded meanwhile in a directory that all actors see, and find them there."""
    token = _directory.set(directory)
    try:
        yield
    finally:
        _directory.reset(token)


def find_reference(model: Model, card: str) -> Reference:
    """Return an expert's reference: the one that is kept, else it is computed; one process at a time computes.

    Args:
        card: name of what it is computed on.
    """
    directory = _directory.get()
    if directory is None:
        return _compute(model)
    facts = [model.path, model.revision, model.dtype, card, version("torch"), version("transformers"), SAMPLE]
    key = hashlib.sha256(json.dumps(facts).encode()).hexdigest()[:16]
    return _kept(directory / f".reference-{key}.json", lambda: _compute(model))


def _kept(file: Path, compute: Callable[[], Reference]) -> Reference:
    file.parent.mkdir(parents=True, exist_ok=True)
    with file.with_suffix(".lock").open("w") as stream:
        with suppress(OSError):  # a file system without locks: then several compute, and one result stays
            fcntl.flock(stream, fcntl.LOCK_EX)
        if file.exists():
            return Reference(**json.loads(file.read_text()))
        reference = compute()
        write_atomically(file, json.dumps(asdict(reference)).encode())
        return reference


def _compute(model: Model) -> Reference:
    import torch

    from carevl.models.reward_scorer import RewardScorer

    scorer = RewardScorer(model_directory(model), model.dtype, **loading_arguments(model))
    scores, noise = scorer.score(SAMPLE), 0.0
    if scorer.model.dtype != torch.float32:
        alone = [scorer.score([conversation])[0] for conversation in SAMPLE]
        noise = max(abs(a - b) for a, b in zip(scores, alone, strict=True))
    del scorer
    gc.collect()
    torch.cuda.empty_cache()
    return Reference(scores, noise)


def check_parity(path: str, reference: Reference, scores: Sequence[float], tolerance: float) -> None:
    """Hold an engine's scores of the sample against the reference.

    Args:
        path: of the expert, for the message.
        tolerance: largest difference, as a share of the largest score.

    Raises:
        UserError: they differ by more than that, and by more than the reference's own noise explains.
    """
    expected = reference.scores
    off = max(abs(a - b) for a, b in zip(expected, scores, strict=True))
    allowed = max(tolerance * max(map(abs, expected)), _NOISE * reference.noise)
    if not off <= allowed:
        raise UserError(
            f"{path}: vllm and transformers disagree by up to {off:.4g}, and parity_tolerance {tolerance} allows "
            f"{allowed:.4g}: vllm gives {_short(scores)} and transformers {_short(expected)} for the same texts; "
            "use engine: transformers for this expert"
        )


def _short(scores: Sequence[float]) -> str:
    return ", ".join(f"{score:.4g}" for score in scores)
