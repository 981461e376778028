"""Print how many pairs are taken for one picture: of pages of one form, where all are false, and of changed images."""

from __future__ import annotations

import io
import itertools
from pathlib import Path

from PIL import Image

from carevl.data.perceptual_hash import may_be_near_duplicates, signature_of
from carevl.data.pixel_comparison import show_the_same, view_of
from tests.data.test_pixel_comparison import crop, jpeg, scale
from tests.helpers.documents import PAGES, draw_page
from tests.helpers.sources import PHOTOS

PAGES_OF_EACH = 20
CHANGES = {
    "JPEG of quality 20": lambda image: jpeg(image, 20),
    "JPEG of quality 60": lambda image: jpeg(image, 60),
    "scaled to 0.25": lambda image: scale(image, 0.25),
    "scaled to 0.5": lambda image: scale(image, 0.5),
    "scaled to 0.9": lambda image: scale(image, 0.9),
    "scaled to 2": lambda image: scale(image, 2),
    "cropped by 1 % at each side": lambda image: crop(image, 0.01),
    "cropped by 2 % at each side": lambda image: crop(image, 0.02),
    "cropped by 3 % at each side": lambda image: crop(image, 0.03),
    "cropped by 5 % at each side": lambda image: crop(image, 0.05),
    "cropped by 1 %, scaled to 0.7, JPEG of quality 60": lambda image: jpeg(scale(crop(image, 0.01), 0.7), 60),
}


def count(pairs: list[tuple[Image.Image, Image.Image]]) -> tuple[int, int]:
    """The pairs that are alike by their signatures, and by their pixels as well."""
    alike = [pair for pair in pairs if may_be_near_duplicates(signature_of(pair[0]), signature_of(pair[1]))]
    return len(alike), sum(show_the_same(view_of(one), view_of(two)) for one, two in alike)


def main() -> None:
    photos = [Image.open(io.BytesIO(path.read_bytes())).convert("RGB") for path in sorted(Path(PHOTOS).glob("*.jpg"))]
    for kind in PAGES:
        pages = [draw_page(kind, seed) for seed in range(PAGES_OF_EACH)]
        pairs = list(itertools.combinations(pages, 2))
        print(f"| {kind}s | {len(pairs)} | {' | '.join(map(str, count(pairs)))} |", flush=True)
    for name, change in CHANGES.items():
        pairs = [(photo, change(photo)) for photo in photos]
        print(f"| photographs, {name} | {len(pairs)} | {' | '.join(map(str, count(pairs)))} |", flush=True)


if __name__ == "__main__":
    main()
