"""Which registered format a table's columns call for."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Iterable, Mapping
from contextlib import suppress

from carevl.data.formats import FORMATS
from carevl.data.formats.base import Format
from carevl.data.rows import WITHOUT_RESPONSES, ErrorKind, Row, kind_of
from carevl.errors import DataError


class UnknownFormatError(DataError):
    """No format fits the columns; the message shows them and the format that comes closest."""

    kind: ErrorKind = "format"
    """Of the error that each row has."""


class ImagePairError(UnknownFormatError):
    """The rows prefer one of two images to the other, as data for the generation of images do."""

    kind = "image_pair"


class NoResponsesError(UnknownFormatError):
    """The rows fit formats of questions alone, and no model writes responses."""

    kind = "responses"


_IMAGE_PAIRS = (
    ("chosen_image", "rejected_image"),
    ("chosen_images", "rejected_images"),
    ("image_chosen", "image_rejected"),
    ("jpg_0", "jpg_1"),  # Pick-a-Pic
)

_HEAD_ROWS = 16
_MOST_ROWS = 1000


def columns_of(rows: Iterable[Row]) -> dict[str, str]:
    """Return column to type over these rows: the type of most values that are not null, the first of equally many."""
    return _columns(Counter(_shape(row) for row in rows))


def detect(columns: Mapping[str, str], questions: bool = False) -> Format:
    """Return the format that expects the most of these columns and lacks none.

    Args:
        columns: column to type, as from `columns_of`.
        questions: whether formats of questions without responses are among those that may be returned.

    Raises:
        NoResponsesError: formats of questions alone fit, and are not among those.
        ImagePairError: every format lacks a column, and there are columns of a preferred image and another.
        UnknownFormatError: every format lacks a column; the message shows the columns and the closest format.
    """
    lacking = {name: candidate.lacking(columns) for name, candidate in FORMATS.items()}
    candidates = [candidate for candidate in FORMATS.values() if questions or not candidate.of_questions]
    fitting = [candidate for candidate in candidates if not lacking[candidate.name]]
    if fitting:
        return max(fitting, key=lambda candidate: len(candidate.columns))
    for better, worse in _IMAGE_PAIRS:
        if {better, worse} <= columns.keys():
            raise ImagePairError(
                f"the rows prefer one of two images (`{better}`, `{worse}`), and an item prefers one of two responses "
                "to the same images: such data train no judge of responses; leave the source out, or name the image "
                "that both responses are about `image`"
            )
    closest = max(candidates, key=lambda candidate: 1 - len(lacking[candidate.name]) / len(candidate.columns))
    shown = ", ".join(f"{name} ({kind})" for name, kind in list(columns.items())[:40]) or "none"
    message = (
        f"no known format has these columns: {shown[:1000]}. Closest is {closest.name}, which also needs "
        f"{', '.join(lacking[closest.name])}. Rename the columns or set the source's format to one of "
        f"{', '.join(candidate.name for candidate in candidates)}"
    )
    if of_questions := [name for name, lacks in lacking.items() if not lacks]:
        raise NoResponsesError(f"{message}. As {of_questions[0]} the rows have no responses; {WITHOUT_RESPONSES}")
    raise UnknownFormatError(message)


def detect_in(rows: Iterable[Row], questions: bool = False) -> Format | None:
    """Return the format of a file by its first 16 rows, or by more where none fits them; None where it has no rows.

    A format that fits these rows together comes first, then one that fits some of them alone. A format of texts is
    chosen where none of the first 1,000 rows fits another.

    Args:
        questions: as `detect` takes it.

    Raises:
        UnknownFormatError: no format fits any of the first 1,000 rows.
    """
    shapes: Counter[_Shape] = Counter()
    for n, row in enumerate(itertools.islice(rows, _MOST_ROWS), 1):
        shape = _shape(row)
        is_news = shape not in shapes
        shapes[shape] += 1
        if n == _HEAD_ROWS or (n > _HEAD_ROWS and is_news):
            with suppress(UnknownFormatError):
                fitting = _detect(shapes, questions)
                if not fitting.of_text:  # rows with images may follow
                    return fitting
    return _detect(shapes, questions) if shapes else None


_Shape = tuple[tuple[str, str], ...]


def _shape(row: Row) -> _Shape:
    return tuple((name, kind_of(value)) for name, value in row.items())


def _columns(shapes: Counter[_Shape]) -> dict[str, str]:
    kinds: dict[str, Counter[str]] = {}
    for shape, count in shapes.items():
        for name, kind in shape:
            kinds.setdefault(name, Counter())[kind] += count
    for counts in kinds.values():
        if len(counts) > 1:
            del counts["null"]
    return {name: counts.most_common(1)[0][0] for name, counts in kinds.items()}


def _detect(shapes: Counter[_Shape], questions: bool) -> Format:
    try:
        return detect(_columns(shapes), questions)
    except UnknownFormatError:
        for shape, _ in shapes.most_common():
            with suppress(UnknownFormatError):
                return detect(dict(shape), questions)
        raise
