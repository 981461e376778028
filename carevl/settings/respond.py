"""Responses where there are none: which models answer, and what becomes of their answers."""

from __future__ import annotations

import re
from typing import Literal

from pydantic import Field, field_validator, model_validator

from carevl.settings.base import PathName, Strict
from carevl.settings.models import MAX_IMAGES, Model

NegativeKind = Literal["other", "blurred", "blank"]
"""Where an answer that should be wrong is from; `Negatives.kinds` tells them."""


class Responder(Model):
    """A vision-language model that answers the questions of sources without responses."""

    name: PathName = Field(description="Its name in tables and exports, and of the directory of its answers.")
    prompts: list[str] = Field(
        ["{question}"],
        min_length=1,
        description="How it is asked, such as {question} alone, or with a persona; each prompt is asked.",
    )
    samples: int = Field(4, ge=1, description="Answers to each prompt.")
    temperature: float = Field(1.0, ge=0, description="Of those answers; 0 is greedy, and takes one sample.")
    top_p: float = Field(1.0, gt=0, le=1, description="Share of the probability that tokens are drawn from.")
    max_tokens: int = Field(512, ge=1, description="Longest answer, in tokens.")
    max_images: int = Field(MAX_IMAGES, ge=1, description="Most images of a question; vLLM keeps room for them.")

    @field_validator("prompts")
    @classmethod
    def _have_questions(cls, prompts: list[str]) -> list[str]:
        for prompt in prompts:
            if len(re.findall(r"\{question\}", prompt)) != 1:
                raise ValueError(f"{prompt!r} has to hold {{question}} once, where the question goes")
        if len(set(prompts)) < len(prompts):
            raise ValueError("two prompts are equal; raise samples for more answers to one")
        return prompts

    @model_validator(mode="after")
    def _draws(self) -> Responder:
        if self.temperature == 0 and self.samples > 1:
            raise ValueError("samples: at temperature 0 all answers are one; write samples: 1, or raise temperature")
        return self


class Negatives(Strict):
    """Answers that should be wrong."""

    share: float = Field(0.0, ge=0, le=1, description="Share of the questions that get one.")
    kinds: list[NegativeKind] = Field(
        ["other"],
        min_length=1,
        description="Where it is from, the first that gives one. other: the answer that most of the draws gave to the "
        "same question about another image, each used once, so that no text is wrong more often than it is right; "
        "blurred, blank: what a model answers to the question about the image out of focus, or about a grey one.",
    )
    samples: int = Field(2, ge=1, description="Answers of each model about a blurred or blank image.")


class Respond(Strict):
    """Responses to the questions of sources that have none; off without models."""

    models: list[Responder] = Field(
        [], description="Who answers; different models, prompts and a temperature give answers that differ."
    )
    max_responses: int = Field(4, ge=2, description="Most responses of an item, those of most draws first.")
    min_difference: float = Field(
        0.05,
        ge=0,
        le=1,
        description="Share of their words in which two answers have to differ; else they are one. Case, punctuation "
        "and the way numbers are written make no difference.",
    )
    faulty: Literal["drop", "error"] = Field(
        "drop",
        description="What becomes of refusals, answers that are cut, empty, repeat the question, or are in another "
        "script than it: drop leaves them out; error makes a row error of the item.",
    )
    negatives: Negatives = Field(Negatives(), description="Answers that should be wrong.")
    rejected: str | None = Field(
        None,
        description="Your own way to make rejected responses, as package.module:Name: a function of the question, a "
        "list of images (PIL) and the list of responses that returns a list of further responses.",
    )

    @model_validator(mode="after")
    def _has_models(self) -> Respond:
        names = [model.name for model in self.models]
        if len(set(names)) < len(names):
            raise ValueError("models: two have one name")
        if not self.models and (self.negatives.share or self.rejected):
            raise ValueError("models: there is no model that answers, so there is nothing to add to; name one")
        return self
