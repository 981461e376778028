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
from carevl.data.near_duplicates import NearDuplicates
from carevl.data.perceptual_hash import ImageSignature, are_near_duplicates, signature_of
from carevl.miniworld.items import draw_items
from carevl.miniworld.scenes import png


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
        assert are_near_duplicates(one, other) == (n == m)


def test_scenes_that_differ_in_one_shape_are_not_near() -> None:
    image = drawn(1)[0]
    signatures = [signature_of(image)]
    for colour in ("red", "orange", "blue", "black"):
        changed = image.copy()
        changed.paste(colour, (0, 0, image.width // 4, image.height // 4))
        signatures.append(signature_of(changed))
    assert not any(are_near_duplicates(one, two) for one, two in itertools.combinations(signatures, 2))


def test_equal_pixels_have_equal_signatures_whatever_the_file(draw: Callable[..., bytes]) -> None:
    signatures = {
        signature_of(Image.open(io.BytesIO(draw(kind, seed=9))).convert("RGB")) for kind in ("PNG", "BMP", "TIFF")
    }
    assert len(signatures) == 1


def collect(path: Path, images: dict[str, Image.Image]) -> NearDuplicates:
    alike = NearDuplicates(path / "signatures")
    for name, image in images.items():
        alike.add(image_id(name.encode()), signature_of(image))
    return alike


def test_planted_duplicates_are_found_among_drawn_scenes_and_nothing_else(tmp_path: Path) -> None:
    scenes = {f"scene {n}": image for n, image in enumerate(drawn(150))}
    planted = {
        f"copy {n}": CHANGES["larger" if n % 2 else "compressed"](scenes[f"scene {n}"]) for n in range(0, 150, 7)
    }
    compared, same = collect(tmp_path, scenes | planted).find()
    assert compared == len(scenes) + len(planted)
    names = {image_id(name.encode()): name for name in scenes | planted}
    assert {frozenset((names[one].split()[1], names[two].split()[1])) for one, two in same.items()} == {
        frozenset([str(n)]) for n in range(0, 150, 7)
    }


def test_images_alike_are_mapped_to_the_first_of_them_in_any_order(tmp_path: Path) -> None:
    image = drawn(1)[0]
    copies = {f"copy {n}": image.point(lambda value, n=n: min(255, value + n)) for n in range(5)}
    first = min(image_id(name.encode()) for name in copies)
    for order in (list(copies), list(copies)[::-1]):
        compared, same = collect(tmp_path, {name: copies[name] for name in order}).find()
        assert (compared, set(same.values()), len(same), first in same) == (5, {first}, 4, False)


def test_an_image_added_again_is_one_image(tmp_path: Path) -> None:
    alike = collect(tmp_path, {"one": drawn(1)[0]})
    alike.add(image_id(b"one"), signature_of(drawn(1)[0]))
    assert alike.find() == (1, {})
    assert NearDuplicates(tmp_path / "none").find() == (0, {})


def test_hashes_that_differ_in_a_few_bits_anywhere_are_found(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    alike = NearDuplicates(tmp_path / "signatures")
    bits = [int(bits) for bits in rng.integers(0, 2**63, 2000, dtype=np.uint64)]
    for n, hashed in enumerate(bits):
        flipped = sum(1 << int(bit) for bit in rng.choice(64, 4, replace=False))
        thumbnail = bytes(rng.integers(0, 256, 192, dtype=np.uint8))
        alike.add(image_id(b"%d" % n), ImageSignature(9, 9, hashed, thumbnail))
        alike.add(image_id(b"%d again" % n), ImageSignature(9, 9, hashed ^ flipped, thumbnail))
    compared, same = alike.find()
    assert compared == 4000
    assert len(same) > 0.99 * 2000
