"""What is one picture and what is another page of the same form.

`python -m tests.data.near_duplicate_table` prints the figures of docs/data.md.
"""

from __future__ import annotations

import io
import itertools
from collections.abc import Callable

import pytest
from PIL import Image

from carevl.data.pixel_comparison import show_the_same, view_of
from tests.helpers.documents import PAGES, draw_page

CHANGES: dict[str, Callable[[Image.Image], Image.Image]] = {
    "compressed": lambda image: jpeg(image, 40),
    "scaled": lambda image: scale(image, 0.5),
    "enlarged": lambda image: scale(image, 1.5),
    "cropped": lambda image: crop(image, 0.02),
    "brighter": lambda image: image.point(lambda value: min(255, value + 6)),
    "cropped, scaled and compressed": lambda image: jpeg(scale(crop(image, 0.01), 0.7), 60),
}


def jpeg(image: Image.Image, quality: int) -> Image.Image:
    data = io.BytesIO()
    image.save(data, "JPEG", quality=quality)
    return Image.open(data).convert("RGB")


def scale(image: Image.Image, factor: float) -> Image.Image:
    return image.resize((round(image.width * factor), round(image.height * factor)), Image.Resampling.LANCZOS)


def crop(image: Image.Image, share: float) -> Image.Image:
    """The image without this share of it at each side."""
    across, down = round(image.width * share), round(image.height * share)
    return image.crop((across, down, image.width - across, image.height - down))


@pytest.mark.parametrize("change", CHANGES)
def test_a_changed_photograph_or_page_is_the_same_picture(change: str, photos: list[bytes]) -> None:
    images = [Image.open(io.BytesIO(data)).convert("RGB") for data in photos[::3]]
    images += [draw_page(kind, 0) for kind in PAGES]
    for image in images:
        assert show_the_same(view_of(image), view_of(CHANGES[change](image)))


def test_other_photographs_are_other_pictures(photos: list[bytes]) -> None:
    views = [view_of(Image.open(io.BytesIO(data)).convert("RGB")) for data in photos[:6]]
    assert not any(show_the_same(one, two) for one, two in itertools.combinations(views, 2))


@pytest.mark.parametrize("kind", PAGES)
def test_pages_of_one_form_are_other_pictures(kind: str) -> None:
    views = [view_of(draw_page(kind, seed)) for seed in range(4)]
    assert not any(show_the_same(one, two) for one, two in itertools.combinations(views, 2))


@pytest.mark.parametrize("kind", ["invoice", "table", "form"])
def test_one_line_tells_two_pages_apart(kind: str) -> None:
    page = draw_page(kind, 0)
    other = page.copy()
    other.paste(draw_page(kind, 1).crop((20, 205, 460, 225)), (20, 205))
    assert not show_the_same(view_of(page), view_of(other))
    assert not show_the_same(view_of(jpeg(page, 60)), view_of(other))


def test_a_colour_of_equal_brightness_tells_two_pictures_apart() -> None:
    images = [Image.new("RGB", (96, 96), "white") for _ in range(2)]
    for image, colour in zip(images, ((255, 0, 0), (0, 130, 0)), strict=True):
        image.paste(colour, (30, 30, 66, 66))
    assert not show_the_same(view_of(images[0]), view_of(images[1]))


def test_any_shape_is_compared() -> None:
    thin, plain = Image.new("RGB", (1000, 3), "red"), Image.new("RGB", (1, 1), "blue")
    for image in (thin, plain, thin.rotate(90, expand=True)):
        assert show_the_same(view_of(image), view_of(image))
    assert not show_the_same(view_of(thin), view_of(draw_page("chart", 0)))
