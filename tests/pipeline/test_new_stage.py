"""The recipe for a new stage, followed: one file (here: this one), one line in a tuple, its settings, its schema."""

import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from carevl.data.drawn import draw
from carevl.pipeline.keys import stage_keys
from carevl.pipeline.run import run_stage
from carevl.settings.loader import load_settings
from carevl.stages import STAGES
from carevl.stages.base import RunContext, Stage, reads
from carevl.store.run import Run

LENGTHS = pa.schema([("item_id", pa.string()), ("longest", pa.int32())])


def measure_lengths(context):
    """Write the length of the longest response of every item."""
    [table] = context.pending
    items, target, n_rows = context.ingested.items, context.table(table), 0
    for number in items.parts():
        rows = [
            {"item_id": item["item_id"], "longest": max(map(len, item["responses"]))}
            for item in items.read(number).to_pylist()
        ]
        target.write(number, pa.Table.from_pylist(rows, LENGTHS))
        n_rows += len(rows)
    return {table: {"rows_in": n_rows, "rows_out": n_rows, "errors": 0}}


STAGE = Stage(
    name="lengths",
    inputs=reads("ingest"),
    fingerprint_inputs=lambda settings, root, table: {"version": 1},
    run=measure_lengths,
)


@pytest.fixture
def context(tmp_path):
    """A run whose items are read, with the new stage at the end."""
    settings = load_settings("mini", ["miniworld.items=5", "miniworld.calibration_images=5", "data.parts=2"])
    run = Run(tmp_path)
    draw(settings, run)
    stages = (*STAGES, STAGE)
    context = RunContext(settings, run, stage_keys(settings, run, stages), lambda _: None)
    run_stage(context, STAGES[0])
    return context


def test_a_new_stage_is_planned_run_and_skipped_like_any_other(context):
    assert context.run.action(context.keys["lengths"]) == ("run", "never run")
    [report] = run_stage(context, STAGE)
    assert (report.name, report.action) == ("lengths", "ran")
    assert report.rows_out == sum(context.ingested.items.read(n).num_rows for n in (0, 1))
    table = context.table("lengths")
    assert pq.read_schema(table.part(0)).names == LENGTHS.names
    assert json.loads((table.directory / "manifest.json").read_text())["cause"]["inputs"].keys() == {"ingest"}
    assert run_stage(context, STAGE)[0].action == "skipped"
