"""`miniworld:` in the settings: shipped models by name, and files of a world that is drawn into the run directory."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import TYPE_CHECKING

from carevl.miniworld.publish import WORLD_FILE, publish
from carevl.miniworld.weights import WEIGHTS
from carevl.settings.schemes import DRAWN_PREFIX, Scheme
from carevl.store.run import RunError

if TYPE_CHECKING:
    from carevl.settings.tree import Settings


class _Miniworld(Scheme):
    name = "miniworld"

    def model(self, name: str) -> Path:
        names = sorted(entry.name for entry in WEIGHTS.iterdir() if entry.is_dir())
        if name not in names:
            raise RunError(f"{self.name}:{name}: there is no such shipped model; there are {', '.join(names)}")
        return WEIGHTS / name

    def data_directory(self, settings: Settings) -> str:
        world = settings.miniworld
        return f"{DRAWN_PREFIX}{world.items}-{world.calibration_images}-{world.seed}"

    def is_drawn(self, settings: Settings, root: Path) -> bool:
        return (root / self.data_directory(settings) / WORLD_FILE).exists()

    def draw(self, settings: Settings, root: Path) -> None:
        world = settings.miniworld
        _draw(root / self.data_directory(settings), world.items, world.seed, world.calibration_images)

    def draw_test(self, root: Path, seed: int) -> Path:
        world = root / f"{DRAWN_PREFIX}final-{seed}"
        if not (world / WORLD_FILE).exists():
            _draw(world, 1, seed, 1)  # the fewest training and labelled items that a world can have
        return world / "test" / "vl_rewardbench.parquet"


def _draw(world: Path, items: int, seed: int, calibration_images: int) -> None:
    """Draw a world; one without its world.json was interrupted and is drawn anew."""
    shutil.rmtree(world, ignore_errors=True)
    try:
        publish(world, items, seed, calibration_images)
    except OSError as error:
        raise RunError(f"cannot draw the world {world}: {error}") from error


MINIWORLD = _Miniworld()
