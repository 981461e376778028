"""The prompts of a judge, the grammar of its answers, and the one parser.

A judgment is one sentence of evidence from the image, then a verdict:

| task | verdict |
|---|---|
| pairwise | `Overall Judgment: Answer 2 is better.` |
| pointwise | `Overall Judgment: Rating 4.` (1 to 5) |
| ranking | `Overall Judgment: Ranking 3 > 1 > 2.` (best first) |

The wording is versioned because weights learn it: a changed prompt is a new version, never an edit.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

Task = Literal["pairwise", "pointwise", "ranking"]
Status = Literal["ok", "none", "both", "truncated"]

PROMPT_VERSION = 1

_QUESTION = "Look at the image. Question: {question}"
_INSTRUCTIONS: dict[Task, str] = {
    "pairwise": (
        "Which answer is better? Give one sentence of evidence from the image, "
        "then write Overall Judgment: Answer 1 is better. or Overall Judgment: Answer 2 is better."
    ),
    "pointwise": (
        "How good is the answer? Give one sentence of evidence from the image, "
        "then write Overall Judgment: Rating N. with N from 1 (bad) to 5 (right)."
    ),
    "ranking": (
        "Rank the answers. Give one sentence of evidence from the image, "
        "then write Overall Judgment: Ranking, the best answer first, like 2 > 1 > 3."
    ),
}
VERDICT_PREFIX: dict[Task, str] = {
    "pairwise": "Overall Judgment: Answer",
    "pointwise": "Overall Judgment: Rating",
    "ranking": "Overall Judgment: Ranking",
}
"""The words of a verdict up to its first number. The space is left to the judge: tokenizers put it on either side."""
_VERDICT = re.compile(r"Overall Judgment:[ ]*([^\n]*)")
_WINNER = re.compile(r"(Overall Judgment:[ ]*Answer )([12])\b")
_FORMS: dict[Task, re.Pattern[str]] = {
    "pairwise": re.compile(r"Answer (\d+) is better\.?"),
    "pointwise": re.compile(r"Rating (\d+)\.?"),
    "ranking": re.compile(r"Ranking (\d+(?: > \d+)+)\.?"),
}


@dataclass(frozen=True)
class Verdict:
    """A parsed judgment, in item indices.

    `status`: `ok`; `none` (no verdict in the grammar); `both` (verdicts that contradict each other);
    `truncated` (the text was cut before its verdict). Unless `ok`, the other fields but `evidence` are None.
    """

    status: Status
    evidence: str
    winner: int | None = None
    """pairwise: index of the better response of the item, whatever the order it was shown in."""
    rating: int | None = None
    """pointwise: 1 to 5."""
    ranking: tuple[int, ...] | None = None
    """ranking: response indices, best first."""


def judge_prompt(task: Task, question: str, responses: Sequence[str], order: Sequence[int] | None = None) -> str:
    """Return the user turn of a judging prompt (the image stands before it).

    Args:
        task: pairwise (two responses shown), pointwise (one) or ranking (two or more).
        responses: the item's responses.
        order: indices of the responses to show, in that order; all of them when None.
    """
    shown = [responses[i] for i in (range(len(responses)) if order is None else order)]
    expected = {"pairwise": len(shown) == 2, "pointwise": len(shown) == 1, "ranking": len(shown) >= 2}
    if not expected[task]:
        raise ValueError(f"a {task} prompt cannot show {len(shown)} responses")
    names = ["Answer"] if task == "pointwise" else [f"Answer {n}" for n in range(1, len(shown) + 1)]
    answers = [f"{name}: {text}" for name, text in zip(names, shown, strict=True)]
    return "\n".join([_QUESTION.format(question=question), *answers, _INSTRUCTIONS[task]])


def write_judgment(
    evidence: str, *, winner: int | None = None, rating: int | None = None, ranking: Sequence[int] | None = None
) -> str:
    """Return a judgment in the grammar. `winner` and `ranking` are positions as shown, counted from 1."""
    if winner is not None:
        verdict = f"Answer {winner} is better."
    elif rating is not None:
        verdict = f"Rating {rating}."
    elif ranking is not None:
        verdict = f"Ranking {' > '.join(map(str, ranking))}."
    else:
        raise ValueError("a judgment needs a winner, a rating or a ranking")
    return f"{evidence}\nOverall Judgment: {verdict}" if evidence else f"Overall Judgment: {verdict}"


def flip_verdict(judgment: str) -> str:
    """Return a pairwise judgment with the other verdict; every other character stays."""
    return _WINNER.sub(lambda match: f"{match[1]}{3 - int(match[2])}", judgment)


def parse_judgment(text: str, task: Task, order: Sequence[int], *, truncated: bool = False) -> Verdict:
    """Read a judgment strictly: anything outside the grammar has no verdict, and nothing is guessed.

    Args:
        order: indices of the responses in the order shown, to turn positions into item indices.
        truncated: whether generation stopped at the token limit.

    Examples:
        `Answer 1 is better.` without `Overall Judgment:` is `none`; two equal verdicts are `ok`, two
        different ones `both`; `Answer 3 is better` of two answers is `none`; so is a ranking that
        misses an answer or names one twice.
    """
    matches = list(_VERDICT.finditer(text))
    evidence = (text[: matches[0].start()] if matches else text).strip()
    values = [_parse_verdict(match.group(1).strip(), task, len(order)) for match in matches]
    if not values or any(value is None for value in values):
        return Verdict("truncated" if truncated and not values else "none", evidence)
    if len(set(values)) > 1:
        return Verdict("both", evidence)
    value = values[0]
    assert value is not None
    if task == "pairwise":
        return Verdict("ok", evidence, winner=order[value[0] - 1])
    if task == "pointwise":
        return Verdict("ok", evidence, rating=value[0])
    return Verdict("ok", evidence, ranking=tuple(order[n - 1] for n in value))


def _parse_verdict(words: str, task: Task, n_shown: int) -> tuple[int, ...] | None:
    match = _FORMS[task].fullmatch(words)
    if not match:
        return None
    value = tuple(int(n) for n in match.group(1).split(" > "))
    if task == "pairwise":
        return value if 1 <= value[0] <= n_shown else None
    if task == "pointwise":
        return value if 1 <= value[0] <= 5 else None
    return value if sorted(value) == list(range(1, n_shown + 1)) else None
