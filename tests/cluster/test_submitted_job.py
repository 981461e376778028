"""Jobs submitted to a real head: what they leave behind, and how they end.

The whole pipeline as a job is nightly: it is a run of four minutes whose stages tests/pipeline runs as well.
"""

import json

import httpx
import pytest

from carevl.store.table import Table


@pytest.mark.nightly
def test_a_submitted_job_runs_the_pipeline_and_says_where_the_output_is(submitted):
    assert submitted.job.returncode == 0, submitted.job.stdout + submitted.job.stderr
    assert f"pipeline.py: done; the output is in {submitted.run}" in submitted.job.stdout.splitlines()
    [ingested] = submitted.run.glob("ingest/*")
    [routed] = submitted.run.glob("route/*")
    items = Table(ingested / "items").read()
    assert sum(len(sources) for sources in items["sources"].to_pylist()) == 80
    assert set(Table(routed).read()["item_id"].to_pylist()) == set(items["item_id"].to_pylist())
    found = json.loads((submitted.run / "results.json").read_text())
    assert {stage["action"] for stage in found["stages"]} == {"ran"}
    assert {stage["rows_out"] for stage in found["stages"] if stage["name"].startswith("evaluate/")} == {12}
    assert list(found["judges"]) == ["base", "phase1", "phase2"]
    [final] = found["final"]
    assert final["settings"]["benchmarks"][0]["path"] == "miniworld:test/vl_rewardbench.parquet"
    assert list(final["judges"]) == ["base", "phase1", "phase2"]
    for judge, fingerprint in final["fingerprints"].items():
        predictions = Table(submitted.run / "final" / judge / fingerprint).read()
        assert (len(predictions), set(predictions["judge"].to_pylist())) == (12, {judge})
    [trained] = submitted.run.glob("dpo/*/judge")
    assert (submitted.run / "judge" / "model.safetensors").read_bytes() == (trained / "model.safetensors").read_bytes()


def test_a_job_that_can_never_be_placed_fails_at_once_with_one_line(head, words, tmp_path):
    done = head.submit("pipeline.py", words(tmp_path / "run", "captioner.pool.resources={tpu: 1}"))
    assert done.returncode != 0
    [line] = {line for line in done.stdout.splitlines() if line.startswith("pipeline.py: ")}
    assert line.startswith("pipeline.py: caption: needs 0.5 CPU, 1 tpu on one node, and the Ray cluster of 1 nodes has")
    assert not list((tmp_path / "run").glob("ingest/*"))


def test_without_the_token_the_head_tells_nothing(head):
    assert httpx.get(f"{head.dashboard}/api/jobs/").status_code == 401
