"""Names that become files or directories: what they may look like, wherever they come from."""

from __future__ import annotations

import re

from carevl.errors import UserError

LONGEST = 100
"""Bytes of the longest name: with what is added to it, it stays below the 255 of a file system."""
_PATTERN = re.compile(r"\w[\w.-]*")
_SHAPE = (
    f"a name of letters, digits, '_', '-' and '.', which begins with neither '-' nor '.', of {LONGEST} bytes at most"
)


def check_path_component(name: str) -> str:
    """Return a name that becomes a file or directory.

    Raises:
        ValueError: it could lead elsewhere, or is none; without the name, which the caller tells.
    """
    if _PATTERN.fullmatch(name) is None or len(name.encode()) > LONGEST:
        raise ValueError(f"it becomes part of a path, so it has to be {_SHAPE}")
    return name


def path_component(name: str, what: str) -> str:
    """Return a name that did not come from settings, such as one out of a row, if it can be one part of a path.

    Args:
        what: it names, for the message.

    Raises:
        UserError: it leads elsewhere, or is none.
    """
    try:
        return check_path_component(name)
    except ValueError as error:
        raise UserError(f"{what} {name[:LONGEST]!r}: {error}") from None
