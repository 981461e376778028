"""Videos as frames: a video that a row names becomes images, and an item shows them where the video stands."""

from __future__ import annotations

import hashlib
import importlib.util
import io
import json
import signal
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from threading import Lock
from typing import TYPE_CHECKING, Any

from PIL import Image

from carevl.data.images import FORMATS
from carevl.data.rows import RowError
from carevl.data.video_files import AVI, MATROSKA, MP4, check_whole, video_kind
from carevl.stats.draws import hash_uniform

if TYPE_CHECKING:
    from carevl.settings.data import Video

FRAMES = 8
"""Of a video, where the settings name no number."""
_PROGRAM = Path(__file__).with_name("decode_video.py")
_DEMUXERS = {MP4: "mov", MATROSKA: "matroska", AVI: "avi"}
_MEMORY = 1 << 30
"""Bytes that decoding may take, on top of three times the file; frames of 4096 x 2160 pixels take half of it."""
_PATIENCE = 10
"""Times `decode_seconds` that a process may take on a machine that has other things to do."""


@dataclass(frozen=True)
class Frames:
    """Frames of a video."""

    video_id: str
    """SHA-256 of the video file, in hexadecimal."""
    seconds: tuple[float, ...]
    """When each is shown, from the first frame on."""
    files: tuple[bytes, ...]
    """JPEG files."""


class FrameReader:
    """Decodes frames of videos, each video once: they stay on disk as long as the reader does.

    May be called by several threads at once.

    Args:
        settings: how many frames, and the bounds.
        directory: where frames are kept, in a directory of their own; that of the system for such files when None.
    """

    def __init__(self, settings: Video, directory: Path | None = None) -> None:
        self.settings = settings
        self._directory = directory
        self._kept: TemporaryDirectory[str] | None = None
        self._locks: dict[str, Lock] = {}
        self._lock = Lock()
        self._failures: dict[str, RowError] = {}

    def read(self, data: bytes) -> Frames:
        """Return the frames of a video.

        Raises:
            RowError: `media`: it is no video, is cut, is over a bound, or does not decode; or PyAV is not installed.
        """
        video_id = hashlib.sha256(data).hexdigest()
        with self._lock:
            if self._kept is None:
                self._kept = TemporaryDirectory(dir=self._directory, prefix="frames-", ignore_cleanup_errors=True)
            file = Path(self._kept.name, video_id)
            lock = self._locks.setdefault(video_id, Lock())
        with lock:
            if video_id in self._failures:
                raise self._failures[video_id]
            if not file.exists():
                try:
                    file.write_bytes(self._decode(data, video_id))
                except RowError as failure:
                    self._failures[video_id] = failure
                    raise
        answer, files = _parse(file.read_bytes())
        return Frames(video_id, tuple(answer["seconds"]), files)

    def _decode(self, data: bytes, video_id: str) -> bytes:
        """Return what the program says that decodes; it is run in a process of its own."""
        kind = _kind_of(data)
        check_whole(data, kind)
        if importlib.util.find_spec("av") is None:
            raise RowError("media", "videos are decoded by PyAV, which is not installed; install it (pip install av)")
        settings = self.settings
        bounds = settings.model_dump(include={"fps", "max_frames", "max_seconds", "max_pixels", "decode_seconds"}) | {
            "format": _DEMUXERS[kind],
            "frames": settings.frames or (FRAMES if settings.fps is None else None),
            "offset": hash_uniform(settings.seed, video_id),
            "memory": _MEMORY + 3 * len(data),
        }
        command = [sys.executable, str(_PROGRAM), json.dumps(bounds)]
        try:
            ended = subprocess.run(
                command, input=data, capture_output=True, check=False, timeout=_PATIENCE * settings.decode_seconds
            )
        except subprocess.TimeoutExpired:
            raise self._slow() from None
        if ended.returncode == -signal.SIGXCPU:
            raise self._slow()
        if ended.returncode:
            last = ended.stderr.decode(errors="replace").strip().rpartition("\n")[2]
            raise RowError("media", f"the video's decoder ended with status {ended.returncode}: {last[-300:]}")
        answer, _ = _parse(ended.stdout)
        if "error" in answer:
            raise RowError("media", f"a video of kind {kind} cannot be used: {answer['error']}")
        return ended.stdout

    def _slow(self) -> RowError:
        seconds = self.settings.decode_seconds
        return RowError("media", f"the video takes longer to decode than data.video.decode_seconds = {seconds}")


def _parse(answer: bytes) -> tuple[dict[str, Any], tuple[bytes, ...]]:
    line, _, rest = answer.partition(b"\n")
    head = json.loads(line)
    stream = io.BytesIO(rest)
    return head, tuple(stream.read(size) for size in head.get("sizes", ()))


def _kind_of(data: bytes) -> str:
    """Return the kind of a video file. Raises RowError for any other file, also for pictures that move."""
    if not data:
        raise RowError("media", "the video has zero bytes")
    kind = video_kind(data[:12])
    if kind is not None:
        return kind
    try:
        with Image.open(io.BytesIO(data), formats=FORMATS) as picture:
            raise RowError("media", f"this is no video but a {picture.format}; name it in `images`")
    except RowError:
        raise
    except Exception:  # plugins raise nearly anything on hostile headers
        kinds = ", ".join((MP4, MATROSKA, AVI))
        raise RowError(
            "media",
            f"not a video of kind {kinds}: the bytes begin with {data[:16]!r}; write it anew (ffmpeg -i IN OUT.mp4)",
        ) from None
