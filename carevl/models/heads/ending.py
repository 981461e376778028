"""The token of a conversation that a causal model's head reads."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from carevl.models.conversations import Encoded


@dataclass(frozen=True)
class Ending:
    """What is cut off or put on at the end of conversations, so that a head reads their last token.

    Attributes:
        padding: transformers' `…ForSequenceClassification` reads the last token that is not its padding
            (`GenericForSequenceClassification.forward`). Where the token that ends a turn is the padding too, that is
            the one before it.
        reward_token: InternLM2's and POLAR's reward models read a token of their own, which their code puts on
            (`reward_token_id`; `InternLM2ForRewardModel.get_score`).
    """

    padding: int | None = None
    reward_token: int | None = None

    @classmethod
    def of(cls, config: Any) -> Ending:
        """Return the one of a model's configuration."""
        is_classifier = any(name.endswith("ForSequenceClassification") for name in config.architectures or ())
        padding = config.get_text_config().pad_token_id if is_classifier else None
        return cls(padding, getattr(config, "reward_token_id", None))

    def apply(self, encoded: Sequence[Encoded]) -> list[Encoded]:
        """Return conversations as the head reads them."""
        return [replace(text, ids=self._cut(text.ids), types=None) for text in encoded]

    def _cut(self, ids: Sequence[int]) -> Sequence[int]:
        end = len(ids)
        while end > 1 and ids[end - 1] == self.padding:
            end -= 1
        if self.reward_token is not None and ids[end - 1] != self.reward_token:
            return [*ids[:end], self.reward_token]
        return ids[:end]
