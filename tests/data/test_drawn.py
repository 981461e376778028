"""Drawn data: where they lie, that a plan leaves no trace of them, and when they are drawn anew."""

from __future__ import annotations

import os
import shutil
import sys
import tempfile
from pathlib import Path

import pytest

from carevl.data.drawn import DataRoot, data_root, draw
from carevl.errors import SettingsError
from carevl.pipeline.keys import stage_keys
from carevl.pipeline.plan import plan_run
from carevl.settings.data import Source
from carevl.settings.loader import load_settings
from carevl.settings.tree import Settings
from carevl.stages import ingest
from carevl.store.run import Run

SCHEME = '''
"""Draws one file, as large as the seed of the world; counts how often."""
import json
from carevl.settings.schemes import Scheme

class Toy(Scheme):
    name = "toy"
    draws = 0

    def data_directory(self, settings):
        return f"world-toy-{settings.miniworld.seed}"

    def is_drawn(self, settings, root):
        return (root / self.data_directory(settings) / "done").exists()

    def draw(self, settings, root):
        directory = root / self.data_directory(settings)
        directory.mkdir(parents=True, exist_ok=True)
        row = {"image": "a.png", "question": "Q" * settings.miniworld.seed, "chosen": "a", "rejected": "b"}
        (directory / "rows.jsonl").write_text(json.dumps(row))
        (directory / "done").touch()
        self.draws += 1

TOY = Toy()
'''


@pytest.fixture
def settings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Settings:
    """Of a source that is drawn, and one that lies in the run directory."""
    package = tmp_path / "package"
    package.mkdir()
    (package / "toy_world.py").write_text(SCHEME)
    monkeypatch.syspath_prepend(str(package))
    monkeypatch.delitem(sys.modules, "toy_world", raising=False)
    own = tmp_path / "run" / "own.jsonl"
    own.parent.mkdir()
    own.write_text('{"image": "a.png", "question": "Q?", "chosen": "a", "rejected": "b"}')
    base = load_settings("mini", [])
    sources = [Source(path="toy_world:TOY:rows.jsonl", name="drawn"), Source(path=str(own), name="own")]
    data = base.data.model_copy(update={"sources": sources})
    return base.model_copy(update={"data": data, "benchmarks": []})


@pytest.fixture
def temporary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where temporary files of this test lie."""
    directory = tmp_path / "tmp"
    directory.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(directory))
    return directory


def tree(directory: Path) -> dict[str, int]:
    return {str(file.relative_to(directory)): file.stat().st_mtime_ns for file in sorted(directory.rglob("*"))}


def test_a_plan_writes_nothing_and_has_the_fingerprints_of_the_run(
    settings: Settings, tmp_path: Path, temporary: Path
) -> None:
    run = Run(tmp_path / "run")
    before = tree(run.root)
    planned = plan_run(settings, run)
    assert tree(run.root) == before
    assert not list(temporary.glob("carevl-*"))
    draw(settings, run)
    drawn = tree(run.root)
    assert "world-toy-7/rows.jsonl" in drawn
    keys = stage_keys(settings, run)
    assert [(stage.name, stage.fingerprint) for stage in planned] == [
        (name, key.fingerprint) for name, key in keys.items()
    ]
    assert set(keys["ingest"].fingerprint_inputs["files"]) == {"world-toy-7/rows.jsonl", "own.jsonl"}
    assert tree(run.root) == drawn


def test_other_drawn_data_have_another_fingerprint(settings: Settings, tmp_path: Path) -> None:
    run = Run(tmp_path / "run")
    larger = settings.model_copy(update={"miniworld": settings.miniworld.model_copy(update={"seed": 8})})
    first, second = (stage_keys(tree, run)["ingest"].fingerprint for tree in (settings, larger))
    assert first != second


def test_drawn_data_are_known_by_their_size_and_other_data_by_their_age_too(settings: Settings, tmp_path: Path) -> None:
    run = Run(tmp_path / "run")
    draw(settings, run)
    facts = ingest.facts(settings, DataRoot.of(settings, run))
    assert {name: len(stamp) for name, stamp in facts["files"].items()} == {"world-toy-7/rows.jsonl": 2, "own.jsonl": 3}
    os.utime(run.root / "world-toy-7" / "rows.jsonl", (1, 1))
    assert ingest.facts(settings, DataRoot.of(settings, run)) == facts
    copied = Run(tmp_path / "copy")
    shutil.copytree(run.root, copied.root)
    assert stage_keys(settings, copied)["ingest"].fingerprint_inputs["files"]["world-toy-7/rows.jsonl"] == [
        1,
        *_size(copied),
    ]


def _size(run: Run) -> list[int]:
    return [(run.root / "world-toy-7" / "rows.jsonl").stat().st_size]


def test_what_an_interrupted_run_left_is_drawn_anew(settings: Settings, tmp_path: Path, temporary: Path) -> None:
    import toy_world  # type: ignore[import-not-found]

    run = Run(tmp_path / "run")
    half = run.root / "world-toy-7" / "rows.jsonl"
    half.parent.mkdir()
    half.write_text("{")
    with data_root(settings, run) as root:
        assert root.drawn != root.run
        assert Path(root.resolve("toy_world:TOY:rows.jsonl")).read_text() != "{"
    assert half.read_text() == "{"
    draw(settings, run)
    assert half.read_text() != "{"
    draw(settings, run)
    with data_root(settings, run) as root:
        assert root.drawn == root.run
    assert toy_world.TOY.draws == 2


def test_settings_that_name_no_scheme_draw_nothing(settings: Settings, tmp_path: Path, temporary: Path) -> None:
    data = settings.data.model_copy(update={"sources": settings.data.sources[1:]})
    own = settings.model_copy(update={"data": data})
    run = Run(tmp_path / "run")
    before = tree(run.root)
    draw(own, run)
    with data_root(own, run) as root:
        assert root == DataRoot.of(own, run)
    assert tree(run.root) == before


def test_a_scheme_without_data_cannot_be_a_source(settings: Settings, tmp_path: Path) -> None:
    (tmp_path / "package" / "models_alone.py").write_text(
        "from carevl.settings.schemes import Scheme\nclass M(Scheme):\n    name = 'm'\nM = M()\n"
    )
    data = settings.data.model_copy(update={"sources": [Source(path="models_alone:M:x")]})
    with pytest.raises(SettingsError, match="m: it has no data"):
        draw(settings.model_copy(update={"data": data}), Run(tmp_path / "run"))
