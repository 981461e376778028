"""How pairs are routed."""

from __future__ import annotations

from typing import Literal, Self

from pydantic import Field, model_validator

from carevl.settings.base import Strict

CalibrationMethod = Literal["temperature", "isotonic", "spread"]
Combination = Literal["mean", "weighted", "median", "label_model", "learned"]
FixedPolicy = Literal["unanimous", "mean_margin", "label_model"]
Policy = Literal["unanimous", "mean_margin", "label_model", "target_precision"]


class RouterSettings(Strict):
    """How pairs are routed."""

    policy: Policy = Field(
        "mean_margin", description="Which pairs are high: unanimous, mean_margin, label_model or target_precision."
    )
    calibration: CalibrationMethod = Field(
        "temperature",
        description="How margins become probabilities: temperature or isotonic from labels, spread without. Too few "
        "labels: spread.",
    )
    combination: Combination = Field(
        "mean",
        description="mean, median, label_model (policy label_model has its own); from labels: learned, or weighted by "
        "independence.",
    )
    length_residual: bool = Field(
        False,
        description="Take off every expert's margin what it pays for length alone, right and wrong responses compared "
        "apart.",
    )
    abstain_band: float = Field(
        0.1, ge=0, lt=0.5, description="An expert abstains on a pair when |p - 0.5| is below this."
    )
    threshold: float = Field(
        0.8, ge=0.5, le=1, description="Least probability of the winner for mean_margin and label_model."
    )
    precision: float = Field(
        0.95, gt=0.5, lt=1, description="target_precision: the share of high pairs whose winner is right."
    )
    level: float = Field(
        0.95,
        gt=0.5,
        lt=1,
        description="target_precision: probability with which the guarantee holds, over draws of the labelled images.",
    )
    fallback: FixedPolicy | None = Field(
        None,
        description="target_precision: the policy to use, without a guarantee, when none can be given; by default the "
        "run stops.",
    )
    shares: tuple[float, float, float] = Field(
        (0.25, 0.5, 0.25),
        description="target_precision: shares of the labelled images that fit the experts, choose the threshold, and "
        "only check.",
    )
    text_only_limit: float | None = Field(
        None,
        ge=0,
        le=0.5,
        description="Drop a pair whose winner the experts name without any caption by more than this, |p - 0.5|; null "
        "keeps all.",
    )
    require_source: bool = Field(
        False,
        description="Keep a pair from being high when the source's own preference is the other response, or a tie.",
    )
    seed: int = Field(0, description="Draws the split and the pair of each image that is tested.")


class LabelShares(Strict):
    """How labelled images are divided, by their own bytes: what was fitted on one is never tested on it.

    Shares are of their sum. Each router divides its own into those that fit, test and check (`router.shares`).
    """

    router: float = Field(0.45, ge=0, description="For the router of captions: its scales, its threshold.")
    low_router: float = Field(0.45, ge=0, description="For the router of testimony: the same, and which groups hold.")
    choice: float = Field(0.1, ge=0, description="For choosing between judges: checkpoints (`dev_pairs`) and rounds.")

    @model_validator(mode="after")
    def _add_up(self) -> Self:
        if self.router + self.low_router + self.choice <= 0:
            raise ValueError("the shares of the labelled images are all 0; give one a share")
        return self


class LowRouter(RouterSettings):
    """How low pairs are routed again, once experts have read what the phase-1 judge saw; labels guard groups of them.

    A judge that errs in the same way every time agrees with itself; labelled pairs show it where a group of questions
    that can be told without the truth goes wrong.
    """

    group_by: Literal["opening", "source", "none"] = Field(
        "opening",
        description="What tells groups of items: the first words of the question, as many as enough labelled pairs "
        "share; the source; none: there is one group.",
    )
    group_labels: int = Field(
        10, ge=1, description="Labelled pairs that a group needs, of those that would be trusted, or none is trusted."
    )
    without_labels: bool = Field(
        False,
        description="Trust labels where no labelled pair says anything: an eye that errs in the same way every time is "
        "not seen then.",
    )
