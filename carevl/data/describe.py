"""Describe the preference formats, and data on disk, in lines of text."""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterator
from dataclasses import replace

from carevl.data.containers import list_and_pass_over
from carevl.data.files import locate
from carevl.data.formats import FORMATS
from carevl.data.images import ImageLimits
from carevl.data.intake import Intake
from carevl.data.reading import Source, detect_formats, passed_over, read_source


def describe_formats() -> Iterator[str]:
    """Describe every format: its name, the columns that it is recognised by, and the smallest row."""
    for preference_format in FORMATS.values():
        columns = [
            f"{names.replace('|', ' or ')} ({kinds.replace('|', ' or ')})"
            for names, kinds in preference_format.columns.items()
        ]
        yield preference_format.name
        yield f"  columns  {', '.join(columns)}"
        yield f"  example  {json.dumps(preference_format.example)}"


def describe_source(source: Source, rows: int, limits: ImageLimits) -> Iterator[str]:
    """Describe each file of a source: its format, how many of its first rows are good, each kind of problem.

    Rows are read as a run reads them, images included; URLs are not fetched.

    Args:
        rows: most rows to read of each file.

    Raises:
        UnknownFormatError, SourceError: as `detect_formats`.
    """
    filesystem, path = locate(source.path)
    intake = Intake(source, limits=limits)
    if others := list_and_pass_over(filesystem, path, source.captions)[1]:
        yield passed_over(others)
    for file, name in detect_formats(source).items():
        count = 0
        problems: dict[str, list[str]] = {}
        for row in itertools.islice(read_source(replace(source, path=file), filesystem), rows):
            count += 1
            _, item = intake(row)
            if error := item["error"]:
                problems.setdefault(error["kind"], []).append(
                    f"row {row.locator.rpartition('#')[2]}: {error['message']}"
                )
        rows_read = f"first {count} rows" if count == rows else f"{count} rows"
        yield f"{file}: {name or 'no known format'}, {rows_read}, {sum(map(len, problems.values()))} with an error"
        for kind, messages in problems.items():
            yield f"  {len(messages)} {kind}, first {messages[0]}"
