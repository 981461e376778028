"""Generation with transformers: runs everywhere, and is what vLLM is tested against."""

from __future__ import annotations

import itertools
import logging
from collections.abc import Iterator, Sequence
from operator import itemgetter
from pathlib import Path
from typing import TYPE_CHECKING, Any

from carevl.models.device import device
from carevl.models.engines.base import (
    Engine,
    Generation,
    GenerationRequest,
    Generator,
    Scorer,
    first_tokens,
    limit_tiles,
    write_prompt,
)
from carevl.models.locate import loading_arguments, locate_adapter, model_directory

if TYPE_CHECKING:
    from carevl.models.decoding import Texts
    from carevl.settings.models import Captioner, Judge, Model

_log = logging.getLogger(__name__)


class ImageTextGenerator:
    """A vision-language model that answers prompts about images.

    Args:
        model: a Hugging Face directory or hub id with safetensors and a processor.
        dtype: a torch dtype by name, or `auto` for the one that the weights are stored in.
        batch_size: texts that are written at a time.
        max_image_tiles: tiles that an image is cut into at most, where the processor cuts them; None: its own number.
        adapter: directory of a LoRA adapter on top of it, which is not merged.
        loading: `trust_remote_code`, handed to transformers.

    Raises:
        OSError: the directory lacks weights, configuration or processor.
    """

    def __init__(
        self,
        model: str | Path,
        dtype: str = "auto",
        *,
        batch_size: int = 64,
        max_image_tiles: int | None = None,
        adapter: Path | None = None,
        **loading: Any,
    ) -> None:
        from transformers import AutoModelForImageTextToText, AutoProcessor

        self.batch_size = batch_size
        self.device = device()
        self.processor: Any = AutoProcessor.from_pretrained(model, **loading)
        limit_tiles(self.processor, max_image_tiles)
        self.model: Any = AutoModelForImageTextToText.from_pretrained(
            model, dtype=dtype, use_safetensors=True, **loading
        )
        if adapter is not None:
            from peft import PeftModel

            self.model = PeftModel.from_pretrained(self.model, adapter).get_base_model()
        self.model.to(self.device).eval()
        ends = self.model.generation_config.eos_token_id
        self.ends = {*(ends if isinstance(ends, list) else [ends]), self.processor.tokenizer.eos_token_id} - {None}

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
        """
        from carevl.models.decoding import Texts

        logprob_ids = first_tokens(self.processor.tokenizer, logprob_texts)
        generations: dict[int, Generation] = {}
        for batch in self._batches(requests):
            texts = Texts(
                prompts=[number for number, same in enumerate(batch) for _ in same],
                seeds=[requests[i].seed for same in batch for i in same],
                temperature=temperature,
                top_p=top_p,
                logprob_ids=logprob_ids,
            )
            self._write([requests[same[0]] for same in batch], texts, max_tokens)
            generations.update(zip(itertools.chain.from_iterable(batch), self._read(texts), strict=True))
        return [generations[i] for i in range(len(requests))]

    def _batches(self, requests: Sequence[GenerationRequest]) -> Iterator[list[list[int]]]:
        """Yield positions of requests for up to `batch_size` texts; those with one image and prompt stand in one list.

        Prompts of nearly equal length are together, because the shorter ones are padded.
        """
        alike: dict[tuple[Any, ...], list[int]] = {}
        for i, request in enumerate(requests):
            alike.setdefault(
                (id(request.image), request.prompt, request.response_prefix, request.image_first), []
            ).append(i)
        by_length = sorted(
            alike.values(), key=lambda same: len(requests[same[0]].prompt) + len(requests[same[0]].response_prefix)
        )
        ordered = [(number, i) for number, same in enumerate(by_length) for i in same]
        for start in range(0, len(ordered), self.batch_size):
            together = itertools.groupby(ordered[start : start + self.batch_size], key=itemgetter(0))
            yield [[i for _, i in same] for _, same in together]

    def reduce_batch_size(self) -> bool:
        """Halve the texts that are written at a time; False when it is one already."""
        import torch

        if self.batch_size == 1:
            return False
        self.batch_size //= 2
        _log.warning("out of memory: %d texts at a time from now on", self.batch_size)
        torch.cuda.empty_cache()
        return True

    def _write(self, prompts: Sequence[GenerationRequest], texts: Texts, max_tokens: int) -> None:
        import torch

        from carevl.models.decoding import decode

        inputs = self.processor(
            text=[write_prompt(self.processor, request) for request in prompts],
            images=[[request.image] for request in prompts],
            return_tensors="pt",
            padding=True,
            padding_side="left",
        ).to(self.device)
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


class TransformersEngine(Engine):
    """Models in transformers' own forward pass."""

    name = "transformers"

    def generator(self, model: Captioner | Judge) -> Generator:
        """Load a vision-language model."""
        path, adapter = model_directory(model), getattr(model, "adapter", None)
        return ImageTextGenerator(
            path,
            model.dtype,
            batch_size=model.pool.batch_size,
            max_image_tiles=model.max_image_tiles,
            adapter=None if adapter is None else locate_adapter(adapter),
            **loading_arguments(model),
        )

    def scorer(self, model: Model, *, batch_tokens: int, parity_tolerance: float | None) -> Scorer:
        """Load a text reward model; it is its own reference, so there is no tolerance to hold."""
        from carevl.models.reward_scorer import RewardScorer

        del parity_tolerance
        return RewardScorer(
            model_directory(model),
            model.dtype,
            batch_tokens=batch_tokens,
            max_model_len=model.max_model_len,
            **loading_arguments(model),
        )


ENGINE = TransformersEngine()
