"""Choices of the stages between router and training: which judgments are asked for, and which become rows."""

from __future__ import annotations

from pydantic import Field, field_validator

from carevl.settings.base import Strict


class Demonstrate(Strict):
    """Targets of phase 1: the base judge's own judgments where they hold in both orders."""

    samples: int = Field(4, ge=1, description="Judgments that the base judge writes per prompt, to choose from.")
    temperature: float = Field(1.0, ge=0, description="Of those judgments; 0 is greedy.")
    pointwise_share: float = Field(
        0.25, ge=0, le=1, description="Share of the items whose responses are also rated one by one."
    )
    ranking_share: float = Field(
        1.0, ge=0, le=1, description="Share of the items with more than two responses that are also ranked."
    )
    verdict_only_share: float = Field(
        0.0, ge=0, lt=1, description="Share of the targets that are a bare verdict; items without a judgment first."
    )
    min_parsed: float = Field(
        0.5,
        ge=0,
        le=1,
        description="Least share of the base judge's texts that state a verdict or a tie: once fewer do, the stage "
        "stops and quotes some. 0 goes on with whatever can be read.",
    )


class Testify(Strict):
    """What the phase-1 judge says of the image when no response leads it on; experts read it beside the caption."""

    samples: int = Field(
        4, ge=1, description="Times that it is asked about an item with low-confidence pairs, if select asks for it."
    )
    temperature: float = Field(1.0, ge=0, description="Of what it says.")
    prompt: str = Field(
        "Say in a few sentences what in the image bears on this question. Do not answer it.\n{question}",
        description="What it is asked; {question} is filled in. An answer that is like a response speaks for it by its "
        "words alone, so observations are asked for.",
    )

    @field_validator("prompt")
    @classmethod
    def _has_question(cls, prompt: str) -> str:
        if prompt.count("{question}") != 1:
            raise ValueError("testify.prompt has to hold {question} once, where the question is filled in")
        return prompt


class Sample(Strict):
    """Judgments of low-confidence items by the phase-1 judge."""

    samples: int = Field(8, ge=2, description="Judgments per pair and order.")
    temperature: float = Field(1.0, gt=0, description="Of those judgments.")
    answers: bool = Field(
        False,
        description="Also ask the bare question of each item, as often: for rules of selection that read answers.",
    )


class Select(Strict):
    """Chosen and rejected judgments for phase 2."""

    consistency_weight: float = Field(
        1.0, ge=0, description="Weight of the share of a pair's judgments, in both orders, that agree with a verdict."
    )
    expert_weight: float = Field(0.5, ge=0, description="Weight of the probability that the experts give a verdict.")
    testimony_weight: float = Field(
        0.0,
        ge=0,
        description="Weight of the probability that the experts give a verdict once they have read the judge's "
        "testimony. Above 0 the judge testifies, and pairs are selected whose label that makes trusted (low_router), "
        "and no others; needs labels.",
    )
    rules: dict[str, float] = Field(
        {},
        description="Further rules, each with its weight: by name, or by import path, your own as package.module:Name.",
    )
    min_gap: float = Field(0.3, ge=0, description="Least difference of the scores of chosen and rejected.")
    same_evidence: bool = Field(
        False,
        description="One pair in each order, of a judgment and the same with the other verdict, so that the two differ "
        "in the verdict alone and phase 2 holds nothing against evidence; where no judgment of this order has the "
        "better verdict, one of the other order is taken. pairs_per_order and max_length_ratio then change nothing.",
    )
    pointwise_share: float | None = Field(
        0.0,
        ge=0,
        description="Pairs of ratings for each pair of verdicts: either response of a trusted pair is rated, and the "
        "rating that phase 1 gives its side is preferred to that of the other side; null: as many as there are ratings "
        "for each verdict among the targets of phase 1.",
    )
    ranking_share: float | None = Field(
        0.0,
        ge=0,
        description="Pairs of rankings for each pair of verdicts, of items with three or more responses, each in a "
        "trusted pair: an order that agrees with these is preferred to one with a pair of them exchanged; null: as for "
        "pointwise_share.",
    )
    pairs_per_order: int = Field(1, ge=1, description="Most chosen-rejected pairs of one prompt.")
    balance: bool = Field(True, description="As many chosen verdicts for the first answer shown as for the second.")
    max_length_ratio: float = Field(
        2.0, ge=1, description="The longer of chosen and rejected has at most so many times the other's characters."
    )

    @property
    def other_tasks(self) -> tuple[str, ...]:
        """The fields that ask for pairs of ratings or of rankings."""
        return tuple(name for name in ("pointwise_share", "ranking_share") if getattr(self, name) != 0)
