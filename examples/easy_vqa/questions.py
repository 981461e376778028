"""The package easy-vqa: its questions, what their answers tell of a picture, and sentences that say it.

```python
claim("is there not a blue shape?", "no")      # Claim(subject="blue shape", exists=True)
say("is there not a blue shape?", "no")        # "There is a blue shape."
say("what is the blue shape?", "rectangle")    # "The blue shape is a rectangle."
```
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from functools import cached_property
from importlib.util import find_spec
from pathlib import Path
from typing import Literal

from carevl.errors import UserError

Split = Literal["train", "test"]
Kind = Literal["colour", "shape", "presence", "absence"]
"""`absence` asks whether something is not there: `is there not a circle?`"""
KINDS: tuple[Kind, ...] = ("colour", "shape", "presence", "absence")
COLOURS = ("red", "green", "blue", "black", "yellow", "teal", "brown", "gray")
SHAPES = ("circle", "rectangle", "triangle")

_THERE = re.compile(
    r"(?:is there (?P<not>not )?a (?P<there>.+?)(?P<where> in the image)?"
    r"|is (?P<article>a|no) (?P<present>.+) present"
    r"|does the image (?P<lacks>not )?contain a (?P<contained>.+))\?"
)
_OPEN = {
    "what color is the (.+)?": "The {0} is {answer}.",
    "what is the color of the (.+)?": "The color of the {0} is {answer}.",
    "what shape is in the image?": "A {answer} is in the image.",
    "what shape is present?": "A {answer} is present.",
    "what shape does the image contain?": "The image contains a {answer}.",
    "what is the (.+)?": "The {0} is a {answer}.",
}
"""A question that is not answered by yes or no to the sentence that answers it."""


@dataclass(frozen=True)
class Asked:
    """A question about a picture, and the package's own answer: one word."""

    text: str
    answer: str

    @property
    def kind(self) -> Kind:
        """What is asked for."""
        if self.answer in COLOURS:
            return "colour"
        if self.answer in SHAPES:
            return "shape"
        there = claim(self.text, self.answer)
        return "presence" if there.exists == (self.answer == "yes") else "absence"

    @property
    def wrong(self) -> tuple[str, ...]:
        """Every wrong answer."""
        answers = COLOURS if self.answer in COLOURS else SHAPES if self.answer in SHAPES else ("yes", "no")
        return tuple(answer for answer in answers if answer != self.answer)


@dataclass(frozen=True)
class Claim:
    """What a yes or no says: whether there is a `blue shape`, or a `circle`."""

    subject: str
    exists: bool


@dataclass
class Picture:
    """A picture of the package with all its questions."""

    file: Path
    asked: list[Asked] = field(default_factory=list)

    @cached_property
    def sha256(self) -> str:
        """Hash of its bytes."""
        return hashlib.sha256(self.file.read_bytes()).hexdigest()

    @cached_property
    def shown(self) -> str | None:
        """Colour and shape of the one thing that it shows, as far as its answers tell: `red circle`; None if not."""
        words = [word for asked in self.asked for word in _told(asked)]
        colours = [word for word in words if word in COLOURS]
        shapes = [word for word in words if word in SHAPES]
        return f"{colours[0]} {shapes[0]}" if colours and shapes else None


def read(split: Split) -> list[Picture]:
    """Return the pictures of a split with their questions.

    Raises:
        UserError: the package is not installed.
    """
    package = find_spec("easy_vqa")
    if package is None or package.origin is None:
        raise UserError("the package easy-vqa is not installed; pip install --no-deps easy-vqa")
    folder = Path(package.origin).parent / "data" / split
    pictures: dict[int, Picture] = {}
    for question, answer, number in json.loads((folder / "questions.json").read_text(encoding="utf-8")):
        picture = pictures.setdefault(number, Picture(folder / "images" / f"{number}.png"))
        picture.asked.append(Asked(question, answer))
    return [pictures[number] for number in sorted(pictures)]


def claim(question: str, answer: str) -> Claim:
    """Return what a yes or no says.

    Raises:
        ValueError: the question asks for something else.
    """
    match = _THERE.fullmatch(question)
    if match is None:
        raise ValueError(f"{question!r} is not answered by yes or no")
    negated = bool(match["not"] or match["lacks"] or match["article"] == "no")
    return Claim(match["there"] or match["present"] or match["contained"], (answer == "yes") != negated)


def say(question: str, answer: str) -> str:
    """Return the sentence that gives an answer, in the words of its question; a yes or no as what it says is there.

    A bare Yes or No at its head would be what a language model weighs, whatever the picture shows.
    """
    if answer in ("yes", "no"):
        words = _word(question, claim(question, answer))
        return f"{words[0].upper()}{words[1:]}."
    for asked, sentence in _OPEN.items():
        if match := re.fullmatch(asked.replace("?", r"\?"), question):
            return sentence.format(*match.groups(), answer=answer)
    raise ValueError(f"{question!r}: no sentence answers it")


def observe(shown: str, question: str, answer: str) -> str:
    """Return what a witness says who sees `shown` and is asked what bears on a question."""
    if answer not in ("yes", "no"):
        return f"There is a {shown}."
    there, (colour, shape) = claim(question, answer), shown.split()
    if not there.exists:
        return f"There is a {shown} and no {there.subject}."
    return (
        f"There is a {shape}, a {colour} one." if there.subject in SHAPES else f"There is a {there.subject}, a {shape}."
    )


def _word(question: str, there: Claim) -> str:
    article = "a" if there.exists else "no"
    if question.startswith("does"):
        return f"the image contains {article} {there.subject}"
    place = " in the image" if question.endswith("in the image?") else ""
    return f"there is {article} {there.subject}{place}"


def _told(asked: Asked) -> Iterator[str]:
    """Yield the colours and shapes that a question and its answer say are there."""
    if asked.answer not in ("yes", "no"):
        yield asked.answer
        yield from _words(asked.text)
    elif (there := claim(asked.text, asked.answer)).exists:
        yield from _words(there.subject)


def _words(text: str) -> Iterable[str]:
    return text.rstrip("?").split()
