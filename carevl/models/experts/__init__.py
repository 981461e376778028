"""The kinds of experts, by the name that settings call them by: rows of a user turn and its responses to scores.

A user's own is `kind: package.module:NAME`, an instance of `carevl.models.experts.base.ExpertKind`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

from carevl.models.experts import endpoint, llm, python, reward_model, vlm
from carevl.models.experts.base import ExpertKind, Row, RowScorer
from carevl.models.row_errors import Failure, not_finite
from carevl.settings.registry import Registry

if TYPE_CHECKING:
    from carevl.settings.models import Expert

EXPERT_KINDS: Registry[ExpertKind] = Registry(
    "expert kind", ExpertKind, (reward_model.KIND, llm.KIND, vlm.KIND, endpoint.KIND, python.KIND)
)


def load_expert(expert: Expert) -> RowScorer:
    """Load an expert; rows fail whose scores are not finite numbers.

    One of several is scored once more by itself: NaN spreads to what is computed beside it.
    """
    score_rows = EXPERT_KINDS[expert.kind].load(expert)

    def score_finite(rows: Sequence[Row]) -> list[list[float] | Failure]:
        results = score_rows(rows)
        if len(rows) > 1:
            results = [
                scores if _is_finite(scores) else score_rows([row])[0]
                for row, scores in zip(rows, results, strict=True)
            ]
        return [scores if _is_finite(scores) else not_finite(f"its scores are {scores}") for scores in results]

    return score_finite


def _is_finite(scores: list[float] | Failure) -> bool:
    return isinstance(scores, Failure) or all(map(math.isfinite, scores))
