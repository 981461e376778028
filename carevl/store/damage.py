"""Files that are not what was written: one error that names them, and small JSON files read with it."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

from carevl.errors import UserError

WAY_OUT = "`carevl run --verify` makes it again"


class DamagedError(UserError):
    """A stored file that is missing or is not what was written.

    Attributes:
        file: its path.
        problem: what is the matter with it, in words.
    """

    def __init__(self, file: Path, problem: str, way_out: str = WAY_OUT) -> None:
        super().__init__(file, problem, way_out)
        self.file, self.problem, self.way_out = file, problem, way_out

    def __str__(self) -> str:
        return f"{self.file} {self.problem}; {self.way_out}"


def read_json(file: Path, way_out: str) -> dict[str, Any]:
    """Return the object that a small JSON file holds.

    Args:
        way_out: what mends it, for the error.

    Raises:
        DamagedError: the file holds none.
    """
    try:
        content = json.loads(file.read_bytes())
    except ValueError as error:
        raise DamagedError(file, f"is damaged: it is not JSON ({error})", way_out) from None
    if not isinstance(content, dict):
        raise DamagedError(file, "is damaged: it is not a JSON object", way_out)
    return content


def hash_file(file: Path) -> str:
    """Return the SHA-256 of a file, 64 hex digits."""
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
