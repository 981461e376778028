"""A benchmark's rows from disk, and those of them that cannot be asked because an image is missing."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from carevl.benchmarks.rows import Row
from carevl.benchmarks.suite import Suite
from carevl.benchmarks.suites import SUITES
from carevl.errors import UserError, reading
from carevl.settings.data import ProtocolName

_NAMED = 5


@dataclass(frozen=True)
class BenchmarkData:
    """A benchmark's rows."""

    benchmark: str
    """Its name or import path."""
    rows: list[Row]
    excluded: tuple[str, ...] = ()
    """Keys of rows left out because an image is missing."""

    @property
    def suite(self) -> Suite:
        """The benchmark that reads and scores them."""
        return SUITES[self.benchmark]

    @property
    def fingerprint(self) -> str:
        """Return 16 hex digits that change with the rows, or with size or age of an image file."""
        digest = hashlib.sha256()
        for row in self.rows:
            names = [image.name for image in row.images]
            shown = names if len(names) > 1 else (*names, None)[0]
            identity = [row.key, row.group, row.task, row.question, row.responses, row.gold, shown]
            if any(row.places):
                identity.append(row.places)
            digest.update(json.dumps(identity).encode())
            for image in row.images:
                if image.path is not None and image.present:
                    file = image.path.stat()
                    digest.update(f"{file.st_size} {file.st_mtime_ns}".encode())
        return digest.hexdigest()[:16]

    def without_missing_images(self, protocols: Sequence[ProtocolName], *, allowed: bool) -> BenchmarkData:
        """Return the data without the rows whose questions need an image that is missing.

        Args:
            allowed: whether rows may be left out.

        Raises:
            UserError: there are such rows and they may not be left out, or none would remain.
        """
        lacking = [row for row in self.rows if self._lacks_image(row, protocols)]
        keys = tuple(row.key for row in lacking)
        absent = (image for row in lacking for image in row.images if not image.present)
        tried = [str(image.path) for image in absent if image.path is not None]
        summary = f"{self.suite.name}: {len(keys)} of {len(self.rows)} rows have no image: {list_some(keys)}"
        if tried:
            summary += f"; looked for at {list_some(tried)}"
        if keys and not allowed:
            raise UserError(f"{summary}; give --images DIR, or leave them out with --allow-missing-images")
        kept = [row for row in self.rows if row.key not in set(keys)]
        if not kept:
            raise UserError(f"{summary}; nothing is left to evaluate")
        return BenchmarkData(self.benchmark, kept, keys)

    def _lacks_image(self, row: Row, protocols: Sequence[ProtocolName]) -> bool:
        if all(image.present for image in row.images) and (row.images or self.suite.has_text_only):
            return False
        questions = (q for protocol in protocols for q in self.suite.questions([row], protocol, draws=1))
        return any(question.response is None for question in questions)


def load(name: str, path: Path, images: Path | None = None) -> BenchmarkData:
    """Read a benchmark's rows from disk.

    Args:
        name: as in `SUITES`, or an import path.

    Raises:
        UserError: there is no such benchmark or folder of images, or it has no rows here.
    """
    if images is not None and not images.is_dir():
        raise UserError(f"--images {images}: there is no such folder")
    suite = SUITES[name]
    with reading(path):
        rows = suite.load(path, images)
    if not rows:
        raise UserError(f"{name}: {path} has no rows")
    return BenchmarkData(name, rows)


def list_some(keys: Sequence[str]) -> str:
    """Return the first keys, for a message."""
    return ", ".join(keys[:_NAMED]) + (", …" if len(keys) > _NAMED else "")
