"""A processor that writes prompts for images of which it knows the size alone: the driver needs no pixels."""

from __future__ import annotations

import copy
from collections import OrderedDict
from typing import Any

_KEPT = 16
"""Sizes of which the last outputs are kept: those of a large image take tens of megabytes."""


def by_size(processor: Any) -> Any:
    """Return a copy of a processor whose image processor runs once for every size of images.

    What stands in a prompt for an image depends on its size in every architecture that has been tried; where items are
    collated it is written again with the image itself, and held against this.
    """
    copied = copy.copy(processor)
    copied.image_processor = _BySize(processor.image_processor)
    return copied


class _BySize:
    """Calls an image processor for the first image of a size, and returns the same for the others."""

    def __init__(self, image_processor: Any) -> None:
        self._image_processor = image_processor
        self._written: OrderedDict[Any, Any] = OrderedDict()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._image_processor, name)

    def __call__(self, images: Any, **settings: Any) -> Any:
        key = repr((_sizes(images), sorted(settings.items(), key=lambda setting: setting[0])))
        if key not in self._written:
            self._written[key] = self._image_processor(images, **settings)
        self._written.move_to_end(key)
        while len(self._written) > _KEPT:
            self._written.popitem(last=False)
        written = self._written[key]
        return type(written)(data=dict(written))  # processors take entries out


def _sizes(images: Any) -> Any:
    return [_sizes(image) for image in images] if isinstance(images, list | tuple) else images.size
