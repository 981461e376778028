"""Trackers of experiments, through accelerate's own classes."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from carevl.errors import UserError
from carevl.settings.training import Tracker


def check_tracker(name: Tracker) -> None:
    """Check that a tracker can be used.

    Raises:
        UserError: it is not installed.
    """
    from accelerate.tracking import get_available_trackers

    if name != "none" and name not in [str(getattr(kind, "value", kind)) for kind in get_available_trackers()]:
        raise UserError(f"tracker: {name} is not installed; install it (pip install {name}), or set tracker to none")


class StepTracker:
    """Hands the facts of steps to a tracker; does nothing for `none`. Its files lie in `out/tracker`."""

    def __init__(self, name: Tracker, out: Path, settings: Mapping[str, Any]) -> None:
        from accelerate.tracking import LOGGER_TYPE_TO_CLASS

        self.tracker: Any = None
        if name == "none":
            return
        kind = LOGGER_TYPE_TO_CLASS[name]
        location = {"logging_dir": str(out / "tracker")} if kind.requires_logging_directory else {}
        self.tracker = kind(out.name, **location)
        self.tracker.start()
        self.tracker.store_init_configuration(dict(_flat(settings)))

    def log(self, facts: Mapping[str, Any]) -> None:
        """Log a step."""
        if self.tracker is not None:
            numbers = {name: value for name, value in _flat(facts) if isinstance(value, int | float)}
            self.tracker.log(numbers, step=facts["step"])

    def finish(self) -> None:
        """End the tracker's run."""
        if self.tracker is not None:
            self.tracker.finish()


def _flat(tree: Mapping[str, Any], path: str = "") -> list[tuple[str, Any]]:
    """Return leaves by path; what is no number becomes text."""
    leaves: list[tuple[str, Any]] = []
    for key, value in tree.items():
        if isinstance(value, Mapping):
            leaves += _flat(value, f"{path}{key}/")
        else:
            leaves.append((f"{path}{key}", value if isinstance(value, int | float) else str(value)))
    return leaves
