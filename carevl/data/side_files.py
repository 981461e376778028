"""Side files of a source: captions by the name of their image, and right answers that annotations have."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import pyarrow.fs as pafs

from carevl.data.containers import list_of_rows
from carevl.data.files import SourceError
from carevl.data.formats.base import Annotations, Format, identify
from carevl.data.json_rows import LostRowsError, json_values
from carevl.data.rows import Row, RowError

_LIST = "annotations"
_ENOUGH_ROWS = 1000
"""Where so many rows have no annotation, the file is one of others."""


class RightAnswers:
    """The right answers of one file's rows, by what annotations call the rows.

    Args:
        file: where they are from, for messages; None where that is the file of the rows.
    """

    def __init__(self, annotations: Annotations, answers: Mapping[str, list[str]], file: str | None) -> None:
        self._annotations, self._answers, self._file = annotations, answers, file
        self._rows, self._matches = 0, 0

    def of(self, row: Row) -> list[str]:
        """Return the answers of a row, none where no annotation is about it.

        Raises:
            SourceError: none is about any of the first 1,000 rows.
        """
        with suppress(RowError):
            self._rows += 1
            answers = self._answers.get(identify(row, self._annotations.column), [])
            self._matches += bool(answers)
            if self._rows == _ENOUGH_ROWS:
                self.check()
            return answers
        return []

    def check(self) -> None:
        """Refuse a side file that is about none of the rows.

        Raises:
            SourceError: it is about none.
        """
        if self._file is not None and self._rows and not self._matches:
            raise SourceError(
                f"{self._file}: no annotation has the `{self._annotations.key}` of a row; name the annotations of this "
                "source, and give files with annotations of their own a source each"
            )


class SideFile:
    """A file of annotations, which is read once for all files of a source."""

    def __init__(self, filesystem: pafs.FileSystem, path: str) -> None:
        self._filesystem, self.path = filesystem, path
        self._answers: dict[Annotations, Mapping[str, list[str]]] = {}

    def read(self, annotations: Annotations) -> Mapping[str, list[str]]:
        """Return the right answers by what annotations call the rows. Raises SourceError where it cannot be read."""
        if annotations not in self._answers:
            try:
                self._answers[annotations] = _collect(self._filesystem, self.path, annotations)
            except (OSError, LostRowsError) as failure:
                raise SourceError(f"{self.path}: the annotations cannot be read: {failure}") from None
        return self._answers[annotations]


@dataclass(frozen=True)
class SideFacts:
    """What side files say about the rows of a file."""

    captions: Mapping[str, Any]
    answers: RightAnswers | None

    def fill(self, row: Row) -> Row:
        """Return a row with its captions and right answers. Raises SourceError as `RightAnswers.of`."""
        image = row.get("image")
        if isinstance(image, str) and image in self.captions:
            row = {**row, "captions": self.captions[image]}
        if self.answers is not None and (answers := self.answers.of(row)):
            row = {**row, "answers": answers}
        return row


def read_captions(filesystem: pafs.FileSystem, file: str) -> Mapping[str, Any]:
    """Return image name to its caption or captions. Raises SourceError where the file cannot be read or is none."""
    try:
        with filesystem.open_input_stream(file) as handle:
            captions = next(json_values(handle), None)
    except (OSError, ValueError) as failure:
        raise SourceError(f"{file}: the captions file cannot be read: {failure}") from None
    if not isinstance(captions, dict):
        raise SourceError(f"{file}: a captions file should be a JSON object of image name to captions")
    return captions


def find_answers(
    filesystem: pafs.FileSystem, file: str, fitting: Format, side_file: SideFile | None
) -> RightAnswers | None:
    """Return the right answers to a file's rows, from the side file or the file itself; None where it cannot have any.

    Raises:
        SourceError: the side file cannot be read, has no annotations, or the format has no use for them; or an
            annotation is damaged.
    """
    annotations = fitting.annotations
    if side_file is not None:
        if annotations is None:
            raise SourceError(f"{side_file.path}: format {fitting.name}, that of {file}, has no annotations of its own")
        return RightAnswers(annotations, side_file.read(annotations), side_file.path)
    if annotations is None or list_of_rows(filesystem, file) is None:
        return None
    with suppress(OSError, LostRowsError):  # reading the rows tells where the file breaks off
        return RightAnswers(annotations, _collect(filesystem, file, annotations, is_required=False), None)
    return None


def _collect(
    filesystem: pafs.FileSystem, file: str, annotations: Annotations, *, is_required: bool = True
) -> dict[str, list[str]]:
    answers: dict[str, list[str]] = {}
    with filesystem.open_input_stream(file) as handle:
        for number, value in enumerate(json_values(handle, _LIST)):
            if isinstance(value, RowError) and not is_required:  # no such list
                continue
            try:
                for name, text in _read(value, annotations):
                    answers.setdefault(name, []).append(sys.intern(text))
            except RowError as failure:
                raise SourceError(f"{file}: annotation {number}: {failure.message}") from None
    return answers


def _read(value: object, annotations: Annotations) -> Iterator[tuple[str, str]]:
    if isinstance(value, RowError):
        raise value
    if not isinstance(value, Mapping):
        raise RowError("format", f"it should be an object, found {type(value).__name__}")
    name = identify(value, annotations.key)
    yield from ((name, text) for text in annotations.read(value))
