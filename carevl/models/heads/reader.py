"""Reads the outputs of a head off the states of any engine."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from carevl.models.heads.header import response_header, with_prompts

if TYPE_CHECKING:
    from torch import Tensor, nn

    from carevl.models.conversations import Encoded
    from carevl.models.heads.base import FoundHead


class HeadReader:
    """A head on the body of a causal model.

    Args:
        module: as `FoundHead.make` gives it.
        tokenizer: of the model, with its chat template.

    Raises:
        UserError: the head reads the token where a response begins, and the template opens responses with nothing.
    """

    def __init__(self, found: FoundHead, module: nn.Module, tokenizer: Any) -> None:
        self.module = module
        self._header = response_header(tokenizer) if found.reads_prompt else None

    def sequences(self, texts: Sequence[Encoded]) -> list[Encoded]:
        """Return the texts of whose last tokens the head reads the states, for one conversation after the other."""
        return list(texts) if self._header is None else with_prompts(texts, self._header)

    def outputs(self, states: Tensor) -> Tensor:
        """Return the outputs [n, outputs] of conversations, of the states [n_sequences, hidden] of their sequences."""
        states = states.to(next(self.module.parameters()).dtype)
        outputs: Tensor = self.module(states) if self._header is None else self.module(states[1::2], states[::2])
        return outputs
