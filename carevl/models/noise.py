"""Noise by counter: a pure function of seed, position and token, the same on every device and in every batch."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from torch import Tensor

_CHUNK = 2**17
"""Numbers that are computed at a time on a CPU, so that they stay in its cache."""
_BITS = 2**64 - 1


def exponential_noise(seeds: Sequence[int], positions: Sequence[int], size: int, device: torch.device) -> Tensor:
    """Return draws from the exponential distribution of mean 1, one for every token of every row.

    Each is a hash of (seed, position, token), in integers of 32 bits, which all devices compute alike: the 64 bits of
    `_split_mix` of a row, in two halves, between the rounds of the finaliser "lowbias32" (Wellons, 2018) of the token.

    Args:
        seeds: of each row.
        positions: of each row: how many draws its seed has had.
        size: of the vocabulary.

    Returns:
        float32 [n_rows, size].
    """
    keys = [_split_mix(_split_mix(seed & _BITS) + position) for seed, position in zip(seeds, positions, strict=True)]
    halves = torch.tensor([[_signed(key), _signed(key >> 32)] for key in keys], dtype=torch.int32, device=device)
    tokens = torch.arange(size, dtype=torch.int32, device=device).mul_(_signed(0x9E3779B1))
    tokens = _finish(_begin(tokens))
    rows = len(keys) if device.type != "cpu" else max(1, _CHUNK // size)
    return torch.cat([_exponential(halves[start : start + rows], tokens) for start in range(0, len(keys), rows)])


def _exponential(halves: Tensor, tokens: Tensor) -> Tensor:
    mixed = _finish(_begin(halves[:, :1] ^ tokens).add_(halves[:, 1:]))
    # 31 bits, not 24: the smallest numbers decide which of many unlikely tokens is drawn.
    uniform = mixed.bitwise_and_(0x7FFFFFFF).to(torch.float32).add_(0.5).mul_(-(2.0**-31))
    return uniform.log1p_().neg_()


def _begin(values: Tensor) -> Tensor:
    values ^= (values >> 16) & 0xFFFF  # a shift of signed numbers repeats their sign
    values *= _signed(0x7FEB352D)
    values ^= (values >> 15) & 0x1FFFF
    return values


def _finish(values: Tensor) -> Tensor:
    values *= _signed(0x846CA68B)
    values ^= (values >> 16) & 0xFFFF
    return values


def _split_mix(value: int) -> int:
    """Return the next number of SplitMix64 (Steele et al., 2014): a bijection of 64 bits."""
    value = (value + 0x9E3779B97F4A7C15) & _BITS
    value = ((value ^ (value >> 30)) * 0xBF58476D1CE4E5B9) & _BITS
    value = ((value ^ (value >> 27)) * 0x94D049BB133111EB) & _BITS
    return value ^ (value >> 31)


def _signed(value: int) -> int:
    """Return the lower 32 bits as a signed number."""
    value &= 0xFFFFFFFF
    return value - (value >> 31 << 32)
