"""What an engine is, and the requests that every engine answers in the same way."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, Protocol

from carevl.errors import UserError
from carevl.judging.turns import Turn
from carevl.models.control_strings import encode_text
from carevl.models.conversations import Conversation
from carevl.models.prompts import Prompt

if TYPE_CHECKING:
    from PIL.Image import Image

    from carevl.models.footprint import Footprint
    from carevl.settings.asking import Asking
    from carevl.settings.models import Model


@dataclass(frozen=True)
class GenerationRequest:
    """One question to a vision-language model.

    The reply goes on from the words in `response_prefix`. `seed` matters where texts are sampled: the same seed gives
    the same noise, whatever else is in the batch. `images` stand at `places` of the prompt and of the turns before it,
    in their order; one image stands before the prompt if nothing else is said.
    """

    images: tuple[Image, ...]
    prompt: str
    response_prefix: str = ""
    seed: int = 0
    places: tuple[int, ...] = (0,)
    earlier: tuple[Turn, ...] = ()

    @property
    def turn(self) -> Prompt:
        """All of it that is text."""
        return Prompt(self.prompt, self.response_prefix, self.places, self.earlier)


@dataclass(frozen=True)
class Generation:
    """The text that a model wrote after `response_prefix`.

    `tokens` counts what was generated; `truncated` when it stopped at the token limit; `logprobs` has, for every
    generated token, the log-probability (nats, at temperature 1) that each `logprob_texts`' first token had there.
    `reasoning` is what an endpoint returns of the thoughts before the text, apart from it.
    """

    text: str
    tokens: int
    truncated: bool
    logprobs: tuple[tuple[float, ...], ...] = ()
    reasoning: str | None = None


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
        """Return one text per request, in their order; greedy at temperature 0, else sampled from each one's seed.

        Args:
            top_p: tokens are drawn from the fewest likeliest ones that hold this share of the probability.
            logprob_texts: texts whose log-probability is returned with every token.
        """
        ...


class Scorer(Protocol):
    """A text reward model."""

    def score(self, conversations: Sequence[Conversation]) -> list[float]:
        """Return the raw score of each (what is asked, response), in their order."""
        ...


@dataclass(frozen=True)
class ScoringRequest:
    """A response to a user turn about images, and to the turns before it; they stand as in a `GenerationRequest`."""

    images: tuple[Image, ...]
    prompt: str
    response: str
    places: tuple[int, ...] = (0,)
    earlier: tuple[Turn, ...] = ()

    @property
    def turn(self) -> Prompt:
        """All of it that is text."""
        return Prompt(self.prompt, places=self.places, earlier=self.earlier, response=self.response)


class ImageScorer(Protocol):
    """A model that scores responses to what is asked about images."""

    def score(self, requests: Sequence[ScoringRequest]) -> list[float]:
        """Return the score of each response, higher is better, in their order.

        Raises:
            SomeRowsError: it takes some of them not; the others have their score in it.
        """
        ...


class LanguageModel(Protocol):
    """A causal language model that follows instructions.

    Attributes:
        tokenizer: its own, a fast one with a chat template.
        limit: tokens of the longest text that it reads.
    """

    tokenizer: Any
    limit: int

    def log_likelihoods(self, jobs: Sequence[tuple[Sequence[int], Sequence[Sequence[int]]]]) -> list[list[float]]:
        """Return log p(response | prompt) in nats, summed over its tokens, of the responses to every prompt.

        Args:
            jobs: token ids of a prompt and of the responses to it, none of which is empty.
        """
        ...

    def next_log_probabilities(
        self, groups: Sequence[Sequence[Sequence[int]]], tokens: Sequence[int]
    ) -> list[list[list[float]]]:
        """Return the log-probability, in nats, that each of some tokens comes next, [group][text][token].

        Args:
            groups: token ids of texts; those of a group begin alike.
        """
        ...


Runner = Literal["generate", "pooling"]
"""Whether a model writes texts, or gives numbers for given ones."""


class Engine(ABC):
    """Loads models that settings describe. Its heavy imports stay inside its methods: settings are checked without it.

    What it loads may have a method `reduce_batch_size() -> bool`, called when memory runs out; False when it cannot.
    It may have a method `close()`, called once when the actor has no more parts, which gives its memory back.
    """

    name: str

    @abstractmethod
    def generator(self, model: Model) -> Generator:
        """Load a vision-language model."""

    @abstractmethod
    def scorer(self, model: Model, *, batch_tokens: int, parity_tolerance: float | None) -> Scorer:
        """Load a text reward model; the two numbers as in `settings.Expert`.

        Raises:
            UserError: it is no reward model, or its scores differ from the reference's by more than the tolerance.
        """

    def language_model(self, model: Model, *, batch_tokens: int, parity_tolerance: float | None) -> LanguageModel:
        """Load a language model; the two numbers as in `settings.Expert`.

        Raises:
            UserError: it does not follow instructions, its numbers differ from the reference's by more than the
                tolerance, or this engine loads no language models.
        """
        del batch_tokens, parity_tolerance
        raise UserError(f"{model.path}: engine {self.name} loads no language models; use vllm or transformers")

    def footprint(self, model: Model, path: str, runner: Runner) -> Footprint | None:
        """Return the least that an actor takes of its device, from the model's configuration; None: nobody knows.

        Args:
            path: the model's directory, whose weights need not be there.
        """
        del model, path, runner
        return None


def asking_of_model(model: Model) -> Asking | None:
    """Return how a judge is asked; None for a captioner."""
    from carevl.models.judge_spec import asking_of
    from carevl.settings.models import Judge

    return asking_of(model) if isinstance(model, Judge) else None


def limit_tiles(processor: Any, most: int | None) -> bool:
    """Let a processor cut an image into so many tiles at most; return whether it cuts any. None leaves it alone."""
    cuts = hasattr(processor.image_processor, "max_patches")
    if cuts and most is not None:
        processor.image_processor.max_patches = most
    return cuts


def first_tokens(tokenizer: Any, texts: Sequence[str]) -> list[int]:
    """Return the id of each text's first token."""
    return [encode_text(tokenizer, text)[0] for text in texts]
