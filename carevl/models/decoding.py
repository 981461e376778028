"""The loop that writes texts token by token, given to `generate` of transformers in place of its own.

It does three things less: a prompt that several texts go on from is read once, a text that has ended leaves the batch,
and keys and values are not copied for every token.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import torch
from transformers import TopPLogitsWarper
from transformers.cache_utils import Cache, DynamicLayer

from carevl.models.noise import exponential_noise

if TYPE_CHECKING:
    from torch import Tensor

_ROOM = 64
"""Tokens that a layer of the cache makes room for at a time."""


class Texts:
    """Texts in the making: how each draws its tokens, and what it has so far.

    Sampling is greedy decoding with Gumbel noise: the token with the largest logit / temperature + noise is a draw from
    the softmax (Gumbel 1954). The noise is a function of the text's own seed, the position and the token, so that
    a text depends neither on the batch nor on the device. Noise cannot raise a token outside the nucleus of `top_p`.

    Args:
        prompts: the number of the prompt in the batch that each text goes on from.
        seeds: of each text.
        logprob_ids: ids of tokens whose log-probability (nats, at temperature 1) is noted at every token.
        room: tokens that each text may have at most; None: as many as `generate` is asked for.
    """

    def __init__(
        self,
        prompts: Sequence[int],
        seeds: Sequence[int],
        temperature: float,
        top_p: float,
        logprob_ids: Sequence[int],
        room: Sequence[int] | None = None,
    ) -> None:
        self.room = room
        self.prompts, self.temperature, self.logprob_ids = prompts, temperature, list(logprob_ids)
        self.nucleus = TopPLogitsWarper(top_p) if top_p < 1 else None
        self.seeds = seeds
        self.tokens: list[list[int]] = [[] for _ in seeds]
        self.logprobs: list[list[tuple[float, ...]]] = [[] for _ in seeds]
        self.broken: set[int] = set()
        """Texts for which the model gave logits that are not finite: what is drawn from them means nothing."""

    def is_over(self, text: int) -> bool:
        """Return whether a text gets no more tokens: it has all that it may have, or it is broken."""
        return text in self.broken or (self.room is not None and len(self.tokens[text]) >= self.room[text])

    def draw(self, texts: Sequence[int], ids: Tensor, logits: Tensor) -> Tensor:
        """Draw and note the next token of these texts.

        Args:
            texts: a text per row of the two tensors.
            ids: int64 [n, length], all tokens so far.
            logits: float32 [n, vocabulary].

        Returns:
            int64 [n].
        """
        # The largest logit is NaN where any is; single ones may be -inf, such as those that are ruled out.
        self.broken.update(itertools.compress(texts, logits.amax(-1).isfinite().logical_not().tolist()))
        if self.logprob_ids:
            seen = torch.log_softmax(logits, -1)[:, self.logprob_ids].tolist()
            for text, row in zip(texts, seen, strict=True):
                self.logprobs[text].append(tuple(row))
        if self.temperature:
            seeds, positions = [self.seeds[text] for text in texts], [len(self.tokens[text]) for text in texts]
            noise = exponential_noise(seeds, positions, logits.shape[1], logits.device)
            logits = logits / self.temperature
            if self.nucleus is not None:
                logits = self.nucleus(ids, logits)
            logits = logits - noise.log_()
        drawn = logits.argmax(-1)
        for text, token in zip(texts, drawn.tolist(), strict=True):
            self.tokens[text].append(token)
        return drawn


def decode(
    model: Any,
    input_ids: Tensor,
    logits_processor: Callable[[Tensor, Tensor], Tensor],
    stopping_criteria: Callable[[Tensor, None], Tensor],
    generation_config: Any,  # what it asks for is in the processors and criteria
    texts: Texts,
    **inputs: Any,
) -> None:
    """Write all texts to their ends; `generate` calls it with what it has prepared (its `custom_generate`).

    Args:
        input_ids: int64 [n_prompts, length], padded on the left.
        inputs: the model's other inputs, and an empty cache as `past_key_values`.
    """
    batch = _Batch(model, input_ids, inputs)
    logits = batch.read(is_first_iteration=True)
    live, rows = [*range(len(texts.prompts))], [*texts.prompts]
    batch.take(rows)
    logits = logits[rows]
    while True:
        batch.ids = torch.cat(
            [batch.ids, texts.draw(live, batch.ids, logits_processor(batch.ids, logits))[:, None]], -1
        )
        ended = stopping_criteria(batch.ids, None).tolist()
        rows = _staying([over or texts.is_over(text) for text, over in zip(live, ended, strict=True)])
        if not rows:
            return
        if len(rows) < len(live):
            live = [live[row] for row in rows]
            batch.take(rows)
        logits = batch.read(next_sequence_length=1)


class _Batch:
    """All tokens of the texts that go on (`ids`, int64 [n_rows, length]), and the model's other inputs for them."""

    def __init__(self, model: Any, ids: Tensor, inputs: dict[str, Any]) -> None:
        self.model, self.ids, self.inputs = model, ids, inputs
        self.cache: Cache = inputs["past_key_values"]
        self.cache.layers = [RoomyLayer() if type(layer) is DynamicLayer else layer for layer in self.cache.layers]
        if self.cache.layer_class_to_replicate is DynamicLayer:
            self.cache.layer_class_to_replicate = RoomyLayer

    def read(self, **which: Any) -> Tensor:
        """Return the logits of the token after each row, float32 [n_rows, vocabulary]."""
        output = self.model(**self.model.prepare_inputs_for_generation(self.ids, **which, **self.inputs))
        # There is no public way to the next inputs; loops given to `generate` are meant to go this one.
        self.inputs = self.model._update_model_kwargs_for_generation(
            output, self.inputs, is_encoder_decoder=self.model.config.is_encoder_decoder
        )
        logits: Tensor = output.logits[:, -1].float()
        return logits

    def take(self, rows: Sequence[int]) -> None:
        """Make these rows the batch; a row may be taken several times."""
        chosen, n_rows = torch.tensor(rows, device=self.ids.device), len(self.ids)
        for name, value in self.inputs.items():
            if name == "position_ids":
                self.inputs[name] = value.index_select(-2, chosen)
            elif isinstance(value, torch.Tensor) and value.shape[:1] == (n_rows,):
                self.inputs[name] = value[chosen]
        self.ids = self.ids[chosen]
        self.cache.reorder_cache(chosen)


def _staying(ended: Sequence[bool]) -> list[int]:
    """Return the rows that have not ended; the last of them take the places of those that have.

    A row that changes its place is copied in every layer of the cache, so the others keep theirs: `result[place]` is
    the row that moves to `place`, and no more rows move than have ended.
    """
    staying = [row for row, over in enumerate(ended) if not over]
    last = [row for row in staying if row >= len(staying)]
    return [last.pop() if ended[row] else row for row in range(len(staying))]


class RoomyLayer(DynamicLayer):  # type: ignore[misc]  # transformers has no types to the outside
    """A layer of the cache with room for tokens to come: `keys` and `values` are views of what is filled."""

    keys: Tensor
    values: Tensor

    def __init__(self, **settings: Any) -> None:
        super().__init__(**settings)
        self.room: tuple[Tensor, Tensor] | None = None

    def update(self, key_states: Tensor, value_states: Tensor, *_: Any, **__: Any) -> tuple[Tensor, Tensor]:
        """Append to the filled part and return it, float [n_rows, n_heads, length, size] each."""
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        start = self.get_seq_length()
        end = start + key_states.shape[-2]
        if self.room is None or end > self.room[0].shape[-2]:
            self.room = _room(self.keys, key_states, start), _room(self.values, value_states, start)
        for room, states in zip(self.room, (key_states, value_states), strict=True):
            room[:, :, start:end] = states
        self.keys, self.values = (room[:, :, :end] for room in self.room)
        return self.keys, self.values

    def reorder_cache(self, beam_idx: Tensor) -> None:
        """Make these rows the layer's; where they are no more than there are, only rows that move are copied."""
        if self.room is None:
            return
        length = self.get_seq_length()
        self.room = _taken(self.room[0], beam_idx), _taken(self.room[1], beam_idx)
        self.keys, self.values = (room[:, :, :length] for room in self.room)


def _room(filled: Tensor, states: Tensor, length: int) -> Tensor:
    """Return a tensor for what is filled (of this length), these states, and as much more as `_ROOM`."""
    rows, heads, more, size = states.shape
    room = states.new_empty(rows, heads, length + more + _ROOM, size)
    if length:
        room[:, :, :length] = filled
    return room


def _taken(room: Tensor, rows: Tensor) -> Tensor:
    if len(rows) > len(room):
        return room.index_select(0, rows)
    moved = (rows != torch.arange(len(rows), device=rows.device)).nonzero()[:, 0]
    room[moved] = room[rows[moved]]
    return room[: len(rows)]
