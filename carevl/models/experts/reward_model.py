"""Kind `reward_model`: a sequence classifier with one output, in one of the engines."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from carevl.models.conversations import Encoded, encode
from carevl.models.engines import scorer
from carevl.models.experts.base import ExpertKind, RowEncoder, RowScorer, TextRow, score_by_row
from carevl.models.locate import loading_arguments, model_directory, weights_fingerprint

if TYPE_CHECKING:
    from carevl.settings.models import Expert


class RewardModelKind(ExpertKind):
    """Weights in a directory or on the hub; `engine` names what runs them."""

    name = "reward_model"

    def load(self, expert: Expert) -> RowScorer:
        """Load the model into its engine."""
        return score_by_row(scorer(expert, expert.batch_tokens, expert.parity_tolerance))

    def fingerprint(self, expert: Expert) -> str:
        """Return the fingerprint of the weights."""
        return weights_fingerprint(expert.path, expert.revision)

    def loads_weights(self, expert: Expert) -> bool:
        """Return True."""
        del expert
        return True

    def encoder(self, expert: Expert) -> RowEncoder:
        """Return what encodes rows with the model's own tokenizer and chat template."""
        from transformers import AutoTokenizer

        tokenizer = AutoTokenizer.from_pretrained(model_directory(expert), **loading_arguments(expert))

        def encode_rows(rows: Sequence[TextRow]) -> list[list[Encoded]]:
            texts = [(turn, response) for turn, responses, *_ in rows for response in responses]
            encoded = iter(encode(tokenizer, texts))
            return [[next(encoded) for _ in responses] for _, responses, *_ in rows]

        return encode_rows


KIND = RewardModelKind()
