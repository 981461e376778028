"""Safe image intake: the kind of a file by its content, whether it decodes, and its pixels as RGB.

The bytes decide what an image is, never its name. Size in bytes and in pixels is checked before a pixel is decoded.
Models see images no larger than `data.resize_pixels`; identity, facts and near-duplicates are those of the original.
"""

from __future__ import annotations

import hashlib
import io
import math
from dataclasses import dataclass

import numpy as np
from PIL import Image, UnidentifiedImageError

from carevl.data.rows import RowError
from carevl.data.video_files import video_kind

FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "AVIF")
_ORIENTATION = 0x0112
_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
"""EXIF orientation to the operation that undoes it (EXIF 2.32, tag 274)."""


@dataclass(frozen=True)
class ImageLimits:
    """Caps that hold before decoding; those of an item, which may have several images, before any model sees them."""

    max_image_bytes: int = 64 << 20
    max_image_pixels: int = 50_000_000
    max_images: int = 8
    max_item_pixels: int = 100_000_000

    def check_count(self, n_images: int, n_frames: int = 0) -> None:
        """Refuse an item of too many images, of which some are frames of videos. Raises RowError."""
        if n_images > self.max_images:
            frames = f", of which {n_frames} are frames (data.video has their number)" if n_frames else ""
            message = f"{n_images} images{frames}, more than data.max_images = {self.max_images} allows"
            raise RowError("images_many", message)

    def check_pixels(self, n_pixels: int) -> None:
        """Refuse an item whose images have too many pixels together. Raises RowError."""
        if n_pixels > self.max_item_pixels:
            raise RowError(
                "image_too_large",
                f"its images have {n_pixels:,} pixels; data.max_item_pixels = {self.max_item_pixels:,} are allowed",
            )


@dataclass(frozen=True)
class ImageFacts:
    """Facts of an image for the `images` table; width and height in pixels, EXIF orientation applied."""

    image_id: str
    format: str
    width: int
    height: int


def image_id(data: bytes) -> str:
    """Return the identity of an image: SHA-256 of its original bytes, in hexadecimal."""
    return hashlib.sha256(data).hexdigest()


def identify(data: bytes, limits: ImageLimits) -> ImageFacts:
    """Decode an image once to prove that it is whole, and return its facts.

    Raises:
        RowError: over a cap, not one of FORMATS, truncated, or otherwise undecodable.
    """
    return examine(data, limits)[0]


def decode_rgb(data: bytes, limits: ImageLimits, resize_pixels: int | None = None) -> Image.Image:
    """Return the first frame as `to_rgb` has it: how captioner, judge, training and benchmarks see an image.

    Args:
        resize_pixels: as for `bound_pixels`.

    Raises:
        RowError: as `identify`.
    """
    return bound_pixels(examine(data, limits)[1], resize_pixels)


def bound_pixels(image: Image.Image, resize_pixels: int | None) -> Image.Image:
    """Return an image as it is, or resized to at most so many pixels.

    The aspect ratio stays, up to rounding down to whole pixels; both sides have one at least. The filter is Lanczos,
    widened to cover all that a pixel is made of, in Pillow's integer arithmetic: the same pixels on every machine.

    Args:
        resize_pixels: most pixels; None: the image stays as it is.
    """
    width, height = image.size
    if resize_pixels is None or width * height <= resize_pixels:
        return image
    # A side that would be less than a pixel has one, and then the other is no longer than the bound lets it be.
    across = min(max(1, math.isqrt(resize_pixels * width // height)), resize_pixels)
    down = min(max(1, math.isqrt(resize_pixels * height // width)), resize_pixels // across)
    return image.resize((across, down), Image.Resampling.LANCZOS)


def examine(data: bytes, limits: ImageLimits) -> tuple[ImageFacts, Image.Image]:
    """Do the work of `identify` and of `decode_rgb` in one decoding.

    Raises:
        RowError: as `identify`.
    """
    image = _open(data, limits)
    kind = _format(image)
    upright = to_rgb(image, f"{kind} of {len(data)} bytes")
    return ImageFacts(image_id(data), kind, *upright.size), upright


def to_rgb(image: Image.Image, name: str = "the image") -> Image.Image:
    """Return an open image upright by its EXIF orientation, as 8-bit RGB.

    Transparency is laid over white, 16 bits keep their upper 8, CMYK and palettes are converted, colour profiles are
    not applied.

    Args:
        name: what messages call it.

    Raises:
        RowError: it is truncated, otherwise undecodable, or of 32 bits.
    """
    try:
        image.load()
        if image.mode in ("I", "F"):
            raise RowError("image_broken", f"{name} has 32-bit pixels, whose range is unknown; convert it to 8 bits")
        turn = _TURNS.get(_turn(image))
        rgb = _rgb(image)
        return rgb.transpose(turn) if turn is not None else rgb
    except RowError:
        raise
    except Exception as failure:  # decoders and conversions raise nearly anything on hostile data
        reason = f"{type(failure).__name__}: {failure}".rstrip(": ")
        raise RowError("image_broken", f"{name} does not decode: {reason}") from None


def is_image(start: bytes) -> bool:
    """Tell whether a file that begins with these 16 bytes or more is an image."""
    Image.init()
    return any(
        accepts is not None and accepts(start[:16]) is True for _, accepts in map(Image.OPEN.__getitem__, FORMATS)
    )


def _open(data: bytes, limits: ImageLimits) -> Image.Image:
    """Return an image whose header was read and whose size is below the caps."""
    if not data:
        raise RowError("image_broken", "the image has zero bytes")
    if len(data) > limits.max_image_bytes:
        raise RowError("image_too_large", f"{len(data)} bytes, over max_image_bytes {limits.max_image_bytes}")
    if kind := video_kind(data[:12]):
        raise RowError("media", f"this is no image but a video ({kind}); name it in `video` or `videos`")
    try:
        image = Image.open(io.BytesIO(data), formats=FORMATS)
    except Image.DecompressionBombError as failure:
        raise RowError("image_too_large", f"{failure}") from None
    except UnidentifiedImageError:
        raise RowError("image_broken", _unidentified(data)) from None
    except Exception as failure:  # plugins raise nearly anything on hostile headers
        raise RowError("image_broken", f"the header does not read: {type(failure).__name__}: {failure}") from None
    width, height = image.size
    if width * height > limits.max_image_pixels:
        message = f"{width} x {height} pixels, over max_image_pixels {limits.max_image_pixels}"
        raise RowError("image_too_large", message)
    return image


def _unidentified(data: bytes) -> str:
    """Say why no plugin takes the bytes: the reason of the one whose first bytes they have, if there is one."""
    for name in FORMATS:
        plugin, accepts = Image.OPEN[name]
        try:
            if accepts is not None and accepts(data[:16]) is True:
                plugin(io.BytesIO(data), "")
        except Exception as failure:  # as for `Image.open`, which keeps the reason to itself
            return f"the {name} header does not read: {failure}; write the image anew"
    return f"not an image of {', '.join(FORMATS)}; the bytes begin with {data[:16]!r}"


def _format(image: Image.Image) -> str:
    """Return the format by content; a JPEG with further pictures behind the first (MPO) is a JPEG."""
    return "JPEG" if image.format == "MPO" else str(image.format)


def _turn(image: Image.Image) -> int:
    """Return the EXIF orientation, 1 to 8; damaged EXIF counts as upright, as viewers treat it."""
    try:
        value = image.getexif().get(_ORIENTATION, 1)
    except Exception:  # the EXIF parser raises nearly anything on damaged data
        return 1
    return value if isinstance(value, int) and value in _TURNS else 1


def _rgb(image: Image.Image) -> Image.Image:
    if image.mode.startswith("I;16"):
        return Image.fromarray((np.asarray(image) >> 8).astype(np.uint8)).convert("RGB")
    if image.has_transparency_data:
        rgba = image.convert("RGBA")
        white = Image.new("RGBA", rgba.size, "white")
        return Image.alpha_composite(white, rgba).convert("RGB")
    return image if image.mode == "RGB" else image.convert("RGB")
