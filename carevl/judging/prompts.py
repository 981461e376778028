"""The prompts of a judge, and the grammar of its answers, in which targets are written.

A judgment is one sentence of evidence from the image, then a verdict:

| task | verdict |
|---|---|
| pairwise | `Overall Judgment: Answer 2 is better.` |
| pointwise | `Overall Judgment: Rating 4.` (1 to 5) |
| ranking | `Overall Judgment: Ranking 3 > 1 > 2.` (best first) |

The wording is versioned because weights learn it: a changed prompt is a new version, never an edit.
"""

from __future__ import annotations

from collections.abc import Sequence
from string import Formatter
from typing import Literal

from carevl.judging.turns import Turn, shift_places

Task = Literal["pairwise", "pointwise", "ranking"]

PROMPT_VERSION = 1

_LOOK, _FROM = ("", "Look at the image. ", "Look at the images. "), ("", " from the image", " from the images")
"""What a prompt says of no image, of one and of several."""
_QUESTION = "{look}Question: {question}"
_INSTRUCTIONS: dict[Task, str] = {
    "pairwise": (
        "Which answer is better? Give one sentence of evidence{source}, "
        "then write Overall Judgment: Answer 1 is better. or Overall Judgment: Answer 2 is better."
    ),
    "pointwise": (
        "How good is the answer? Give one sentence of evidence{source}, "
        "then write Overall Judgment: Rating N. with N from 1 (bad) to 5 (right)."
    ),
    "ranking": (
        "Rank the answers. Give one sentence of evidence{source}, "
        "then write Overall Judgment: Ranking, the best answer first, like 2 > 1 > 3."
    ),
}
VERDICT_PREFIX: dict[Task, str] = {
    "pairwise": "Overall Judgment: Answer",
    "pointwise": "Overall Judgment: Rating",
    "ranking": "Overall Judgment: Ranking",
}
"""The words of a verdict up to its first number. The space is left to the judge: tokenizers put it on either side."""


def judge_prompt(
    task: Task,
    question: str,
    responses: Sequence[str],
    order: Sequence[int] | None = None,
    template: str | None = None,
    n_images: int = 1,
) -> str:
    """Return the words of a judging prompt.

    Args:
        task: pairwise (two responses shown), pointwise (one) or ranking (two or more).
        responses: the item's responses.
        order: indices of the responses to show, in that order; all of them when None.
        template: with {question} and {answers}, in place of the words that are shipped; None: those.
        n_images: of the item.
    """
    return _split_prompt(task, question, responses, order, template, n_images)[1]


def judge_turn(
    task: Task,
    asked: Sequence[Turn],
    responses: Sequence[str],
    order: Sequence[int] | None = None,
    template: str | None = None,
) -> Turn:
    """Return a judging prompt with its images in their places; of one turn that begins with all of them, they lead it.

    Args:
        asked: the turns of the item; the last is the question, those before it are shown with a name before each.
        task, responses, order, template: as `judge_prompt` takes them.
    """
    shown = asked[-1] if len(asked) == 1 else write_turns(asked)
    n_images = len(shown.places)
    before, prompt = _split_prompt(task, shown.text, responses, order, template, n_images)
    return Turn("user", prompt, shift_places(shown.places, len(before)))


def write_turns(turns: Sequence[Turn]) -> Turn:
    """Return a conversation as one turn: a line or more for each, which begins with the name of its side."""
    text, places = "", []
    for turn in turns:
        text += f"{chr(10) if text else ''}{turn.role.capitalize()}: "
        places += [len(text) + place for place in turn.places]
        text += turn.text
    return Turn("user", text, tuple(places))


def _split_prompt(
    task: Task,
    question: str,
    responses: Sequence[str],
    order: Sequence[int] | None,
    template: str | None,
    n_images: int,
) -> tuple[str, str]:
    """Return what stands before the question in a judging prompt, and all of it; arguments as for `judge_prompt`."""
    shown = [responses[i] for i in (range(len(responses)) if order is None else order)]
    expected = {"pairwise": len(shown) == 2, "pointwise": len(shown) == 1, "ranking": len(shown) >= 2}
    if not expected[task]:
        raise ValueError(f"a {task} prompt cannot show {len(shown)} responses")
    names = ["Answer"] if task == "pointwise" else [f"Answer {n}" for n in range(1, len(shown) + 1)]
    answers = [f"{name}: {text}" for name, text in zip(names, shown, strict=True)]
    if template is None:
        number = min(n_images, 2)
        look = _LOOK[number]
        instructions = _INSTRUCTIONS[task].format(source=_FROM[number])
        lines = [_QUESTION.format(look=look, question=question), *answers, instructions]
        return _QUESTION.format(look=look, question=""), "\n".join(lines)
    fields = {"question": question, "answers": "\n".join(answers)}
    before = ""
    for literal, field, _, _ in Formatter().parse(template):
        before += literal
        if field == "question":
            break
        before += "" if field is None else fields[field]
    return before, template.format(**fields)


def write_judgment(
    evidence: str,
    *,
    winner: int | None = None,
    rating: float | None = None,
    ranking: Sequence[int] | None = None,
    thinking: str = "",
) -> str:
    """Return a judgment in the grammar.

    Args:
        winner: position of the better response as shown, counted from 1.
        ranking: the same of all of them, best first.
        thinking: what stands before the judgment, with its tags.
    """
    if winner is not None:
        verdict = f"Answer {winner} is better."
    elif rating is not None:
        verdict = f"Rating {rating:g}."
    elif ranking is not None:
        verdict = f"Ranking {' > '.join(map(str, ranking))}."
    else:
        raise ValueError("a judgment needs a winner, a rating or a ranking")
    judgment = f"{evidence}\nOverall Judgment: {verdict}" if evidence else f"Overall Judgment: {verdict}"
    return f"{thinking}\n\n{judgment}" if thinking else judgment
