"""A program that decodes frames of a video: `python decode_video.py BOUNDS < VIDEO > FRAMES`.

Decoders of video are large, written in C, and read what strangers wrote. So they run in a process of their own, with
bounds on its memory and processor time that the system holds; `carevl.data.videos` starts it. It imports nothing of
CAREVL, so that it starts in a quarter of a second.

BOUNDS is a JSON object: `format` (a demuxer of FFmpeg), `frames`, `fps`, `max_frames`, `offset` (from 0 to 1),
`max_seconds`, `max_pixels`, `decode_seconds`, `memory` (bytes). FRAMES is a line of JSON, which has `seconds` and
`sizes` of the frames, or else `error`; and the JPEG files one behind the other.
"""

from __future__ import annotations

import io
import json
import math
import resource
import sys
from collections import deque
from collections.abc import Iterator
from fractions import Fraction
from typing import Any

import av
from av.video.reformatter import Interpolation

_QUALITY = 95
_EXACT = Interpolation.BILINEAR | Interpolation.ACCURATE_RND | Interpolation.BITEXACT | Interpolation.FULL_CHR_H_INT
"""The same pixels on every processor."""
_LATE = 1.0
"""Seconds by which the last frame of a whole video may end before its header says."""


class UndecodableError(Exception):
    """Why a video has no frames to show."""


def decode(data: bytes, bounds: dict[str, Any]) -> tuple[list[float], list[bytes]]:
    """Return when the frames are shown, in seconds from the first one, and the frames as JPEG files.

    Of every interval there is the frame that is shown at `offset` of it, by the times that frames carry. Of a video
    that has fewer frames than intervals there is each one once.

    Raises:
        UndecodableError: it has no picture, is over a bound, or does not decode.
    """
    # Nothing but these bytes is opened, whatever a file names: one demuxer, no protocol.
    options = {"max_pixels": str(bounds["max_pixels"]), "protocol_whitelist": "none"}
    with av.open(io.BytesIO(data), format=bounds["format"], options=options, metadata_errors="replace") as container:
        stream = container.streams.best("video")
        if stream is None or "attached_pic" in str(stream.disposition):
            raise UndecodableError("it has no video stream")
        if stream.codec_context is None:
            raise UndecodableError("its codec is none that is decoded here")
        _check_pixels(stream.codec_context, bounds)
        stream.codec_context.thread_count = 1
        declared = _declared_seconds(container, stream)
        if declared > bounds["max_seconds"]:
            raise UndecodableError(_too_long(declared, bounds))
        packets = [packet for packet in container.demux(stream) if packet.size]
        if any(packet.is_corrupt for packet in packets):
            raise UndecodableError("it breaks off within a frame")
        tick = float(stream.time_base)
        times = [packet.dts if packet.pts is None else packet.pts for packet in packets]
        shown = sorted(time * tick for time in times if time is not None)
        if not shown:
            raise UndecodableError("it has no frames")
        length = _length(shown, (packets[-1].duration or 0) * tick)
        if length > bounds["max_seconds"]:
            raise UndecodableError(_too_long(length, bounds))
        if stream.duration and length < stream.duration * tick - max(_LATE, 0.05 * length):
            raise UndecodableError(f"its frames end at {length:.1f} s of {stream.duration * tick:.1f}")
        n = bounds["frames"] or max(1, min(bounds["max_frames"], round(length * bounds["fps"])))
        targets = [(k + bounds["offset"]) * length / n for k in range(n)]
        shown = [time - shown[0] for time in shown]
        chosen = list(_choose(_checked(stream, packets, shown, bounds), targets, shown))
        return [round(time, 3) for time, _ in chosen], [file for _, file in chosen]


def _declared_seconds(container: Any, stream: Any) -> float:
    if stream.duration:
        return float(stream.duration * stream.time_base)
    return float((container.duration or 0) / av.time_base)


def _too_long(seconds: float, bounds: dict[str, Any]) -> str:
    return f"it lasts {seconds:.0f} s, over data.video.max_seconds = {bounds['max_seconds']:g}"


def _check_pixels(picture: Any, bounds: dict[str, Any]) -> None:
    if picture.width * picture.height > bounds["max_pixels"]:
        raise UndecodableError(
            f"its frames have {picture.width} x {picture.height} pixels, over data.video.max_pixels = "
            f"{bounds['max_pixels']}"
        )


def _length(shown: list[float], last: float) -> float:
    """Return how long all frames are shown together; the last one as long as the others are, if it does not say."""
    span = shown[-1] - shown[0]
    return last + span if last else span * len(shown) / max(len(shown) - 1, 1)


def _checked(
    stream: Any, packets: list[Any], shown: list[float], bounds: dict[str, Any]
) -> Iterator[tuple[float, Any]]:
    """Yield every frame in the order shown, and when that is, in seconds from the first one."""
    start = min((packet.pts for packet in packets if packet.pts is not None), default=0)
    # AVI says how many frames there are a second, and only guesses when one is shown that others refer to.
    in_order = iter(shown) if bounds["format"] == "avi" else None
    for packet in [*packets, None]:
        for frame in stream.codec_context.decode(packet):
            _check_pixels(frame, bounds)
            time = next(in_order, None) if in_order else _seconds(frame.pts, start, stream.time_base)
            if frame.is_corrupt or time is None:
                raise UndecodableError("a frame is damaged")
            yield time, frame


def _seconds(time: int | None, start: int, tick: Fraction) -> float | None:
    return None if time is None else float((time - start) * tick)


def _choose(
    frames: Iterator[tuple[float, Any]], targets: list[float], shown: list[float]
) -> Iterator[tuple[float, bytes]]:
    """Yield the frames that are shown at these times. Nothing behind the last of them is decoded.

    Args:
        shown: when frames are shown, by what the file says.
    """
    waiting = deque(targets)
    last: tuple[float, Any] | None = None
    for time, frame in frames:
        n_waiting = len(waiting)
        while last is not None and waiting and waiting[0] < time:
            waiting.popleft()
        if last is not None and len(waiting) < n_waiting:
            yield last[0], _jpeg(last[1])
        if not waiting:
            return
        last = time, frame
    if last is None or last[0] < max(time for time in shown if time <= waiting[0]) - _LATE:
        raise UndecodableError(f"its frames end at {last[0] if last else 0:.1f} s of {shown[-1]:.1f}")
    yield last[0], _jpeg(last[1])


def _jpeg(frame: Any) -> bytes:
    """Return a frame as a JPEG file, upright by the rotation that its stream asks for."""
    image = frame.to_image(interpolation=_EXACT, threads=1)
    if frame.rotation % 360:
        image = image.rotate(frame.rotation, expand=True)
    file = io.BytesIO()
    image.save(file, "JPEG", quality=_QUALITY, subsampling=0)
    return file.getvalue()


def main() -> None:
    """Decode what comes in."""
    bounds = json.loads(sys.argv[1])
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    resource.setrlimit(resource.RLIMIT_AS, (bounds["memory"],) * 2)
    used = sum(resource.getrusage(resource.RUSAGE_SELF)[:2])
    seconds = math.ceil(used + bounds["decode_seconds"])
    resource.setrlimit(resource.RLIMIT_CPU, (seconds, seconds + 1))
    files: list[bytes] = []
    try:
        seconds, files = decode(sys.stdin.buffer.read(), bounds)
        answer: dict[str, Any] = {"seconds": seconds, "sizes": [len(file) for file in files]}
    except UndecodableError as failure:
        answer = {"error": str(failure)}
    except MemoryError:
        answer = {"error": f"decoding it takes more than {bounds['memory'] >> 20} MiB of memory"}
    except Exception as failure:  # libraries raise nearly anything on hostile data
        answer = {"error": f"it does not decode: {getattr(failure, 'strerror', None) or failure}"}
    sys.stdout.buffer.write(b"".join([json.dumps(answer).encode(), b"\n", *files]))


if __name__ == "__main__":
    main()
