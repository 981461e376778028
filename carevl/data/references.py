"""From a reference in a row (bytes, struct, path, base64, data, file or http URI) to the bytes it stands for.

Images and videos are referred to alike.
"""

from __future__ import annotations

import base64
import binascii
import itertools
import os
import posixpath
import urllib.parse
from collections.abc import Mapping, Sequence
from typing import Any

import pyarrow.fs as pafs

from carevl.data.images import ImageLimits
from carevl.data.rows import ImageNames, RowError, clean, kind_of, readable
from carevl.data.urls import UrlFetcher

_MAGIC = (b"\xff\xd8\xff", b"\x89PNG", b"RIFF", b"GIF8", b"BM", b"II*\0", b"MM\0*", b"\x1a\x45\xdf\xa3")
_FIELDS = ("bytes", "path", "url", "image_url", "image", "video_url", "video")
"""Fields of a struct that stands for an image or a video, the first that is filled."""
_SHOWN = 120


class ImageReader:
    """Reads the images of one source; its messages name files relative to that.

    Args:
        filesystem: where the source is.
        base: directory of the source, or `image_root` where the settings name one. No path leads out of it.
        limits: caps; a file is measured before it is read.
        fetcher: for http(s) references; None where `allow_url_fetch` is not set.
    """

    _noun = "image"
    _cap = "max_image_bytes"

    def __init__(
        self, filesystem: pafs.FileSystem, base: str, limits: ImageLimits, fetcher: UrlFetcher | None = None
    ) -> None:
        self._filesystem, self._most_bytes, self._fetcher = filesystem, limits.max_image_bytes, fetcher
        self._local = isinstance(filesystem, pafs.LocalFileSystem)
        self._base = os.path.realpath(base) if self._local else posixpath.normpath(base)
        self._blobs = _blobs_of(self._base) if self._local else None

    def read(self, reference: object, near: str) -> bytes:
        """Read the bytes of a file.

        Args:
            reference: as the row has it.
            near: directory of the file that the row came from; a relative path is looked up there, then in `base`.

        Raises:
            RowError: no reference, nothing there, not allowed, or over the cap on bytes.
        """
        reference = _innermost(readable(reference))
        if reference is None or reference == "":
            raise RowError("image_missing", f"the row has no {self._noun}")
        if isinstance(reference, ImageNames):
            return self._first(reference.names, near)
        if isinstance(reference, bytes | list | tuple):
            return self._capped(_bytes_of(reference))
        if not isinstance(reference, str):
            kind = kind_of(reference)
            raise RowError("image_missing", f"{self._noun}s should be bytes, structs or text, found {kind}")
        scheme = reference[:8].lower()
        if scheme.startswith("data:"):
            return self._data_uri(reference)
        if scheme.startswith(("http://", "https://")):
            return self._url(reference)
        if scheme.startswith("file:"):
            reference = _file_uri_path(reference)
        elif _looks_like_base64(reference):
            return self._base64(reference)
        return self._first([reference], near)

    def _capped(self, data: bytes) -> bytes:
        if len(data) > self._most_bytes:
            raise self._too_many_bytes(len(data))
        return data

    def _too_many_bytes(self, size: int) -> RowError:
        return RowError("image_too_large", f"{size} bytes, over {self._cap} {self._most_bytes}")

    def _data_uri(self, reference: str) -> bytes:
        head, comma, body = reference.partition(",")
        if not comma or not head.lower().endswith(";base64"):
            raise RowError("image_broken", f"a data URI should be base64, found {head[:_SHOWN]!r}")
        return self._base64(body)

    def _base64(self, body: str) -> bytes:
        if len(body) // 4 * 3 > self._most_bytes + 2:
            raise self._too_many_bytes(len(body) // 4 * 3)
        try:
            return self._capped(base64.b64decode("".join(body.split()), validate=True))
        except (binascii.Error, ValueError) as failure:
            raise RowError("image_broken", f"the {self._noun} is not base64: {failure}") from None

    def _url(self, url: str) -> bytes:
        if self._fetcher is None:
            raise RowError("image_refused", f"{url[:_SHOWN]!r} is a URL; set allow_url_fetch to fetch {self._noun}s")
        return self._fetcher.fetch(url, self._most_bytes)

    def _first(self, paths: Sequence[str], near: str) -> bytes:
        """Return the bytes of the first of some paths that is there."""
        path = paths[0]
        if clean(path) != path or len(path) > 4096:
            raise RowError("image_missing", f"{path[:_SHOWN]!r} is not a path")
        refused = False
        is_apart = (
            self._inside(near, "") is None
        )  # image_root lies elsewhere, so a file beside the row's is not refused
        for each, place in itertools.product(paths, dict.fromkeys((near, self._base))):
            inside = self._inside(place, each)
            refused = refused or (inside is None and not (is_apart and place == near))
            if inside is not None and (data := self._file(inside)) is not None:
                return data
        if refused:
            raise RowError(
                "image_refused",
                f"{path[:_SHOWN]!r} leads out of the directory of its source; if it may be read, set the source's "
                "image_root to a directory that holds the files themselves, where links lead",
            )
        shown = f"{path[:_SHOWN]!r}" + (f" (nor {len(paths) - 1} other names)" if len(paths) > 1 else "")
        beside = "" if is_apart else "beside its row's, nor "
        raise RowError("image_missing", f"{shown}: no such file {beside}in the directory of its source")

    def _inside(self, directory: str, path: str) -> str | None:
        """Return the real path, or None when it is not under the base once links and `..` are resolved."""
        joined = posixpath.join(directory, path)
        real = os.path.realpath(joined) if self._local else posixpath.normpath(joined)
        return real if any(_is_below(real, base) for base in (self._base, self._blobs) if base is not None) else None

    def _file(self, path: str) -> bytes | None:
        try:
            info = self._filesystem.get_file_info(path)
            if info.type != pafs.FileType.File:
                return None
            if info.size is not None and info.size > self._most_bytes:
                raise self._too_many_bytes(info.size)
            with self._filesystem.open_input_stream(path, compression=None) as handle:
                return self._capped(handle.read(self._most_bytes + 1))
        except (OSError, ValueError) as failure:
            below, reason = posixpath.relpath(path, self._base), str(failure).replace(f"{self._base}/", "")
            shown = reason if len(reason) <= 2 * _SHOWN else f"…{reason[-2 * _SHOWN :]}"  # it may hold the path again
            raise RowError("image_missing", f"{below[-_SHOWN:]!r} cannot be read: {shown}") from None


class VideoReader(ImageReader):
    """Reads the videos of one source by the rules for images.

    Args:
        filesystem, base, fetcher: as for images.
        max_bytes: cap on a file, which is measured before it is read.
    """

    _noun = "video"
    _cap = "data.video.max_bytes"

    def __init__(
        self, filesystem: pafs.FileSystem, base: str, max_bytes: int, fetcher: UrlFetcher | None = None
    ) -> None:
        super().__init__(filesystem, base, ImageLimits(max_image_bytes=max_bytes), fetcher)


def _innermost(reference: object) -> object:
    """Return the reference inside structs: of `datasets`, or of the parts of a conversation (`image_url`)."""
    while isinstance(reference, Mapping):
        filled = (reference[name] for name in _FIELDS if reference.get(name) not in (None, "", b""))
        reference = next(filled, reference.get("bytes"))
    return reference


def _bytes_of(values: bytes | Sequence[Any]) -> bytes:
    """Return bytes, or those that a list of their values stands for, as JSON of pandas has them."""
    try:
        return bytes(values)
    except (TypeError, ValueError):
        raise RowError("image_missing", "an image should be bytes, a struct or text, found a list") from None


def _blobs_of(base: str) -> str | None:
    """Return where the files are that the links of a snapshot in the hub's cache lead to: REPO/blobs for a directory
    in REPO/snapshots/REVISION.
    """
    repository, found, _ = f"{base}/".rpartition("/snapshots/")
    return posixpath.join(repository, "blobs") if found else None


def _is_below(path: str, base: str) -> bool:
    return f"{path}/".startswith(f"{base.rstrip('/')}/")


def _file_uri_path(reference: str) -> str:
    try:
        uri = urllib.parse.urlsplit(reference)
    except ValueError as failure:
        raise RowError("image_missing", f"{reference[:_SHOWN]!r} is not a URI: {failure}") from None
    if uri.netloc not in ("", "localhost"):
        raise RowError("image_refused", f"{reference[:_SHOWN]!r} names another host")
    return urllib.parse.unquote(uri.path)


def _looks_like_base64(reference: str) -> bool:
    """Tell whether the text decodes to the first bytes of a picture: a path nearly always has a dot, base64 never."""
    try:
        start = base64.b64decode(reference[:24], validate=True)
    except (binascii.Error, ValueError):
        return False
    return "." not in reference and (start.startswith(_MAGIC) or start[4:8] == b"ftyp")
