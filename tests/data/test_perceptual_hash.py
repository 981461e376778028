"""Near-duplicates: resized, compressed anew or retouched images are near, other images are not."""

from __future__ import annotations

import io
import itertools
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from carevl.data.images import image_id
from carevl.data.near_duplicates import NearDuplicates, confirm
from carevl.data.perceptual_hash import ImageSignature, may_be_near_duplicates, signature_of
from carevl.data.pixel_comparison import show_the_same, view_of
from carevl.miniworld.items import draw_items
from carevl.miniworld.scenes import png
from tests.helpers.documents import draw_page


def drawn(count: int) -> list[Image.Image]:
    scenes = itertools.islice(draw_items("train", 5), count)
    return [Image.open(io.BytesIO(png(image))).convert("RGB") for image, _ in scenes]


def jpeg(image: Image.Image, quality: int) -> Image.Image:
    data = io.BytesIO()
    image.save(data, "JPEG", quality=quality)
    return Image.open(data)


CHANGES: dict[str, Callable[[Image.Image], Image.Image]] = {
    "smaller": lambda image: image.resize((image.width * 9 // 10, image.height * 9 // 10)),
    "larger": lambda image: image.resize((image.width * 2, image.height * 2)),
    "compressed": lambda image: jpeg(image, 60),
    "brighter": lambda image: image.point(lambda value: min(255, value + 6)),
}


@pytest.mark.parametrize("change", CHANGES)
def test_a_changed_photograph_stays_near_and_others_are_far(change: str, photos: list[bytes]) -> None:
    images = [Image.open(io.BytesIO(data)).convert("RGB") for data in photos]
    plain, changed = ([signature_of(make(image)) for image in images] for make in (Image.Image.copy, CHANGES[change]))
    for (n, one), (m, other) in itertools.product(enumerate(plain), enumerate(changed)):
        assert may_be_near_duplicates(one, other) == (n == m)


def test_scenes_that_differ_in_one_shape_are_not_near() -> None:
    image = drawn(1)[0]
    scenes = [image]
    for colour in ("red", "orange", "blue", "black"):
        changed = image.copy()
        changed.paste(colour, (0, 0, image.width // 4, image.height // 4))
        scenes.append(changed)
    assert not any(show_the_same(view_of(one), view_of(two)) for one, two in itertools.combinations(scenes, 2))


def test_equal_pixels_have_equal_signatures_whatever_the_file(draw: Callable[..., bytes]) -> None:
    signatures = {
        signature_of(Image.open(io.BytesIO(draw(kind, seed=9))).convert("RGB")) for kind in ("PNG", "BMP", "TIFF")
    }
    assert len(signatures) == 1


def find(path: Path, images: dict[str, Image.Image]) -> tuple[int, dict[str, str]]:
    """The number of distinct images, and the names of those that are of one picture."""
    near_duplicates = NearDuplicates(path / "signatures")
    names = {image_id(name.encode()): name for name in images}
    for name, image in images.items():
        near_duplicates.add(image_id(name.encode()), signature_of(image))
    count, candidates = near_duplicates.candidates()
    same, _ = confirm(candidates, ((key, images[name]) for key, name in names.items()), path / "views")
    return count, {names[one]: names[two] for one, two in same.items()}


def test_planted_duplicates_are_found_among_drawn_scenes_and_nothing_else(tmp_path: Path) -> None:
    scenes = {f"scene {n}": image for n, image in enumerate(drawn(150))}
    planted = {
        f"copy {n}": CHANGES["larger" if n % 2 else "compressed"](scenes[f"scene {n}"]) for n in range(0, 150, 7)
    }
    compared, same = find(tmp_path, scenes | planted)
    assert compared == len(scenes) + len(planted)
    assert {frozenset((one.split()[1], two.split()[1])) for one, two in same.items()} == {
        frozenset([str(n)]) for n in range(0, 150, 7)
    }


def test_images_alike_are_mapped_to_the_first_of_them_in_any_order(tmp_path: Path) -> None:
    image = drawn(1)[0]
    copies = {f"copy {n}": image.point(lambda value, n=n: min(255, value + n)) for n in range(9)}
    first = min(copies, key=lambda name: image_id(name.encode()))
    for order in (list(copies), list(copies)[::-1]):
        compared, same = find(tmp_path, {name: copies[name] for name in order})
        assert (compared, set(same.values()), len(same), first in same) == (9, {first}, 8, False)


def test_pages_of_one_form_are_candidates_and_no_duplicates(tmp_path: Path) -> None:
    pages = {f"page {n}": draw_page("invoice", n) for n in range(5)}
    assert find(tmp_path, pages) == (5, {})
    copies = pages | {"copy": CHANGES["compressed"](pages["page 3"])}
    _, same = find(tmp_path, copies)
    assert [{one, two} for one, two in same.items()] == [{"copy", "page 3"}]


def test_an_image_added_again_is_one_image(tmp_path: Path) -> None:
    alike = NearDuplicates(tmp_path / "signatures")
    for _ in range(2):
        alike.add(image_id(b"one"), signature_of(drawn(1)[0]))
    assert alike.candidates() == (1, {})
    assert NearDuplicates(tmp_path / "none").candidates() == (0, {})


def test_hashes_that_differ_in_a_few_bits_anywhere_are_found(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    alike = NearDuplicates(tmp_path / "signatures")
    bits = [int(bits) for bits in rng.integers(0, 2**63, 2000, dtype=np.uint64)]
    for n, hashed in enumerate(bits):
        flipped = sum(1 << int(bit) for bit in rng.choice(64, 4, replace=False))
        thumbnail = bytes(rng.integers(0, 256, 192, dtype=np.uint8))
        alike.add(image_id(b"%d" % n), ImageSignature(9, 9, hashed, thumbnail))
        alike.add(image_id(b"%d again" % n), ImageSignature(9, 9, hashed ^ flipped, thumbnail))
    compared, candidates = alike.candidates()
    assert compared == 4000
    assert len(candidates) > 0.99 * 2000
