"""Clips for tests: every frame has one colour, from blue to red, which tells its number."""

from __future__ import annotations

import io
from collections.abc import Sequence
from fractions import Fraction

import av
from PIL import Image

KINDS = {
    "mp4": "libx264",
    "mov": "libx265",
    "webm": "libvpx-vp9",
    "matroska": "libx264",
    "avi": "mpeg4",
}
"""Container to a codec that it usually has."""
_FPS = 5


def draw_clip(
    n_frames: int = 20,
    container: str = "mp4",
    codec: str | None = None,
    *,
    size: tuple[int, int] = (64, 48),
    times: Sequence[int] | None = None,
) -> bytes:
    """Return a video of five frames a second, whose frame n is as red as n is far from the first.

    Args:
        times: as `encode_clip` takes them.
    """
    pictures = [Image.new("RGB", size, colour(n, n_frames)) for n in range(n_frames)]
    return encode_clip(pictures, container, codec, times)


def encode_clip(
    pictures: Sequence[Image.Image],
    container: str = "mp4",
    codec: str | None = None,
    times: Sequence[int] | None = None,
) -> bytes:
    """Return a video of pictures of one size.

    Args:
        times: when each is shown, in fifths of a second; one after the other when None.
    """
    file = io.BytesIO()
    codec = codec or KINDS[container]
    with av.open(file, "w", format=container) as output:
        stream = output.add_stream(codec, rate=_FPS, options={"x265-params": "log-level=none"})
        stream.width, stream.height = pictures[0].size
        stream.bit_rate = 4_000_000
        stream.pix_fmt = "yuvj420p" if codec == "mjpeg" else "yuv420p"
        for n, picture in enumerate(pictures):
            frame = av.VideoFrame.from_image(picture)
            frame.pts, frame.time_base = n if times is None else times[n], Fraction(1, _FPS)
            output.mux(stream.encode(frame))
        output.mux(stream.encode(None))
    return file.getvalue()


def repeat_frame(n_frames: int, size: tuple[int, int], declared: tuple[int, int] | None = None) -> bytes:
    """Return a video that shows one picture again and again, and may declare another size than it has: quick to write,
    slow to read.
    """
    picture = io.BytesIO()
    Image.new("RGB", size, "grey").save(picture, "JPEG")
    file = io.BytesIO()
    with av.open(file, "w", format="avi") as output:
        stream = output.add_stream("mjpeg", rate=25)
        stream.width, stream.height = declared or size
        stream.pix_fmt = "yuvj420p"
        for n in range(n_frames):
            packet = av.Packet(picture.getvalue())
            packet.stream, packet.pts, packet.dts, packet.is_keyframe = stream, n, n, True
            packet.time_base = Fraction(1, 25)
            output.mux(packet)
    return file.getvalue()


def record_sound(container: str = "mp4") -> bytes:
    """Return a file with a sound alone."""
    file = io.BytesIO()
    with av.open(file, "w", format=container) as output:
        stream = output.add_stream("aac", rate=16000)
        for n in range(20):
            frame = av.AudioFrame(format="fltp", layout="mono", samples=1024)
            for plane in frame.planes:
                plane.update(bytes(plane.buffer_size))
            frame.sample_rate, frame.pts = 16000, 1024 * n
            output.mux(stream.encode(frame))
        output.mux(stream.encode(None))
    return file.getvalue()


def colour(n: int, n_frames: int) -> tuple[int, int, int]:
    """Return the colour of a frame."""
    red = 255 * n // max(n_frames - 1, 1)
    return red, 0, 255 - red


def number_of(frame: bytes, n_frames: int) -> int:
    """Return which frame of a clip a picture shows."""
    with Image.open(io.BytesIO(frame)) as picture:
        red, _, blue = picture.convert("RGB").resize((1, 1)).tobytes()
    return round((red + 255 - blue) / 2 / 255 * (n_frames - 1))
