"""What an engine is held against: transformers computes it once per model, however many actors that has.

Of an expert it is the scores of a few conversations, of a vision-language model the log-probabilities of a few tokens.
"""

from __future__ import annotations

import fcntl
import gc
import hashlib
import json
import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from carevl.errors import UserError
from carevl.models.control_strings import encode_text
from carevl.models.conversations import Conversation, encode_turns
from carevl.models.engines.base import GenerationRequest, Generator, LanguageModel
from carevl.models.engines.transformers import ENGINE
from carevl.models.heads import HeadSettings
from carevl.models.row_errors import NotFiniteError, SomeRowsError, not_finite
from carevl.store.table import write_atomically

if TYPE_CHECKING:
    from carevl.settings.models import Model

SAMPLE: list[Conversation] = [
    (f"{caption}\nHow many circles are there?", response)
    for caption in ("A blue square.", "Two red circles are to the left of a green triangle, above a yellow cross.")
    for response in ("None.", "There are two circles, and both of them are red.", "I see 7 circles, I think.")
]
"""What engine and reference both score before work begins; short enough for any expert."""

_BATCH_TOKENS = 8192
"""Tokens that the reference reads at a time: all of the sample."""

_WORDS = ("1", "2", "A", "B", "Yes", "No", "The", "There")
"""Replies to the questions of `draw_requests` begin with such words."""
_LIKELY = 1e-4
"""Probability from which a word is compared; the log-probability of what is hardly possible is mostly noise."""
_EXACT, _ROUNDED = 0.003, 0.25
"""Largest difference of a log-probability, in nats, in float32 and in 16 bits."""

_NOISE = 4.0
"""Differences are allowed up to so many times those that the reference itself shows between batches, in 16 bits."""

T = TypeVar("T", bound="Reference | Parity")

_directory: ContextVar[Path | None] = ContextVar("references", default=None)


@dataclass(frozen=True)
class Reference:
    """Numbers of the sample under transformers, and the most that one of them differs alone and beside the others.

    `noise` is 0 in float32, where the tolerance holds as it is.
    """

    scores: list[float]
    noise: float


@dataclass(frozen=True)
class Parity:
    """Largest difference of a vision-language model's log-probabilities from transformers' own, and the most allowed.

    Both in nats.
    """

    difference: float
    allowed: float

    @property
    def holds(self) -> bool:
        """Whether the engine computes the same model."""
        return self.difference <= self.allowed


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
    facts = [*_facts(model, card), SAMPLE, asdict(HeadSettings.of(model))]
    return _finite(model, _kept("reference", facts, lambda: _freed(_compute, model), _read))


def find_text_reference(model: Model, card: str) -> Reference:
    """Return the same of a language model: its mean log-probabilities of a token of the sample's responses."""
    facts = ["likelihood", *_facts(model, card), SAMPLE]
    return _finite(model, _kept("reference", facts, lambda: _freed(_compute_likelihoods, model), _read))


def _finite(model: Model, reference: Reference) -> Reference:
    """Return a reference.

    Raises:
        UserError: some of its numbers are none.
    """
    if not all(map(math.isfinite, reference.scores)):
        found = f"{model.path}: transformers gives {_short(reference.scores)} for a sample of texts"
        raise UserError(not_finite(found).message)
    return reference


def mean_log_likelihoods(model: LanguageModel, conversations: Sequence[Conversation] = tuple(SAMPLE)) -> list[float]:
    """Return the mean log-probability (nats) of a token of every conversation's response."""
    prompts = encode_turns(model.tokenizer, [turn for turn, _ in conversations])
    replies = [encode_text(model.tokenizer, response) for _, response in conversations]
    sums = model.log_likelihoods([(prompt, [reply]) for prompt, reply in zip(prompts, replies, strict=True)])
    return [value / len(reply) for [value], reply in zip(sums, replies, strict=True)]


def _freed(compute: Callable[[Model], Reference], model: Model) -> Reference:
    """Return what is computed once the memory of the reference model is given back."""
    import torch

    computed = compute(model)
    gc.collect()
    torch.cuda.empty_cache()
    return computed


def _read(kept: Any) -> Reference:
    return Reference(**kept)


def _facts(model: Model, card: str) -> list[Any]:
    return [model.path, model.revision, model.dtype, card, version("torch"), version("transformers")]


def _kept(name: str, facts: list[Any], compute: Callable[[], T], read: Callable[[Any], T]) -> T:
    """Return what is kept for these facts, else compute and keep it; where nothing is kept it is computed."""
    directory = _directory.get()
    if directory is None:
        return compute()
    key = hashlib.sha256(json.dumps(facts).encode()).hexdigest()[:16]
    file = directory / f".{name}-{key}.json"
    file.parent.mkdir(parents=True, exist_ok=True)
    with file.with_suffix(".lock").open("w") as stream:
        with suppress(OSError):  # a file system without locks: then several compute, and one result stays
            fcntl.flock(stream, fcntl.LOCK_EX)
        if file.exists():
            return read(json.loads(file.read_text()))
        computed = compute()
        write_atomically(file, json.dumps(asdict(computed)).encode())
        return computed


def _compute(model: Model) -> Reference:
    scorer = ENGINE.scorer(model, batch_tokens=_BATCH_TOKENS, parity_tolerance=None)
    return _measure(scorer, scorer.score)


def _compute_likelihoods(model: Model) -> Reference:
    reader = ENGINE.language_model(model, batch_tokens=_BATCH_TOKENS, parity_tolerance=None)
    return _measure(reader, lambda conversations: mean_log_likelihoods(reader, conversations))


def _measure(loaded: Any, read: Callable[[Sequence[Conversation]], list[float]]) -> Reference:
    """Return the numbers of the sample, together and, in 16 bits, alone."""
    import torch

    scores, noise = read(SAMPLE), 0.0
    if loaded.model.dtype != torch.float32:
        alone = [read([conversation])[0] for conversation in SAMPLE]
        noise = max(abs(a - b) for a, b in zip(scores, alone, strict=True))
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
    if not all(map(math.isfinite, scores)):
        raise UserError(not_finite(f"{path}: vllm gives {_short(scores)} for a sample of texts").message)
    off = max(abs(a - b) for a, b in zip(expected, scores, strict=True))
    allowed = max(tolerance * max(map(abs, expected)), _NOISE * reference.noise)
    if not off <= allowed:
        raise UserError(
            f"{path}: vllm and transformers disagree by up to {off:.4g}, and parity_tolerance {tolerance} allows "
            f"{allowed:.4g}: vllm gives {_short(scores)} and transformers {_short(expected)} for the same texts; "
            "use engine: transformers for this expert"
        )


def measure_parity(
    model: Model, card: str, reference: Callable[[], Generator], engine: Callable[[], Generator]
) -> Parity:
    """Return how far an engine is from transformers on a few prompts about drawn images; measured once per model.

    Args:
        card: name of what both compute on.
        reference: loads the model into transformers; it is dropped again before `engine` is called.
        engine: returns the engine, which stays.
    """
    from vllm import __version__ as vllm

    adapter, asking = getattr(model, "adapter", None), getattr(model, "asking", None)
    asked = None if asking is None else asking.model_dump()
    facts = [*_facts(model, card), vllm, model.engine_args, model.max_image_tiles, adapter, _WORDS, asked]

    def measure() -> Parity:
        try:
            expected, is_exact = _reference_logprobs(reference)
            return compare_logprobs(expected, _logprobs(engine(), draw_requests()), is_exact=is_exact)
        except (SomeRowsError, NotFiniteError) as error:
            raise UserError(f"{model.path} does not answer prompts about drawn images: {error}") from None

    return _kept("parity", facts, measure, lambda kept: Parity(**kept))


def draw_requests() -> list[GenerationRequest]:
    """Return short prompts about images of coloured squares in several shapes, one of whose replies has begun."""
    import numpy as np
    from PIL import Image

    drawn = []
    for number, (width, height) in enumerate(((112, 112), (224, 112), (84, 140))):
        blocks = np.random.default_rng(number).integers(0, 255, (height // 28, width // 28, 3), np.uint8)
        drawn.append(Image.fromarray(blocks.repeat(28, 0).repeat(28, 1)))
    questions = (
        ("How many squares are there in the image?", ""),
        ("Which answer describes the image better? Answer 1: A green square. Answer 2: A circle.", "Answer "),
        ("Is the first square blue?", ""),
    )
    return [GenerationRequest((image,), *words) for image, words in zip(drawn, questions, strict=True)]


def _logprobs(engine: Generator, requests: Sequence[GenerationRequest]) -> list[float]:
    """Return the log-probability (nats) of every word as the first token of every reply."""
    replies = engine.generate(requests, max_tokens=1, logprob_texts=_WORDS)
    return [value for reply in replies for value in reply.logprobs[0]]


def _reference_logprobs(load: Callable[[], Generator]) -> tuple[Reference, bool]:
    """Return the sample's log-probabilities, and whether they are computed in float32."""
    import torch

    loaded: Any = load()
    is_exact = loaded.model.dtype == torch.float32
    requests, noise = draw_requests(), 0.0
    together = _logprobs(loaded, requests)
    if not is_exact:
        alone = [value for request in requests for value in _logprobs(loaded, [request])]
        noise = max((abs(a - b) for a, b in _likely(together, alone)), default=0.0)
    del loaded
    gc.collect()
    torch.cuda.empty_cache()
    return Reference(together, noise), is_exact


def compare_logprobs(reference: Reference, actual: Sequence[float], *, is_exact: bool) -> Parity:
    """Compare log-probabilities (nats) of likely words with the reference's.

    Args:
        is_exact: whether both are computed in float32.
    """
    differences = [abs(a - b) for a, b in _likely(reference.scores, actual)]
    difference = math.inf if any(map(math.isnan, differences)) else max(differences, default=0.0)
    return Parity(difference, max(_EXACT if is_exact else _ROUNDED, _NOISE * reference.noise))


def _likely(expected: Sequence[float], actual: Sequence[float]) -> list[tuple[float, float]]:
    least = math.log(_LIKELY)
    return [(a, b) for a, b in zip(expected, actual, strict=True) if not (a <= least and b <= least)]


def _short(scores: Sequence[float]) -> str:
    return ", ".join(f"{score:.4g}" for score in scores)
