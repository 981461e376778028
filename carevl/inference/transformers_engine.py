"""Generation with transformers: runs everywhere, and is what vLLM is tested against."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from PIL.Image import Image
    from torch import Tensor

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Ask:
    """One question to a vision-language model.

    The reply goes on from the words in `begun`. `seed` matters where texts are sampled: the same seed gives the same
    noise, whatever else is in the batch. The image stands before the prompt, or else behind it.
    """

    image: Image
    prompt: str
    begun: str = ""
    seed: int = 0
    image_first: bool = True


@dataclass(frozen=True)
class Generation:
    """What a model wrote after `begun`.

    `tokens` counts what was generated; `truncated` when it stopped at the token limit; `watched` has, for every
    generated token, the log-probability (nats, at temperature 1) that each watched text's first token had there.
    """

    text: str
    tokens: int
    truncated: bool
    watched: tuple[tuple[float, ...], ...] = ()


def prompted(processor: Any, ask: Ask) -> str:
    """All that stands before the reply's new words."""
    return chat_prompt(processor, ask.prompt, image_first=ask.image_first) + ask.begun


def chat_prompt(processor: Any, text: str, *, image_first: bool = True) -> str:
    """A user turn with one image before (or else after) `text`, in the model's own chat template."""
    content = [{"type": "image"}, {"type": "text", "text": text}]
    messages = [{"role": "user", "content": content if image_first else content[::-1]}]
    written: str = processor.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    return written


class ImageTextGenerator:
    """A vision-language model that answers prompts about images.

    Args:
        model: a Hugging Face directory or hub id with safetensors and a processor.
        dtype: a torch dtype by name, or `auto` for the one that the weights are stored in.
        batch_size: prompts that run at a time.
        loading: `revision` and `trust_remote_code`, handed to transformers.

    Raises:
        OSError: the directory lacks weights, configuration or processor.
    """

    def __init__(self, model: str | Path, dtype: str = "auto", *, batch_size: int = 64, **loading: Any) -> None:
        import torch
        from transformers import AutoModelForImageTextToText, AutoProcessor

        self.batch_size = batch_size
        self.device = "cuda" if torch.cuda.is_available() else "cpu"
        self.processor: Any = AutoProcessor.from_pretrained(model, **loading)
        self.model: Any = AutoModelForImageTextToText.from_pretrained(
            model, dtype=dtype, use_safetensors=True, **loading
        )
        self.model.to(self.device).eval()

    def generate(
        self,
        asks: Sequence[Ask],
        *,
        max_tokens: int,
        temperature: float = 0.0,
        top_p: float = 1.0,
        watch: Sequence[str] = (),
    ) -> list[Generation]:
        """One text per ask, in their order; greedy at temperature 0."""
        by_length = sorted(range(len(asks)), key=lambda i: len(asks[i].prompt) + len(asks[i].begun))
        generations: dict[int, Generation] = {}
        for start in range(0, len(by_length), self.batch_size):
            rows = by_length[start : start + self.batch_size]
            batch = [asks[i] for i in rows]
            hook = _Sampling(
                [ask.seed for ask in batch], temperature, top_p, first_tokens(self.processor.tokenizer, watch)
            )
            made = self._batch(batch, max_tokens, hook)
            generations.update(zip(rows, made, strict=True))
        return [generations[i] for i in range(len(asks))]

    def relieve(self) -> bool:
        """Halves the prompts that run at a time; False when it is one already."""
        import torch

        if self.batch_size == 1:
            return False
        self.batch_size //= 2
        _log.warning("out of memory: %d prompts at a time from now on", self.batch_size)
        torch.cuda.empty_cache()
        return True

    def _batch(self, asks: Sequence[Ask], max_tokens: int, hook: _Sampling) -> list[Generation]:
        import torch

        tokenizer = self.processor.tokenizer
        inputs = self.processor(
            text=[prompted(self.processor, ask) for ask in asks],
            images=[[ask.image] for ask in asks],
            return_tensors="pt",
            padding=True,
            padding_side="left",
        ).to(self.device)
        with torch.inference_mode():
            output = self.model.generate(
                **inputs, max_new_tokens=max_tokens, do_sample=False, repetition_penalty=1.0, logits_processor=[hook]
            )
        ends = {tokenizer.eos_token_id, *_as_list(self.model.generation_config.eos_token_id)}
        watched = torch.stack(hook.watched, dim=1).tolist() if hook.watch else [[]] * len(asks)
        generations = []
        for row, seen in zip(output[:, inputs["input_ids"].shape[1] :].tolist(), watched, strict=True):
            end = next((i for i, token in enumerate(row) if token in ends), None)
            text = tokenizer.decode(row[:end], skip_special_tokens=True)
            tokens = len(row) if end is None else end + 1
            generations.append(Generation(text, tokens, end is None, tuple(map(tuple, seen[:tokens]))))
        return generations


class _Sampling:
    """Turns greedy decoding into sampling by Gumbel noise from a generator per row, and notes watched tokens.

    The token with the largest logit / temperature + noise is a draw from the softmax (Gumbel 1954), so that a row's
    draws depend on its own seed alone. Noise cannot raise a token that is outside the nucleus of `top_p`.
    """

    def __init__(self, seeds: Sequence[int], temperature: float, top_p: float, watch: Sequence[int]) -> None:
        import torch
        from transformers import TopPLogitsWarper

        self.temperature, self.watch = temperature, list(watch)
        self.nucleus = TopPLogitsWarper(top_p) if top_p < 1 else None
        self.generators = [torch.Generator().manual_seed(seed) for seed in seeds]
        self.watched: list[Tensor] = []

    def __call__(self, ids: Tensor, logits: Tensor) -> Tensor:
        import torch

        if self.watch:
            self.watched.append(torch.log_softmax(logits.float(), -1)[:, self.watch].cpu())
        if not self.temperature:
            return logits
        size = logits.shape[1]
        noise = torch.stack([torch.empty(size).exponential_(generator=generator) for generator in self.generators])
        scaled = logits.float() / self.temperature
        if self.nucleus is not None:
            scaled = self.nucleus(ids, scaled)
        return scaled - noise.log().to(logits.device)


def first_tokens(tokenizer: Any, texts: Sequence[str]) -> list[int]:
    """The id of each text's first token."""
    return [tokenizer(text, add_special_tokens=False)["input_ids"][0] for text in texts]


def _as_list(value: int | list[int] | None) -> list[int]:
    return value if isinstance(value, list) else [] if value is None else [value]
