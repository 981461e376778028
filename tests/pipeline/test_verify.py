"""Every file that a run keeps beside its tables is read by `--verify`, named where it is damaged, and mended."""

from __future__ import annotations

import shutil

import pyarrow as pa
import pytest

from carevl.pipeline.keys import load_run, stage_keys
from carevl.pipeline.plan import plan_run
from carevl.pipeline.publish import record_injection
from carevl.pipeline.run import run_pipeline
from carevl.pipeline.status import verify_run
from carevl.store.damage import encode_json
from carevl.store.listing import describe
from carevl.store.table import Table
from tests.helpers.finished_run import FINISHED
from tests.pipeline.test_publish import REPORT


def _flip(file):
    data = bytearray(file.read_bytes())
    data[len(data) // 3] ^= 1
    file.write_bytes(data)


DAMAGE = {
    "deleted": lambda file: file.unlink(),
    "emptied": lambda file: file.write_bytes(b""),
    "cut": lambda file: file.write_bytes(file.read_bytes()[:-1]),
    "flipped": _flip,
}


@pytest.fixture(scope="module")
def kept(tmp_path_factory):
    """A finished run with its world, and with what a training leaves beside its table."""
    root = tmp_path_factory.mktemp("kept") / "run"
    shutil.copytree(FINISHED, root)
    settings, run = load_run(root)
    run_pipeline(settings, run, lambda _: None)
    table = run.table(stage_keys(settings, run)["sft"])
    for name in ("checkpoints/step-00000001/state/model.pt", "data/items.arrow", "data/features/0-of-1.arrow"):
        (table.directory / name).parent.mkdir(parents=True, exist_ok=True)
        (table.directory / name).write_bytes(name.encode() * 9)
    checkpoint = table.directory / "checkpoints" / "step-00000001"
    (checkpoint / "about.json").write_bytes(encode_json({"files": describe(checkpoint, ["state/model.pt"])}))
    listing = describe(table.directory / "data", ["items.arrow"])
    (table.directory / "training.json").write_bytes(encode_json({"data": listing}))
    features = table.directory / "data" / "features"
    (features / "0-of-1.json").write_bytes(encode_json(describe(features, ["0-of-1.arrow"])))
    record_injection(run.root / "judge", REPORT)
    (run.root / "compare.json").write_bytes(encode_json({"arms": {"carevl": {"strict": 0.75}}, "final": []}))
    labels = Table(run.root / "compare" / "labels" / "f")
    labels.write(0, pa.table({"x": [1]}))
    labels.finish({"stage": "compare/labels"})
    Table(run.root / "compare" / "promise" / "f").finish({"kept": 0.95})
    Table(table.directory / "reference").write(0, pa.table({"x": [1]}))
    assert list(verify_run(settings, run)) == []
    return run


FILES = {
    "sft/*/checkpoints/*/state/model.pt": "checkpoints/step-00000001/state/model.pt",
    "sft/*/checkpoints/*/about.json": "checkpoints/step-00000001/about.json",
    "sft/*/data/items.arrow": "data/items.arrow",
    "sft/*/data/features/0-of-1.arrow": "data/features/0-of-1.arrow",
    "sft/*/data/features/0-of-1.json": "data/features/0-of-1.json",
    "judge/injection.json": "judge/injection.json",
    "sft/*/reference/part-00000.parquet": "reference/part-00000.parquet",
    "world-*/truth/dev.parquet": "truth/dev.parquet",
    "world-*/dev/vl_rewardbench.parquet": "dev/vl_rewardbench.parquet",
    "world-*/.files.json": ".files.json",
    "results.json": "results.json",
    "compare.json": "compare.json",
    "compare/labels/*/part-00000.parquet": "part-00000.parquet",
    "compare/promise/*/manifest.json": "manifest.json",
    "settings.yaml": "settings.yaml",
}
ALONE = (
    "world-*/.files.json",
    "results.json",
    "compare.json",
    "compare/promise/*/manifest.json",
    "judge/injection.json",
    "sft/*/data/features/0-of-1.json",
)
"""Files that nothing else lists."""


@pytest.mark.parametrize(
    "damage", ["flipped", *(pytest.param(way, marks=pytest.mark.nightly) for way in ("deleted", "emptied", "cut"))]
)
@pytest.mark.parametrize("pattern", FILES)
def test_what_lies_beside_the_tables_is_named_and_mended(kept, tmp_path, pattern, damage):
    if damage == "deleted" and (pattern in ALONE or "reference" in pattern):
        return  # what is not there is not read
    root = tmp_path / "run"
    shutil.copytree(kept.root, root)
    settings, run = load_run(root)
    [file] = root.glob(pattern)
    DAMAGE[damage](file)
    [line] = verify_run(settings, run)
    assert f"({FILES[pattern]})" in line
    lines: list[str] = []
    run_pipeline(settings, run, lines.append, verify=True)
    assert any(FILES[pattern].rpartition("/")[2].removesuffix("-00000.parquet") in text for text in lines)
    assert list(verify_run(settings, run)) == []


def test_figures_of_a_comparison_are_put_aside(kept, tmp_path):
    root = tmp_path / "run"
    shutil.copytree(kept.root, root)
    settings, run = load_run(root)
    _flip(root / "compare.json")
    damaged = (root / "compare.json").read_bytes()
    run_pipeline(settings, run, lambda _: None, verify=True)
    assert (root / "compare.damaged").read_bytes() == damaged
    assert not (root / "compare.json").exists()


def test_rates_that_are_damaged_are_measured_anew(kept):
    settings, run = load_run(kept.root)
    (run.root / "rates.json").write_bytes(encode_json({"a": {"rows_per_second": 1.0}})[:-5])
    [line] = verify_run(settings, run)
    assert "(rates.json)" in line
    run_pipeline(settings, run, lambda _: None, verify=True)
    assert not (run.root / "rates.json").exists()


def test_a_published_judge_without_its_marker_is_named(kept, tmp_path):
    settings, run = load_run(kept.root)
    marker = run.root / "judge" / "judge.json"
    marker.rename(tmp_path / marker.name)
    try:
        assert [line.split() for line in verify_run(settings, run)] == [
            ["judge", "judge.json", "is", "missing", "(judge.json)"]
        ]
    finally:
        (tmp_path / marker.name).rename(marker)


def test_a_drawn_world_that_lacks_bytes_is_drawn_again_by_any_run(kept, tmp_path):
    root = tmp_path / "run"
    shutil.copytree(kept.root, root)
    settings, run = load_run(root)
    [file] = root.glob("world-*/train/rlaif_v.parquet")
    data = file.read_bytes()
    file.write_bytes(data[:-5])
    assert {planned.action for planned in plan_run(settings, run)} == {"skip"}
    assert {report.action for report in run_pipeline(settings, run, lambda _: None)} == {"skipped"}
    assert file.read_bytes() == data
