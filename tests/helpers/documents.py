"""Drawn pages of one form each, whose words and figures differ: invoices, forms, tables, screenshots and charts."""

from __future__ import annotations

import random
from collections.abc import Callable

from PIL import Image, ImageDraw, ImageFont

SIZE = (480, 600)


def draw_page(kind: str, seed: int) -> Image.Image:
    """A page of a kind of `PAGES`; another seed, other contents."""
    page = Image.new("RGB", SIZE, "white")
    PAGES[kind](ImageDraw.Draw(page), random.Random(f"{kind} {seed}"))
    return page


def _write(draw: ImageDraw.ImageDraw, x: int, y: int, text: object, colour: str = "black", size: int = 11) -> None:
    draw.text((x, y), str(text), fill=colour, font=ImageFont.load_default(size))


def _invoice(draw: ImageDraw.ImageDraw, rng: random.Random) -> None:
    draw.rectangle((20, 20, 460, 70), fill="#3c3c3c")
    _write(draw, 30, 40, "INVOICE", "white")
    for y in range(90, 570, 20):
        _write(draw, 30, y, f"Part {rng.randint(100, 999)} {rng.choice(['bolt', 'nut', 'gear'])} x{rng.randint(1, 99)}")
        _write(draw, 380, y, f"{rng.uniform(3, 99):.2f}")


def _form(draw: ImageDraw.ImageDraw, rng: random.Random) -> None:
    _write(draw, 30, 20, "Application 27-B", size=18)
    for n, name in enumerate(
        ("Name", "Street", "Town", "Born", "Phone", "Work", "Since", "Income", "Account", "Signed")
    ):
        y = 60 + 50 * n
        _write(draw, 30, y, name, "#5a5a5a")
        draw.rectangle((130, y - 6, 440, y + 24), outline="#787878")
        _write(draw, 138, y, "".join(rng.choices("abcdefghiklmnoprstu 0123456789", k=rng.randint(6, 24))), "navy")


def _table(draw: ImageDraw.ImageDraw, rng: random.Random) -> None:
    for y in range(30, 570, 22):
        draw.line((20, y, 460, y), fill="#b4b4b4")
        for x in range(20, 460, 73):
            _write(draw, x + 6, y + 4, rng.randint(0, 99_999))
    for x in range(20, 461, 73):
        draw.line((x, 30, x, 570), fill="#b4b4b4")


def _screenshot(draw: ImageDraw.ImageDraw, rng: random.Random) -> None:
    draw.rectangle((0, 0, 480, 40), fill="#24293c")
    draw.rectangle((0, 40, 110, 600), fill="#ebeef3")
    for n, name in enumerate(("Inbox", "Sent", "Drafts", "Spam", "Trash")):
        _write(draw, 16, 60 + 28 * n, name, "#3c3c3c")
    for y in range(50, 580, 38):
        draw.ellipse((124, y, 148, y + 24), fill=rng.choice(["#c85050", "#508cc8", "#5aaa5a"]))
        _write(draw, 160, y, " ".join(rng.choices(["meeting", "report", "lunch", "travel", "hello", "draft"], k=5)))
        _write(draw, 160, y + 14, " ".join(rng.choices(["on", "the", "we", "plan", "next", "week"], k=8)), "gray", 9)


def _chart(draw: ImageDraw.ImageDraw, rng: random.Random) -> None:
    draw.line((50, 40, 50, 550, 460, 550), fill="black")
    for n in range(8):
        x, height = 65 + 48 * n, rng.randint(380, 420)
        draw.rectangle((x, 550 - height, x + 30, 550), fill="#466eb4")
        _write(draw, x, 555, 2010 + n)
        _write(draw, x, 535 - height, height / 10)


PAGES: dict[str, Callable[[ImageDraw.ImageDraw, random.Random], None]] = {
    "invoice": _invoice,
    "form": _form,
    "table": _table,
    "screenshot": _screenshot,
    "chart": _chart,
}
