"""The lessons of the small vision-language models: a picture and a short conversation.

Perception comes first: reading the whole grid is the lesson without which nothing else is learned. Questions and
captions follow, judging comes last, and fades again: seeing is what the base judge is good at, and comparing two
responses with what it sees is what CAREVL is to teach it.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

from carevl.judging.prompts import Task, judge_prompt, write_judgment
from carevl.miniworld.items import Item, ask, make_item, questions_on, word
from carevl.miniworld.models import CAPTION_PROMPT, GRID_PROMPT
from carevl.miniworld.questions import KINDS, caption
from carevl.miniworld.scenes import COLOURS, SHAPES, SIZES, Scene, draw_scene

_WEIGHING = {
    "count": 3.0,
    "position": 3.0,
    "description": 3.0,
    "relation": 2.0,
    "comparison": 1.5,
    "same": 1.0,
    "colour": 0.7,
    "existence": 0.7,
}
_PLACING = {
    "count": 2.0,
    "position": 5.0,
    "description": 2.0,
    "relation": 1.5,
    "comparison": 1.0,
    "same": 0.6,
    "colour": 0.5,
    "existence": 0.5,
}
"""How often a kind of question is judged, relative to the others."""
_FOLLOWING = ("existence", "comparison", "relation", "same")
"""Kinds of question whose verdicts follow the evidence that the base judge writes."""
_LOOSE = tuple(kind for kind in KINDS if kind not in _FOLLOWING)
"""Kinds whose verdicts hang loosely on it."""
_CHANGES = {"colour": COLOURS, "shape": SHAPES, "size": SIZES}


@dataclass(frozen=True)
class Turn:
    """One exchange. With `verdict_shown` false, the digits of the reply's verdict give no training signal."""

    prompt: str
    reply: str
    verdict_shown: bool = True


@dataclass(frozen=True)
class Lesson:
    """A scene and the turns spoken about it."""

    scene: Scene
    turns: tuple[Turn, ...]


def _grid(rng: random.Random) -> Lesson:
    scene = draw_scene(rng, "weights")
    cells = ("nothing" if t is None else f"{t.size} {t.colour} {t.shape}" for t in scene.cells)
    return Lesson(scene, (Turn(GRID_PROMPT, ", ".join(cells)),))


def _caption(rng: random.Random) -> Lesson:
    scene = draw_scene(rng, "weights")
    return Lesson(scene, (Turn(CAPTION_PROMPT, caption(scene)),))


def _answering(kinds: Sequence[str]) -> Callable[[random.Random], Lesson]:
    def make(rng: random.Random) -> Lesson:
        scene, first = ask(rng.choice(kinds), rng, "weights")
        questions = questions_on(scene, first, rng, 3)
        return Lesson(scene, tuple(Turn(q.text, q.evidence) for q in questions))

    return make


def _counting(rng: random.Random) -> Lesson:
    """Ask for several counts of one scene: what takes longest to learn."""
    scene = draw_scene(rng, "weights")
    drawn = [KINDS[rng.choice(("count", "comparison"))](scene, rng, rng.random() < 0.5) for _ in range(5)]
    questions = list({q.text: q for q in drawn if q}.values())
    return Lesson(scene, tuple(Turn(q.text, q.evidence) for q in questions)) if questions else _counting(rng)


def right_judgment(item: Item, task: Task, order: list[int]) -> str:
    """Return the judgment that a perfect judge would write of the responses shown in `order`."""
    ratings = [item.responses[i].rating for i in order]
    if task == "pairwise":
        return write_judgment(item.question.evidence, winner=1 if ratings[0] > ratings[1] else 2)
    if task == "pointwise":
        return write_judgment(item.question.evidence, rating=ratings[0])
    best_first = sorted(range(len(order)), key=lambda shown: -ratings[shown])
    return write_judgment(item.question.evidence, ranking=[shown + 1 for shown in best_first])


def _judging(task: Task, verdict_shown: bool) -> Callable[[random.Random], Lesson]:
    def make(rng: random.Random) -> Lesson:
        scene, question = ask(rng.choice(tuple(KINDS)), rng, "weights")
        item = make_item(scene, question, rng.choice((2, 3, 4)) if task == "ranking" else 2, rng)
        order = rng.sample(range(len(item.responses)), 1 if task == "pointwise" else len(item.responses))
        prompt = judge_prompt(task, question.text, [response.text for response in item.responses], order)
        return Lesson(scene, (Turn(prompt, right_judgment(item, task, order), verdict_shown),))

    return make


def _comparing(weights: Mapping[str, float]) -> Callable[[random.Random], Lesson]:
    """Make pairwise judgments, kinds of question drawn by weight: some kinds take many more lessons than others."""

    def make(rng: random.Random) -> Lesson:
        scene, question = ask(rng.choices(list(weights), list(weights.values()))[0], rng, "weights")
        item = make_item(scene, question, 2, rng)
        order = rng.sample(range(2), 2)
        prompt = judge_prompt("pairwise", question.text, [response.text for response in item.responses], order)
        return Lesson(scene, (Turn(prompt, right_judgment(item, "pairwise", order)),))

    return make


def _even(kinds: Sequence[str]) -> Callable[[random.Random], Lesson]:
    """Compare two wordings of one claim, so that either verdict will do: it keeps a judge from liking one position."""

    def make(rng: random.Random) -> Lesson:
        scene, question = ask(rng.choice(kinds), rng, "weights")
        claim = rng.choice((question.right, rng.choice(question.wrong)))
        wordings = list(dict.fromkeys(word(claim, rng) for _ in range(20)))
        prompt = judge_prompt("pairwise", question.text, [wordings[0], wordings[-1]])
        return Lesson(scene, (Turn(prompt, write_judgment(question.evidence, winner=rng.choice((1, 2)))),))

    return make


def _misread(verdict_shown: bool) -> Callable[[random.Random], Lesson]:
    """Judge things that the picture shows otherwise; its verdict follows what it says was seen.

    What is misread cannot be told from the picture, so the likeliest evidence stays the right one; but a judge that
    is sampled now and then errs in what it sees, and then in its verdict.
    """

    def make(rng: random.Random) -> Lesson:
        scene, question = ask(rng.choice(_FOLLOWING), rng, "weights")
        item = make_item(scene, question, 2, rng)
        order = rng.sample(range(2), 2)
        prompt = judge_prompt("pairwise", question.text, [response.text for response in item.responses], order)
        return Lesson(_disturbed(scene, rng), (Turn(prompt, right_judgment(item, "pairwise", order), verdict_shown),))

    return make


def _disturbed(scene: Scene, rng: random.Random) -> Scene:
    """Return the scene with most of its things of another colour, shape or size, or elsewhere."""
    while True:
        cells = list(scene.cells)
        for at, thing in scene.things:
            change = rng.choice((*_CHANGES, "place", None))
            if change == "place":
                free = [cell for cell, content in enumerate(cells) if content is None]
                cells[rng.choice(free)], cells[at] = thing, None
            elif change:
                cells[at] = replace(thing, **{change: rng.choice(_CHANGES[change])})
        disturbed = Scene(tuple(cells))
        if disturbed != scene and disturbed.pool == "weights":
            return disturbed


def _reading(rng: random.Random) -> Lesson:
    """Find the way between two answers: repeat one by its number, name one by its words, repeat the right one."""
    scene, question = ask(rng.choice(tuple(KINDS)), rng, "weights")
    item = make_item(scene, question, 2, rng)
    texts = [response.text for response in item.responses]
    right = 0 if item.responses[0].right else 1
    shown = judge_prompt("pairwise", question.text, texts).rsplit("\n", 1)[0]
    n = rng.randrange(2)
    turns = (
        Turn(f"{shown}\nRepeat answer {n + 1}.", texts[n]),
        Turn(f"{shown}\nWhich answer says this: {texts[n]}", f"Answer {n + 1}."),
        Turn(f"{shown}\nRepeat the better answer.", texts[right]),
    )
    return Lesson(scene, (rng.choice(turns),))


LESSONS: dict[str, Callable[[random.Random], Lesson]] = {
    "grid": _grid,
    "caption": _caption,
    "answers": _answering(tuple(KINDS)),
    "reasoning": _answering(("comparison", "relation", "same")),
    "counting": _counting,
    "reading": _reading,
    "pairwise": _judging("pairwise", verdict_shown=True),
    "pairwise_evidence": _judging("pairwise", verdict_shown=False),
    "pointwise": _judging("pointwise", verdict_shown=True),
    "pointwise_evidence": _judging("pointwise", verdict_shown=False),
    "ranking": _judging("ranking", verdict_shown=True),
    "ranking_evidence": _judging("ranking", verdict_shown=False),
    "weighing": _comparing(_WEIGHING),
    "placing": _comparing(_PLACING),
    "even": _even(tuple(KINDS)),
    "even_loose": _even(_LOOSE),
    "misread": _misread(verdict_shown=True),
    "misread_evidence": _misread(verdict_shown=False),
}
"""Every lesson by name; the `evidence` ones show no verdict."""
