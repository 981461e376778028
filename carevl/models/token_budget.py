"""How many tokens a text model computes at a time, and fewer of them where memory runs out."""

from __future__ import annotations

import logging

import torch

_log = logging.getLogger(__name__)

_LEAST_TOKENS = 256


class TokenBudget:
    """A model that computes up to `batch_tokens` tokens at a time."""

    batch_tokens: int

    def reduce_batch_size(self) -> bool:
        """Halve the tokens that run at a time; False when they are few already."""
        if self.batch_tokens <= _LEAST_TOKENS:
            return False
        self.batch_tokens //= 2
        _log.warning("out of memory: %d tokens at a time from now on", self.batch_tokens)
        torch.cuda.empty_cache()
        return True
