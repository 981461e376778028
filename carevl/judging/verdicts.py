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
from carevl.judging.labels import Marked, Task, mark
from carevl.judging.mapped_text import Span
from carevl.judging.markup import CLOSE, OPEN, Plain
from carevl.judging.statements import alternatives, sentences

Status = Literal["ok", "none", "both", "truncated"]


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
    labelled: bool = False
    """Whether a label announces the verdict."""

    @property
    def span(self) -> Span | None:
        """The last of `spans`."""
        return self.spans[-1] if self.spans else None


def read_verdict(text: str, task: Task = "pairwise", shown: int = 2, truncated: bool = False) -> Reading:
    """Read a judgment.

    Args:
        shown: number of responses in the prompt.
        truncated: whether generation stopped at the token limit.
    """
    plain = Plain.of(text)
    if plain.unended:
        return Reading("truncated", "")
    marked = mark(plain.norm, task)
    labelled = [(passage, read_passage(passage, task, shown, truncated)) for passage in marked.passages]
    stated = [(passage, clause) for passage, clause in labelled if clause is not None]
    stated = [each for each in stated if not each[0].weak] or stated
    if stated:
        begin = min(passage.begin for passage, _ in stated)
        spans = [
            plain.words.span(*passage.source.span(*clause.span))
            for passage, clause in stated
            if clause.span is not None
        ]
        evidence = _evidence(plain.words.text[:begin], marked)
        return _combine([clause for _, clause in stated], evidence, tuple(sorted(set(spans))))
    whole = _evidence(
        plain.words.text[: min((p.begin for p in marked.passages), default=len(plain.words.text))], marked
    )
    if truncated:
        return Reading("truncated", whole)
    parts = sentences(marked.prose)
    clause = read_unlabelled(parts, task, shown)
    if clause is None or clause.kind != "value" or clause.span is None:
        return Reading("none", whole, tie=clause is not None and clause.kind == "tie")
    begin = plain.norm.places[parts[-1].tokens[0].span[0]][0]
    evidence = _evidence(plain.words.text[:begin], marked)
    return Reading("ok", evidence, clause.value, spans=(plain.words.span(*plain.norm.span(*clause.span)),))


def _combine(clauses: Sequence[Clause], evidence: str, spans: tuple[Span, ...]) -> Reading:
    """Return what labelled verdicts say together."""
    kinds = {clause.kind for clause in clauses}
    values = {clause.value for clause in clauses if clause.kind == "value"}
    if "cut" in kinds:
        return Reading("truncated", evidence)
    if "both" in kinds or len(values) > 1 or (values and "tie" in kinds):
        return Reading("both", evidence)
    if not values or "none" in kinds:
        return Reading("none", evidence, tie="tie" in kinds)
    return Reading("ok", evidence, values.pop(), spans=spans, labelled=True)


def _evidence(words: str, marked: Marked) -> str:
    """Return the words before a verdict, without a heading of their own."""
    if marked.evidence is not None:
        return marked.evidence
    words = re.sub(f"[{OPEN}{CLOSE}]", "", words).strip()
    heading = rf"(?:{alternatives('evidence')})\s*(?::|：|\n)\s*"
    return (
        re.sub(heading, "", words, count=1, flags=re.IGNORECASE) if re.match(heading, words, re.IGNORECASE) else words
    )
