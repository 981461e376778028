"""Which engine runs a model, where its weights lie, and what they are."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from carevl.models.row_errors import Failure, retry_and_bisect
from carevl.store.run import RunError

if TYPE_CHECKING:
    from carevl.models.transformers_engine import Generation, GenerationRequest
    from carevl.settings.models import Captioner, Judge, Model

_SHIPPED = "miniworld:"
WEIGHTS = Path(__file__).parents[1] / "miniworld" / "weights"
"""Directory of the shipped models."""


class Generator(Protocol):
    """A vision-language model."""

    def generate(
        self,
        requests: Sequence[GenerationRequest],
        *,
        max_tokens: int,
        temperature: float = 0.0,
        top_p: float = 1.0,
        logprob_texts: Sequence[str] = (),
    ) -> list[Generation]:
        """One text per request, in their order; greedy at temperature 0, else sampled from each request's seed.

        Args:
            top_p: tokens are drawn from the fewest likeliest ones that hold this share of the probability.
        """
        ...


class Scorer(Protocol):
    """A text reward model."""

    def score(self, conversations: Sequence[tuple[str, str]]) -> list[float]:
        """The raw score of each (user turn, response), in their order."""
        ...


def locate(path: str) -> str:
    """A model's directory or hub id; `miniworld:NAME` becomes the directory of the shipped model.

    Raises:
        RunError: no such shipped model, or a directory without configuration or safetensors.
    """
    directory = WEIGHTS / path.removeprefix(_SHIPPED) if path.startswith(_SHIPPED) else Path(path)
    if path.startswith(_SHIPPED) and not directory.is_dir():
        names = ", ".join(sorted(found.name for found in WEIGHTS.iterdir() if found.is_dir()))
        raise RunError(f"{path}: there is no such shipped model; there are {names}")
    if directory.is_dir():
        for what, pattern in (("config.json", "config.json"), ("safetensors weights", "*.safetensors")):
            if not any(directory.glob(pattern)):
                raise RunError(f"{directory} has no {what}: it is not a model that can be loaded")
    return str(directory) if directory.is_dir() else path


@cache
def weights_fingerprint(path: str, revision: str | None) -> str:
    """What identifies a model's weights: a hash of a directory's files, or hub id and revision."""
    found = Path(locate(path))
    return _hash(found) if found.is_dir() else f"{path}@{revision or 'main'}"


@cache
def adapter_fingerprint(path: str) -> str:
    """The same of a LoRA adapter."""
    return _hash(located_adapter(path))


def _hash(directory: Path) -> str:
    digest = hashlib.sha256()
    for file in sorted(file for file in directory.iterdir() if file.is_file() and file.suffix != ".md"):
        digest.update(file.name.encode())
        with file.open("rb") as stream:
            digest.update(hashlib.file_digest(stream, "sha256").digest())
    return digest.hexdigest()[:16]


def loading(model: Model) -> dict[str, Any]:
    """What transformers and vLLM are told when they load a model or its tokenizer."""
    return {"revision": model.revision, "trust_remote_code": model.trust_remote_code}


def _arguments(model: Model) -> dict[str, Any]:
    room: dict[str, Any] = {}
    if model.engine == "vllm":
        room = {
            "max_model_len": model.max_model_len,
            "gpu_share": min(model.pool.num_gpus, 1.0) or 1.0,
            "tensor_parallel": model.tensor_parallel,
        }
    return {
        "model": locate(model.path),
        "dtype": model.dtype,
        "batch_size": model.pool.batch_size,
        **room,
        **loading(model),
    }


def generator(model: Captioner | Judge) -> Generator:
    """A vision-language model in the engine that its settings name."""
    adapter = getattr(model, "adapter", None)
    arguments = _arguments(model) | ({} if adapter is None else {"adapter": located_adapter(adapter)})
    if model.engine == "vllm":
        from carevl.models.vllm_engine import VllmGenerator

        return VllmGenerator(**arguments)
    from carevl.models.transformers_engine import ImageTextGenerator

    return ImageTextGenerator(**arguments)


def located_adapter(path: str) -> Path:
    """A LoRA adapter's directory.

    Raises:
        RunError: it lacks its configuration or its safetensors.
    """
    for name in ("adapter_config.json", "adapter_model.safetensors"):
        if not (Path(path) / name).is_file():
            raise RunError(f"{path} has no {name}: it is not a LoRA adapter that can be loaded")
    return Path(path)


def generate_with_row_errors(
    engine: Generator, requests: Sequence[GenerationRequest], **how: Any
) -> list[Generation | Failure]:
    """Return what the engine writes for every request, or why it wrote nothing.

    An engine that fails is tried as in `retry_and_bisect`.

    Args:
        how: `max_tokens`, `temperature` and `logprob_texts`, as `Generator.generate` takes them.
    """
    reduce_batch_size = getattr(engine, "reduce_batch_size", lambda: False)
    return retry_and_bisect(lambda some: engine.generate(some, **how), requests, reduce_batch_size)


def scorer(model: Model, batch_tokens: int = 8192, parity_tolerance: float | None = None) -> Scorer:
    """A text reward model in the engine that its settings name; the two numbers as in `config.Expert`."""
    if model.engine == "vllm":
        from carevl.models.vllm_engine import VllmScorer

        return VllmScorer(**_arguments(model), parity_tolerance=parity_tolerance)
    from carevl.models.reward_scorer import RewardScorer

    length, how = model.max_model_len, loading(model)
    return RewardScorer(locate(model.path), model.dtype, batch_tokens=batch_tokens, max_model_len=length, **how)
