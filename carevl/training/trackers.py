"""Trackers of experiments, through accelerate's own classes."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from carevl.errors import UserError
from carevl.settings.training import Tracker


def check_tracker(name: Tracker) -> None:
    """Checks that a tracker can be used.

    Raises:
        UserError: it is not installed.
    """
    from accelerate.tracking import get_available_trackers

    if name != "none" and name not in [str(getattr(found, "value", found)) for found in get_available_trackers()]:
        raise UserError(f"tracker: {name} is not installed; install it (pip install {name}), or set tracker to none")


class Tracked:
    """Hands the facts of steps to a tracker; does nothing for `none`. Its files lie in `out/tracker`."""

    def __init__(self, name: Tracker, out: Path, settings: Mapping[str, Any]) -> None:
        from accelerate.tracking import LOGGER_TYPE_TO_CLASS

        self.tracker: Any = None
        if name == "none":
            return
        made = LOGGER_TYPE_TO_CLASS[name]
        where = {"logging_dir": str(out / "tracker")} if made.requires_logging_directory else {}
        self.tracker = made(out.name, **where)
        self.tracker.start()
        self.tracker.store_init_configuration(dict(_flat(settings)))

    def log(self, facts: Mapping[str, Any]) -> None:
        """Adds a step."""
        if self.tracker is not None:
            numbers = {name: value for name, value in _flat(facts) if isinstance(value, int | float)}
            self.tracker.log(numbers, step=facts["step"])

    def finish(self) -> None:
        """Ends the tracker's run."""
        if self.tracker is not None:
            self.tracker.finish()


def _flat(tree: Mapping[str, Any], path: str = "") -> list[tuple[str, Any]]:
    """Leaves by path; what is no number is written as text."""
    leaves: list[tuple[str, Any]] = []
    for key, value in tree.items():
        if isinstance(value, Mapping):
            leaves += _flat(value, f"{path}{key}/")
        else:
            leaves.append((f"{path}{key}", value if isinstance(value, int | float) else str(value)))
    return leaves
