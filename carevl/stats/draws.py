"""Draws that depend on a hash of their parts alone: they hold whatever else is in the data, and after a resume."""

from __future__ import annotations

import hashlib
import random


def hash_uniform(*parts: object) -> float:
    """Return a number in [0, 1) that depends on the parts (by their `repr`) alone."""
    return int.from_bytes(hashlib.sha256(repr(parts).encode()).digest()[:6], "big") / 2**48


def rng_for(seed: int, *parts: object) -> random.Random:
    """Return a generator that depends on the seed and the parts (by their `repr`) alone."""
    digest = hashlib.sha256(repr((seed, *parts)).encode()).digest()
    return random.Random(int.from_bytes(digest[:8], "big"))
