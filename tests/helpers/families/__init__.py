"""Tiny vision-language models of 29 families, made from nothing, as their published counterparts are stored.

Sizes are small (hidden size 64, two layers, two heads of 32 and one of keys, images of 56 to 128 pixels, a vocabulary
of some hundred tokens: 0.2 to 0.7 million parameters); everything else is the family's: classes, delimiters of the chat
template, special tokens, who writes the start token, several end tokens, names of the stored weights. Weights are
random and large, so that what a token attends to, and where it stands, moves log-probabilities by much.
"""

from __future__ import annotations

from tests.helpers.families.pictures import draw_picture
from tests.helpers.families.writing import FAMILIES, PLAIN, SHARING, VARIANTS, write_family

__all__ = ["FAMILIES", "PLAIN", "SHARING", "VARIANTS", "draw_picture", "write_family"]
