"""A judge of any family in place of the shipped one: trained on rows of a finished run, merged, asked and evaluated."""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from carevl import RewardModel
from carevl.benchmarks import command
from carevl.benchmarks.data import load
from carevl.data.drawn import DataRoot, draw
from carevl.pipeline.run import run_pipeline
from carevl.pipeline.status import status_lines
from carevl.pipeline.train import train_judge, training_settings
from carevl.settings.loader import load_settings
from carevl.store.run import Run, RunError
from tests.helpers.families import FAMILIES, PLAIN
from tests.helpers.finished_run import QUICK, copy_first_part
from tests.helpers.small_run import SMALL

OFTEN = ("internvl",)
"""What every change is tried with; the others at night."""
EVERY = [pytest.param(name, marks=() if name in OFTEN else pytest.mark.nightly) for name in FAMILIES]


@pytest.fixture(scope="module")
def rows(tmp_path_factory: pytest.TempPathFactory) -> Run:
    run = copy_first_part(tmp_path_factory.mktemp("run") / "rows")
    draw(training_settings("miniworld:judge", run.root, None, [])[0], run)
    return run


@pytest.fixture(scope="module")
def trained(ray, rows, family_directory, tmp_path_factory):
    """The published judge of a family, trained once."""

    def train(family: str) -> Path:
        settings, _ = training_settings(str(family_directory(family)), rows.root, None, QUICK)
        out = Run(tmp_path_factory.mktemp(family) / "out")
        done = train_judge(settings, rows, out, lambda _: None)
        assert [(phase.name, phase.action, phase.errors) for phase in done] == [("sft", "ran", 0), ("dpo", "ran", 0)]
        for phase in ("sft", "dpo"):
            [steps] = out.root.glob(f"{phase}/*/steps.jsonl")
            assert len(steps.read_text().splitlines()) in (2, 3)
            manifest = json.loads((steps.parent / "manifest.json").read_text())
            assert ("computed with a prompt of its own" in "".join(manifest.get("fallbacks", ()))) == (family in PLAIN)
        return out.root / "judge"

    return cache(train)


def _ask(judge, rows, **arguments):
    image = pq.read_table(next(rows.root.glob("ingest/*/images/part-00000.parquet")))["bytes"][0].as_py()
    with RewardModel(judge, max_tokens=8, max_model_len=2048, **arguments) as model:
        return model.judge(image, "How many circles are there?", ("Two circles.", "Three circles.")).probability


@pytest.mark.parametrize("family", EVERY)
def test_it_is_trained_merged_asked_and_evaluated(family, trained, rows, family_directory, tmp_path):
    judge = trained(family)
    base = family_directory(family)
    merged, with_adapter = _ask(judge, rows), _ask(base, rows, adapter=str(judge / "adapter"))
    assert merged == pytest.approx(with_adapter, abs=1e-4)
    settings = training_settings(str(judge), rows.root, None, [])[0]
    source = pq.read_table(DataRoot.of(settings, rows).resolve(settings.benchmarks[0].path))
    pq.write_table(source.slice(0, 3), tmp_path / "rows.parquet")
    data = load("vl-rewardbench", tmp_path / "rows.parquet", None)
    overrides = ["max_tokens=8", "pool.num_cpus=0.5"]
    request = command.EvalRequest(str(judge), "transformers", ("strict",), overrides=overrides, max_error_fraction=0.0)
    list(command.evaluate(data, request, tmp_path / "eval", lambda _: None))
    figures = json.loads((tmp_path / "eval" / "figures.json").read_text())
    assert figures["rows"] == 3
    assert list(figures["judges"]) == [str(judge)]


@pytest.mark.vllm
@pytest.mark.parametrize("family", EVERY)
def test_both_engines_say_the_same_of_it(family, trained, rows):
    judge = trained(family)
    assert _ask(judge, rows, engine="vllm") == pytest.approx(_ask(judge, rows), abs=1e-3)


def _run_from_the_start(small_run, judge, directory, *overrides):
    """What a run logs until it has nothing to learn from; captions, scores and routes are those of the small run.

    It stops as soon as it is seen that the judge writes no verdicts, at no cost when it is told to run again, and goes
    on where the settings say so.
    """
    run = small_run.copy(directory, "ingest", "caption", "score", "route")
    lines = []
    changes = [*SMALL, f"judge.path={judge}", "judge.max_tokens=16", *overrides]
    unread = r"demonstrate: \d+ of \d+ judgments of the base judge have a verdict .* it writes \w+: \".*min_parsed=0"
    for _ in range(2):
        with pytest.raises(RunError, match=unread):
            run_pipeline(load_settings("mini", changes), run, lines.append)
        assert [*run.root.glob("demonstrate/*/judgments/part-*")]
        assert not [*run.root.glob("demonstrate/*/manifest.json")]
    settings = load_settings("mini", [*changes, "demonstrate.min_parsed=0"])
    with pytest.raises(RunError, match="sft: no judgment of the base judge"):
        run_pipeline(settings, run, lines.append)
    [judged] = run.root.glob("demonstrate/*/manifest.json")
    manifest = json.loads(judged.read_text())
    assert (manifest["rows_in"] > 0, manifest["errors"], manifest["targets"]) == (True, 0, 0)
    assert sum(counts["asked"] for counts in manifest["verdicts"].values()) == manifest["rows_out"]
    assert "pairwise: " in "\n".join(status_lines(settings, run))
    return "\n".join(lines)


@pytest.mark.parametrize("family", EVERY)
def test_a_run_from_the_start_says_which_stage_a_judge_without_verdicts_leaves_nothing(
    family, small_run, family_directory, tmp_path
):
    _run_from_the_start(small_run, family_directory(family), tmp_path)


@pytest.mark.vllm
@pytest.mark.nightly
def test_a_run_logs_that_a_judge_goes_to_transformers(small_run, family_directory, tmp_path):
    log = _run_from_the_start(small_run, family_directory("qwen3_5"), tmp_path, "judge.engine=vllm")
    assert log.count("linear_attention layers in float32 on a CPU; it runs in transformers") == 1
