"""The engines that run models, by the name that settings call them by.

A user's own is `engine: package.module:NAME`, an instance of `carevl.models.engines.base.Engine`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from carevl.models.engines import transformers, vllm
from carevl.models.engines.base import Engine, Generation, GenerationRequest, Generator, Scorer
from carevl.models.row_errors import Failure, retry_and_bisect
from carevl.settings.registry import Registry

if TYPE_CHECKING:
    from carevl.settings.models import Captioner, Judge, Model

ENGINES: Registry[Engine] = Registry("engine", Engine, (vllm.ENGINE, transformers.ENGINE))


def generator(model: Captioner | Judge) -> Generator:
    """Load a vision-language model into the engine that its settings name."""
    return ENGINES[model.engine].generator(model)


def scorer(model: Model, batch_tokens: int = 8192, parity_tolerance: float | None = None) -> Scorer:
    """Load a text reward model into the engine that its settings name; the two numbers as in `settings.Expert`."""
    return ENGINES[model.engine].scorer(model, batch_tokens=batch_tokens, parity_tolerance=parity_tolerance)


def generate_with_row_errors(
    engine: Generator, requests: Sequence[GenerationRequest], **arguments: Any
) -> list[Generation | Failure]:
    """Return what the engine writes for every request, or why it wrote nothing.

    An engine that fails is tried as in `retry_and_bisect`.

    Args:
        arguments: `max_tokens`, `temperature` and `logprob_texts`, as `Generator.generate` takes them.
    """
    reduce_batch_size = getattr(engine, "reduce_batch_size", lambda: False)
    return retry_and_bisect(lambda batch: engine.generate(batch, **arguments), requests, reduce_batch_size)
