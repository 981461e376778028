"""WebDataset tar files: consecutive members with one key make a sample, and a sample makes a row.

`KEY.json` gives columns, `KEY.NAME.txt` the text column NAME, and an image member the column `image` (`images` when
there are several), unless the columns name it: a path in `image`, `images` or `img_path` that is a member's name stands
for that member's bytes.
"""

from __future__ import annotations

import json
import posixpath
import tarfile
from collections.abc import Iterator
from typing import IO, Any, Self, cast

from carevl.data.json_rows import MAX_ROW_BYTES, Stream
from carevl.data.rows import RowError

_IMAGE_ENDINGS = ("jpg", "jpeg", "png", "webp", "gif", "bmp", "tif", "tiff")
_IMAGE_COLUMNS = ("image", "images", "img_path")
_DAMAGE = (tarfile.EmptyHeaderError, tarfile.InvalidHeaderError, tarfile.TruncatedHeaderError)  # type: ignore[attr-defined]


class _Member(tarfile.TarInfo):
    """A member whose missing or damaged header is an error, where tarfile takes it for the end of the archive."""

    @classmethod
    def fromtarfile(cls, archive: tarfile.TarFile) -> Self:
        try:
            return super().fromtarfile(archive)
        except _DAMAGE as failure:
            raise tarfile.ReadError(f"the archive breaks off: {failure}") from None


def tar_samples(stream: Stream) -> Iterator[dict[str, Any] | RowError]:
    """Yield the rows of a tar file, read forward only. A sample over MAX_ROW_BYTES or with bad JSON is a RowError.

    Raises:
        tarfile.TarError: the archive is damaged; the samples before the damage have been given.
    """
    key = ""
    members: dict[str, bytes] = {}
    size = 0
    with tarfile.open(fileobj=cast("IO[bytes]", stream), mode="r|*", tarinfo=_Member) as archive:
        while member := _next(archive):
            if isinstance(member, tarfile.ReadError):  # raised below, once the sample before the damage has been given
                break
            directory, name = posixpath.split(member.name)
            stem, _, _ = name.partition(".")
            if members and key != f"{directory}/{stem}":
                yield _row(members, size)
                members, size = {}, 0
            key = f"{directory}/{stem}"
            size += member.size
            data = archive.extractfile(member) if size <= MAX_ROW_BYTES else None
            members[member.name] = data.read() if data else b""
    if members:
        yield _row(members, size)
    if isinstance(member, tarfile.ReadError):
        raise member


def _next(archive: tarfile.TarFile) -> tarfile.TarInfo | tarfile.ReadError | None:
    """Return the next file in the archive, None at its end, or how it breaks off there."""
    try:
        while (member := archive.next()) and not member.isfile():
            pass
    except tarfile.ReadError as failure:
        return failure
    archive.members.clear()  # type: ignore[attr-defined]  # tarfile would keep every member
    return member


def _row(members: dict[str, bytes], size: int) -> dict[str, Any] | RowError:
    if size > MAX_ROW_BYTES:
        return RowError("row", f"the sample has {size} bytes, over the cap of {MAX_ROW_BYTES}")
    row: dict[str, Any] = {}
    images: dict[str, dict[str, Any]] = {}
    for path, data in members.items():
        name = posixpath.basename(path)
        field = name.partition(".")[2].lower()
        ending = field.rpartition(".")[2]
        if ending in _IMAGE_ENDINGS:
            images[path] = images[name] = {"bytes": data, "path": path}
        elif ending == "txt":
            row[field.removesuffix(".txt")] = data.decode("utf-8", "replace")
        elif ending == "json":
            try:
                columns = json.loads(data)
            except (ValueError, RecursionError) as failure:
                return RowError("row", f"{path} is not JSON: {failure}")
            if not isinstance(columns, dict):
                return RowError("row", f"{path} should hold an object, found {type(columns).__name__}")
            row.update(columns)
    return _with_images(row, images)


def _with_images(row: dict[str, Any], images: dict[str, dict[str, Any]]) -> dict[str, Any]:
    named = [column for column in _IMAGE_COLUMNS if row.get(column) is not None]
    for column in named:
        value = row[column]
        row[column] = [_member(entry, images) for entry in value] if isinstance(value, list) else _member(value, images)
    if not named and images:
        distinct = list({id(image): image for image in images.values()}.values())
        row["images" if len(distinct) > 1 else "image"] = distinct if len(distinct) > 1 else distinct[0]
    return row


def _member(value: object, images: dict[str, dict[str, Any]]) -> object:
    return images.get(value, value) if isinstance(value, str) else value
