"""Kind `reward_model`: a language model with a head that gives scores, in one of the engines."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

from carevl.models.conversations import Encoded, encode
from carevl.models.engines import scorer
from carevl.models.experts.base import ExpertKind, RowEncoder, RowScorer, TextRow, score_by_row
from carevl.models.heads import HeadSettings
from carevl.models.heads.layout import read_layout
from carevl.models.hub import find_snapshot
from carevl.models.locate import loading_arguments, model_directory, own_directory, weights_fingerprint
from carevl.models.own_code import explain_loading_of

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

    def check(self, expert: Expert) -> None:
        """Refuse a model whose head no engine of ours can read, where its files are on this machine."""
        super().check(expert)
        self.describe(expert)

    def describe(self, expert: Expert) -> str | None:
        """Return the head that was found in its files; errors as for `check`."""
        if ":" in expert.engine:  # a user's own engine reads what it likes
            return None
        directory = own_directory(expert.path) or find_snapshot(
            expert.path, expert.revision, code=expert.trust_remote_code
        )
        if directory is None:
            return None
        return f"head: {_describe(directory, HeadSettings.of(expert), **loading_arguments(expert))}"

    def encoder(self, expert: Expert) -> RowEncoder:
        """Return what encodes rows with the model's own tokenizer and chat template."""
        from transformers import AutoTokenizer

        with explain_loading_of(expert):
            tokenizer = AutoTokenizer.from_pretrained(model_directory(expert), **loading_arguments(expert))

        def encode_rows(rows: Sequence[TextRow]) -> list[list[Encoded]]:
            texts = [(turn, response) for turn, responses, *_ in rows for response in responses]
            encoded = iter(encode(tokenizer, texts))
            return [[next(encoded) for _ in responses] for _, responses, *_ in rows]

        return encode_rows


@cache
def _describe(directory: Path, settings: HeadSettings, **loading: bool) -> str:
    return str(read_layout(directory, settings, **loading))


KIND = RewardModelKind()
