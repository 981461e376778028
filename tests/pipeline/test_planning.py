"""What `carevl plan` tells: reservations, warnings, refusals, and times measured on real models."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

from carevl.cluster.throughput import Rate
from carevl.pipeline.keys import stage_keys
from carevl.pipeline.measure import Estimate
from carevl.pipeline.plan import _rows_line, head_lines, plan_lines, plan_run, unpinned
from carevl.pipeline.run import run_pipeline
from carevl.settings.loader import load_settings
from carevl.store.run import Run, RunError

CAREVL = Path(sys.executable).with_name("carevl")
SMALL = [
    "miniworld.items=30",
    "miniworld.calibration_images=10",
    "data.parts=4",
    "captioner.engine=transformers",
    "captioner.pool.batch_size=8",
    "captioner.pool.num_cpus=0.5",
    "cluster.num_cpus=2",
]


def test_a_plan_names_the_head_of_every_expert_that_is_here():
    settings = load_settings("mini", ["experts.1.path=no/such-model"])
    assert next(head_lines(settings)) == "experts.0 (llama): head: linear (score.weight), 1 output"
    assert not [line for line in head_lines(settings) if line.startswith("experts.1")]


@pytest.mark.ray
def test_a_plan_ends_with_what_can_never_be_had_and_runs_nothing(tmp_path):
    words = [
        word for override in [*SMALL, "sft.workers.count=3", "sft.workers.num_cpus=1"] for word in ("--set", override)
    ]
    done = subprocess.run(
        [CAREVL, "plan", "mini", "--run-dir", tmp_path / "run", *words], capture_output=True, text=True, check=False
    )
    assert done.returncode == 2
    assert re.search(r"^caption +[0-9a-f]{16}  run: never run$", done.stdout, re.MULTILINE)
    assert "rows are counted when ingest has run" in done.stdout
    assert re.search(r"^sft +1 CPU +3 +2$", done.stdout, re.MULTILINE)
    assert done.stderr.startswith("carevl: sft: 3 workers of 1 CPU have to start together (PACK), and this machine has")
    assert not (tmp_path / "run").exists()


def test_a_run_that_can_never_be_placed_is_refused_before_its_first_stage(ray, tmp_path):
    settings = load_settings("mini", [*SMALL, "judge.pool.num_gpus=1"])
    with pytest.raises(RunError, match=r"demonstrate: needs 1 CPU, 1 GPU on one node, and the Ray cluster of 1 nodes"):
        run_pipeline(settings, Run(tmp_path), lambda _: None)
    assert not list(tmp_path.glob("ingest/*"))


def test_models_are_timed_on_a_batch_of_rows_and_the_whole_is_told(ray, tmp_path):
    settings, where = load_settings("mini", [*SMALL, "experts.1.pool.concurrency=1..2"]), Run(tmp_path)
    lines = list(plan_lines(settings, where, True, lambda _: None))
    images = int(
        re.search(r"of (\d+) distinct images", _rows_line(where.table(stage_keys(settings, where)["ingest"])))[1]
    )
    assert plan_run(settings, where)[0].action == "skip"
    assert {stage.action for stage in plan_run(settings, where)[1:]} == {"run"}
    told = [re.match(r"(\S+) +(\d+) rows, (\d) actors: about \d+ s .* from (\d+) rows", line) for line in lines[-4:]]
    items = int(told[1][2])
    assert [match.groups() for match in told[:1]] == [("caption", str(images), "1", "8")]
    assert [match.groups()[:3] for match in told[1:]] == [
        ("score/llama", str(items), "1"),
        ("score/qwen2", str(items), "2"),
        ("score/mistral", str(items), "1"),
    ]
    assert 8 <= int(told[1][4]) < items


def test_an_estimate_divides_the_rows_over_the_actors():
    estimate = Estimate("caption", rows=1000, sampled=10, rate=Rate(5.0, 2.0), actors=4)
    assert estimate.seconds == 5.0 + 1000 / 8


def test_a_hub_model_without_a_commit_is_warned_about():
    settings = load_settings("mini", ["judge.path=some/judge", "judge.revision=main", "experts.0.path=an/expert"])
    assert [line.split()[:2] for line in unpinned(settings)] == [
        ["experts.0:", "an/expert"],
        ["judge:", "some/judge"],
    ]
    endpoint = "{name: far, kind: endpoint, path: a/judge, endpoint: {url: 'http://127.0.0.1:8000/v1'}}"
    elsewhere = load_settings(
        "mini", [f"experts.0={endpoint}", "experts.1.kind=python", "experts.1.path=package.mine:It"]
    )
    assert unpinned(elsewhere) == []  # neither has a commit
    pinned = load_settings("mini", ["judge.path=some/judge", f"judge.revision={'a1' * 20}"])
    assert unpinned(pinned) == []
