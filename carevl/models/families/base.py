"""What training knows of one vision-language architecture: all that stock transformers does not say for every model."""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True, eq=False)
class Picture:
    """What a processor writes for one image and a prompt about it.

    `images` are the model's inputs for a batch of this one. `per_token` are those with an entry for every token of the
    prompt, [n, ...]; empty where the picture stands for several prompts. `features` [tokens, size] are what the vision
    tower makes of it, where that is known already; of `images` only what positions depend on is there then.
    """

    images: Mapping[str, Tensor]
    per_token: Mapping[str, Tensor] = field(default_factory=dict)
    features: Tensor | None = None


@dataclass(frozen=True)
class Family:
    """One vision-language architecture; `name` is the `model_type` in the config.json of its models.

    The processor writes prompts and images, and the model makes its own masks and positions, so that what is here holds
    for every architecture; a subclass says what is different in one. The flags are facts that
    tests/training measures; those of an architecture that nobody has tried are the careful ones.

    Shapes: a sequence of n tokens; I images of together N image tokens.
    """

    name: str
    joins: bool = False
    """Whether several trees may lie in one row: masks and positions depend on distances alone, and the images of a row
    are those of its trees, one after the other."""
    mixes_sizes: bool = False
    """Whether a batch may hold images of several sizes, each in a sequence of its own; a row needs it too."""
    embeds: bool = False
    """Whether an image enters the language model as embeddings alone, so that these can be kept in its place."""

    def image_token(self, config: Any) -> int:
        """Return the id of the token in whose places the features of an image stand."""
        token = getattr(config, "image_token_id", None)
        return int(config.image_token_index if token is None else token)

    def join(self, pictures: Sequence[Picture]) -> dict[str, Tensor]:
        """Return the inputs of several images as those of one row; smaller ones are filled up with zeros."""
        names = pictures[0].images
        return {name: _concatenate([picture.images[name] for picture in pictures]) for name in names}

    def continue_inputs(self, name: str, values: Tensor, n_tokens: int) -> Tensor:
        """Return an input per token, [n, ...], for so many tokens of a response: as it is at the prompt's last one."""
        return values[-1:].expand(n_tokens, *values.shape[1:])

    def features(self, model: Any, images: Mapping[str, Tensor]) -> Tensor:
        """Run the vision tower over images; return all their features, [N, size], one image after the other."""
        import torch

        compute = model.base_model.get_image_features
        output = compute(**_accepted(compute, images)).pooler_output
        parts = [output] if isinstance(output, torch.Tensor) else output
        return torch.cat([part.reshape(-1, part.shape[-1]) for part in parts])

    def positions(self, model: Any, ids: Tensor, inputs: Mapping[str, Tensor]) -> Tensor:
        """Return the positions of a sequence, int64 [axes, n], or [n].

        Args:
            ids: int64 [1, n].
            inputs: of its image, and per token [1, n].
        """
        import torch

        compute = getattr(model.base_model, "get_rope_index", None)
        if compute is None:
            return self.count_positions(ids.shape[1])
        kinds = ids.eq(self.image_token(model.config)).int()
        given = {"mm_token_type_ids": kinds, **inputs, "attention_mask": torch.ones_like(ids)}
        positions: Tensor = compute(input_ids=ids, **_accepted(compute, given))[0]
        return positions[:, 0]

    def count_positions(self, n_tokens: int) -> Tensor:
        """Return the positions of a sequence that are counted from its beginning, int64 [n]."""
        import torch

        return torch.arange(n_tokens)

    def position_inputs(self, model: Any, images: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return those of an image's inputs that positions depend on."""
        compute = getattr(model.base_model, "get_rope_index", None)
        names = () if compute is None else inspect.signature(compute).parameters
        return {name: value for name, value in images.items() if name in names}

    def hidden_states(self, model: Any, **inputs: Any) -> Tensor:
        """Return the last hidden states, [B, T, size]: what the output matrix reads, if the model has one."""
        base = model.base_model
        if base is not model or model.get_output_embeddings() is None:
            states: Tensor = base(**inputs, use_cache=False).last_hidden_state
            return states
        with _reading_inputs(model.get_output_embeddings()) as read:
            model(**inputs, use_cache=False)
        return read[0]


def _concatenate(values: Sequence[Tensor]) -> Tensor:
    import torch
    from torch.nn.functional import pad

    shape = [max(sizes) for sizes in zip(*(value.shape[1:] for value in values), strict=True)]
    missing = ([(0, most - size) for size, most in zip(value.shape[1:], shape, strict=True)] for value in values)
    fill = ([n for pair in reversed(pairs) for n in pair] for pairs in missing)
    return torch.cat([pad(value, more) if any(more) else value for value, more in zip(values, fill, strict=True)])


def _accepted(function: Any, arguments: Mapping[str, Any]) -> dict[str, Any]:
    """Return those arguments that a function takes."""
    parameters = inspect.signature(function).parameters
    takes_any = any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters.values())
    return {name: value for name, value in arguments.items() if takes_any or name in parameters}


@contextmanager
def _reading_inputs(module: Any) -> Iterator[list[Tensor]]:
    """Yield the inputs that a module gets; it computes one token of them, as nobody reads what it makes."""
    read: list[Tensor] = []

    def note(module: Any, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        del module
        read.append(inputs[0])
        return (inputs[0][:, -1:], *inputs[1:])

    hook = module.register_forward_pre_hook(note)
    try:
        yield read
    finally:
        hook.remove()
