"""Two rounds of phase 2 on a finished small run: what is there stays, a stop costs nothing, the kept judge is out."""

import json

import pytest

from carevl.pipeline.keys import stage_keys
from carevl.pipeline.run import run_pipeline
from carevl.pipeline.status import status_lines
from carevl.settings.loader import load_settings
from carevl.stages.rounds import RoundOutcomes
from carevl.store.published import published_version
from tests.helpers.small_run import SMALL

NEW = {"choice", "examine/phase1", "examine/phase2"}
ROUND = ["round-2/sample", "round-2/select", "round-2/dpo", "examine/round-2"]


def _run(settings, run, until=None):
    """Return the tables that were made, in order."""
    reports = run_pipeline(settings, run, print, until)
    return [report.name for report in reports if report.action != "skipped"]


@pytest.mark.ray
@pytest.mark.nightly
def test_a_second_round_begins_with_the_judge_of_the_first_and_goes_on_after_a_stop(small_run, tmp_path):
    run = small_run.copy(tmp_path)
    settings = load_settings("mini", [*SMALL, "rounds=2"])
    assert {*_run(settings, run, "round-2/sample")} == {*NEW, "round-2/sample"}
    keys = stage_keys(settings, run)
    outcomes = RoundOutcomes(run, lambda: keys)
    assert outcomes.helped(1)
    assert published_version(run.root / "judge") == run.version(keys["dpo"])
    sampled = run.table(keys["round-2/sample"])
    first = run.table(keys["sample"])
    assert sampled.read(columns=["item_id", "order"]) == first.read(columns=["item_id", "order"])
    assert sampled.read() != first.read()

    made = _run(settings, run)
    keys = stage_keys(settings, run)
    assert made[:3] == ROUND[1:]
    kept = 2 if outcomes.helped(2) else 1
    assert made[3:] == (["evaluate/phase2"] if kept == 2 else [])
    assert published_version(run.root / "judge") == run.version(keys["round-2/dpo" if kept == 2 else "dpo"])
    one, two = json.loads((run.root / "results.json").read_text())["rounds"]
    assert (one["round"], one["kept"], two["round"], two["kept"]) == (1, True, 2, kept == 2)
    assert one["choice"]["after"] == two["choice"]["before"]
    assert (two["choice"]["after"]["value"] > two["choice"]["before"]["value"]) == (kept == 2)
    assert [*status_lines(settings, run)][-1].startswith("round 2 ")

    assert _run(settings, run) == []
    assert _run(small_run.settings, run) == []
    assert published_version(run.root / "judge") == run.version(stage_keys(small_run.settings, run)["dpo"])
