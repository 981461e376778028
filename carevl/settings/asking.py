"""How a judge is asked."""

from __future__ import annotations

import string
from typing import Any, Literal

from pydantic import Field, field_validator, model_validator

from carevl.settings.base import Strict

_FIELDS = {"question", "answers"}
_VERDICT = "{verdict}"


class Asking(Strict):
    """How a judge is asked: in the words and with the chat template's options that suit the model.

    It is stored with what is trained so, and serving, evaluation and further training ask by it.
    """

    pairwise: str | None = Field(
        None,
        description="The user turn about two responses; {question} and {answers} are filled in, the latter with a line "
        "`Answer N: …` for each; null: carevl's own.",
    )
    pointwise: str | None = Field(None, description="The same about one response, which is to be rated from 1 to 5.")
    ranking: str | None = Field(None, description="The same about several responses, which are to be ranked.")
    system: str | None = Field(None, description="The system turn before it; null: none, or the chat template's own.")
    image_first: bool = Field(True, description="Whether the image stands before the words of the turn, or after them.")
    template_kwargs: dict[str, Any] = Field(
        {}, description="What the chat template is given besides, such as {enable_thinking: false}."
    )
    verdict: str | None = Field(
        None,
        max_length=200,
        description="How the judge words its verdict, where carevl would not read it: `[[{verdict}]]` or `Winner: "
        "{verdict}`. {verdict} stands for a letter (A is the first answer) or a number, in a ranking for all of them, "
        "best first; blanks, case and emphasis do not count. Texts without it are read as ever. null: no own wording.",
    )
    thinking: Literal["drop", "keep"] = Field(
        "drop",
        description="What a judge thinks before it judges, between tags such as <think>…</think>: dropped from what it "
        "learns in both phases, or kept before the judgment.",
    )

    def template(self, task: str) -> str | None:
        """Return the user turn of a task: pairwise, pointwise or ranking; None: carevl's own."""
        template: str | None = getattr(self, task)
        return template

    @field_validator("verdict")
    @classmethod
    def _check_verdict(cls, value: str | None) -> str | None:
        if value is None:
            return None
        if value.count(_VERDICT) != 1:
            raise ValueError(f"it has to name {_VERDICT} once, and names it {value.count(_VERDICT) or 'no'} times")
        if not value.replace(_VERDICT, "").strip(" \t\n*_`~#"):
            raise ValueError(f"any letter would be a verdict; write the words or signs around {_VERDICT}")
        return value

    @model_validator(mode="after")
    def _check_templates(self) -> Asking:
        for task in ("pairwise", "pointwise", "ranking"):
            template = self.template(task)
            if template is None:
                continue
            try:
                found = {name for _, name, _, _ in string.Formatter().parse(template) if name is not None}
            except ValueError as error:
                raise ValueError(f"{task}: {error}; write a brace that stands for itself twice") from None
            if found != _FIELDS:
                raise ValueError(f"{task}: it has to name {{question}} and {{answers}}, and nothing else in braces")
        return self
