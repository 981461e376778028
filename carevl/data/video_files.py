"""Kinds of video files by their first bytes, and whether all is there that their headers announce."""

from __future__ import annotations

from carevl.data.rows import RowError

MP4, MATROSKA, AVI = "MP4 or MOV", "Matroska or WebM", "AVI"
VIDEO_ENDINGS = ("mp4", "m4v", "mov", "webm", "mkv", "avi")
_BOXES = frozenset(b"ftyp moov mdat moof mfra sidx ssix styp emsg prft free skip wide uuid meta udta pdin pnot".split())
"""Boxes that stand at the top of an MP4 file (ISO/IEC 14496-12, table 1, and QuickTime's own)."""
_FIRST_BOXES = (b"ftyp", b"moov", b"mdat", b"free", b"skip", b"wide")
_PICTURES = (b"avif", b"avis", b"heic", b"heix", b"heim", b"heis", b"mif1", b"msf1")
"""Brands of files that have the boxes of MP4 and hold pictures."""
_EBML, _SEGMENT = b"\x1a\x45\xdf\xa3", b"\x18\x53\x80\x67"


def video_kind(start: bytes) -> str | None:
    """Return the kind of a video file by its first 12 bytes, None for anything else."""
    if start[4:8] in _FIRST_BOXES and start[8:12] not in _PICTURES:
        return MP4
    if start.startswith(_EBML):
        return MATROSKA
    return AVI if start.startswith(b"RIFF") and start[8:11] == b"AVI" else None


def check_whole(data: bytes, kind: str) -> None:
    """Check that a file is as long as its headers say: of a cut one decoders make a shorter video.

    Raises:
        RowError: it breaks off, or does not say how long it is.
    """
    end = {MP4: _end_of_mp4, MATROSKA: _end_of_matroska, AVI: _end_of_avi}[kind](data)
    if end > len(data):
        raise RowError("media", f"the video breaks off: its headers announce {end} bytes, it has {len(data)}")


def _end_of_mp4(data: bytes) -> int:
    """Return where the last of the boxes at the top ends; what follows a box that is none of them is left alone."""
    at = 0
    while at < len(data):
        if len(data) - at < 8:
            return at + 8
        if data[at + 4 : at + 8] not in _BOXES:
            break
        size = int.from_bytes(data[at : at + 4], "big")
        if size == 0:  # up to the end, whatever that is
            break
        at += max(int.from_bytes(data[at + 8 : at + 16], "big") if size == 1 else size, 8)
    return at


def _end_of_matroska(data: bytes) -> int:
    at = 4
    length, size = _number(data, at)
    at += length + (size or 0)
    if data[at : at + 4] != _SEGMENT:
        return len(data)  # it has no beginning, which its decoder says
    length, size = _number(data, at + 4)
    if size is None:
        raise RowError(
            "media",
            "the video does not say how long it is, as one that was recorded live, so that nothing tells whether it is "
            "whole: write it anew (ffmpeg -i IN -c copy OUT.mkv)",
        )
    return at + 4 + length + size


def _number(data: bytes, at: int) -> tuple[int, int | None]:
    """Return how many bytes a number of EBML (RFC 8794, 4) has, and the number; None where it is unknown."""
    first = data[at] if at < len(data) else 0
    length = 9 - first.bit_length()
    bits = 7 * length
    value = int.from_bytes(data[at : at + length], "big") & ((1 << bits) - 1)
    return length, None if value == (1 << bits) - 1 else value


def _end_of_avi(data: bytes) -> int:
    """Return where the last chunk at the top ends: RIFF, and more of them in files over 1 GB."""
    at = end = 0
    while data[at : at + 4] == b"RIFF":
        size = int.from_bytes(data[at + 4 : at + 8], "little")
        if size == 0:
            raise RowError("media", "the video was never finished: its header has no length")
        end = at + 8 + size
        at = end + size % 2
    return end
