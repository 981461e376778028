"""Verdicts that a judge is made to give: at once, or after a judgment that was cut before its own."""

from __future__ import annotations

from dataclasses import dataclass, replace

from carevl.judging.clauses import Value
from carevl.judging.prompts import VERDICT_PREFIX, Task, write_judgment
from carevl.judging.verdict_tokens import CHOICES, forced_probabilities
from carevl.models.engines.base import Generation, GenerationRequest
from carevl.stats.bootstrap import FloatArray

_TOKENS, _TOKENS_PER_RANK = 2, 6


@dataclass(frozen=True)
class CutJudgment:
    """A judgment that stopped at its longest length before its verdict."""

    request: GenerationRequest
    text: str
    evidence: str
    """What it says before its verdict, without thinking."""
    task: Task
    shown: int
    """Responses that the prompt shows."""

    @property
    def begun(self) -> GenerationRequest:
        """The request to go on with the verdict after the evidence."""
        return replace(self.request, response_prefix=verdict_prefix(self.task, self.evidence))


@dataclass(frozen=True)
class ForcedVerdict:
    """A judgment whose verdict was forced.

    `probabilities` are of the numbers from 1, adding up to 1 (float64 [2 or 5]); None where they are not known.
    """

    text: str
    probabilities: FloatArray | None = None


def verdict_tokens(task: Task, shown: int) -> int:
    """Return how many tokens a verdict has at most, after its first words."""
    return _TOKENS_PER_RANK * shown if task == "ranking" else _TOKENS


def verdict_prefix(task: Task, evidence: str = "") -> str:
    """Return what a reply begins with that goes on with its verdict, after the evidence if there is any."""
    return f"{evidence}\n{VERDICT_PREFIX[task]}" if evidence else VERDICT_PREFIX[task]


def read_forced(task: Task, generation: Generation, evidence: str = "") -> ForcedVerdict:
    """Return the judgment in a reply that went on with `verdict_prefix`: its likeliest number, where that is known."""
    if task == "ranking":
        return ForcedVerdict(verdict_prefix(task, evidence) + generation.text)
    probabilities = forced_probabilities(generation.logprobs, 2 if task == "pairwise" else CHOICES)
    if probabilities is None:
        return ForcedVerdict(verdict_prefix(task, evidence) + generation.text)
    return ForcedVerdict(write_value(task, 1 + int(probabilities.argmax()), evidence), probabilities)


def write_value(task: Task, value: Value, evidence: str = "") -> str:
    """Return the judgment with a verdict of this value, as `Reading` has it."""
    if isinstance(value, tuple):
        return write_judgment(evidence, ranking=value)
    return write_judgment(evidence, winner=int(value)) if task == "pairwise" else write_judgment(evidence, rating=value)
