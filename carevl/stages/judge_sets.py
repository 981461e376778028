"""Judgments from elsewhere, such as LLaVA-Critic's, as rows of phase 1 beside the run's own targets.

A row is a conversation (`conversations` or `messages`) that ends with the judgment to imitate, and its images, as in
the formats of LLaVA and ms-swift. What it says is learned as it stands: prompts and verdicts in its own words.
"""

from __future__ import annotations

import itertools
import posixpath
from collections.abc import Callable, Iterator
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import pyarrow as pa
from pyarrow.fs import FileType

from carevl.data.containers import Record, list_files, read_records
from carevl.data.files import locate
from carevl.data.images import ImageLimits, identify
from carevl.data.media import read_media
from carevl.data.references import ImageReader
from carevl.data.rows import RowError, VideoReference, references_of
from carevl.data.turns import read_turns, split_answer
from carevl.store.run import RunError
from carevl.store.schemas import TURNS

if TYPE_CHECKING:
    from carevl.data.drawn import DataRoot
    from carevl.settings.data import JudgeSet
    from carevl.store.table import Table

_PART = 1000
"""Rows of a part."""
_ROWS = pa.schema(
    [
        ("item_id", pa.string()),
        ("images", pa.list_(pa.large_binary())),
        ("places", pa.list_(pa.int32())),
        ("turns", TURNS),
        ("prompt", pa.string()),
        ("target", pa.string()),
    ]
)


def facts(sets: list[JudgeSet], root: DataRoot) -> dict[str, Any]:
    """Return what identifies the sets: name, size and age of their files."""
    files: dict[str, Any] = {}
    for declared in sets:
        filesystem, path = locate(root.resolve(declared.path))
        files |= {root.relative(file): root.stamp(file, filesystem) for file in list_files(filesystem, path)}
    return {"judge_sets": files} if sets else {}


def write_judge_sets(
    sets: list[JudgeSet],
    root: DataRoot,
    rows: Table,
    first: int,
    limits: ImageLimits,
    max_error_fraction: float,
    log: Callable[[str], None],
) -> list[int]:
    """Write the rows of all sets; return the numbers of their parts.

    Args:
        rows: receives `item_id`, `images` (files), `places`, `turns`, `prompt` and `target`.
        first: number of their first part.
        max_error_fraction: share of the rows that may be unusable.
        log: called with a line about them.

    Raises:
        RunError: more rows than allowed cannot be read; it names the first.
    """
    numbers: list[int] = []
    errors: list[str] = []
    n_rows = 0
    good = _read(sets, root, limits, errors)
    for number in itertools.count(first):
        part = list(itertools.islice(good, _PART))
        if not part:
            break
        rows.write(number, pa.Table.from_pylist(part, _ROWS))
        numbers.append(number)
        n_rows += len(part)
    if len(errors) > max_error_fraction * (n_rows + len(errors)):
        raise RunError(
            f"sft: {len(errors)} of {n_rows + len(errors)} rows of data.judge_sets cannot be used, more than "
            f"max_error_fraction = {max_error_fraction:.1%} allows, the first: {errors[0]}; mend them, or allow more"
        )
    if n_rows or errors:
        broken = f"; {len(errors)} more cannot be used, the first: {errors[0]}" if errors else ""
        log(f"{n_rows} judgments of data.judge_sets are learned beside the run's own targets{broken}")
    return numbers


def _read(sets: list[JudgeSet], root: DataRoot, limits: ImageLimits, errors: list[str]) -> Iterator[dict[str, Any]]:
    for n, declared in enumerate(sets):
        path = root.resolve(declared.path)
        filesystem, place = locate(path)
        inside = filesystem.get_file_info(place).type == FileType.Directory
        base = place if inside else posixpath.dirname(place) or "."
        if declared.image_root is not None:
            _, base = locate(declared.image_root)
        reader = ImageReader(filesystem, base, limits)
        name = declared.name or f"judge-set-{n}"
        for file in list_files(filesystem, place):
            for record in read_records(filesystem, file):
                locator = f"{name}: {posixpath.relpath(file, base)}#{record.number}"
                try:
                    yield {"item_id": locator, **_row(record, reader, limits, posixpath.dirname(file))}
                except RowError as error:
                    errors.append(f"{locator}: {error.message}")


def _row(record: Record, reader: ImageReader, limits: ImageLimits, near: str) -> dict[str, Any]:
    """Return the columns of a row that training reads.

    Raises:
        RowError: it is no conversation that ends with a judgment, or an image cannot be read.
    """
    if record.row is None:
        raise record.error or RowError("row", "the row is empty")
    row = record.row
    field = next((name for name in ("conversations", "messages") if row.get(name) is not None), "conversations")
    turns, judgment = split_answer(read_turns(row.get(field), field), field)
    if not judgment.strip():
        raise RowError("responses", f"the last turn of `{field}`, the judgment, is blank")
    found, (*before, question) = read_media(row, ("images", "image"), turns, required=False)
    references = references_of(found)
    if any(isinstance(reference, VideoReference) for reference in references):
        raise RowError("media", "the row has a video, and judgments from elsewhere are read with images alone")
    limits.check_count(len(references))
    files = [reader.read(reference, near) for reference in references]
    sizes = [identify(file, limits) for file in files]
    limits.check_pixels(sum(facts.width * facts.height for facts in sizes))
    return {
        "images": files,
        "places": question.places,
        "turns": [asdict(turn) for turn in before],
        "prompt": question.text,
        "target": judgment,
    }
