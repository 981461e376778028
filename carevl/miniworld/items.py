"""Items: an image, a question and 2 to 4 responses whose truth is known exactly."""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass

from PIL import Image

from carevl.miniworld.questions import KINDS, Claim, Question
from carevl.miniworld.scenes import Pool, Scene, draw_scene, render, world_rng

_OPENINGS = ("", "", "", "Looking at the image, ", "From what I can see, ", "In this picture, ")
_CLOSINGS = ("", "", "", " I am sure of it.", " That is my answer.", " I looked closely to check this.")


@dataclass(frozen=True)
class Response:
    """One candidate answer; `errors` is empty when it is right."""

    text: str
    errors: tuple[str, ...]
    visible: bool
    rating: int
    """1 (bad) to 5 (right): what a careful person would give."""

    @property
    def right(self) -> bool:
        return not self.errors


@dataclass(frozen=True)
class Item:
    """A scene, a question about it and its responses, in the order in which they are published."""

    scene: Scene
    question: Question
    responses: tuple[Response, ...]

    @property
    def decidable(self) -> bool:
        """Whether a caption without positions and sizes tells every wrong response from every right one."""
        return all(response.visible for response in self.responses if not response.right)


def word(claim: Claim, rng: random.Random) -> str:
    """Word a claim; opening, wording and closing are drawn without regard to its truth."""
    core, opening = rng.choice(claim.cores), rng.choice(_OPENINGS)
    if opening and not core.startswith("I "):
        core = core[0].lower() + core[1:]
    return opening + core + rng.choice(_CLOSINGS)


def _rating(kind: str, errors: tuple[str, ...]) -> int:
    if kind == "description":
        return (5, 3, 2, 1)[len(errors)]
    return 1 if errors else 5


def respond(question: Question, claims: list[Claim], rng: random.Random) -> tuple[Response, ...]:
    """Return one response per claim, no two with the same words."""
    responses: list[Response] = []
    for claim in claims:
        text = word(claim, rng)
        while any(text == response.text for response in responses):
            text = word(claim, rng)
        responses.append(Response(text, claim.errors, claim.visible, _rating(question.kind, claim.errors)))
    return tuple(responses)


def make_item(scene: Scene, question: Question, n_responses: int, rng: random.Random) -> Item:
    """Return an item with at least one right and one wrong response, in random order."""
    n_wrong = 1 if n_responses == 2 else rng.randint(1, n_responses - 1)
    wrong = [question.wrong[i % len(question.wrong)] for i in range(n_wrong)]
    claims = [question.right] * (n_responses - n_wrong) + wrong
    rng.shuffle(claims)
    return Item(scene, question, respond(question, claims, rng))


def ask(kind: str, rng: random.Random, pool: Pool) -> tuple[Scene, Question]:
    """Draw a scene of the pool and a question of the kind about it; yes and no are equally frequent."""
    yes = rng.random() < 0.5
    while True:
        scene = draw_scene(rng, pool, most=3 if kind == "description" else 6)
        if question := KINDS[kind](scene, rng, yes):
            return scene, question


def questions_on(scene: Scene, first: Question, rng: random.Random, most: int) -> list[Question]:
    """Return up to `most` questions on a scene, of different kinds, beginning with `first`."""
    questions = [first]
    for kind in rng.sample([k for k in KINDS if k not in (first.kind, "description", "same")], most - 1):
        if question := KINDS[kind](scene, rng, rng.random() < 0.5):
            questions.append(question)
    return questions


def draw_items(
    pool: Pool, *seed: object, n_responses: tuple[int, ...] = (2,), per_image: int = 1
) -> Iterator[tuple[Image.Image, list[Item]]]:
    """Yield distinct images of a pool without end, each with 1 to `per_image` items; kinds take turns as the first."""
    rng, seen = world_rng("items", pool, *seed), set[str]()
    while True:
        for kind in KINDS:
            scene, first = ask(kind, rng, pool)
            while scene.key in seen:
                scene, first = ask(kind, rng, pool)
            seen.add(scene.key)
            questions = questions_on(scene, first, rng, rng.randint(1, per_image))
            items = [make_item(scene, question, rng.choice(n_responses), rng) for question in questions]
            yield render(scene, rng), items
