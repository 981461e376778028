"""Log-probabilities of tokens over a large vocabulary, in memory that does not grow with their number."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy
from torch.utils.checkpoint import checkpoint

_LOGITS = 2**26
"""Most logits that exist at a time: 256 MiB in float32, three times that in the backward pass."""


def token_log_probabilities(model: Any, hidden: Tensor, target: Tensor) -> Tensor:
    """Return the log-probability of every token, float32 [A].

    A vocabulary of 152,064 entries takes 2.4 MB a token with its gradient. The logits of many tokens exist in chunks,
    one after the other, and are computed again in the backward pass.

    Args:
        model: a causal model of transformers with a head.
        hidden: the last hidden states that the tokens are predicted from, [A, size].
        target: int64 [A].
    """
    head, text = model.get_output_embeddings(), model.config.get_text_config()
    cap: float | None = getattr(text, "final_logit_softcapping", None)
    chunk = max(1, _LOGITS // text.vocab_size)
    if len(target) <= chunk:
        return _log_probabilities(head, hidden, target, cap)
    chunks = zip(torch.split(hidden, chunk), torch.split(target, chunk), strict=True)
    if not torch.is_grad_enabled():
        return torch.cat([_log_probabilities(head, states, tokens, cap) for states, tokens in chunks])
    return torch.cat(
        [checkpoint(_log_probabilities, head, states, tokens, cap, use_reentrant=False) for states, tokens in chunks]
    )


def _log_probabilities(head: Any, hidden: Tensor, target: Tensor, cap: float | None) -> Tensor:
    logits = head(hidden)
    if cap is not None:
        logits = cap * torch.tanh(logits / cap)
    return -cross_entropy(logits.float(), target, reduction="none")
