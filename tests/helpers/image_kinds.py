"""A small picture in every kind of file that is read: the same pixels, as near as the kind can hold them."""

from __future__ import annotations

import io
import struct
import zlib
from collections.abc import Callable

import numpy as np
from PIL import Image, ImageCms

SIZE = (24, 16)


def draw_picture(seed: int = 0) -> Image.Image:
    """An opaque picture: its upper left quarter is white, the rest of one colour."""
    red, green, blue = (40 + 37 * seed % 150, 40 + 91 * seed % 150, 40 + 53 * seed % 150)
    picture = Image.new("RGB", SIZE, (red, green, blue))
    picture.paste((255, 255, 255), (0, 0, SIZE[0] // 2, SIZE[1] // 2))
    return picture


def save(image: Image.Image, kind: str, **options: object) -> bytes:
    data = io.BytesIO()
    image.save(data, kind, **options)
    return data.getvalue()


def chunk(kind: bytes, body: bytes) -> bytes:
    """A chunk of a PNG file."""
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


def save_png_16(pixels: np.ndarray, colour_type: int) -> bytes:
    """A PNG of 16 bits a channel, of which Pillow writes the grey ones alone."""
    height, width = pixels.shape[:2]
    lines = b"".join(b"\0" + row.astype(">u2").tobytes() for row in pixels)
    header = struct.pack(">IIBBBBB", width, height, 16, colour_type, 0, 0, 0)
    body = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(lines)) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + body


def _exif(orientation: int) -> Image.Exif:
    exif = Image.Exif()
    exif[0x0112] = orientation
    return exif


def _clear_corner(picture: Image.Image) -> Image.Image:
    """The picture with its upper left quarter transparent, which is white once it is laid over white."""
    clear = picture.convert("RGBA")
    clear.paste((9, 9, 9, 0), (0, 0, SIZE[0] // 2, SIZE[1] // 2))
    return clear


def _stored(picture: Image.Image, orientation: int) -> Image.Image:
    """The picture as a camera stores it that was held so."""
    undo = {2: 0, 3: 3, 4: 1, 5: 5, 6: 2, 7: 6, 8: 4}
    return picture.transpose(Image.Transpose(undo[orientation]))


def _palette(picture: Image.Image) -> Image.Image:
    return picture.quantize(4)


def _clear_palette(picture: Image.Image) -> tuple[Image.Image, int]:
    """The picture by a palette, and which of its colours is transparent."""
    image = _palette(picture)
    return image, int(image.getpixel((0, 0)))


def _frames(picture: Image.Image) -> dict[str, object]:
    return {"save_all": True, "append_images": [picture.transpose(Image.Transpose.ROTATE_180)], "duration": 100}


def _of_16_bits(picture: Image.Image) -> np.ndarray:
    return np.asarray(picture).astype(np.uint16) * 256 + 77


def _profile() -> bytes:
    """A profile that makes red of blue: who applies it is found out."""
    data = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    head, tags = data[:128], data[128:]
    return head + tags.replace(b"rXYZ", b"....", 1).replace(b"bXYZ", b"rXYZ", 1).replace(b"....", b"bXYZ", 1)


PROFILE = _profile()

KINDS: dict[str, Callable[[Image.Image], bytes]] = {
    "jpeg": lambda p: save(p, "JPEG", quality=98, subsampling=0),
    "jpeg-progressive": lambda p: save(p, "JPEG", quality=98, subsampling=0, progressive=True),
    "jpeg-grey": lambda p: save(p.convert("L"), "JPEG", quality=98),
    "jpeg-cmyk": lambda p: save(p.convert("CMYK"), "JPEG", quality=98, subsampling=0),
    "jpeg-turned": lambda p: save(_stored(p, 6), "JPEG", quality=98, subsampling=0, exif=_exif(6)),
    "jpeg-profile": lambda p: save(p, "JPEG", quality=98, subsampling=0, icc_profile=PROFILE),
    "jpeg-several": lambda p: save(p, "MPO", quality=98, save_all=True, append_images=[p.rotate(180)]),
    "png": lambda p: save(p, "PNG"),
    "png-grey": lambda p: save(p.convert("L"), "PNG"),
    "png-bilevel": lambda p: save(p.point(lambda v: 255 * (v == 255)).convert("1"), "PNG"),
    "png-16-bits-grey": lambda p: save_png_16(_of_16_bits(p.convert("L")), 0),
    "png-16-bits": lambda p: save_png_16(_of_16_bits(p), 2),
    "png-16-bits-alpha": lambda p: save_png_16(_of_16_bits(_clear_corner(p)) | 0xFF, 6),
    "png-palette": lambda p: save(_palette(p), "PNG"),
    "png-palette-clear": lambda p: save(_clear_palette(p)[0], "PNG", transparency=_clear_palette(p)[1]),
    "png-alpha": lambda p: save(_clear_corner(p), "PNG"),
    "png-grey-alpha": lambda p: save(_clear_corner(p).convert("LA"), "PNG"),
    "png-clear-colour": lambda p: save(p, "PNG", transparency=(255, 255, 255)),
    "png-turned": lambda p: save(_stored(p, 5), "PNG", exif=_exif(5)),
    "png-profile": lambda p: save(p, "PNG", icc_profile=PROFILE),
    "png-animated": lambda p: save(p, "PNG", **_frames(p)),
    "webp": lambda p: save(p, "WEBP", lossless=True),
    "webp-lossy": lambda p: save(p, "WEBP", quality=98),
    "webp-alpha": lambda p: save(_clear_corner(p), "WEBP", lossless=True, exact=True),
    "webp-turned": lambda p: save(_stored(p, 8), "WEBP", lossless=True, exif=_exif(8)),
    "webp-animated": lambda p: save(p, "WEBP", lossless=True, **_frames(p)),
    "gif": lambda p: save(_palette(p), "GIF"),
    "gif-clear": lambda p: save(_clear_palette(p)[0], "GIF", transparency=_clear_palette(p)[1]),
    "gif-animated": lambda p: save(p, "GIF", **_frames(p)),
    "bmp": lambda p: save(p, "BMP"),
    "bmp-palette": lambda p: save(_palette(p), "BMP"),
    "tiff": lambda p: save(p, "TIFF"),
    "tiff-lzw": lambda p: save(p, "TIFF", compression="tiff_lzw"),
    "tiff-jpeg": lambda p: save(p, "TIFF", compression="jpeg", quality=98),
    "tiff-cmyk": lambda p: save(p.convert("CMYK"), "TIFF"),
    "tiff-16-bits-grey": lambda p: save(Image.fromarray(_of_16_bits(p.convert("L"))), "TIFF"),
    "tiff-turned": lambda p: save(_stored(p, 3), "TIFF", exif=_exif(3)),
    "tiff-profile": lambda p: save(p, "TIFF", icc_profile=PROFILE),
    "tiff-pages": lambda p: save(p, "TIFF", save_all=True, append_images=[p.rotate(180)]),
    "avif": lambda p: save(p, "AVIF", quality=98, subsampling="4:4:4"),
}
"""Name of a kind to what saves a picture as it."""

GREY = ("jpeg-grey", "png-grey", "png-16-bits-grey", "png-grey-alpha", "tiff-16-bits-grey")
"""Kinds without colours."""


def expected(kind: str, picture: Image.Image) -> Image.Image:
    """The pixels that are right for a kind: the picture's, as far as it holds colours."""
    if kind == "png-bilevel":
        return picture.point(lambda v: 255 * (v == 255))
    return picture.convert("L").convert("RGB") if kind in GREY else picture
