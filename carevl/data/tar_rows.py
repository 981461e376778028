"""WebDataset tar files: consecutive members with one key make a sample, and a sample makes a row.

The key of a sample is the path of its `KEY.json` or `KEY.NAME.txt` without these endings, and may have dots in it; of a
sample that has neither, it is what stands before the first dot.

`KEY.json` gives columns, `KEY.NAME.txt` the text column NAME, and an image member the column `image` (`images` when
there are several), unless the columns name it: a path in `image`, `images` or `img_path` that is a member's name stands
for that member's bytes. So do members that are videos, with `video` and `videos`.
"""

from __future__ import annotations

import posixpath
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import IO, Any, Self, cast

from carevl.data.json_rows import MAX_ROW_BYTES, Stream, json_value
from carevl.data.rows import RowError
from carevl.data.video_files import VIDEO_ENDINGS

IMAGE_ENDINGS = ("jpg", "jpeg", "png", "webp", "gif", "bmp", "tif", "tiff", "avif")
_IMAGE_COLUMNS, _VIDEO_COLUMNS = ("image", "images", "img_path"), ("video", "videos")
_DAMAGE = (tarfile.EmptyHeaderError, tarfile.InvalidHeaderError, tarfile.TruncatedHeaderError)  # type: ignore[attr-defined]


class _Member(tarfile.TarInfo):
    """A member whose missing or damaged header is an error, where tarfile takes it for the end of the archive.

    Behind blocks of zeros, which end an archive, another may follow.
    """

    @classmethod
    def fromtarfile(cls, archive: tarfile.TarFile) -> Self:
        assert isinstance(archive, _Archive)
        try:
            member = super().fromtarfile(archive)
        except tarfile.EOFHeaderError:  # type: ignore[attr-defined]
            archive.has_ended = True
            raise
        except _DAMAGE as failure:
            if archive.has_ended and isinstance(failure, tarfile.EmptyHeaderError):  # type: ignore[attr-defined]
                raise
            raise tarfile.ReadError(f"the archive breaks off: {failure}") from None
        # Archives are filled up to whole records: one that begins elsewhere is what is left behind a hole.
        archive.has_hole = archive.has_ended and member.offset % tarfile.RECORDSIZE != 0
        archive.has_ended = False
        return member


class _Archive(tarfile.TarFile):
    tarinfo = _Member
    ignore_zeros = True
    has_ended = False
    """Whether zeros are the last that was read."""
    has_hole = False
    """Whether zeros that end no archive stand before the last member."""


def tar_samples(stream: Stream) -> Iterator[dict[str, Any] | RowError]:
    """Yield the rows of a tar file, read forward only. A sample over MAX_ROW_BYTES or with bad JSON is a RowError.

    So is a hole in the archive.

    Raises:
        tarfile.TarError: the archive is damaged; the samples before the damage have been given.
    """
    sample = _Sample()
    with _Archive.open(fileobj=cast("IO[bytes]", stream), mode="r|*") as archive:
        while member := _next(archive):
            if isinstance(member, tarfile.ReadError):  # raised below, once the sample before the damage has been given
                break
            if archive.has_hole:
                yield from _rows(sample)
                sample = _Sample()
                yield RowError(
                    "file", f"zeros stand before byte {member.offset}, where rows may be lost; mend the file"
                )
            if not _is_of_a_sample(member.name):
                continue
            if not sample.takes(member.name):
                yield from _rows(sample)
                sample = _Sample()
            sample.name(member.name)
            sample.size += member.size
            data = archive.extractfile(member) if sample.size <= MAX_ROW_BYTES else None
            sample.members[member.name] = data.read() if data else b""
    yield from _rows(sample)
    if isinstance(member, tarfile.ReadError):
        raise member


@dataclass
class _Sample:
    """Members under one key; `is_certain` once one of them has told the key."""

    key: str = ""
    is_certain: bool = False
    size: int = 0
    members: dict[str, bytes] = field(default_factory=dict)

    def takes(self, path: str) -> bool:
        """Tell whether a member belongs to the sample; any may be the first of one."""
        if not self.members:
            return True
        if not path.startswith(f"{self.key}."):
            return False
        key, is_certain = _key(path)
        return self.is_certain or not is_certain or self._could_be(key)

    def name(self, path: str) -> None:
        """Learn the key from a member that belongs to the sample: a text of it may have more dots than it seems."""
        key, is_certain = _key(path)
        if not self.members or (is_certain and len(key) > len(self.key) and self._could_be(key)):
            self.key = key
        self.is_certain = self.is_certain or is_certain

    def _could_be(self, key: str) -> bool:
        return all(path.startswith(f"{key}.") for path in self.members)


def _key(path: str) -> tuple[str, bool]:
    """Return the key of a member, and whether it could be no other."""
    directory, name = posixpath.split(path)
    stem, _, ending = name.rpartition(".")
    if ending.lower() == "json" and stem:
        return posixpath.join(directory, stem), True
    before, _, _ = stem.rpartition(".")
    if ending.lower() == "txt" and before:
        return posixpath.join(directory, before), True
    return posixpath.join(directory, name.partition(".")[0]), False


def _is_of_a_sample(path: str) -> bool:
    """Tell whether a member has an ending and is not what systems add to archives (`._0.json`, `.DS_Store`)."""
    name = posixpath.basename(path)
    return "." in name and not name.startswith(".") and "__MACOSX" not in path.split("/")


def _next(archive: tarfile.TarFile) -> tarfile.TarInfo | tarfile.ReadError | None:
    """Return the next file in the archive, None at its end, or how it breaks off there."""
    try:
        while (member := archive.next()) and not member.isfile():
            pass
    except tarfile.ReadError as failure:
        return failure
    archive.members.clear()  # type: ignore[attr-defined]  # tarfile would keep every member
    return member


def _rows(sample: _Sample) -> Iterator[dict[str, Any] | RowError]:
    if sample.members:
        yield _row(sample)


def _row(sample: _Sample) -> dict[str, Any] | RowError:
    if sample.size > MAX_ROW_BYTES:
        return RowError("row", f"the sample has {sample.size} bytes, over the cap of {MAX_ROW_BYTES}")
    row: dict[str, Any] = {}
    images: dict[str, dict[str, Any]] = {}
    videos: dict[str, dict[str, Any]] = {}
    for path, data in sample.members.items():
        name = path.removeprefix(f"{sample.key}.").lower()
        ending = name.rpartition(".")[2]
        if ending in IMAGE_ENDINGS or ending in VIDEO_ENDINGS:
            members = images if ending in IMAGE_ENDINGS else videos
            members[path] = members[posixpath.basename(path)] = {"bytes": data, "path": path}
        elif ending == "txt":
            try:
                row[name.removesuffix(".txt")] = data.decode("utf-8-sig")
            except UnicodeDecodeError as failure:
                return RowError(
                    "row", f"{path} is not UTF-8: {failure.reason} at {failure.start}; write it anew as UTF-8"
                )
        elif ending == "json":
            columns = json_value(data, path)
            if isinstance(columns, RowError):
                return columns
            if not isinstance(columns, dict):
                return RowError("row", f"{path} should hold an object, found {type(columns).__name__}")
            row.update(columns)
    return _with_members(_with_members(row, images, _IMAGE_COLUMNS), videos, _VIDEO_COLUMNS)


def _with_members(row: dict[str, Any], members: dict[str, dict[str, Any]], columns: tuple[str, ...]) -> dict[str, Any]:
    """Return a row with members in columns, the first of which is for one and the second for several."""
    named = [column for column in columns if row.get(column) is not None]
    for column in named:
        value = row[column]
        row[column] = (
            [_member(entry, members) for entry in value] if isinstance(value, list) else _member(value, members)
        )
    if not named and members:
        distinct = list({id(member): member for member in members.values()}.values())
        row[columns[len(distinct) > 1]] = distinct if len(distinct) > 1 else distinct[0]
    return row


def _member(value: object, members: dict[str, dict[str, Any]]) -> object:
    return members.get(value, value) if isinstance(value, str) else value
