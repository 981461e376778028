"""Files that are not what was written: one error that names them, and small JSON files read with it."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from carevl.errors import MachineError

_CHECKSUM = "checksum"
WAY_OUT = "`carevl run --verify` makes it again"


class DamagedError(MachineError):
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


def encode_json(content: Mapping[str, Any]) -> bytes:
    """Return an object as JSON with a checksum of it, which `read_json` compares; other values become texts."""
    content = json.loads(json.dumps(content, default=str))
    text = json.dumps({**content, _CHECKSUM: _checksum(content)}, indent=2, ensure_ascii=False)
    return text.encode("utf-8", "surrogatepass")


def _checksum(content: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def read_json(file: Path, way_out: str) -> dict[str, Any]:
    """Return the object that a small JSON file holds, without its checksum if it has one.

    Args:
        way_out: what mends it, for the error.

    Raises:
        DamagedError: the file holds none, or another than was written.
    """
    try:
        content = json.loads(file.read_bytes())
    except ValueError as error:
        raise DamagedError(file, f"is damaged: it is not JSON ({error})", way_out) from None
    if not isinstance(content, dict):
        raise DamagedError(file, "is damaged: it is not a JSON object", way_out)
    name = _CHECKSUM if _CHECKSUM in content else next(reversed(content), "")
    others = {key: value for key, value in content.items() if key != name}
    # The last value of a file that an earlier version wrote is no checksum; one of this version may be misnamed.
    if (content.get(name) == _checksum(others)) != (name == _CHECKSUM):
        raise DamagedError(file, "is damaged: its checksum does not fit", way_out)
    return others if name == _CHECKSUM else content


def find_json_problem(file: Path) -> str | None:
    """Return what is the matter with a small JSON file, in words; None where it is what was written, or not there."""
    try:
        _ = read_json(file, "") if file.exists() else {}
    except DamagedError as error:
        return error.problem
    return None


def hash_file(file: Path) -> str:
    """Return the SHA-256 of a file, 64 hex digits."""
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
