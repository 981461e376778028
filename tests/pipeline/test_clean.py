"""What no run needs is removed, and nothing else."""

from __future__ import annotations

import pytest

from carevl.pipeline.clean import clean, find_unneeded
from carevl.pipeline.keys import stage_keys
from carevl.settings.loader import fill, load_settings
from carevl.settings.tree import Settings
from carevl.store.run import Run, RunError
from carevl.store.stage_key import StageKey


def _made(run, stage, inputs, **facts):
    """Make an empty table of a stage, finished; return its version."""
    key = StageKey(stage, {"inputs": inputs, "of": "an earlier time"})
    run.table(key).finish({"stage": stage, "fingerprint": key.fingerprint, "cause": key.fingerprint_inputs, **facts})
    return key.fingerprint


@pytest.fixture
def run(tmp_path):
    return Run(tmp_path)


@pytest.fixture
def settings(tmp_path_factory):
    rows = tmp_path_factory.mktemp("data") / "rows.jsonl"
    rows.write_text("{}\n")
    return load_settings("mini", ["benchmarks=[]", f"data.sources=[{{path: {rows}}}]"])


def test_what_leads_to_needed_tables_is_kept(run, settings):
    source = _made(run, "ingest", {})
    caption = _made(run, "caption", {"ingest": f"{source}+2"})
    unneeded = _made(run, "score/old", {"ingest": source, "caption": caption})
    begun = run.table_of("caption", "0123456789abcdef")
    begun.begin({"of": "an interrupted run"})
    last = stage_keys(settings, run)["caption"]
    run.table(last).finish({"same_as": caption, "cause": last.fingerprint_inputs})
    names = [f"caption/{begun.directory.name}", f"score/old/{unneeded}"]
    assert [table.name for table in find_unneeded(settings, run)] == names
    assert [table.name for table in clean(settings, run)] == names
    assert not run.table_of("score/old", unneeded).directory.exists()
    assert find_unneeded(settings, run) == []
    assert run.table_of("ingest", source).manifest is not None


def test_arms_of_a_comparison_are_left_alone(run, settings):
    (run.root / "compare").mkdir()
    with pytest.raises(RunError, match="holds a comparison"):
        find_unneeded(settings, run)


def test_a_run_that_is_whole_needs_all_it_has(small_run, tmp_path):
    run = small_run.copy(tmp_path)
    assert clean(small_run.settings, run) == []
    changed = fill(Settings, small_run.settings.model_dump(mode="json"), ["router.threshold=0.71"])
    removed = {table.name.split("/")[0] for table in clean(changed, run)}
    assert removed == {"route", "demonstrate", "sft", "sample", "select", "dpo", "evaluate"}
    keys = stage_keys(small_run.settings, run)
    assert run.table(keys["caption"]).manifest is not None
    assert run.table(keys["evaluate/base"]).manifest is not None
