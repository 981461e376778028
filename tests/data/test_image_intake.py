"""What counts as an image, what is refused before decoding, and what RGB comes out."""

from __future__ import annotations

import hashlib
import io
import struct
import zlib
from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from carevl.data.images import ImageLimits, bound_pixels, decode_rgb, examine, identify
from carevl.data.rows import RowError

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning", "ignore::PIL.Image.DecompressionBombWarning")

LIMITS = ImageLimits()
KINDS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF")


def saved(image: Image.Image, kind: str, **options: object) -> bytes:
    data = io.BytesIO()
    image.save(data, kind, **options)
    return data.getvalue()


def noise(size: tuple[int, int] = (64, 48), bands: int = 3) -> Image.Image:
    pixels = np.random.default_rng(0).integers(0, 256, (size[1], size[0], bands), dtype=np.uint8)
    return Image.fromarray(pixels.squeeze())


def chunk(kind: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


def png_claiming(width: int, height: int, body: bytes = b"") -> bytes:
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(body)) + chunk(b"IEND", b"")


def refused(data: bytes, limits: ImageLimits = LIMITS) -> RowError:
    with pytest.raises(RowError) as one:
        identify(data, limits)
    with pytest.raises(RowError) as two:
        decode_rgb(data, limits)
    assert (one.value.kind, one.value.message) == (two.value.kind, two.value.message)
    return one.value


@pytest.mark.parametrize("kind", KINDS)
def test_each_format_is_known_by_its_bytes(kind: str) -> None:
    data = saved(noise(), kind)
    facts = identify(data, LIMITS)
    assert (facts.format, facts.width, facts.height) == (kind, 64, 48)
    assert facts.image_id == hashlib.sha256(data).hexdigest()
    assert decode_rgb(data, LIMITS).mode == "RGB"


def test_photographs_decode_as_pillow_decodes_them(photos: list[bytes]) -> None:
    formats = []
    for data in photos:
        plain = Image.open(io.BytesIO(data)).convert("RGB")
        facts = identify(data, LIMITS)
        formats.append(facts.format)
        assert (facts.width, facts.height) == plain.size
        assert decode_rgb(data, LIMITS).tobytes() == plain.tobytes()
    assert sorted(formats) == ["JPEG"] * 8 + ["WEBP"] * 2  # two of the .jpg files are WebP inside


def test_cut_photographs_are_refused(photos: list[bytes]) -> None:
    for data in photos:
        assert refused(data[: len(data) // 2]).kind == "image_broken"


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("keep", [0.1, 0.5, 0.9])
def test_cut_files_are_refused(kind: str, keep: float) -> None:
    data = saved(noise(), kind)
    assert refused(data[: int(len(data) * keep)]).kind == "image_broken"


@pytest.mark.parametrize(
    "data",
    [
        b"<svg xmlns='http://www.w3.org/2000/svg' width='9' height='9'/>",
        b"<!DOCTYPE html><html><body>404</body></html>",
        b"%PDF-1.7",
        b"\x00" * 100,
        b"\xff\xd8\xff\xe0",
        b"\x89PNG\r\n\x1a\n",
        b"RIFF\x10\x00\x00\x00WEBPVP8 ",
        b"GIF89a\xff\xff\xff\xff",
        b"II*\x00\xff\xff\xff\x7f",
        saved(noise(), "PPM"),
        saved(noise((16, 16)), "ICO"),
    ],
)
def test_what_is_no_image_is_refused(data: bytes) -> None:
    assert refused(data).kind == "image_broken"


def test_zero_bytes_are_refused() -> None:
    assert refused(b"").message == "the image has zero bytes"


@pytest.mark.parametrize("size", [(10_000, 5_001), (30_000, 30_000), (65_500, 65_500)])
def test_a_bomb_is_refused_by_its_header(size: tuple[int, int]) -> None:
    error = refused(png_claiming(*size))
    assert error.kind == "image_too_large"


def test_real_bombs_are_refused_in_every_format_before_decoding() -> None:
    limits = ImageLimits(max_image_pixels=64 * 48 - 1)
    for kind in KINDS:
        data = saved(noise(), kind)
        assert refused(data, limits).message == "64 x 48 pixels, over max_image_pixels 3071"
        cut = data[: len(data) * 2 // 3] if kind not in ("WEBP", "TIFF") else data
        assert refused(cut, limits).kind == "image_too_large"
        assert identify(data, ImageLimits(max_image_pixels=64 * 48)).width == 64


def test_a_compressed_text_bomb_in_png_is_refused() -> None:
    text = chunk(b"zTXt", b"key\0\0" + zlib.compress(b"x" * (200 << 20)))
    data = saved(noise(), "PNG")
    assert refused(data[:33] + text + data[33:]).kind == "image_broken"


def test_a_png_that_lies_about_its_size_is_refused() -> None:
    assert refused(png_claiming(100, 100, b"\0" * 50)).kind == "image_broken"


def test_bytes_over_the_cap_are_refused_unopened() -> None:
    error = refused(b"x" * 1001, ImageLimits(max_image_bytes=1000))
    assert (error.kind, error.message) == ("image_too_large", "1001 bytes, over max_image_bytes 1000")


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "TIFF"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_is_applied(kind: str, orientation: int) -> None:
    upright = Image.new("RGB", (40, 24), "black")
    upright.paste((255, 255, 255), (0, 0, 20, 12))
    undo = {2: 0, 3: 3, 4: 1, 5: 5, 6: 2, 7: 6, 8: 4}
    stored = upright.transpose(Image.Transpose(undo[orientation])) if orientation > 1 else upright
    exif = Image.Exif()
    exif[0x0112] = orientation
    options = {"quality": 95} if kind in ("JPEG", "WEBP") else {}
    data = saved(stored, kind, exif=exif, **options)
    facts = identify(data, LIMITS)
    assert (facts.width, facts.height) == (40, 24)
    found = np.asarray(decode_rgb(data, LIMITS)).astype(int)
    assert np.abs(found - np.asarray(upright)).mean() < 6


def test_damaged_exif_counts_as_upright() -> None:
    for exif in (b"Exif\0\0garbage", b"Exif\0\0II*\0\xff\xff\xff\xff", b"Exif\0\0MM\0*\0\0\0\x08\xff\xff"):
        assert identify(saved(noise(), "JPEG", exif=exif), LIMITS).width == 64


def test_transparency_is_laid_over_white() -> None:
    for clear in (
        saved(Image.new("RGBA", (4, 4), (0, 0, 0, 0)), "PNG"),
        saved(Image.new("LA", (4, 4), (0, 0)), "PNG"),
        saved(Image.new("RGBA", (4, 4), (0, 0, 0, 0)), "WEBP", lossless=True),
        saved(Image.new("P", (4, 4), 0), "PNG", transparency=0),
        saved(Image.new("RGB", (4, 4), (1, 2, 3)), "PNG", transparency=(1, 2, 3)),
        saved(Image.new("P", (4, 4), 0), "GIF", transparency=0),
    ):
        assert set(decode_rgb(clear, LIMITS).tobytes()) == {255}
    half = saved(Image.new("RGBA", (4, 4), (255, 0, 0, 128)), "PNG")
    assert decode_rgb(half, LIMITS).getpixel((0, 0)) == (255, 127, 127)


def test_sixteen_bit_grey_keeps_its_upper_half() -> None:
    ramp = (np.arange(256, dtype=np.uint16) * 257).reshape(16, 16)
    for kind in ("PNG", "TIFF"):
        found = np.asarray(decode_rgb(saved(Image.fromarray(ramp), kind), LIMITS))
        assert (found == (ramp >> 8)[:, :, None]).all()


def test_cmyk_palette_grey_and_bilevel_become_rgb() -> None:
    red = Image.new("RGB", (16, 16), (255, 0, 0))
    for data, expected in (
        (saved(red.convert("CMYK"), "JPEG", quality=100), (255, 0, 0)),
        (saved(red.convert("CMYK"), "TIFF"), (255, 0, 0)),
        (saved(red.convert("P"), "PNG"), (255, 0, 0)),
        (saved(red.quantize(4), "GIF"), (255, 0, 0)),
        (saved(Image.new("L", (16, 16), 77), "PNG"), (77, 77, 77)),
        (saved(Image.new("1", (16, 16), 1), "TIFF"), (255, 255, 255)),
    ):
        found = decode_rgb(data, LIMITS)
        assert found.mode == "RGB"
        assert np.abs(np.asarray(found).astype(int) - expected).max() <= 3


def test_pixels_without_a_known_range_are_refused() -> None:
    assert "range is unknown" in refused(saved(Image.new("F", (4, 4), 0.5), "TIFF")).message


def test_only_the_first_frame_counts() -> None:
    frames = [Image.new("RGB", (8, 8), colour) for colour in ("red", "blue")]
    for kind in ("GIF", "WEBP", "PNG", "TIFF"):
        data = saved(frames[0], kind, save_all=True, append_images=frames[1:])
        found = decode_rgb(data, LIMITS).getpixel((4, 4))
        assert isinstance(found, tuple)
        assert found[0] > 240
        assert found[2] < 15


def test_a_jpeg_with_further_pictures_is_a_jpeg() -> None:
    data = saved(noise(), "MPO", save_all=True, append_images=[noise()])
    assert identify(data, LIMITS).format == "JPEG"


def test_any_damage_ends_in_facts_or_a_row_error(draw: Callable[..., bytes]) -> None:
    rng = np.random.default_rng(1)
    outcomes = {"good": 0, "error": 0}
    for kind in KINDS:
        data = saved(noise((24, 16)), kind)
        for _ in range(80):
            broken = bytearray(data)
            for at in rng.integers(0, min(len(data), 200), 4):
                broken[at] = rng.integers(0, 256)
            try:
                identify(bytes(broken), ImageLimits(max_image_pixels=1_000_000))
                decode_rgb(bytes(broken), ImageLimits(max_image_pixels=1_000_000))
                outcomes["good"] += 1
            except RowError:
                outcomes["error"] += 1
    assert min(outcomes.values()) > 20


@pytest.mark.parametrize(
    ("size", "pixels", "bounded"),
    [
        ((4032, 3024), 1_048_576, (1182, 886)),
        ((3024, 4032), 1_048_576, (886, 1182)),
        ((1024, 1024), 1_048_576, (1024, 1024)),
        ((64, 48), 768, (32, 24)),
        ((64, 48), 1, (1, 1)),
        ((5000, 1), 100, (100, 1)),
        ((1, 5000), 100, (1, 100)),
        ((4032, 7), 3, (3, 1)),
    ],
)
def test_images_are_resized_to_the_bound_and_keep_their_shape(
    size: tuple[int, int], pixels: int, bounded: tuple[int, int]
) -> None:
    assert bound_pixels(Image.new("RGB", size), pixels).size == bounded


@given(width=st.integers(1, 400), height=st.integers(1, 400), pixels=st.integers(1, 2000))
def test_no_image_is_larger_than_the_bound_and_none_grows(width: int, height: int, pixels: int) -> None:
    bounded = bound_pixels(Image.new("RGB", (width, height)), pixels)
    assert 1 <= bounded.width * bounded.height <= max(pixels, 1)
    assert bounded.width <= width
    assert bounded.height <= height
    assert width * height > pixels or bounded.size == (width, height)


def test_a_bound_changes_the_pixels_but_not_what_the_image_is() -> None:
    image = noise((640, 480))
    exif = image.getexif()
    exif[0x0112] = 6
    data = saved(image, "PNG", exif=exif)
    upright = decode_rgb(data, LIMITS)
    assert decode_rgb(data, LIMITS, 640 * 480).tobytes() == upright.tobytes()
    bounded = decode_rgb(data, LIMITS, 10_000)
    assert bounded.tobytes() == upright.resize((86, 115), Image.Resampling.LANCZOS).tobytes()
    facts, original = examine(data, LIMITS)
    assert (facts.width, facts.height, original.size) == (480, 640, (480, 640))


def test_photographs_are_bounded(photos: list[bytes]) -> None:
    originals = [decode_rgb(data, LIMITS) for data in photos]
    bounded = [decode_rgb(data, LIMITS, 200_000) for data in photos]
    assert any(image.width * image.height > 200_000 for image in originals)
    for image, small in zip(originals, bounded, strict=True):
        assert small.width * small.height <= 200_000
        assert small.width / small.height == pytest.approx(image.width / image.height, rel=0.01)


def test_a_palette_that_is_missing_is_a_broken_image() -> None:
    header = struct.pack(">IIBBBBB", 4, 4, 8, 3, 0, 0, 0)
    body = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"\0" * 20)) + chunk(b"IEND", b"")
    assert refused(b"\x89PNG\r\n\x1a\n" + body).kind == "image_broken"


def test_a_damaged_chunk_is_named() -> None:
    data = saved(noise(), "PNG", icc_profile=b"x" * 40)
    place = data.index(b"iCCP") + 10
    assert "iCCP" in refused(data[:place] + b"?" + data[place + 1 :]).message


def test_avif_is_an_image_and_the_first_frame_of_an_animation_is_seen() -> None:
    assert identify(saved(noise(), "AVIF"), LIMITS).format == "AVIF"
    frames = [Image.new("RGB", (16, 16), colour) for colour in ("red", "blue")]
    for kind in ("GIF", "WEBP", "PNG", "TIFF"):
        data = saved(frames[0], kind, save_all=True, append_images=frames[1:])
        red, _, blue = decode_rgb(data, LIMITS).getpixel((8, 8))  # type: ignore[misc]
        assert (red > 200, blue < 60) == (True, True)
