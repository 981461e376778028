"""The data plane on a real, private Ray: rows accounted for, resume after kills, and only what changed made again."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from carevl import config, pipeline, results
from carevl.cluster import ray_cluster
from carevl.inference.engines import locate
from carevl.judging.prompts import parse_judgment
from carevl.runs import Run, RunError, Table
from carevl.stages.ingest import Ingested
from carevl.tables import row_error

SMALL = [
    "miniworld.items=60",
    "miniworld.calibration_images=40",
    "data.parts=4",
    "captioner.engine=transformers",
    "captioner.pool.num_cpus=0.5",
    "judge.engine=transformers",
    "router.policy=mean_margin",
    "router.threshold=0.7",
    "demonstrate.samples=2",
    "sample.samples=4",
    "select.min_gap=0.1",
    "benchmarks.0.rows=16",
    "benchmarks.1.rows=16",
    "cluster.num_cpus=2",
]
SCORES = ["score/llama", "score/qwen2", "score/mistral"]
DATA = ["ingest", "caption", *SCORES, "route"]
LEARNING = ["demonstrate", "sft", "sample", "select", "dpo"]
STAGES = [*DATA, *LEARNING, "evaluate/base", "evaluate/phase1", "evaluate/phase2"]


@pytest.fixture(scope="module")
def ray():
    with ray_cluster(config.load("mini", SMALL).cluster):
        yield


@pytest.fixture(scope="module")
def first(ray, tmp_path_factory):
    where = Run(tmp_path_factory.mktemp("run"))
    settings = config.load("mini", SMALL)
    return where, settings, pipeline.run(settings, where, lambda _: None)


def _actions(done):
    return {stage.name: stage.action for stage in done}


def test_every_stage_runs_and_accounts_for_its_rows(first):
    where, settings, done = first
    assert _actions(done) == dict.fromkeys(STAGES, "ran")
    tables = pipeline.tables(settings, where)
    ingested = Ingested(tables["ingest"].directory)
    items, images = ingested.items.read().to_pylist(), ingested.images.read().to_pylist()
    assert sum(len(item["sources"]) for item in items) == done[0].rows_in == 100
    captions = tables["caption"].read().to_pylist()
    assert sorted(row["image_id"] for row in captions) == sorted({row["image_id"] for row in images})
    for name in ("llama", "qwen2", "mistral"):
        scores = tables[f"score/{name}"].read().to_pylist()
        assert sorted((row["item_id"], row["view"]) for row in scores) == sorted(
            (item["item_id"], view) for item in items for view in ("default", "none")
        )
        sizes = {item["item_id"]: len(item["responses"]) for item in items}
        assert all(len(row["scores"]) == sizes[row["item_id"]] for row in scores)
    routes = tables["route"].read().to_pylist()
    assert {row["item_id"] for row in routes} == {item["item_id"] for item in items}
    assert {row["route"] for row in routes} == {"high", "low"}


def test_a_second_run_skips_everything(first):
    where, settings, _ = first
    assert _actions(pipeline.run(settings, where, lambda _: None)) == dict.fromkeys(STAGES, "skipped")


def test_judgments_targets_and_pairs_fit_their_routes(first):
    where, settings, _ = first
    tables = pipeline.tables(settings, where)
    items = {row["item_id"]: row for row in Ingested(tables["ingest"].directory).items.read().to_pylist()}
    routes = {
        (row["item_id"], row["first"], row["second"]): row
        for row in tables["route"].read().to_pylist()
        if items[row["item_id"]]["gold"] is None
    }
    high, low = ({key for key, row in routes.items() if row["route"] == route} for route in ("high", "low"))
    sampled = Counter(
        (row["item_id"], tuple(row["order"])) for row in tables["sample"].read().to_pylist() if row["error"] is None
    )
    asked = {(item, order) for item, i, j in low for order in ((i, j), (j, i))}
    assert sampled == dict.fromkeys(asked, settings.sample.samples)
    judged = Table(tables["demonstrate"].directory / "judgments").read().to_pylist()
    pairwise = {(row["item_id"], tuple(row["order"])) for row in judged if row["task"] == "pairwise"}
    assert pairwise == {(item, order) for item, i, j in high for order in ((i, j), (j, i))}
    targets = Table(tables["demonstrate"].directory / "targets").read().to_pylist()
    for row in targets:
        if row["task"] == "pairwise":
            verdict = parse_judgment(row["text"], "pairwise", row["order"])
            assert verdict.winner == routes[row["item_id"], *sorted(row["order"])]["winner"]
            assert verdict.evidence
    for row in tables["select"].read().to_pylist():
        assert (row["item_id"], *sorted(row["order"])) in low
        assert parse_judgment(row["chosen"], "pairwise", row["order"]).winner == row["winner"]
        assert parse_judgment(row["rejected"], "pairwise", row["order"]).winner != row["winner"]
        assert row["score_chosen"] > row["score_rejected"]


def test_results_are_those_of_the_stored_rows(first):
    where, settings, done = first
    file = where.root / results.RESULTS
    written = json.loads(file.read_text())
    assert [stage["name"] for stage in written["stages"]] == [stage.name for stage in done]
    assert written["wall_seconds"] > 0
    assert set(written["judges"]) == {"base", "phase1", "phase2"}
    for judge in written["judges"].values():
        assert set(judge["vl_rewardbench"]) == {"official_scorer", "strict"}
        overall = judge["vl_rewardbench"]["strict"]["overall"]
        assert overall["low"] <= overall["value"] <= overall["high"]
        assert 0 <= judge["parse_rate"]["value"] <= 1
    routing = written["routing"]
    assert routing["high"] + routing["low"] + routing["dropped"] == sum(routing["reasons"].values())
    again = json.loads(json.dumps(results.compute(settings, where, pipeline.causes(settings, where))))
    assert again == {name: written[name] for name in again}


def test_the_judge_is_an_ordinary_model_with_one_adapter_of_the_base(first):
    from peft import PeftModel
    from transformers import AutoModelForImageTextToText, AutoProcessor

    where, settings, _ = first
    published = where.root / "judge"
    assert AutoProcessor.from_pretrained(published).chat_template
    merged = AutoModelForImageTextToText.from_pretrained(published, dtype="float32")
    base = AutoModelForImageTextToText.from_pretrained(locate(settings.judge.path), dtype="float32")
    before = {name: weight.clone() for name, weight in base.state_dict().items()}
    adapted = PeftModel.from_pretrained(base, published / "adapter").merge_and_unload().state_dict()
    changed = 0
    for name, weight in merged.state_dict().items():
        assert torch.allclose(adapted[name], weight, atol=1e-5), name
        changed += not torch.equal(before[name], weight)
    assert changed
    assert "base_model: miniworld:judge" in (published / "README.md").read_text()


def test_failed_rows_are_tried_again_and_no_others(first, tmp_path):
    where, settings, _ = first
    other = Run(tmp_path / "run")
    shutil.copytree(where.root, other.root)
    causes = pipeline.causes(settings, other)
    captions, scores = other.table(causes["caption"]), other.table(causes["score/llama"])
    good = captions.read()
    lost = captions.read(0).to_pylist()
    lost[0] |= {"text": None, "tokens": None, "error": row_error("caption", "lost", "a test took it")}
    captions.write(0, pa.Table.from_pylist(lost, good.schema))
    captions.finish({**captions.manifest, "errors": 1})
    kept = {file: file.stat().st_mtime_ns for file in scores.directory.glob("part-*.parquet")}
    assert "1 x lost, such as: a test took it" in "\n".join(pipeline.status(settings, other))
    tried = pipeline.retry(settings, other, lambda _: None)
    assert set(tried) == {"caption"}
    assert sorted(captions.read().to_pylist(), key=str) == sorted(good.to_pylist(), key=str)
    assert captions.manifest["errors"] == 0
    assert kept == {file: file.stat().st_mtime_ns for file in kept}
    assert pipeline.causes(settings, other)["score/llama"].fingerprint != causes["score/llama"].fingerprint
    assert set(_actions(pipeline.run(settings, other, lambda _: None)).values()) == {"skipped"}
    assert pipeline.retry(settings, other, lambda _: None) == {}


def test_a_changed_threshold_routes_again_and_runs_no_model(first):
    where, _, _ = first
    settings = config.load("mini", [*SMALL, "router.threshold=0.9"])
    planned = {stage.name: (stage.action, stage.reason) for stage in pipeline.plan(settings, where)}
    assert planned["route"] == ("recompute", "router.threshold: 0.7 -> 0.9")
    done = pipeline.run(settings, where, lambda _: None, until="route")
    assert _actions(done) == {**dict.fromkeys(DATA, "skipped"), "route": "ran"}


def test_a_changed_caption_prompt_makes_captions_and_all_after_them_again(first):
    where, _, _ = first
    settings = config.load("mini", [*SMALL, "captioner.prompt=Say what you see."])
    planned = {stage.name: stage for stage in pipeline.plan(settings, where)}
    assert planned["ingest"].action == "skip"
    assert all(planned[name].action == "recompute" for name in STAGES[1:] if name != "evaluate/base")
    assert planned["evaluate/base"].action == "skip"
    assert planned["caption"].reason == 'caption.prompt: "List the objects in the image." -> "Say what you see."'


def test_pool_sizes_change_nothing(first):
    where, settings, _ = first
    other = config.load("mini", [*SMALL, "captioner.pool.concurrency=2", "experts.0.pool.num_cpus=0.25"])
    assert pipeline.plan(other, where) == pipeline.plan(settings, where)


def test_permuted_truth_changes_no_table(first, tmp_path):
    """The sidecar of exact truth is for reports: with its rows exchanged, every table is the same, byte for byte."""
    where, settings, _ = first
    other = Run(tmp_path)
    pipeline.plan(settings, other)
    [world] = other.root.glob("world-*")
    for file in (world / "truth").glob("*.parquet"):
        rows = pq.read_table(file)
        pq.write_table(rows.take(list(reversed(range(len(rows))))), file)
    pipeline.run(settings, other, lambda _: None)
    for phase in ("sft", "dpo"):
        weights = [
            (run.table(pipeline.causes(settings, run)[phase]).directory / "judge" / "model.safetensors").read_bytes()
            for run in (where, other)
        ]
        assert weights[0] == weights[1], phase
    for name in [*DATA, "demonstrate", "sample", "select"]:
        before, after = (pipeline.causes(settings, run)[name] for run in (where, other))
        parts = sorted(where.table(before).directory.rglob("*.parquet"))
        assert parts
        for part in parts:
            twin = other.table(after).directory / part.relative_to(where.table(before).directory)
            ours, theirs = pq.read_table(part), pq.read_table(twin)
            if name == "ingest" and "sources" in ours.column_names:
                ours, theirs = ours.drop_columns("sources"), theirs.drop_columns("sources")
                assert ours.equals(theirs)
            else:
                assert part.read_bytes() == twin.read_bytes(), part


def test_rows_that_fail_keep_their_error_and_too_many_stop_the_run(ray, tmp_path):
    settings = config.load("mini", [*SMALL, "captioner.max_tokens=10", "max_error_fraction=0.01"])
    where = Run(tmp_path)
    with pytest.raises(RunError, match=r"caption: \d+ of \d+ rows failed"):
        pipeline.run(settings, where, lambda _: None)
    captions = pipeline.tables(settings, where)["caption"].read().to_pylist()
    failed = [row for row in captions if row["error"]]
    assert failed
    assert {row["error"]["kind"] for row in failed} == {"truncated"}


def test_a_killed_run_goes_on_where_it_stopped_and_ends_the_same(first, tmp_path):
    where, settings, _ = first
    command = [Path(sys.executable).with_name("carevl"), "run", "mini", "--run-dir", tmp_path / "run"]
    command += [word for override in SMALL for word in ("--set", override)]
    environment = {**os.environ}
    killed = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env=environment)
    other = Run(tmp_path / "run")
    deadline = time.monotonic() + 180
    while len(list(other.root.glob("caption/*/part-*.parquet"))) < 2:
        assert killed.poll() is None, "the run ended before it could be killed"
        assert time.monotonic() < deadline
        time.sleep(0.02)
    killed.send_signal(signal.SIGKILL)
    killed.wait()
    kept = {file: file.stat().st_mtime_ns for file in other.root.glob("caption/*/part-*.parquet")}
    done = pipeline.run(settings, other, lambda _: None, until="select")
    assert _actions(done)["ingest"] == "skipped"
    assert _actions(done)["caption"] in ("resumed", "skipped")
    assert all(file.stat().st_mtime_ns == before for file, before in kept.items())
    for name in [*DATA[1:], "sample", "select"]:
        ours, theirs = (pipeline.tables(settings, run)[name].read() for run in (where, other))
        assert ours.equals(theirs), name
