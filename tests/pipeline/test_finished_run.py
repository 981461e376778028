"""A run that an earlier version finished is found again: every stage skipped, the same results printed.

`tests/data/finished_run` was written by commit 33b32dc (`SMALL` of test_pipeline.py), without weights and without the
drawn world: the world is drawn again, byte for byte the same. In its `results.json` shares of right labels have been
made to count ties as wrong, as this version does. A stage that a new version has to make again is listed here with the
reason.
"""

import json
import shutil
from pathlib import Path

import pytest

from carevl.pipeline import results
from carevl.pipeline.run import run_pipeline
from carevl.pipeline.status import status_lines
from carevl.settings.loader import load_settings
from carevl.stages import STAGES
from carevl.store.run import Run

FINISHED = Path(__file__).parents[1] / "data" / "finished_run"
MADE_AGAIN: dict[str, str] = {}
"""Stage to the sentence that says why a version makes it again."""


@pytest.fixture
def finished(tmp_path):
    shutil.copytree(FINISHED, tmp_path / "run")
    return Run(tmp_path / "run")


def _numbers(tree, *above):
    """Every leaf of a tree by its path; an interval may be found by another formula, so the last digits may differ."""
    if not isinstance(tree, dict):
        return {"/".join(above): tree}
    return {path: leaf for name, below in tree.items() for path, leaf in _numbers(below, *above, name).items()}


def test_every_stage_is_skipped_and_the_results_are_the_same(finished):
    before = json.loads((finished.root / "results.json").read_text())
    settings = load_settings(str(finished.settings))
    places = {stage.name: stage.directory or stage.name for stage in STAGES}
    assert {path.name for path in FINISHED.iterdir() if path.is_dir()} <= {*places.values(), "judge"}
    new = {name for name, place in places.items() if not (FINISHED / place).is_dir()}
    done = run_pipeline(settings, finished, lambda _: None)
    again = {stage.name for stage in done if stage.action != "skipped"}
    assert {name for name in again if name.partition("/")[0] not in new} == set(MADE_AGAIN)
    after = json.loads((finished.root / "results.json").read_text())
    for name in ("routing", "targets", "pairs", "judges"):
        assert _numbers(after[name]) == pytest.approx(_numbers(before[name]), rel=1e-9, nan_ok=True), name
    assert list(results.table(after)) == list(results.table(before))


def test_status_says_what_was_computed_otherwise_than_the_settings_say(finished):
    [file] = finished.root.glob("caption/*/manifest.json")
    manifest = json.loads(file.read_text())
    file.write_text(json.dumps({**manifest, "fallbacks": ["org/captioner: it runs in transformers"]}))
    lines = list(status_lines(load_settings(str(finished.settings)), finished))
    [place] = [number for number, line in enumerate(lines) if "org/captioner: it runs in transformers" in line]
    assert lines[place - 1].startswith("caption ")
