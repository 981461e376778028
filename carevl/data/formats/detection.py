"""Which registered format a table's columns call for."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from carevl.data.formats import FORMATS
from carevl.data.formats.base import Format
from carevl.data.rows import Row, kind_of
from carevl.errors import DataError


class UnknownFormatError(DataError):
    """No format fits the columns; the message shows them and the format that comes closest."""


def columns_of(rows: Iterable[Row]) -> dict[str, str]:
    """Return column to type over these rows, the first type that is not null."""
    kinds: dict[str, str] = {}
    for row in rows:
        for name, value in row.items():
            if kinds.get(name, "null") == "null":
                kinds[name] = kind_of(value)
    return kinds


def detect(columns: Mapping[str, str]) -> Format:
    """Return the format that expects the most of these columns and lacks none.

    Args:
        columns: column to type, as from `columns_of`.

    Raises:
        UnknownFormatError: every format lacks a column; the message shows the columns and the closest format.
    """
    lacking = {name: candidate.lacking(columns) for name, candidate in FORMATS.items()}
    fitting = [candidate for name, candidate in FORMATS.items() if not lacking[name]]
    if fitting:
        return max(fitting, key=lambda candidate: len(candidate.columns))
    closest = max(FORMATS.values(), key=lambda candidate: 1 - len(lacking[candidate.name]) / len(candidate.columns))
    shown = ", ".join(f"{name} ({kind})" for name, kind in list(columns.items())[:40]) or "none"
    raise UnknownFormatError(
        f"no known format has these columns: {shown[:1000]}. Closest is {closest.name}, which also needs "
        f"{', '.join(lacking[closest.name])}. Rename the columns or set the source's format to one of "
        f"{', '.join(FORMATS)}"
    )
