"""Describe the formats, and data on disk, in lines of text."""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterable, Iterator
from dataclasses import fields

from carevl.data.formats import FORMATS
from carevl.data.images import ImageLimits
from carevl.data.intake import Intake
from carevl.data.reading import Source, detect_formats, find_files, passed_over, read_files
from carevl.data.rows import clean
from carevl.data.urls import UrlFetcher
from carevl.data.videos import FrameReader
from carevl.errors import DataError


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


def describe_sources(
    sources: Iterable[Source],
    rows: int,
    limits: ImageLimits,
    fetcher: UrlFetcher | None = None,
    frames: FrameReader | None = None,
) -> Iterator[str]:
    """Describe every source: what is declared of it, then as `describe_source`.

    Raises:
        DataError: some sources cannot be read; the others have been described.
    """
    failures = []
    for source in sources:
        yield _declared(source)
        try:
            yield from describe_source(source, rows, limits, fetcher, frames)
        except DataError as failure:
            failures.append(f"{source.name}: {failure}")
    if failures:
        raise DataError("\n".join(failures))


def _declared(source: Source) -> str:
    """Return a source's name, path, and fields that are not as they are by default."""
    named = [field.name for field in fields(source) if field.name not in ("name", "path", "seed", "respond")]
    given = {name: getattr(source, name) for name in named}
    defaults = {field.name: field.default for field in fields(source)}
    others = [f"{name}: {json.dumps(value)}" for name, value in given.items() if value != defaults[name]]
    return ", ".join([f"{source.name}: {source.path}", *others])


def describe_source(
    source: Source,
    rows: int,
    limits: ImageLimits,
    fetcher: UrlFetcher | None = None,
    frames: FrameReader | None = None,
) -> Iterator[str]:
    """Describe each file of a source: its format, how many of its first rows are good, each kind of problem.

    Rows are read as a run reads them, images included.

    Args:
        rows: most rows to read of each file.
        fetcher: for http(s) references; None refuses them.
        frames: decodes videos, as for `Intake`.

    Raises:
        UnknownFormatError, SourceError: as `detect_formats`.
    """
    intake = Intake(source, None, limits, fetcher, frames)
    if others := find_files(source)[2]:
        yield passed_over(others)
    formats = detect_formats(source)
    for file, source_rows in read_files(source):
        name, count, asked = formats[file] or "no known format", 0, 0
        problems: dict[str, list[str]] = {}
        for row in itertools.islice(source_rows, rows):
            count += 1
            _, item = intake(row)
            asked += item["responses"] == []
            if error := item["error"]:
                problems.setdefault(error["kind"], []).append(
                    f"row {row.locator.rpartition('#')[2]}: {error['message']}"
                )
        rows_read = f"first {count} rows" if count == rows else f"{count} rows"
        questions = f", {asked} without responses, which respond.models write" if asked else ""
        yield f"{clean(file)}: {name}, {rows_read}, {sum(map(len, problems.values()))} with an error{questions}"
        for kind, messages in problems.items():
            yield f"  {len(messages)} {kind}, first {messages[0]}"
