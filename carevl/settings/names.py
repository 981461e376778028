"""Names that become files or directories: what they may look like, wherever they come from."""

from __future__ import annotations

import re
from typing import Annotated

from pydantic import AfterValidator

from carevl.errors import UserError

LONGEST = 100
"""Bytes of the longest name: with what is added to it, it stays below the 255 of a file system."""
_PATTERN = re.compile(r"\w[\w.-]*")
_SHAPE = (
    f"a name of letters, digits, '_', '-' and '.', which begins with neither '-' nor '.', of {LONGEST} bytes at most"
)


def _check(name: str) -> str:
    if _PATTERN.fullmatch(name) is None or len(name.encode()) > LONGEST:
        raise ValueError(f"it becomes part of a path, so it has to be {_SHAPE}")
    return name


PathName = Annotated[str, AfterValidator(_check)]
"""A setting that becomes a file or directory."""


def path_component(name: str, what: str) -> str:
    """Return a name that did not come from settings, such as one out of a row, if it can be one part of a path.

    Args:
        what: it names, for the message.

    Raises:
        UserError: it leads elsewhere, or is none.
    """
    try:
        return _check(name)
    except ValueError as error:
        raise UserError(f"{what} {name[:LONGEST]!r}: {error}") from None
