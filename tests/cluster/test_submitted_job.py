"""Jobs submitted to a real head: what they leave behind, and how they end."""

import httpx

from carevl.runs import Table


def test_a_submitted_job_runs_the_pipeline_and_says_where_the_output_is(submitted):
    assert submitted.job.returncode == 0, submitted.job.stdout + submitted.job.stderr
    assert f"route.py: done; the output is in {submitted.run}" in submitted.job.stdout.splitlines()
    [ingested] = submitted.run.glob("ingest/*")
    [routed] = submitted.run.glob("route/*")
    items = Table(ingested / "items").read()
    assert sum(len(sources) for sources in items["sources"].to_pylist()) == 80
    assert set(Table(routed).read()["item_id"].to_pylist()) == set(items["item_id"].to_pylist())
    assert not list(submitted.run.glob("demonstrate/*"))


def test_a_job_that_can_never_be_placed_fails_at_once_with_one_line(head, words, tmp_path):
    done = head.submit("pipeline.py", words(tmp_path / "run", "captioner.pool.resources={tpu: 1}"))
    assert done.returncode != 0
    [line] = {line for line in done.stdout.splitlines() if line.startswith("pipeline.py: ")}
    assert line.startswith("pipeline.py: caption: needs 0.5 CPU, 1 tpu on one node, and the Ray cluster of 1 nodes has")
    assert not list((tmp_path / "run").glob("ingest/*"))


def test_without_the_token_the_head_tells_nothing(head):
    assert httpx.get(f"{head.dashboard}/api/jobs/").status_code == 401
