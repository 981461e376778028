"""A vision-language model in transformers' own forward pass: which requests it reads together, and as what."""

from __future__ import annotations

import itertools
import logging
from collections.abc import Iterator, Sequence
from operator import itemgetter
from typing import TYPE_CHECKING, Any, Protocol

from carevl.models.device import device
from carevl.models.families import family_of
from carevl.models.prompts import EncodedPrompts, Prompt

if TYPE_CHECKING:
    from PIL.Image import Image
    from torch import Tensor

_log = logging.getLogger(__name__)


class Request(Protocol):
    """What a model is asked about images."""

    @property
    def images(self) -> tuple[Image, ...]:
        """The images."""

    @property
    def turn(self) -> Prompt:
        """All of it that is text."""


class ImageTextModel:
    """A loaded model with its processor.

    Args:
        model: of transformers, with its weights.
        processor: as `carevl.models.prompts.load_processor` gives it.
        batch_size: requests that are read at a time.
        max_model_len: tokens of a prompt and what follows it; None: no limit.
    """

    def __init__(self, model: Any, processor: Any, batch_size: int, max_model_len: int | None) -> None:
        self.device = device()
        self.model, self.processor = model.to(self.device).eval(), processor
        self.batch_size, self.max_model_len = batch_size, max_model_len
        self.family = family_of(model)

    def reduce_batch_size(self) -> bool:
        """Halve the requests that are read at a time; False when it is one already."""
        import torch

        if self.batch_size == 1:
            return False
        self.batch_size //= 2
        _log.warning("out of memory: %d texts at a time from now on", self.batch_size)
        torch.cuda.empty_cache()
        return True

    def batches(self, requests: Sequence[Request]) -> Iterator[list[list[int]]]:
        """Yield positions of up to `batch_size` requests; those with the same images and one text stand in one list.

        Texts of nearly equal length are together, because the shorter ones are padded, and those with as many images.
        Images of one size are, where it is not known that the family reads a batch of several: MiniCPM-V takes all for
        as large as the first.
        """
        alike: dict[tuple[tuple[int, ...], Prompt], list[int]] = {}
        for i, request in enumerate(requests):
            alike.setdefault((tuple(map(id, request.images)), request.turn), []).append(i)
        sized: dict[tuple[Any, ...], list[tuple[int, list[int]]]] = {}
        for (_, turn), same in alike.items():
            images = requests[same[0]].images
            sizes = () if self.family.mixes_sizes else tuple(image.size for image in images)
            length = sum(len(one.text) for one in turn.turns) + len(turn.response_prefix) + len(turn.response or "")
            sized.setdefault((len(images), *sizes), []).append((length, same))
        for of_size in sized.values():
            of_size.sort(key=itemgetter(0))
            ordered = [(number, i) for number, (_, same) in enumerate(of_size) for i in same]
            for start in range(0, len(ordered), self.batch_size):
                together = itertools.groupby(ordered[start : start + self.batch_size], key=itemgetter(0))
                yield [[i for _, i in same] for _, same in together]

    def inputs(self, prompts: EncodedPrompts) -> dict[str, Any]:
        """Return a batch as the model takes it, padded on the left: ids and mask, int64 [n, longest], images, …"""
        import torch
        from torch.nn.utils.rnn import pad_sequence

        ids = [torch.tensor(row) for row in prompts.ids]
        per_token = prompts.per_token | {"attention_mask": [torch.ones_like(row) for row in ids]}
        padded = {name: pad_sequence(rows, batch_first=True, padding_side="left") for name, rows in per_token.items()}
        fill = self.processor.tokenizer.pad_token_id
        padded |= {"input_ids": pad_sequence(ids, batch_first=True, padding_value=fill, padding_side="left")}
        return {
            name: self._cast(value) if isinstance(value, torch.Tensor) else value
            for name, value in (padded | prompts.images).items()
        }

    def _cast(self, value: Tensor) -> Tensor:
        return value.to(self.device, self.model.dtype if value.is_floating_point() else None)
