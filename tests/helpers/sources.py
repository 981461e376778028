"""Drawn images and the photographs that may lie beside the checkout."""

from __future__ import annotations

import io
import json
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from carevl.data.intake import Intake, merge_items
from carevl.data.reading import Source, read_source
from carevl.settings.data import Source as SettingsSource
from carevl.settings.loader import load_settings
from carevl.stages.ingest import run_ingest
from carevl.store.ingested import Ingested
from carevl.store.run import Run

PHOTOS = Path(__file__).parents[2].parent / "shared" / "data" / "photos"


@pytest.fixture(scope="session")
def photos() -> list[bytes]:
    if not PHOTOS.is_dir():
        pytest.skip(f"no photographs at {PHOTOS}")
    return [path.read_bytes() for path in sorted(PHOTOS.glob("*.jpg"))]


@pytest.fixture(scope="session")
def small_world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A drawn world of eight items, with the benchmarks of every world. Nobody may change its files."""
    from carevl.miniworld.publish import publish

    out = tmp_path_factory.mktemp("world")
    publish(out, n_items=8, seed=3, calibration_images=4)
    return out


@pytest.fixture
def draw() -> Callable[..., bytes]:
    """`draw("PNG", seed=3)`: a small file in that format; another seed, another image."""

    def make(kind: str = "PNG", seed: int = 0, size: tuple[int, int] = (9, 7), **options: Any) -> bytes:
        data = io.BytesIO()
        Image.new("RGB", size, (seed % 256, seed // 256, 90)).save(data, kind, **options)
        return data.getvalue()

    return make


@pytest.fixture
def write_lines(tmp_path: Path) -> Callable[..., Path]:
    """Writes rows as JSON Lines."""

    def write(rows: Iterable[object], name: str = "data.jsonl") -> Path:
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
        return path

    return write


@pytest.fixture
def take_in() -> Callable[..., tuple[list[dict[str, Any]], list[dict[str, Any]]]]:
    """All rows of a source as (rows of images, merged rows of items)."""

    def take(source: Source, **options: Any) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
        intake = Intake(source, **options)
        made = [intake(row) for row in read_source(source)]
        return [image for images, _ in made for image in images], merge_items(item for _, item in made)

    return take


@pytest.fixture
def ingested(tmp_path: Path) -> Callable[..., tuple[list[dict[str, Any]], list[dict[str, Any]]]]:
    """All rows of declared sources as a run's tables (images, items), without benchmarks; options are of `data`."""

    def ingest(sources: list[SettingsSource], **options: Any) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
        settings = load_settings("mini", ["data.parts=1"])
        data = settings.data.model_copy(update={"sources": sources, **options})
        settings = settings.model_copy(update={"data": data, "benchmarks": []})
        run_ingest(settings, Run(tmp_path / "run"), tmp_path / "ingest", lambda *_: None)
        tables = Ingested(tmp_path / "ingest")
        return tables.images.read().to_pylist(), tables.items.read().to_pylist()

    return ingest
