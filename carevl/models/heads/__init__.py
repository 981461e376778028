"""Kinds of heads of reward models, a file each; the first that fits a model's tensors reads them."""

from __future__ import annotations

from carevl.models.heads import gated, layers, linear
from carevl.models.heads.base import FoundHead, HeadKind, HeadSettings, HeadTensors

HEADS: tuple[HeadKind, ...] = (gated.KIND, layers.KIND, linear.KIND)


def find_head(stored: HeadTensors) -> FoundHead | None:
    """Return the head that lies among some tensors, None where they are of no kind here; errors as `HeadKind.find`."""
    return next((found for kind in HEADS if (found := kind.find(stored)) is not None), None)


__all__ = ["HEADS", "FoundHead", "HeadKind", "HeadSettings", "HeadTensors", "find_head"]
