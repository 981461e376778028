"""The tokens of a prompt: one place that makes them for engines, references, training and serving.

The processor writes them from the model's own chat template, as its `apply_chat_template(tokenize=True)` does.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from PIL.Image import Image
    from torch import Tensor


@dataclass(frozen=True)
class Prompt:
    """A user turn about one image, and the words that its reply begins with.

    The image stands before the text, or else behind it.
    """

    text: str
    response_prefix: str = ""
    image_first: bool = True


@dataclass(frozen=True)
class EncodedPrompts:
    """A batch of prompts as a model reads them; n_i tokens in prompt i.

    Attributes:
        ids: token ids of every prompt, those of its image among them, unpadded; special tokens are there once.
        per_token: the processor's inputs that have an entry per token (`mm_token_type_ids`, `token_type_ids`,
            `cross_attention_mask`) by name, [n_i, ...] for every prompt, unpadded.
        images: its other inputs, as it wrote them for the whole batch (`pixel_values`, `image_grid_thw`,
            `image_sizes`, ...).
    """

    ids: tuple[list[int], ...]
    per_token: dict[str, list[Tensor]]
    images: dict[str, Any]


def render_prompt(processor: Any, prompt: Prompt) -> str:
    """Return all that stands before the reply's new words, in the model's own chat template."""
    return _render_turn(processor, prompt) + prompt.response_prefix


def encode_prompts(processor: Any, prompts: Sequence[Prompt], images: Sequence[Image]) -> EncodedPrompts:
    """Encode prompts, each about one image.

    A reply's first words are encoded by themselves, as the reply is in training.

    Raises:
        Exception: of any kind, where the processor refuses an image or a text.
    """
    turns = [_render_turn(processor, prompt) for prompt in prompts]
    written = dict(
        processor(
            text=turns,
            images=[[image] for image in images],
            return_tensors="pt",
            padding=True,
            **_special_tokens(processor.tokenizer, turns),
        )
    )
    written.pop("labels", None)  # PaliGemma's processor writes them, for training with suffixes
    ids, present = written.pop("input_ids"), written.pop("attention_mask").bool()
    of_images = set(processor.image_processor.model_input_names)
    per_token = {
        name: [entry[seen] for entry, seen in zip(value, present, strict=True)]
        for name, value in written.items()
        if name not in of_images and getattr(value, "shape", ())[:2] == ids.shape
    }
    encoded = [row[seen].tolist() for row, seen in zip(ids, present, strict=True)]
    for number, prompt in enumerate(prompts):
        if prompt.response_prefix:
            begun = processor.tokenizer(prompt.response_prefix, add_special_tokens=False)["input_ids"]
            encoded[number] += begun
            for values in per_token.values():
                values[number] = continue_inputs(values[number], len(begun))
    return EncodedPrompts(
        ids=tuple(encoded),
        per_token=per_token,
        images={name: value for name, value in written.items() if name not in per_token},
    )


def continue_inputs(values: Tensor, n_tokens: int) -> Tensor:
    """Return an input per token, [n, ...], for so many tokens of a reply more, as it is at the last one."""
    import torch

    return torch.cat([values, values[-1:].expand(n_tokens, *values.shape[1:])])


def _render_turn(processor: Any, prompt: Prompt) -> str:
    content = [{"type": "image"}, {"type": "text", "text": prompt.text}]
    messages = [{"role": "user", "content": content if prompt.image_first else content[::-1]}]
    written: str = processor.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    return written


def _special_tokens(tokenizer: Any, turns: Sequence[str]) -> dict[str, bool]:
    """Return the argument that keeps the tokenizer from adding a BOS to turns that the template began with one."""
    begun = bool(tokenizer.bos_token) and turns[0].startswith(tokenizer.bos_token)
    return {"add_special_tokens": False} if begun else {}
