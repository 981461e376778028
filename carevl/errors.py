"""The exceptions whose message is for the person at the command line, and how a name is suggested in it."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class UserError(Exception):
    """Something that a person can mend: the message says what was found, where, and what to do."""


class SettingsError(UserError):
    """A setting that cannot be used."""


def suggest(name: str, names: Iterable[str], otherwise: str, *, kind: str = "", cutoff: float = 0.6) -> str:
    """Return the end of a message about a name that nothing has: the name that was probably meant, or `otherwise`.

    Args:
        kind: put before the suggested name.
        cutoff: likeness from which a name is suggested, 0 to 1.
    """
    near = difflib.get_close_matches(name, names, 1, cutoff=cutoff)
    return f"did you mean {kind}{near[0]}?" if near else otherwise
