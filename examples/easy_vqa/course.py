"""What captioner and base judge are taught: half of the package's training pictures, with their answers.

Seeing comes first: captions, answers, and observations that bear on a question. Then judgments whose verdicts are not
shown, and verdicts at last: fewer than a good judge needs. What it lacks, questions without answers are to teach it.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import cached_property
from typing import TYPE_CHECKING

from PIL.Image import open as open_image
from PIL.ImageOps import mirror

from carevl.judging.prompts import judge_prompt, write_judgment
from carevl.miniworld.lessons import Turn
from carevl.miniworld.schooling import Course, Stage
from examples.easy_vqa.data import divide
from examples.easy_vqa.questions import KINDS, Asked, Picture, observe, say

if TYPE_CHECKING:
    from PIL.Image import Image

CAPTION_PROMPT = "Describe the image."
TESTIMONY_PROMPT = "What in the image bears on this question? Do not answer it.\n{question}"


STAGES = (
    Stage("see", None, {"caption": 0.4, "answers": 0.6}, 40, 5e-3, 3e-3),
    Stage("captioner", "see", {"caption": 1.0}, 6, 1e-3, 3e-5),
    Stage(
        "practise",
        "see",
        {"answers": 0.2, "observations": 0.15, "reading": 0.25, "pairwise_evidence": 0.4},
        30,
        3e-3,
        1e-3,
    ),
    Stage("judge", "practise", {"answers": 0.2, "observations": 0.2, "reading": 0.1, "pairwise": 0.5}, 6, 1e-3, 1e-5),
)


class EasyVqa(Course):
    """Lessons about the pictures of `lessons`, those whose answers tell what they show.

    Args:
        share: of each stage's lessons.
    """

    compiled = False

    def __init__(self, share: float = 1.0) -> None:
        self.stages = [replace(stage, chunks=max(1, round(share * stage.chunks))) for stage in STAGES]

    @cached_property
    def pictures(self) -> list[Picture]:
        """The pictures of the first half that the course is about."""
        return [picture for picture in divide()["lessons"] if picture.shown is not None]

    def texts(self) -> Iterator[str]:
        rng = random.Random(0)
        for _ in range(1000):
            for lesson in ("caption", "answers", "observations", "reading", "pairwise"):
                yield from (f"{turn.prompt}\n{turn.reply}" for turn in self._turns(lesson, rng)[1])

    def draw(self, lesson: str, rng: random.Random) -> tuple[Image, Sequence[Turn]]:
        picture, turns = self._turns(lesson, rng)
        image = open_image(picture.file).convert("RGB")
        return (mirror(image) if rng.random() < 0.5 else image), turns

    def _turns(self, lesson: str, rng: random.Random) -> tuple[Picture, list[Turn]]:
        picture = rng.choice(self.pictures)
        if lesson == "caption":
            return picture, [Turn(CAPTION_PROMPT, f"There is a {picture.shown}.")]
        kind = rng.choice([kind for kind in KINDS if any(asked.kind == kind for asked in picture.asked)])
        asked = rng.choice([asked for asked in picture.asked if asked.kind == kind])
        return picture, _LESSONS[lesson](picture, asked, rng)


def _answers(picture: Picture, asked: Asked, rng: random.Random) -> list[Turn]:
    chosen = [asked, *rng.sample(picture.asked, min(2, len(picture.asked)))]
    return [Turn(each.text, say(each.text, each.answer)) for each in chosen]


def _observations(picture: Picture, asked: Asked, rng: random.Random) -> list[Turn]:
    chosen = [asked, *rng.sample(picture.asked, min(2, len(picture.asked)))]
    return [Turn(TESTIMONY_PROMPT.format(question=each.text), _observe(picture, each)) for each in chosen]


def _reading(picture: Picture, asked: Asked, rng: random.Random) -> list[Turn]:
    """Find the way between two answers: repeat one by its number, or name one by its words."""
    texts, _ = _answers_shown(asked, rng)
    shown = judge_prompt("pairwise", asked.text, texts).rsplit("\n", 1)[0]
    n = rng.randrange(2)
    turns = (
        Turn(f"{shown}\nRepeat answer {n + 1}.", texts[n]),
        Turn(f"{shown}\nWhich answer says this: {texts[n]}", f"Answer {n + 1}."),
    )
    return [rng.choice(turns)]


def _judging(verdict_shown: bool) -> Lesson:
    def make(picture: Picture, asked: Asked, rng: random.Random) -> list[Turn]:
        texts, right = _answers_shown(asked, rng)
        judgment = write_judgment(_observe(picture, asked), winner=right + 1)
        return [Turn(judge_prompt("pairwise", asked.text, texts), judgment, verdict_shown)]

    return make


def _answers_shown(asked: Asked, rng: random.Random) -> tuple[list[str], int]:
    """Return a right and a wrong sentence in either order, and which is right: 0 or 1."""
    right = rng.randrange(2)
    texts = [say(asked.text, answer) for answer in (asked.answer, rng.choice(asked.wrong))]
    return (texts if right == 0 else texts[::-1]), right


def _observe(picture: Picture, asked: Asked) -> str:
    return observe(picture.shown or "", asked.text, asked.answer)


Lesson = Callable[[Picture, Asked, random.Random], list[Turn]]
_LESSONS: dict[str, Lesson] = {
    "answers": _answers,
    "observations": _observations,
    "reading": _reading,
    "pairwise": _judging(verdict_shown=True),
    "pairwise_evidence": _judging(verdict_shown=False),
}
