"""`training.json`: what a training depends on, and within which bounds a setting changes nothing of it."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from carevl.store.damage import DamagedError, read_json
from carevl.store.listing import find_problems
from carevl.store.stage_key import differences

if TYPE_CHECKING:
    from carevl.training.encoder import Encoder

FILE = "training.json"
ABOUT = "about.json"
"""In a checkpoint: the number of workers, and its files."""


def read_record(directory: Path) -> Mapping[str, Any]:
    """Return what a training's record says; nothing where there is none, or it is damaged."""
    file = directory / FILE
    try:
        return read_json(file, "") if file.exists() else {}
    except DamagedError:
        return {}


def find_checkpoint_problems(checkpoint: Path) -> dict[str, str]:
    """Return what is the matter with the files of a checkpoint, as `find_problems`; all are read to their ends."""
    try:
        about = read_json(checkpoint / ABOUT, "") if (checkpoint / ABOUT).exists() else None
    except DamagedError as error:
        return {ABOUT: error.problem}
    return {ABOUT: "is missing"} if about is None else find_problems(checkpoint, about.get("files", {}), verify=True)


def find_feature_problems(listing: Path) -> dict[str, str]:
    """Return what is the matter with features that a file lists, as `find_problems`; all are read."""
    try:
        return find_problems(listing.parent, read_json(listing, ""), verify=True)
    except DamagedError as error:
        return {listing.name: error.problem}


@dataclass(frozen=True)
class TokenBounds:
    """Bounds of `batch_tokens` within which the items are the same: from `longest` on, and below `shortest_refused`.

    They then fall into other micro-batches, so that losses agree but for rounding.
    """

    longest: int
    shortest_refused: float

    @classmethod
    def of(cls, encoder: Encoder) -> TokenBounds:
        """Return the bounds of what was encoded."""
        return cls(encoder.longest, encoder.shortest_refused)

    @classmethod
    def read(cls, directory: Path) -> TokenBounds:
        """Return the bounds of a training, none that anything is in where it has none that can be read."""
        longest, refused = read_record(directory).get("batch_tokens", (0, 0))
        return cls(longest, math.inf if refused is None else refused)

    def __contains__(self, batch_tokens: int) -> bool:
        """Whether items are the same with this setting."""
        return self.longest <= batch_tokens < self.shortest_refused

    @property
    def facts(self) -> list[int | None]:
        """As `training.json` has them."""
        refused = self.shortest_refused
        return [self.longest, None if math.isinf(refused) else int(refused)]


def learned_differences(directory: Path, old: Mapping[str, Any], new: Mapping[str, Any], settings: str) -> list[str]:
    """Return what differs between the facts of a training and others in a way that changes what is learned.

    Args:
        directory: of the training.
        settings: name of the training's settings in the facts.
    """
    stored, wanted = old.get(settings, {}), new.get(settings, {})
    if "batch_tokens" in stored and wanted.get("batch_tokens", 0) in TokenBounds.read(directory):
        new = {**new, settings: {**wanted, "batch_tokens": stored["batch_tokens"]}}
    return differences(old, new)
