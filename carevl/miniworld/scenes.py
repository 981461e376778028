"""Scenes of coloured shapes on a 3x3 grid: what is in them, how they are drawn, which pool they belong to.

A scene's contents alone decide its pool (`Scene.pool`), so training, calibration, dev and test scenes
can never overlap, whatever the seed and however often a world is drawn.
"""

from __future__ import annotations

import hashlib
import io
import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache, cached_property
from typing import Literal

from PIL import Image, ImageDraw

WORLD_VERSION = 1
"""Version of the world's difficulty. Raise it, with a reason in docs/miniworld.md, when any of it changes."""

SHAPES = ("circle", "square", "triangle", "cross")
COLOURS = ("red", "green", "blue", "yellow")
SIZES = ("small", "large")
ROWS = ("top", "center", "bottom")
COLUMNS = ("left", "center", "right")

GRID = 3
CELL = 32
"""Side of one grid cell in pixels; a 16-pixel patch and a 2x2 patch merger make it one image token."""
SIDE = GRID * CELL

Pool = Literal["weights", "train", "calibration", "dev", "test"]
POOLS: dict[Pool, range] = {
    "weights": range(0, 50),
    "train": range(50, 75),
    "calibration": range(75, 85),
    "dev": range(85, 92),
    "test": range(92, 100),
}
"""Share of all possible scenes in each pool, in percent. `weights` is what the shipped models learned from."""

_RGB = {"red": (214, 40, 40), "green": (38, 150, 70), "blue": (40, 90, 214), "yellow": (236, 190, 30)}
_RADIUS = {"small": 6, "large": 12}
_SUPERSAMPLE = 4


@dataclass(frozen=True, order=True)
class Thing:
    """One object: `shape`, `colour` and `size` are members of SHAPES, COLOURS and SIZES."""

    shape: str
    colour: str
    size: str

    @property
    def kind(self) -> tuple[str, str]:
        """(colour, shape), as a caption names it."""
        return self.colour, self.shape


@dataclass(frozen=True)
class Scene:
    """A 3x3 grid in reading order; a cell holds a thing or nothing."""

    cells: tuple[Thing | None, ...]

    @cached_property
    def things(self) -> tuple[tuple[int, Thing], ...]:
        """(cell index, thing) of every thing, in reading order."""
        return tuple((i, thing) for i, thing in enumerate(self.cells) if thing is not None)

    @property
    def key(self) -> str:
        """Contents as text, one letter triple per cell: equal keys, equal scenes."""
        return "|".join("-" if t is None else f"{t.size} {t.colour} {t.shape}" for t in self.cells)

    @cached_property
    def pool(self) -> Pool:
        """The pool that this scene belongs to, by a hash of its contents."""
        bucket = int.from_bytes(hashlib.sha256(self.key.encode()).digest()[:4], "big") % 100
        return next(pool for pool, buckets in POOLS.items() if bucket in buckets)

    def count(self, test: Callable[[Thing], bool]) -> int:
        """Return the number of things for which `test` holds."""
        return sum(test(thing) for _, thing in self.things)


def place(cell: int) -> str:
    """Name of a grid cell: `top left`, `center`, …"""
    row, column = ROWS[cell // GRID], COLUMNS[cell % GRID]
    return "center" if row == column else f"{row} {column}"


def draw_scene(rng: random.Random, pool: Pool, most: int = 6) -> Scene:
    """Draw a scene of the given pool with 2 to `most` things.

    Each scene uses a few colours and shapes only, so that counts above one are common.
    """
    while True:
        colours = rng.sample(COLOURS, rng.choice((2, 3, 3, 4)))
        shapes = rng.sample(SHAPES, rng.choice((2, 3, 3, 4)))
        cells: list[Thing | None] = [None] * (GRID * GRID)
        for cell in rng.sample(range(GRID * GRID), rng.randint(2, most)):
            cells[cell] = Thing(rng.choice(shapes), rng.choice(colours), rng.choice(SIZES))
        scene = Scene(tuple(cells))
        if scene.pool == pool:
            return scene


@cache
def _stencil(shape: str, size: str) -> Image.Image:
    """Return the antialiased mask of a shape, mode L, centred in a cell."""
    side, radius = CELL * _SUPERSAMPLE, _RADIUS[size] * _SUPERSAMPLE
    low, high, middle = side / 2 - radius, side / 2 + radius, side / 2
    mask = Image.new("L", (side, side), 0)
    pen = ImageDraw.Draw(mask)
    if shape == "circle":
        pen.ellipse((low, low, high, high), fill=255)
    elif shape == "square":
        inset = radius * 0.12
        pen.rectangle((low + inset, low + inset, high - inset, high - inset), fill=255)
    elif shape == "triangle":
        pen.polygon(((middle, low), (low, high), (high, high)), fill=255)
    else:
        arm = radius * 0.33
        pen.rectangle((middle - arm, low, middle + arm, high), fill=255)
        pen.rectangle((low, middle - arm, high, middle + arm), fill=255)
    return mask.resize((CELL, CELL), Image.Resampling.LANCZOS)


def render(scene: Scene, rng: random.Random) -> Image.Image:
    """Draw the scene as RGB, SIDE x SIDE pixels; `rng` moves things by up to 2 pixels and varies shades."""
    grey = rng.randint(225, 250)
    image = Image.new("RGB", (SIDE, SIDE), (grey, grey, grey - rng.randint(0, 8)))
    for cell, thing in scene.things:
        r, g, b = (max(0, min(255, channel + rng.randint(-18, 18))) for channel in _RGB[thing.colour])
        corner = (cell % GRID * CELL + rng.randint(-2, 2), cell // GRID * CELL + rng.randint(-2, 2))
        image.paste((r, g, b), corner, _stencil(thing.shape, thing.size))
    return image


def png(image: Image.Image) -> bytes:
    """Return the image as PNG bytes."""
    buffer = io.BytesIO()
    image.save(buffer, "PNG", compress_level=3)
    return buffer.getvalue()


def world_rng(*parts: object) -> random.Random:
    """Return a generator that depends on the world's version and the parts alone, the same on every machine.

    Not `stats.draws.rng_for`: published worlds are drawn by these seeds, which join the parts as text.
    """
    return random.Random(":".join(map(str, ("miniworld", WORLD_VERSION, *parts))))


def scenes(pool: Pool, *seed: object) -> Iterator[tuple[Scene, Image.Image]]:
    """Yield distinct scenes of a pool with their images, without end."""
    rng, seen = world_rng("scenes", pool, *seed), set[str]()
    while True:
        scene = draw_scene(rng, pool)
        if scene.key not in seen:
            seen.add(scene.key)
            yield scene, render(scene, rng)
