"""Engines around the real one whose judge puts what it writes in other words, by import path as a user's own."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from carevl.models.engines import ENGINES
from carevl.models.engines.base import Engine, Generation, GenerationRequest, Generator, Scorer
from carevl.settings.models import Model

Wording = Callable[[str], str]
LABEL = "Overall Judgment: "


@dataclass
class _Reworded:
    engine: Generator
    wording: Wording

    def generate(
        self,
        requests: Sequence[GenerationRequest],
        *,
        max_tokens: int,
        temperature: float = 0.0,
        top_p: float = 1.0,
        logprob_texts: Sequence[str] = (),
    ) -> list[Generation]:
        written = self.engine.generate(
            requests, max_tokens=max_tokens, temperature=temperature, top_p=top_p, logprob_texts=logprob_texts
        )
        return [
            each if request.response_prefix else replace(each, text=self.wording(each.text))
            for request, each in zip(requests, written, strict=True)
        ]


class RewordedEngine(Engine):
    """The engine `transformers`, its judges' texts reworded."""

    def __init__(self, name: str, wording: Wording) -> None:
        self.name, self.wording = name, wording

    def generator(self, model: Model) -> Generator:
        return _Reworded(ENGINES["transformers"].generator(model), self.wording)

    def scorer(self, model: Model, *, batch_tokens: int, parity_tolerance: float | None) -> Scorer:
        return ENGINES["transformers"].scorer(model, batch_tokens=batch_tokens, parity_tolerance=parity_tolerance)


def _bold(text: str) -> str:
    return text.replace("Overall Judgment:", "**Overall Judgment:**")


def _thinking(text: str) -> str:
    return f"<think>\nOverall Judgment: Answer 1 is better? Or Answer 2?\n</think>\n\n{text}"


def _json(text: str) -> str:
    evidence, label, verdict = text.partition(LABEL)
    return json.dumps({"evidence": evidence.strip(), "Overall Judgment": verdict}) if label else text


THINKING = RewordedEngine("thinking", _thinking)
JSON = RewordedEngine("json", _json)
BOLD = RewordedEngine("bold", _bold)
REFUSING = RewordedEngine("refusing", lambda text: "I'm sorry, I can't help with that.")
NEGATING = RewordedEngine("negating", lambda text: "Answer 2 is not better.")
TIED = RewordedEngine("tied", lambda text: f"{text.partition(LABEL)[0]}{LABEL}Both answers are equally good.")
