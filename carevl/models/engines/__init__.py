"""The engines that run models, by the name that settings call them by.

A user's own is `engine: package.module:NAME`, an instance of `carevl.models.engines.base.Engine`.
"""

from __future__ import annotations

import logging
import math
import weakref
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, TypeVar

from carevl.models.engines import transformers, vllm
from carevl.models.engines.base import Engine, Generation, GenerationRequest, Generator, LanguageModel, Scorer
from carevl.models.engines.card import device_names, start_alone
from carevl.models.fallbacks import note_fallback
from carevl.models.heads import HeadSettings
from carevl.models.own_code import explain_loading_of
from carevl.models.row_errors import Failure, NotFiniteError, retry_engine
from carevl.settings.registry import Registry

if TYPE_CHECKING:
    from carevl.models.engines.base import ImageScorer
    from carevl.settings.models import Expert, Judge, Model

_log = logging.getLogger(__name__)

T = TypeVar("T")

ENGINES: Registry[Engine] = Registry("engine", Engine, (vllm.ENGINE, transformers.ENGINE))


_LOADED: list[weakref.ref[Any]] = []
"""What this process has loaded and has to close; dropping an engine drops it from here too."""


@contextmanager
def _loading(model: Model) -> Iterator[None]:
    """Load a model alone on its device, and say in a sentence why it cannot be."""
    with start_alone(device_names()), explain_loading_of(model):
        yield


def generator(model: Model) -> Generator:
    """Load a vision-language model into the engine that its settings name; alone on its device while it loads."""
    engine = ENGINES[model.engine]
    with _loading(model):
        return _note(engine.generator(model))


def scorer(model: Model, batch_tokens: int = 8192, parity_tolerance: float | None = None) -> Scorer:
    """Load a text reward model into the engine that its settings name, alone on its device while it loads.

    The two numbers are as in `settings.Expert`.
    """
    engine = ENGINES[model.engine]
    with _loading(model):
        return _note(engine.scorer(model, batch_tokens=batch_tokens, parity_tolerance=parity_tolerance))


def image_scorer(model: Judge | Expert) -> ImageScorer:
    """Load a vision-language model that scores responses, by its head or by the log-odds of Yes.

    Heads are read by transformers, whatever the engine in the settings.
    """
    from carevl.models.image_scorer import ImageRewardScorer, YesScorer

    if model.scoring != "head":
        return YesScorer(generator(model))
    if model.engine != "transformers":
        note_fallback(f"{model.path}: its head is read by transformers, {model.engine} has none for images")
    with _loading(model):
        return transformers.load(
            ImageRewardScorer,
            model,
            batch_size=model.pool.batch_size,
            max_image_tiles=model.max_image_tiles,
            settings=HeadSettings.of(model),
            asking=getattr(model, "asking", None),
        )


def language_model(expert: Expert) -> LanguageModel:
    """Load a language model into the engine that its settings name, alone on its device while it loads."""
    engine = ENGINES[expert.engine]
    with _loading(expert):
        return _note(
            engine.language_model(expert, batch_tokens=expert.batch_tokens, parity_tolerance=expert.parity_tolerance)
        )


def _note(loaded: T) -> T:
    if hasattr(loaded, "close") and hasattr(loaded, "__weakref__"):
        _LOADED.append(weakref.ref(loaded))
    return loaded


def close_engines() -> None:
    """Close what this process has loaded and still holds; an engine that cannot be closed is left to its end."""
    while _LOADED:
        loaded = _LOADED.pop()()
        if loaded is not None:
            try:
                loaded.close()
            except Exception:
                _log.warning("an engine cannot be closed", exc_info=True)


def generate_with_row_errors(
    engine: Generator, requests: Sequence[GenerationRequest], **arguments: Any
) -> list[Generation | Failure]:
    """Return what the engine writes for every request, or why it wrote nothing.

    An engine that fails is tried as in `retry_and_bisect`. Log-probabilities that are NaN are a failure.

    Args:
        arguments: `max_tokens`, `temperature`, `top_p` and `logprob_texts`, as `Generator.generate` takes them.
    """
    results = retry_engine(engine, lambda batch: engine.generate(batch, **arguments), requests)
    return [each if isinstance(each, Failure) else find_nan(each) or each for each in results]


def find_nan(generation: Generation) -> Failure | None:
    """Return the failure of a text whose log-probabilities are NaN; None where they are numbers."""
    broken = any(math.isnan(value) for token in generation.logprobs for value in token)
    return NotFiniteError().failure if broken else None
