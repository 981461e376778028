"""Generation with transformers: runs everywhere, and is what vLLM is tested against."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from carevl.models.adapter_files import put_on
from carevl.models.engines.base import (
    Engine,
    Generation,
    GenerationRequest,
    Generator,
    LanguageModel,
    Runner,
    Scorer,
    asking_of_model,
    first_tokens,
    limit_tiles,
)
from carevl.models.engines.image_text import ImageTextModel
from carevl.models.heads import HeadSettings
from carevl.models.locate import loading_arguments, locate_adapter, model_directory
from carevl.models.prompts import EncodedPrompts, ask_as, encode_with_row_errors, end_ids, load_processor
from carevl.models.quantization import explain_quantization
from carevl.models.row_errors import Failure, NotFiniteError, SomeRowsError

if TYPE_CHECKING:
    from carevl.models.decoding import Texts
    from carevl.models.footprint import Footprint
    from carevl.settings.asking import Asking
    from carevl.settings.models import Model

Loaded = TypeVar("Loaded")


class ImageTextGenerator(ImageTextModel):
    """A vision-language model that answers prompts about images.

    Args:
        model: a Hugging Face directory or hub id with safetensors and a processor.
        dtype: a torch dtype by name, or `auto` for the one that the weights are stored in.
        batch_size: texts that are written at a time.
        max_image_tiles: tiles that an image is cut into at most, where the processor cuts them; None: its own number.
        max_model_len: tokens of prompt and answer together; None: no limit.
        adapter: directory of a LoRA adapter on top of it, which is not merged.
        asking: how prompts are written; None: as carevl asks.
        trust_remote_code: whether Python code that comes with it may run.

    Raises:
        OSError: the directory lacks weights, configuration or processor.
        UserError: its tokenizer is a slow one.
    """

    def __init__(
        self,
        model: str | Path,
        dtype: str = "auto",
        *,
        batch_size: int = 64,
        max_image_tiles: int | None = None,
        max_model_len: int | None = None,
        adapter: Path | None = None,
        asking: Asking | None = None,
        trust_remote_code: bool = False,
    ) -> None:
        from transformers import AutoModelForImageTextToText

        processor = ask_as(load_processor(str(model), trust_remote_code=trust_remote_code), asking)
        limit_tiles(processor, max_image_tiles)
        loaded: Any = AutoModelForImageTextToText.from_pretrained(
            model, dtype=dtype, use_safetensors=True, trust_remote_code=trust_remote_code
        )
        if adapter is not None:
            loaded = put_on(loaded, adapter).get_base_model()
        super().__init__(loaded, processor, batch_size, max_model_len)
        self.ends = end_ids(self.model.generation_config.eos_token_id, self.processor.tokenizer)

    def generate(
        self,
        requests: Sequence[GenerationRequest],
        *,
        max_tokens: int,
        temperature: float = 0.0,
        top_p: float = 1.0,
        logprob_texts: Sequence[str] = (),
    ) -> list[Generation]:
        """Return one text per request, in their order; greedy at temperature 0.

        A prompt that several requests have about one image is read once.

        Raises:
            SomeRowsError: the processor refuses requests, such as one about an image of one row of pixels, they are
                longer than `max_model_len`, or the logits are not finite; the others have their text in it.
        """
        from carevl.models.decoding import Texts

        logprob_ids = first_tokens(self.processor.tokenizer, logprob_texts)
        generations: dict[int, Generation] = {}
        failures: dict[int, Failure] = {}
        for batched in self.batches(requests):
            first = [requests[same[0]] for same in batched]
            encoded, refused = encode_with_row_errors(
                self.processor,
                [request.turn for request in first],
                [request.images for request in first],
                self.family,
                self.max_model_len,
            )
            failures |= {i: failure for number, failure in refused.items() for i in batched[number]}
            if encoded is None:
                continue
            batch = [same for number, same in enumerate(batched) if number not in refused]
            texts = Texts(
                prompts=[number for number, same in enumerate(batch) for _ in same],
                seeds=[requests[i].seed for same in batch for i in same],
                temperature=temperature,
                top_p=top_p,
                logprob_ids=logprob_ids,
                room=self._room(encoded, batch),
            )
            self._write(encoded, texts, max_tokens)
            numbers = list(itertools.chain.from_iterable(batch))
            failures |= {numbers[text]: NotFiniteError().failure for text in texts.broken}
            generations.update(zip(numbers, self._read(texts), strict=True))
        if failures:
            results = [None if i in failures else generations[i] for i in range(len(requests))]
            raise SomeRowsError(results, failures)
        return [generations[i] for i in range(len(requests))]

    def _room(self, prompts: EncodedPrompts, batch: Sequence[Sequence[int]]) -> list[int] | None:
        """Return how many tokens `max_model_len` leaves to each text of a batch."""
        if self.max_model_len is None:
            return None
        return [self.max_model_len - len(ids) for ids, same in zip(prompts.ids, batch, strict=True) for _ in same]

    def _write(self, prompts: EncodedPrompts, texts: Texts, max_tokens: int) -> None:
        import torch

        from carevl.models.decoding import decode

        inputs = self.inputs(prompts)
        with torch.inference_mode():
            self.model.generate(
                **inputs,
                max_new_tokens=max_tokens,
                do_sample=False,
                repetition_penalty=1.0,
                eos_token_id=sorted(self.ends),
                use_cache=True,
                custom_generate=decode,
                texts=texts,
            )

    def _read(self, texts: Texts) -> Iterator[Generation]:
        for tokens, logprobs in zip(texts.tokens, texts.logprobs, strict=True):
            ended = tokens[-1] in self.ends
            text = self.processor.tokenizer.decode(tokens[:-1] if ended else tokens, skip_special_tokens=True)
            yield Generation(text, len(tokens), not ended, tuple(logprobs))


def load(kind: Callable[..., Loaded], model: Model, **arguments: Any) -> Loaded:
    """Load a model of the settings by a class of those that compute in transformers.

    Args:
        arguments: what the class takes beside path, dtype, `max_model_len` and whose code runs.
    """
    path = model_directory(model)
    with explain_quantization("transformers", model, path):
        return kind(path, model.dtype, max_model_len=model.max_model_len, **arguments, **loading_arguments(model))


class TransformersEngine(Engine):
    """Models in transformers' own forward pass."""

    name = "transformers"

    def generator(self, model: Model) -> Generator:
        """Load a vision-language model."""
        adapter = getattr(model, "adapter", None)
        return load(
            ImageTextGenerator,
            model,
            batch_size=model.pool.batch_size,
            max_image_tiles=model.max_image_tiles,
            adapter=None if adapter is None else locate_adapter(adapter),
            asking=asking_of_model(model),
        )

    def scorer(self, model: Model, *, batch_tokens: int, parity_tolerance: float | None) -> Scorer:
        """Load a text reward model; it is its own reference, so there is no tolerance to hold."""
        from carevl.models.reward_scorer import RewardScorer

        del parity_tolerance
        return load(RewardScorer, model, batch_tokens=batch_tokens, settings=HeadSettings.of(model))

    def language_model(self, model: Model, *, batch_tokens: int, parity_tolerance: float | None) -> LanguageModel:
        """Load a language model; it is its own reference, so there is no tolerance to hold."""
        from carevl.models.language_model import CausalLanguageModel

        del parity_tolerance
        return load(CausalLanguageModel, model, batch_tokens=batch_tokens)

    def footprint(self, model: Model, path: str, runner: Runner) -> Footprint | None:
        """Return what the weights and one row of tokens take; a batch is made smaller where memory runs out."""
        from carevl.models.engine_footprint import transformers_footprint

        return transformers_footprint(model, path, runner)


ENGINE = TransformersEngine()
