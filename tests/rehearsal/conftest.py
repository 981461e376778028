"""The hub that rehearsals read from, and the files of a user."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from carevl.miniworld.publish import publish
from carevl.miniworld.weights import WEIGHTS
from carevl.settings.loader import load_settings, presets
from tests.helpers.hub import Hub, serve_hub
from tests.helpers.rehearsal import ITEMS, STANDING_IN

if TYPE_CHECKING:
    from carevl.settings.models import Model


@pytest.fixture(scope="session")
def hub(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Hub]:
    """Serves the models that the presets for GPUs name, at their commits, in bfloat16; judges as two shards."""
    with serve_hub(tmp_path_factory.mktemp("hub")) as served:
        for settings in map(load_settings, presets()):
            if settings.judge.path.startswith("miniworld:"):
                continue
            models: list[Model] = [settings.captioner, settings.judge, *settings.experts]
            for model, shipped in zip(models, STANDING_IN, strict=True):
                if model.path not in served.repositories:
                    shards = 2 if shipped == "judge" else 1
                    served.add(model.path, WEIGHTS / shipped, model.revision, dtype="bfloat16", shards=shards)
        yield served


@pytest.fixture(scope="session")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Files as a user has them: pairs without labels, labelled pairs, a benchmark."""
    directory = tmp_path_factory.mktemp("world")
    publish(directory, ITEMS, seed=7, calibration_images=150)
    return directory
