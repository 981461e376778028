"""Pictures for tiny towers: coloured blocks as large as two of their patches."""

from __future__ import annotations

import numpy as np
from PIL import Image


def draw_picture(seed: int = 0, width: int = 112, height: int = 84) -> Image.Image:
    """Return coloured blocks of 28 x 28 pixels; another seed, other colours."""
    blocks = np.random.default_rng(seed).integers(0, 255, (-(-height // 28), -(-width // 28), 3), dtype=np.uint8)
    return Image.fromarray(blocks.repeat(28, 0).repeat(28, 1)[:height, :width])
