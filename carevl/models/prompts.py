"""The tokens of a prompt: one place that makes them for engines, references, training and serving.

The processor writes them from the model's own chat template, as its `apply_chat_template(tokenize=True)` does. A text
that names control tokens (`<|im_end|>`, `<image>`) is read as it is written, letter by letter: it can neither end a
turn nor stand for an image.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from carevl.errors import UserError
from carevl.judging.turns import Turn, images_last
from carevl.models.control_strings import RestoringTokenizer, encode_text, replace_control_strings
from carevl.models.families.base import Family
from carevl.models.row_errors import REFUSED, Failure, first_line, is_out_of_memory

if TYPE_CHECKING:
    from PIL.Image import Image
    from torch import Tensor

    from carevl.settings.asking import Asking

_ANY = Family("")


@dataclass(frozen=True)
class Prompt:
    """A user turn, the turns before it, and the words that its reply begins with.

    Images stand at `places` of the text (`Turn.places`), one before it if nothing else is said. `response` is a whole
    reply, which the template closes, in place of one that is still to be written.
    """

    text: str
    response_prefix: str = ""
    places: tuple[int, ...] = (0,)
    earlier: tuple[Turn, ...] = ()
    response: str | None = None

    @property
    def turns(self) -> tuple[Turn, ...]:
        """All turns but the reply."""
        return (*self.earlier, Turn("user", self.text, self.places))

    @property
    def n_images(self) -> int:
        """How many images stand in it."""
        return sum(len(turn.places) for turn in self.turns)

    @property
    def kind(self) -> str:
        """How turns, words and images follow one another in it, whatever they are: `user: image, text`."""
        kinds = (["image" if part is None else "text" for part in turn.parts()] for turn in self.turns)
        return "; ".join(f"{turn.role}: {', '.join(parts)}" for turn, parts in zip(self.turns, kinds, strict=True))


@dataclass(frozen=True)
class EncodedPrompts:
    """A batch of prompts as a model reads them; n_i tokens in prompt i.

    Attributes:
        ids: token ids of every prompt, those of its images among them, unpadded; special tokens are there once.
        per_token: the processor's inputs that have an entry per token (`mm_token_type_ids`, `token_type_ids`,
            `cross_attention_mask`) by name, [n_i, ...] for every prompt, unpadded.
        images: its other inputs, as it wrote them for the whole batch (`pixel_values`, `image_grid_thw`,
            `image_sizes`, ...).
    """

    ids: tuple[list[int], ...]
    per_token: dict[str, list[Tensor]]
    images: dict[str, Any]


def load_processor(path: str, *, trust_remote_code: bool = False) -> Any:
    """Load the processor of a vision-language model.

    Args:
        path: a directory, or a hub id.
        trust_remote_code: whether Python code that comes with it may run; said either way, nobody is asked.

    Raises:
        UserError: its tokenizer does not tell which characters a token stands for, as slow ones do not.
    """
    from transformers import AutoProcessor

    processor: Any = AutoProcessor.from_pretrained(path, trust_remote_code=trust_remote_code)
    tokenizer = getattr(processor, "tokenizer", None)
    if tokenizer is None:
        return processor
    check_tokenizer(tokenizer, path)
    ensure_padding(tokenizer)
    return processor


def ensure_padding(tokenizer: Any) -> None:
    """Let a tokenizer without a token for padding fill rows up by its end; the attention mask tells which those are."""
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token


def ask_as(processor: Any, asking: Asking | None) -> Any:
    """Return a copy of a processor by which prompts are written in a way of asking; None: as carevl asks."""
    if asking is None:
        return processor
    asked = copy.copy(processor)
    asked.carevl_asking = asking
    return asked


def check_tokenizer(tokenizer: Any, path: str) -> None:
    """Check that a tokenizer is a fast one.

    Raises:
        UserError: it is a slow one, or mistral-common's.
    """
    if not getattr(tokenizer, "is_fast", False):
        raise UserError(
            f"{path} has a slow tokenizer only ({type(tokenizer).__name__}), which cannot tell the characters of a "
            "token; add the tokenizer.json of a fast one, as `AutoTokenizer.from_pretrained(…).save_pretrained` writes"
        )


def render_prompt(processor: Any, prompt: Prompt) -> str:
    """Return all that stands before the reply's new words, in the model's own chat template."""
    contents = [list(turn.parts()) for turn in prompt.turns]
    return _render_turns(processor, prompt, contents, prompt.response) + prompt.response_prefix


def encode_prompts(
    processor: Any, prompts: Sequence[Prompt], images: Sequence[Sequence[Image]], family: Family = _ANY
) -> EncodedPrompts:
    """Encode prompts, each with its images; all of them have some, or none has.

    A reply's first words are encoded by themselves, as the reply is in training.

    Args:
        images: of every prompt, in the order of its places.
        family: of the model, which tells what its inputs per token are for a reply.

    Raises:
        Exception: of any kind, where the processor refuses an image or a text.
    """
    import torch

    guarded, turns = _guard(processor, prompts)
    written = dict(
        guarded(
            text=turns,
            **({"images": [list(own) for own in images]} if any(images) else {}),
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
            begun = encode_text(processor.tokenizer, prompt.response_prefix)
            encoded[number] += begun
            for name, values in per_token.items():
                more = family.continue_inputs(name, values[number], len(begun))
                values[number] = torch.cat([values[number], more])
    return EncodedPrompts(
        ids=tuple(encoded),
        per_token=per_token,
        images={name: value for name, value in written.items() if name not in per_token},
    )


def encode_with_row_errors(
    processor: Any,
    prompts: Sequence[Prompt],
    images: Sequence[Sequence[Image]],
    family: Family = _ANY,
    max_model_len: int | None = None,
) -> tuple[EncodedPrompts | None, dict[int, Failure]]:
    """Encode prompts as `encode_prompts`, but for those that the processor refuses, or that are too long.

    Args:
        max_model_len: tokens of prompt and answer together, of which an answer has one at least.

    Returns:
        The others, None where there are none; and why each of those is refused, by its position.
    """
    encoded, refused = _encode_taken(processor, prompts, images, family)
    if encoded is None or max_model_len is None:
        return encoded, refused
    taken = [number for number in range(len(prompts)) if number not in refused]
    long = {
        number: Failure(
            REFUSED,
            f"its prompt and images have {len(ids)} tokens, and prompt and answer together may have {max_model_len}; "
            "raise max_model_len if the model allows it, or shorten the text",
        )
        for number, ids in zip(taken, encoded.ids, strict=True)
        if len(ids) >= max_model_len
    }
    if long:
        kept = [number for number in taken if number not in long]
        encoded = (
            encode_prompts(processor, [prompts[i] for i in kept], [images[i] for i in kept], family) if kept else None
        )
    return encoded, refused | long


def _encode_taken(
    processor: Any, prompts: Sequence[Prompt], images: Sequence[Sequence[Image]], family: Family
) -> tuple[EncodedPrompts | None, dict[int, Failure]]:
    """Encode the prompts that the processor does not refuse."""
    try:
        return encode_prompts(processor, prompts, images, family), {}
    except Exception as error:
        refused = {}
        for number, (prompt, own) in enumerate(zip(prompts, images, strict=True)):
            try:
                encode_prompts(processor, [prompt], [own], family)
            except Exception as own:
                if isinstance(own, UserError) or is_out_of_memory(own):
                    raise
                refused[number] = Failure(REFUSED, f"the processor does not take it: {first_line(own)}")
        if not refused:
            raise error from None
    kept = [number for number in range(len(prompts)) if number not in refused]
    if not kept:
        return None, refused
    return encode_prompts(processor, [prompts[i] for i in kept], [images[i] for i in kept], family), refused


def encode_turns(processor: Any, prompts: Sequence[Prompt]) -> list[list[int]]:
    """Return the token ids of prompts in which one placeholder stands for each image, without a reply's first words."""
    guarded, turns = _guard(processor, prompts)
    ids: list[list[int]] = guarded.tokenizer(turns, **_special_tokens(processor.tokenizer, turns))["input_ids"]
    return ids


def end_ids(generation: Any, tokenizer: Any) -> set[int]:
    """Return the ids of the tokens that end a reply: those of `generation_config`, and the tokenizer's own.

    Args:
        generation: `eos_token_id` of the generation settings: an id, several, or None.
    """
    several = generation if isinstance(generation, list) else [generation]
    return {*several, tokenizer.eos_token_id} - {None}


def _guard(processor: Any, prompts: Sequence[Prompt]) -> tuple[Any, list[str]]:
    """Return the rendered turns of prompts, and a processor that reads their texts as plain text."""
    contents = [[list(turn.parts()) for turn in prompt.turns] for prompt in prompts]
    pieces = [part for content in contents for parts in content for part in parts if part is not None]
    replies = [prompt.response or "" for prompt in prompts]
    texts, strings = replace_control_strings(processor.tokenizer, [*pieces, *replies], _placeholders(processor))
    plain = iter(texts)
    contents = [
        [[None if part is None else next(plain) for part in parts] for parts in content] for content in contents
    ]
    turns = [
        _render_turns(processor, prompt, content, None if prompt.response is None else reply)
        for prompt, content, reply in zip(prompts, contents, plain, strict=True)
    ]
    if not strings:
        return processor, turns
    guarded = copy.copy(processor)
    guarded.tokenizer = RestoringTokenizer(processor.tokenizer, strings)
    return guarded, turns


def _placeholders(processor: Any) -> set[str]:
    """Return the strings that a processor reads or writes around an image; they need not be added tokens."""
    names = {name for name in vars(processor) if name.endswith("_token")} | {"image_token", "video_token"}
    values = (getattr(processor, name, None) for name in names)
    return {value for value in values if isinstance(value, str) and value.strip()}


def _render_turns(
    processor: Any, prompt: Prompt, contents: Sequence[Sequence[str | None]], response: str | None
) -> str:
    """Return the turns of a prompt in the model's own chat template.

    Args:
        contents: the parts of every turn.
    """
    asking: Asking | None = getattr(processor, "carevl_asking", None)
    if asking is not None and not asking.image_first:
        contents = [images_last(contents[0])] if len(contents) == 1 else contents
    messages: list[dict[str, Any]] = [
        {"role": turn.role, "content": [_as_content(part) for part in parts]}
        for turn, parts in zip(prompt.turns, contents, strict=True)
    ]
    if asking is not None and asking.system is not None:
        messages.insert(0, {"role": "system", "content": [_as_content(asking.system)]})
    if response is not None:
        messages.append({"role": "assistant", "content": [_as_content(response)]})
    options = {} if asking is None else asking.template_kwargs
    written: str = processor.apply_chat_template(
        messages, **options, tokenize=False, add_generation_prompt=response is None
    )
    return written


def _as_content(part: str | None) -> dict[str, str]:
    return {"type": "image"} if part is None else {"type": "text", "text": part}


def _special_tokens(tokenizer: Any, turns: Sequence[str]) -> dict[str, bool]:
    """Return the argument that keeps the tokenizer from adding a BOS to turns that the template began with one."""
    begun = bool(tokenizer.bos_token) and turns[0].startswith(tokenizer.bos_token)
    return {"add_special_tokens": False} if begun else {}
