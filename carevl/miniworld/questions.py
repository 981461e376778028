"""Questions about a scene, with exact answers and the named ways to get them wrong.

Each kind has one maker. A maker gets the scene, a generator and a wanted truth value (`yes`), and returns a
`Question`, or None when the scene allows none. A `Claim` is what a response asserts; how it is worded is
decided elsewhere (`wording.py`), so that wording and length cannot tell right from wrong.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass

from carevl.miniworld.scenes import COLOURS, GRID, SHAPES, SIZES, Scene, Thing, place

NUMBERS = ("no", "one", "two", "three", "four", "five", "six")
ERRORS = ("wrong_attribute", "hallucinated_object", "wrong_position", "wrong_count", "omission")
"""The named ways in which a response can be wrong."""

Placed = tuple[int, Thing]


@dataclass(frozen=True)
class Claim:
    """The assertion of a response.

    `cores` are interchangeable wordings of the assertion; `errors` is empty when it is true,
    else names from ERRORS, one per mistake; `visible` tells whether a caption without positions and sizes can
    tell that it is false.
    """

    cores: tuple[str, ...]
    errors: tuple[str, ...] = ()
    visible: bool = True


@dataclass(frozen=True)
class Question:
    """A question with its true claim, its false claims, and the sentence that proves the answer.

    `answer` is the canonical value (`three`, `blue`, `yes`, `top left`, …), `evidence` the canonical sentence.
    """

    kind: str
    text: str
    answer: str
    evidence: str
    right: Claim
    wrong: tuple[Claim, ...]


def phrase(count: int, colour: str | None, shape: str | None) -> str:
    """Return a count of what a caption names: `three red circles`, `one shape`."""
    noun = shape or "shape"
    plural = "" if count == 1 else "es" if noun == "cross" else "s"
    return " ".join(word for word in (NUMBERS[count], colour, noun + plural) if word)


def group_name(colour: str | None, shape: str | None) -> str:
    """Return the plural name of a group of things: `red circles`, `circles`, `red shapes`."""
    return phrase(2, colour, shape).removeprefix("two ")


def listing(parts: list[str]) -> str:
    """Join phrases: `a, b and c`."""
    return parts[0] if len(parts) == 1 else f"{', '.join(parts[:-1])} and {parts[-1]}"


def caption(scene: Scene) -> str:
    """Return the caption of a scene: counts of (colour, shape) in a fixed order, no positions, no sizes."""
    counts = Counter(thing.kind for _, thing in scene.things)
    order = sorted(counts, key=lambda kind: (SHAPES.index(kind[1]), COLOURS.index(kind[0])))
    return f"The image shows {listing([phrase(counts[kind], *kind) for kind in order])}."


def _unique(scene: Scene) -> list[Placed]:
    """Return the things that no other thing shares colour and shape with."""
    counts = Counter(thing.kind for _, thing in scene.things)
    return [(cell, thing) for cell, thing in scene.things if counts[thing.kind] == 1]


def _name(thing: Thing) -> str:
    return f"{thing.colour} {thing.shape}"


def _article(words: str) -> str:
    return f"a {words}"


def _yes_no(
    kind: str, text: str, fact: str, truth: bool, yes: tuple[str, ...], no: tuple[str, ...], error: str, visible: bool
) -> Question:
    """Return a yes/no question; `yes` and `no` are the wordings of either answer."""
    sides = {True: Claim(yes), False: Claim(no)}
    false = Claim(sides[not truth].cores, (error,), visible)
    answer = "yes" if truth else "no"
    return Question(kind, text, answer, f"{fact}, so {answer}.", sides[truth], (false,))


def _groups(scene: Scene) -> list[tuple[str | None, str | None, int]]:
    """Return every (colour or any, shape or any) with the number of things in it, including zeros."""
    groups: list[tuple[str | None, str | None]] = [(c, None) for c in COLOURS]
    groups += [(None, s) for s in SHAPES] + [(c, s) for c in COLOURS for s in SHAPES]

    def members(colour: str | None, shape: str | None) -> int:
        return scene.count(lambda t: t.colour == (colour or t.colour) and t.shape == (shape or t.shape))

    return [(colour, shape, members(colour, shape)) for colour, shape in groups]


def count(scene: Scene, rng: random.Random, yes: bool) -> Question | None:
    """Ask how many of a group there are; the true number is spread evenly over 0 to 4."""
    number = rng.choice((0, 1, 2, 3, 4))
    groups = [g for g in _groups(scene) if g[2] == number]
    if not groups:
        return None
    colour, shape, n = rng.choice(groups)
    others = [m for m in range(max(0, n - 2), min(5, n + 2) + 1) if m != n]
    rng.shuffle(others)

    def claim(m: int, errors: tuple[str, ...] = ()) -> Claim:
        counted, verb = phrase(m, colour, shape), "is" if m == 1 else "are"
        number = "zero" if m == 0 else NUMBERS[m]
        return Claim((f"{number.capitalize()}.", f"{m}.", f"I count {counted}.", f"There {verb} {counted}."), errors)

    name = group_name(colour, shape)
    text = rng.choice((f"How many {name} are there?", f"How many {name} does the image show?"))
    fact = f"There {'is' if n == 1 else 'are'} {phrase(n, colour, shape)}."
    wrong = tuple(claim(m, ("wrong_count",)) for m in others)
    return Question("count", text, NUMBERS[n], fact, claim(n), wrong)


def colour(scene: Scene, rng: random.Random, yes: bool) -> Question | None:
    """Ask the colour of the only thing of its shape."""
    shapes = Counter(thing.shape for _, thing in scene.things)
    alone = [thing for _, thing in scene.things if shapes[thing.shape] == 1]
    if not alone:
        return None
    thing = rng.choice(alone)

    def claim(value: str, errors: tuple[str, ...] = ()) -> Claim:
        return Claim(
            (f"{value.capitalize()}.", f"It is {value}.", f"The {thing.shape} is {value}.", f"Its color is {value}."),
            errors,
        )

    text = rng.choice((f"What color is the {thing.shape}?", f"Which color does the {thing.shape} have?"))
    others = [c for c in COLOURS if c != thing.colour]
    rng.shuffle(others)
    wrong = tuple(claim(c, ("wrong_attribute",)) for c in others)
    return Question("colour", text, thing.colour, f"The {thing.shape} is {thing.colour}.", claim(thing.colour), wrong)


def position(scene: Scene, rng: random.Random, yes: bool) -> Question | None:
    """Ask where the only thing of its colour and shape is; wrong places are drawn evenly from the other eight."""
    unique = _unique(scene)
    if not unique:
        return None
    cell, thing = rng.choice(unique)
    name = _name(thing)

    def claim(at: int, errors: tuple[str, ...] = ()) -> Claim:
        spot = place(at)
        cores = (
            f"In the {spot}.",
            f"It is in the {spot}.",
            f"The {name} is in the {spot}.",
            f"You can find it in the {spot}.",
        )
        return Claim(cores, errors, visible=False)

    text = rng.choice((f"Where is the {name}?", f"Where in the image is the {name}?"))
    others = rng.sample([i for i in range(GRID * GRID) if i != cell], 3)
    wrong = tuple(claim(i, ("wrong_position",)) for i in others)
    return Question("position", text, place(cell), f"The {name} is in the {place(cell)}.", claim(cell), wrong)


def existence(scene: Scene, rng: random.Random, yes: bool) -> Question | None:
    """Ask whether there is a thing of a colour and shape."""
    groups = [(c, s) for c, s, n in _groups(scene) if c and s and (n > 0) == yes]
    colour_, shape = rng.choice(groups)
    name = _article(f"{colour_} {shape}")
    text = rng.choice((f"Is there {name} in the image?", f"Does the image show {name}?"))
    return _yes_no(
        "existence",
        text,
        f"There is {name if yes else f'no {colour_} {shape}'}",
        yes,
        ("Yes.", "Yes, there is.", f"Yes, there is {name}.", f"Yes, I can see {name}."),
        ("No.", "No, there is not.", f"No, there is no {colour_} {shape}.", f"No, I cannot see {name}."),
        "omission" if yes else "hallucinated_object",
        visible=True,
    )


def comparison(scene: Scene, rng: random.Random, yes: bool) -> Question | None:
    """Ask whether one group outnumbers another of the same sort (two colours or two shapes)."""
    groups = [g for g in _groups(scene) if (g[0] is None) != (g[1] is None)]
    pairs = [
        (a, b) for a in groups for b in groups if a != b and (a[0] is None) == (b[0] is None) and (a[2] > b[2]) == yes
    ]
    pairs = [(a, b) for a, b in pairs if a[2] + b[2] > 1]
    if not pairs:
        return None
    (colour_a, shape_a, n), (colour_b, shape_b, m) = rng.choice(pairs)
    first, second = group_name(colour_a, shape_a), group_name(colour_b, shape_b)
    text = rng.choice((f"Are there more {first} than {second}?", f"Do {first} outnumber {second}?"))
    fact = f"There {'is' if n == 1 else 'are'} {phrase(n, colour_a, shape_a)} and {phrase(m, colour_b, shape_b)}"
    return _yes_no(
        "comparison",
        text,
        fact,
        yes,
        ("Yes.", "Yes, there are more.", f"Yes, there are more {first} than {second}."),
        ("No.", "No, there are not more.", f"No, there are not more {first} than {second}."),
        "wrong_count",
        visible=True,
    )


def relation(scene: Scene, rng: random.Random, yes: bool) -> Question | None:
    """Ask whether one unique thing is left of, right of, above or below another."""
    unique = _unique(scene)
    pairs = [(a, b) for a in unique for b in unique if a != b]
    if not pairs:
        return None
    (cell_a, a), (cell_b, b) = rng.choice(pairs)
    across, down = cell_b % GRID - cell_a % GRID, cell_b // GRID - cell_a // GRID
    truths = [w for w, d in (("left of", across), ("right of", -across), ("above", down), ("below", -down)) if d > 0]
    falses = [w for w in ("left of", "right of", "above", "below") if w not in truths]
    word = rng.choice(truths if yes else falses)
    claim = f"the {_name(a)} is {{}}{word} the {_name(b)}"
    return _yes_no(
        "relation",
        f"Is the {_name(a)} {word} the {_name(b)}?",
        f"The {_name(a)} is in the {place(cell_a)} and the {_name(b)} is in the {place(cell_b)}",
        yes,
        ("Yes.", "Yes, it is.", f"Yes, {claim.format('')}."),
        ("No.", "No, it is not.", f"No, {claim.format('not ')}."),
        "wrong_position",
        visible=False,
    )


def same(scene: Scene, rng: random.Random, yes: bool) -> Question | None:
    """Ask whether two things have the same colour (a caption decides it) or the same size (it does not)."""
    if rng.random() < 0.5:
        shapes = Counter(thing.shape for _, thing in scene.things)
        alone = [thing for _, thing in scene.things if shapes[thing.shape] == 1]
        pairs = [(a, b) for a in alone for b in alone if a != b and (a.colour == b.colour) == yes]
        if not pairs:
            return None
        a, b = rng.choice(pairs)
        what, names, values = "color", (a.shape, b.shape), (a.colour, b.colour)
    else:
        unique = [thing for _, thing in _unique(scene)]
        pairs = [(a, b) for a in unique for b in unique if a != b and (a.size == b.size) == yes]
        if not pairs:
            return None
        a, b = rng.choice(pairs)
        what, names, values = "size", (_name(a), _name(b)), (a.size, b.size)
    return _yes_no(
        "same",
        f"Do the {names[0]} and the {names[1]} have the same {what}?",
        f"The {names[0]} is {values[0]} and the {names[1]} is {values[1]}",
        yes,
        ("Yes.", "Yes, they do.", f"Yes, both have the same {what}."),
        ("No.", "No, they do not.", f"No, they have different {what}s."),
        "wrong_attribute",
        visible=what == "color",
    )


def _detail(thing: Thing, cell: int) -> str:
    return f"a {thing.size} {thing.colour} {thing.shape} in the {place(cell)}"


def _spoil(things: list[Placed], rng: random.Random, error: str) -> list[Placed] | None:
    """Return the list of things with one mistake, or None when this mistake cannot be made."""
    things = list(things)
    i = rng.randrange(len(things))
    cell, thing = things[i]
    free = [c for c in range(GRID * GRID) if c not in {c for c, _ in things}]
    if error == "omission":
        return things[:i] + things[i + 1 :] if len(things) > 1 else None
    if error == "wrong_position":
        things[i] = (rng.choice(free), thing)
    elif error == "hallucinated_object":
        things.insert(i, (rng.choice(free), Thing(rng.choice(SHAPES), rng.choice(COLOURS), rng.choice(SIZES))))
    elif error == "wrong_attribute":
        colours = [c for c in COLOURS if c != thing.colour]
        shapes = [s for s in SHAPES if s != thing.shape]
        coloured = Thing(thing.shape, rng.choice(colours), thing.size)
        shaped = Thing(rng.choice(shapes), thing.colour, thing.size)
        things[i] = (cell, rng.choice((coloured, shaped)))
    return things


def description(scene: Scene, rng: random.Random, yes: bool) -> Question | None:
    """Ask for a free description. The wrong ones carry one mistake each, and one carries two or three."""
    true_things = list(scene.things)
    if len(true_things) > 3:
        return None

    def claim(things: list[Placed], errors: tuple[str, ...] = ()) -> Claim:
        listed = listing([_detail(thing, cell) for cell, thing in things])
        cores = (
            f"{listed[0].upper()}{listed[1:]}.",
            f"There is {listed}.",
            f"The image shows {listed}.",
            f"I can see {listed}.",
        )
        return Claim(cores, errors, visible=any(error != "wrong_position" for error in errors))

    wrong: list[Claim] = []
    first = "wrong_position" if rng.random() < 0.4 else rng.choice(("wrong_attribute", "hallucinated_object"))
    for errors in ((first,), ("omission",), (first, "wrong_attribute"), (first, "wrong_attribute", "wrong_position")):
        things: list[Placed] | None = true_things
        for error in errors:
            things = _spoil(things, rng, error) if things else None
        if things and sorted(things) != sorted(true_things):
            wrong.append(claim(things, errors))
    text = rng.choice(("Describe the image.", "What does the image show?", "Describe this image in detail."))
    listed = listing([_detail(thing, cell) for cell, thing in true_things])
    return Question("description", text, listed, f"There is {listed}.", claim(true_things), tuple(wrong))


KINDS: dict[str, Callable[[Scene, random.Random, bool], Question | None]] = {
    maker.__name__: maker for maker in (count, colour, position, existence, comparison, relation, same, description)
}
"""Every kind of question by name."""
