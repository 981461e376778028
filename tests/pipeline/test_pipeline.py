"""The data plane on a real, private Ray: rows accounted for, resume after kills, and only what changed made again."""

import json
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from contextlib import suppress
from pathlib import Path
from threading import Thread

import psutil
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from carevl.data.drawn import draw
from carevl.judging.verdicts import read_verdict
from carevl.models.locate import locate
from carevl.pipeline import results
from carevl.pipeline.keys import stage_keys
from carevl.pipeline.plan import plan_run
from carevl.pipeline.retry import retry_failed_rows
from carevl.pipeline.run import run_pipeline
from carevl.pipeline.status import status_lines
from carevl.settings.loader import load_settings
from carevl.store.ingested import Ingested
from carevl.store.run import Run, RunError
from carevl.store.schemas import row_error
from carevl.store.table import Table
from tests.helpers.small_run import SMALL

SCORES = ["score/llama", "score/qwen2", "score/mistral"]
DATA = ["ingest", "caption", *SCORES, "route"]
LEARNING = ["demonstrate", "sft", "sample", "select", "dpo"]
STAGES = [*DATA, *LEARNING, "evaluate/base", "evaluate/phase1", "evaluate/phase2"]


@pytest.fixture
def first(small_run):
    return small_run.run, small_run.settings, small_run.done


def _actions(done):
    return {stage.name: stage.action for stage in done}


def test_every_stage_runs_and_accounts_for_its_rows(first):
    where, settings, done = first
    assert _actions(done) == dict.fromkeys(STAGES, "ran")
    tables = {name: where.table(key) for name, key in stage_keys(settings, where).items()}
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


def test_a_second_run_skips_everything(small_run, tmp_path):
    where, settings = small_run.copy(tmp_path), small_run.settings
    assert _actions(run_pipeline(settings, where, lambda _: None)) == dict.fromkeys(STAGES, "skipped")


def test_judgments_targets_and_pairs_fit_their_routes(first):
    where, settings, _ = first
    tables = {name: where.table(key) for name, key in stage_keys(settings, where).items()}
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
    asked = {(item, order) for item, i, j in low for order in ((i, j), (j, i), ())}  # () is the bare question
    assert sampled == dict.fromkeys(asked, settings.sample.samples)
    judged = Table(tables["demonstrate"].directory / "judgments").read().to_pylist()
    pairwise = {(row["item_id"], tuple(row["order"])) for row in judged if row["task"] == "pairwise"}
    assert pairwise == {(item, order) for item, i, j in high for order in ((i, j), (j, i))}
    targets = Table(tables["demonstrate"].directory / "targets").read().to_pylist()
    for row in targets:
        if row["task"] == "pairwise":
            verdict = read_verdict(row["text"]).in_items(row["order"])
            assert verdict.winner == routes[row["item_id"], *sorted(row["order"])]["winner"]
            assert verdict.evidence
    for row in tables["select"].read().to_pylist():
        assert (row["item_id"], *sorted((row["winner"], row["loser"]))) in low
        assert row["score_chosen"] > row["score_rejected"]
        if row["task"] == "pairwise":
            assert read_verdict(row["chosen"]).in_items(row["order"]).winner == row["winner"]
            assert read_verdict(row["rejected"]).in_items(row["order"]).winner != row["winner"]


def test_what_judges_were_asked_is_counted_by_task_and_by_protocol(first):
    where, settings, _ = first
    tables = {name: where.table(key) for name, key in stage_keys(settings, where).items()}
    judged = Table(tables["demonstrate"].directory / "judgments").read().to_pylist()
    sampled = [row for row in tables["sample"].read().to_pylist() if row["task"] != "answer"]
    predicted = tables["evaluate/phase2"].read().to_pylist()
    for name, rows in (("demonstrate", judged), ("sample", sampled), ("evaluate/phase2", predicted)):
        kinds = [row.get("task") or f"{row['benchmark']} {row['protocol']}" for row in rows]
        verdicts = tables[name].manifest["verdicts"]
        assert {kind: counts["asked"] for kind, counts in verdicts.items()} == Counter(kinds)
        parsed = Counter(kind for kind, row in zip(kinds, rows, strict=True) if row["status"] == "ok")
        assert {kind: counts["statuses"]["ok"] for kind, counts in verdicts.items()} == parsed


def test_results_are_those_of_the_stored_rows(first):
    where, settings, done = first
    file = where.root / results.RESULTS
    written = json.loads(file.read_text())
    assert [stage["name"] for stage in written["stages"]] == [stage.name for stage in done]
    assert written["wall_seconds"] > 0
    assert set(written["judges"]) == {"base", "phase1", "phase2"}
    for judge in written["judges"].values():
        assert set(judge["vl_rewardbench"]) == {"official_scorer", "strict", "pointwise"}
        overall = judge["vl_rewardbench"]["strict"]["overall"]
        assert overall["low"] <= overall["value"] <= overall["high"]
        assert set(judge["mllm_judge"]["batch"]) == set(judge["order_consistency"]) == {"value", "low", "high"}
        assert 0 <= judge["parse_rate"]["value"] <= 1
    routing = written["routing"]
    assert routing["high"] + routing["low"] + routing["dropped"] == sum(routing["reasons"].values())
    again = json.loads(json.dumps(results.recompute(settings, where, stage_keys(settings, where))))
    assert again == {name: written[name] for name in again}
    other = load_settings("mini", [*SMALL, "router.threshold=0.95"])
    with pytest.raises(RunError, match="have changed since route, demonstrate"):
        results.recompute(other, where, stage_keys(other, where))


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


def test_failed_rows_are_tried_again_and_no_others(small_run, tmp_path):
    settings = small_run.settings
    other = small_run.copy(tmp_path, "ingest", "caption", "score")
    causes = stage_keys(settings, other)
    captions, scores = other.table(causes["caption"]), other.table(causes["score/llama"])
    good = captions.read()
    lost = captions.read(0).to_pylist()
    lost[0] |= {"text": None, "tokens": None, "error": row_error("caption", "lost", "a test took it")}
    captions.write(0, pa.Table.from_pylist(lost, good.schema))
    captions.finish({**captions.manifest, "errors": 1})
    kept = {file: file.stat().st_mtime_ns for file in scores.directory.glob("part-*.parquet")}
    assert "1 x lost, such as: a test took it" in "\n".join(status_lines(settings, other))
    tried = retry_failed_rows(settings, other, lambda _: None)
    assert tried == {"caption": {"rows_out": 1, "errors": 0}}
    assert sorted(captions.read().to_pylist(), key=str) == sorted(good.to_pylist(), key=str)
    assert captions.manifest["errors"] == 0
    assert kept == {file: file.stat().st_mtime_ns for file in kept}
    assert stage_keys(settings, other)["score/llama"].fingerprint != causes["score/llama"].fingerprint
    again = run_pipeline(settings, other, lambda _: None, until="score")
    assert _actions(again) == dict.fromkeys(DATA[:-1], "skipped")
    assert not (other.root / "route").exists()
    assert retry_failed_rows(settings, other, lambda _: None) == {}


def test_failed_questions_are_asked_again_and_no_others(small_run, tmp_path):
    settings = small_run.settings
    other = small_run.copy(tmp_path, *{stage.split("/")[0] for stage in STAGES})
    predictions = other.table(stage_keys(settings, other)["evaluate/base"])
    good = predictions.read()
    rows = predictions.read(0).to_pylist()
    error = row_error("evaluate", "not answered", "a test took it")
    failed = next(row for row in rows if row["protocol"] == "strict")
    failed |= {"text": "", "winner": None, "status": "none", "probability": None, "error": error}
    predictions.write(0, pa.Table.from_pylist(rows, good.schema))
    verdicts = predictions.manifest["verdicts"]
    predictions.finish({**predictions.manifest, "errors": 1, "verdicts": {}})
    kept = {file: file.stat().st_mtime_ns for file in other.root.glob("evaluate/phase*/*/part-*.parquet")}
    before = json.loads((other.root / results.RESULTS).read_text())["judges"]
    assert retry_failed_rows(settings, other, lambda _: None) == {"evaluate/base": {"rows_out": 1, "errors": 0}}
    identity = [(name, "ascending") for name in ("benchmark", "protocol", "key", "prompt_hash")]
    ours, theirs = (table.sort_by(identity) for table in (predictions.read(), good))
    assert ours.drop_columns("probability").equals(theirs.drop_columns("probability"))
    assert ours["probability"].to_pylist() == pytest.approx(theirs["probability"].to_pylist(), abs=1e-5)
    assert (predictions.manifest["errors"], predictions.manifest["retried"]) == (0, 1)
    assert predictions.manifest["verdicts"].keys() == verdicts.keys()
    assert kept == {file: file.stat().st_mtime_ns for file in kept}
    assert json.loads((other.root / results.RESULTS).read_text())["judges"] == before


def test_a_changed_threshold_routes_again_and_runs_no_model(small_run, tmp_path):
    where = small_run.copy(tmp_path)
    settings = load_settings("mini", [*SMALL, "router.threshold=0.9"])
    planned = {stage.name: (stage.action, stage.reason) for stage in plan_run(settings, where)}
    assert planned["route"] == ("recompute", "router.threshold: 0.7 -> 0.9")
    done = run_pipeline(settings, where, lambda _: None, until="route")
    assert _actions(done) == {**dict.fromkeys(DATA, "skipped"), "route": "ran"}


def test_sources_read_again_with_the_same_rows_change_nothing_after_them(small_run, tmp_path):
    where = small_run.copy(tmp_path)
    shutil.rmtree(where.root / "ingest")  # rows say in which directory they were read: that of the copy
    run_pipeline(load_settings("mini", SMALL), where, lambda _: None, "ingest")
    settings = load_settings("mini", [*SMALL, "data.decontaminate=false"])
    planned = {stage.name: (stage.action, stage.reason) for stage in plan_run(settings, where)}
    assert planned["ingest"][0] == planned["caption"][0] == "recompute"
    assert planned["caption"][1].endswith("; kept if what it is made from comes out as before")
    done = run_pipeline(settings, where, lambda _: None)
    assert _actions(done) == {**dict.fromkeys(STAGES, "skipped"), "ingest": "ran"}


def test_a_changed_caption_prompt_makes_captions_and_all_after_them_again(first):
    where, _, _ = first
    settings = load_settings("mini", [*SMALL, "captioner.prompt=Say what you see."])
    planned = {stage.name: stage for stage in plan_run(settings, where)}
    assert planned["ingest"].action == "skip"
    assert all(planned[name].action == "recompute" for name in STAGES[1:] if name != "evaluate/base")
    assert planned["evaluate/base"].action == "skip"
    assert planned["caption"].reason == 'caption.prompt: "List the objects in the image." -> "Say what you see."'


def test_pool_sizes_change_nothing(first):
    where, settings, _ = first
    other = load_settings("mini", [*SMALL, "captioner.pool.concurrency=2", "experts.0.pool.num_cpus=0.25"])
    assert plan_run(other, where) == plan_run(settings, where)


def test_rows_that_fail_keep_their_error_and_too_many_stop_the_run(ray, tmp_path):
    settings = load_settings("mini", [*SMALL, "captioner.max_tokens=10", "max_error_fraction=0.01"])
    where = Run(tmp_path)
    with pytest.raises(RunError, match=r"caption: \d+ of \d+ rows failed"):
        run_pipeline(settings, where, lambda _: None)
    captions = (
        {name: where.table(key) for name, key in stage_keys(settings, where).items()}["caption"].read().to_pylist()
    )
    failed = [row for row in captions if row["error"]]
    assert failed
    assert {row["error"]["kind"] for row in failed} == {"truncated"}


class _Killer:
    """Told the lines of a run, kills a worker in each of some stages: SIGKILL, once it is at work."""

    def __init__(self, where, workers):
        self.where, self.workers = where, dict(workers)
        self.killed = []

    def __call__(self, line):
        stage = line.split()[0]
        if worker := self.workers.pop(stage, None):
            Thread(target=self._kill, args=(stage, *worker), daemon=True).start()

    def _kill(self, stage, title, there):
        while stage not in self.killed:
            time.sleep(0.02)
            if not next(self.where.root.glob(there), None):
                continue
            for process in psutil.Process().children(recursive=True):
                with suppress(psutil.NoSuchProcess, IndexError):
                    if process.cmdline()[0].startswith(title):
                        process.kill()
                        self.killed.append(stage)
                        break


@pytest.mark.nightly
@pytest.mark.fault
def test_kills_and_permuted_truth_change_no_table(first, tmp_path):
    """The driver is killed in mid-caption, an actor while it samples, a worker in mid-training; and the sidecar of
    exact truth, which is for reports, has its rows exchanged. Every table is the same, byte for byte."""
    where, settings, _ = first
    other = Run(tmp_path / "run")
    draw(settings, other)
    [world] = other.root.glob("world-*")
    for file in (world / "truth").glob("*.parquet"):
        rows = pq.read_table(file)
        pq.write_table(rows.take(list(reversed(range(len(rows))))), file)
    command = [Path(sys.executable).with_name("carevl"), "run", "mini", "--run-dir", other.root]
    command += [word for override in SMALL for word in ("--set", override)]
    killed = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 180
    while len(list(other.root.glob("caption/*/part-*.parquet"))) < 2:
        assert killed.poll() is None, "the run ended before it could be killed"
        assert time.monotonic() < deadline
        time.sleep(0.02)
    killed.send_signal(signal.SIGKILL)
    killed.wait()
    kept = {file: file.stat().st_mtime_ns for file in other.root.glob("caption/*/part-*.parquet")}
    workers = {
        "sft": ("ray::RayTrainWorker", "sft/*/checkpoints/step-*"),
        "sample": ("ray::MapWorker(MapBatches(PoolActor)).submit", "sft/*/manifest.json"),
    }
    killer = _Killer(other, workers)
    done = run_pipeline(load_settings("mini", [*SMALL, "sft.checkpoint_steps=2"]), other, killer, until="select")
    assert killer.killed == ["sft", "sample"]
    assert _actions(done)["ingest"] == "skipped"
    assert _actions(done)["caption"] in ("resumed", "skipped")
    assert all(file.stat().st_mtime_ns == before for file, before in kept.items())
    weights = [
        (run.table(stage_keys(settings, run)["sft"]).directory / "judge" / "model.safetensors").read_bytes()
        for run in (where, other)
    ]
    assert weights[0] == weights[1]
    for name in [*DATA, "demonstrate", "sample", "select"]:
        before, after = (stage_keys(settings, run)[name] for run in (where, other))
        parts = sorted(where.table(before).directory.rglob("*.parquet"))
        assert parts
        for part in parts:
            twin = other.table(after).directory / part.relative_to(where.table(before).directory)
            assert part.read_bytes() == twin.read_bytes(), part
