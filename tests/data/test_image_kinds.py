"""A picture in every kind of file has the same pixels, whoever decodes it."""

from __future__ import annotations

import io

import numpy as np
import pyarrow as pa
import pytest
from PIL import Image

from carevl.data.images import ImageLimits, decode_rgb, to_rgb
from carevl.data.pictures import decode_images, picture
from carevl.data.rows import RowError
from carevl.store.schemas import IMAGES
from tests.helpers.image_kinds import KINDS, PROFILE, draw_picture, expected

LIMITS = ImageLimits()
LOSSY = 16
"""Most that a channel of a file that keeps not every pixel may differ by."""


@pytest.mark.parametrize("kind", KINDS)
def test_the_pixels_of_a_kind_are_those_that_were_drawn(kind: str) -> None:
    drawn = draw_picture(4)
    difference = np.asarray(decode_rgb(KINDS[kind](drawn), LIMITS)).astype(int) - np.asarray(expected(kind, drawn))
    is_lossy = kind.startswith(("jpeg", "avif")) or kind.endswith(("lossy", "jpeg"))
    assert np.abs(difference).max() <= (LOSSY if is_lossy else 0)


def test_who_applied_the_profiles_would_be_found_out() -> None:
    from PIL import ImageCms

    applied = ImageCms.profileToProfile(
        draw_picture(4), ImageCms.ImageCmsProfile(io.BytesIO(PROFILE)), ImageCms.createProfile("sRGB")
    )
    assert applied is not None
    assert np.abs(np.asarray(applied).astype(int) - np.asarray(draw_picture(4))).max() > 3 * LOSSY


@pytest.mark.parametrize("kind", KINDS)
def test_images_that_are_open_or_decoded_ahead_have_the_same_pixels(kind: str) -> None:
    data = KINDS[kind](draw_picture(4))
    right = decode_rgb(data, LIMITS)
    table = pa.Table.from_pylist([{"image_id": "a", "bytes": data}], IMAGES)
    for shown in (
        to_rgb(Image.open(io.BytesIO(data))),
        picture(table.to_pylist()[0]),
        picture(decode_images(table).to_pylist()[0]),
    ):
        assert (shown.mode, shown.size) == ("RGB", right.size)
        assert shown.tobytes() == right.tobytes()


def test_an_open_image_of_32_bits_is_refused() -> None:
    with pytest.raises(RowError, match="the image has 32-bit pixels, whose range is unknown"):
        to_rgb(Image.new("I", (4, 4)))
