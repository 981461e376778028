"""Kind `vlm`: a vision-language model that scores responses to the question itself, and sees the image.

`scoring: head` is for a vision-language reward model; `yes`, for any other, the log-odds that it says Yes to a
response. It reads no caption. What the text alone decides is scored beside grey images of the same size.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, cast

from carevl.errors import SettingsError
from carevl.models.engines import image_scorer
from carevl.models.engines.base import ScoringRequest
from carevl.models.experts import questions
from carevl.models.experts.base import ExpertKind, ImageRow, RowScorer, by_row
from carevl.models.locate import weights_fingerprint
from carevl.models.row_errors import retry_engine

if TYPE_CHECKING:
    from carevl.settings.models import Expert


class VisionLanguageKind(ExpertKind):
    """Weights in a directory or on the hub."""

    name = "vlm"
    sees_images = True

    def load(self, expert: Expert) -> RowScorer:
        """Load the model into its engine."""
        scorer = image_scorer(expert)
        return lambda rows: retry_engine(
            scorer,
            lambda batch: by_row(scorer.score, [_requests(row) for row in batch]),
            cast("Sequence[ImageRow]", rows),
        )

    def fingerprint(self, expert: Expert) -> str:
        """Return what identifies the weights, the way to score and the version of its question."""
        return f"{weights_fingerprint(expert.path, expert.revision)} {expert.scoring or 'yes'} {questions.VERSION}"

    def loads_weights(self, expert: Expert) -> bool:
        """Return True."""
        del expert
        return True

    def check(self, expert: Expert) -> None:
        """Refuse ways of scoring that it has not, and settings of captions, which it does not read."""
        if expert.scoring not in (None, "head", "yes"):
            raise SettingsError(
                f"expert {expert.name}: kind vlm scores by head or yes, and scoring is {expert.scoring}"
            )
        if expert.scoring != "head" and (expert.output is not None or expert.activation is not None):
            raise SettingsError(f"expert {expert.name}: output and activation are for scoring: head")
        for name in ("template", "too_long"):
            if getattr(expert, name) != type(expert).model_fields[name].default:
                raise SettingsError(
                    f"expert {expert.name}: kind vlm reads no captions, which {name} is about; leave it out"
                )


def _requests(row: ImageRow) -> list[ScoringRequest]:
    (*earlier, question), responses, images = row
    return [ScoringRequest(images, question.text, response, question.places, tuple(earlier)) for response in responses]


KIND = VisionLanguageKind()
