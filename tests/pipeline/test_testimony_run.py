"""A finished run whose low pairs are selected by testimony, from phase 1 on."""

import json

import pytest

from carevl.pipeline import results
from carevl.pipeline.run import run_pipeline
from carevl.settings.loader import load_settings
from carevl.stages.score_testimony import EVIDENCE
from carevl.store.table import Table
from tests.helpers.small_run import SMALL

WEIGHTS = [
    "sample.answers=false",
    *(f"select.{rule}_weight=0" for rule in ("consistency", "expert")),
    "select.rules={}",
    "select.testimony_weight=1",
    "labels={router: 1, low_router: 0, choice: 0}",  # the routes stay as they are
    "low_router.without_labels=true",
    "low_router.threshold=0.6",
    "testify={samples: 3, prompt: '{question}'}",
]


def _table(run, stage, *inside):
    [manifest] = (run.root / stage).glob("*/manifest.json")
    return Table(manifest.parent.joinpath(*inside))


@pytest.mark.ray
def test_experts_read_what_the_judge_sees_and_their_thresholds_are_changed_without_a_model(small_run, tmp_path):
    run = small_run.copy(tmp_path, "ingest", "caption", "score", "route", "demonstrate", "sft")
    settings = load_settings("mini", [*SMALL, *WEIGHTS])
    done = {report.name: report.action for report in run_pipeline(settings, run, lambda _: None, "select")}
    assert {name for name, action in done.items() if action == "skipped"} == {
        "ingest",
        "caption",
        *(f"score/{expert.name}" for expert in settings.experts),
        "demonstrate",
        "sft",
    }
    [first, again] = (
        {(row["item_id"], row["first"], row["second"]): row for row in table.read().to_pylist()}
        for table in (Table(next((run.root / "route").glob("*"))), _table(run, "route_low"))
    )
    assert {first[pair]["route"] for pair in again} == {"low"}
    testimony = _table(run, "testify").read().to_pylist()
    said = {row["item_id"] for row in testimony}
    assert {name for name, *_ in again if first[name, 0, 1]["route"] == "low"} <= said
    assert {row["task"] for row in testimony} == {"testimony"}
    assert len(testimony) == 3 * len(said)
    views = {row["view"] for row in _table(run, "score_testimony/llama").read().to_pylist()}
    assert views == {"testimony 0", "testimony 1", "testimony 2", EVIDENCE}
    trusted = {pair for pair, row in again.items() if row["route"] == "high"}
    figures = json.loads((run.root / "results.json").read_text())
    counts = figures["low_routing"]
    assert counts["high"] == len(trusted)
    assert counts["high"] + counts["low"] + counts["dropped"] == len(again) == figures["routing"]["low"]
    assert [line.split()[0] for line in results.table(figures)][:8:4] == ["routed", "again"]
    pairs = _table(run, "select").read().to_pylist()
    assert pairs
    assert {(row["item_id"], *sorted((row["winner"], row["loser"]))) for row in pairs} <= trusted

    loose = load_settings("mini", [*SMALL, *WEIGHTS, "low_router.threshold=0.5"])
    done = {report.name: report.action for report in run_pipeline(loose, run, lambda _: None, "select")}
    assert {name for name, action in done.items() if action != "skipped"} == {"route_low", "select"}
