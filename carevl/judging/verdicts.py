"""The one reader of verdicts: tolerant of the form of a judgment, strict about what it means.

```python
from carevl.judging import read_verdict

reading = read_verdict("Two cups.\\n\\n**Overall Judgment:** Answer 2 is better.", "pairwise", shown=2)
reading.status, reading.value, reading.evidence  # "ok", 2, "Two cups."
```

A verdict is what follows a label in its first sentence: `Overall Judgment:`, `Final verdict`, a box of LaTeX, the tag
`<answer>`, a key of JSON. Without a label it is the last sentence, if that states one verdict and no other sentence
another one. What stands in quotes, or is said by a response, is no verdict of the judge; nor is a negation, which is
never turned into the other verdict. Nothing is guessed.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from carevl.judging.clauses import Clause, Value, read_passage, read_unlabelled
from carevl.judging.labels import Marked, mark
from carevl.judging.mapped_text import Span
from carevl.judging.markup import CLOSE, OPEN, Plain
from carevl.judging.prompts import Task
from carevl.judging.statements import alternatives, sentences
from carevl.judging.wordings import read_wording

Status = Literal["ok", "none", "both", "truncated"]


@dataclass(frozen=True)
class Verdict:
    """What a judgment says of an item's responses, by their indices, whatever the order they were shown in.

    `status`, `evidence` and `tie` as in `Reading`. Unless the status is `ok`, the others are None; but for a stated tie
    `winner` may be -1, where ties are known.
    """

    status: Status
    evidence: str
    winner: int | None = None
    """pairwise: the better response."""
    rating: float | None = None
    """pointwise: 1 to 5."""
    ranking: tuple[int, ...] | None = None
    """ranking: best first."""
    tie: bool = False


@dataclass(frozen=True)
class Reading:
    """What a judgment says, in the numbers of its text.

    `status`: `ok`; `none` (no verdict); `both` (verdicts that contradict each other); `truncated` (the text was cut
    within its verdict or its thinking, or before them). Unless `ok`, `value` is None and `spans` is empty.
    """

    status: Status
    evidence: str
    """What stands before the verdict, without thinking and markup."""
    value: Value | None = None
    """pairwise: number of the better response; pointwise: the rating, 1 to 5; ranking: numbers, best first."""
    tie: bool = False
    """Whether the judge states a tie, or that it cannot decide."""
    spans: tuple[Span, ...] = ()
    """Where the value stands as a verdict, in characters of the text; a ranking from its first number to its last."""
    begin: int | None = None
    """Where the label of the verdict begins, or its sentence where it has no label; in characters of the text."""
    labelled: bool = False
    """Whether a label announces the verdict."""

    @property
    def span(self) -> Span | None:
        """The last of `spans`."""
        return self.spans[-1] if self.spans else None

    def in_items(self, order: Sequence[int]) -> Verdict:
        """Return the verdict about responses that were shown in this order, by their indices."""
        if isinstance(self.value, tuple):
            return Verdict(self.status, self.evidence, ranking=tuple(order[n - 1] for n in self.value))
        if isinstance(self.value, int):
            return Verdict(self.status, self.evidence, winner=order[self.value - 1])
        return Verdict(self.status, self.evidence, rating=self.value, tie=self.tie)


def read_verdict(
    text: str, task: Task = "pairwise", shown: int = 2, truncated: bool = False, wording: str | None = None
) -> Reading:
    """Read a judgment.

    Args:
        shown: number of responses in the prompt.
        truncated: whether generation stopped at the token limit.
        wording: the judge's own of a verdict, such as `[[{verdict}]]`; where the text has it, nothing else counts.
    """
    plain = Plain.of(text)
    if plain.unended:
        return Reading("truncated", "")
    if wording is not None and (worded := read_wording(plain, wording, task, shown, truncated)):
        return _of_wording(plain, worded)
    marked = mark(plain.norm, task)
    clauses = [(passage, read_passage(passage, task, shown, truncated)) for passage in marked.passages]
    stated = [(passage, clause) for passage, clause in clauses if clause is not None]
    stated = [each for each in stated if not each[0].weak] or stated
    if stated:
        begin = min(passage.begin for passage, _ in stated)
        places = [passage.source.span(*clause.span) for passage, clause in stated if clause.span is not None]
        status, value, tie = _together([clause for _, clause in stated])
    else:
        parts = sentences(marked.prose)
        clause = None if truncated else read_unlabelled(parts, task, shown)
        value, tie = (clause.value, clause.kind == "tie") if clause else (None, False)
        places = [plain.norm.span(*clause.span)] if clause and clause.span else []
        status = "truncated" if truncated else "none" if value is None else "ok"
        begin = min((passage.begin for passage in marked.passages), default=len(plain.words.text))
        if value is not None:
            begin = plain.norm.places[parts[-1].tokens[0].span[0]][0]
    evidence = _evidence(plain.words.text[:begin], marked)
    if value is None:
        return Reading(status, evidence, tie=tie)
    spans = tuple(sorted({plain.words.span(*place) for place in places}))
    return Reading(status, evidence, value, tie, spans, plain.words.places[begin][0], labelled=bool(stated))


def _of_wording(plain: Plain, worded: Sequence[tuple[int, Clause]]) -> Reading:
    """Return the reading of a judgment that has verdicts in the judge's own wording."""
    status, value, tie = _together([clause for _, clause in worded])
    begin = plain.norm.places[worded[0][0]][0]
    evidence = _without_heading(plain.words.text[:begin])
    if value is None:
        return Reading(status, evidence, tie=tie)
    spans = tuple(plain.span(clause.span) for _, clause in worded if clause.span)
    return Reading(status, evidence, value, tie, spans, plain.words.places[begin][0], labelled=True)


def _together(clauses: Sequence[Clause]) -> tuple[Status, Value | None, bool]:
    """Return status, value and tie of labelled verdicts together."""
    kinds = {clause.kind for clause in clauses}
    values = {clause.value for clause in clauses if clause.kind == "value"}
    if "cut" in kinds:
        return "truncated", None, False
    if "both" in kinds or len(values) > 1 or (values and "tie" in kinds):
        return "both", None, False
    if not values or "none" in kinds:
        return "none", None, "tie" in kinds
    return "ok", values.pop(), False


def _evidence(words: str, marked: Marked) -> str:
    """Return the words before a verdict, without a heading of their own."""
    return _without_heading(words) if marked.evidence is None else marked.evidence


def _without_heading(words: str) -> str:
    words = re.sub(f"[{OPEN}{CLOSE}]", "", words).strip()
    heading = re.match(rf"{alternatives('evidence')}\s*(?::|：|\n)\s*", words, re.IGNORECASE)
    return words[heading.end() :] if heading else words


def recognise_verdict(text: str) -> tuple[Task, Reading] | None:
    """Return the task whose labelled verdict a judgment has, and what it says; None without one."""
    shown: dict[Task, int] = {"pairwise": 2, "pointwise": 1, "ranking": text.count(">") + 1}
    readings = [(task, read_verdict(text, task, n)) for task, n in shown.items()]
    return next(((task, reading) for task, reading in readings if reading.status == "ok" and reading.labelled), None)
