"""A small comparison on a real, private Ray: four arms with one seed, then again, then on test scenes.

Nightly: five judges are made and asked, which takes six minutes; arms, their stages and their figures are tested apart,
and the stages themselves in tests/pipeline.
"""

import json
import shutil
from dataclasses import replace

import pytest

from carevl.compare import report
from carevl.compare.run import Final, Plan, compare
from carevl.settings.loader import load_settings
from carevl.store.damage import read_json
from carevl.store.run import Run, RunError

SMALL = [
    "miniworld.items=40",
    "miniworld.calibration_images=120",
    "data.parts=1",
    "judge.pool.concurrency=1",
    "judge.engine=transformers",
    "captioner.engine=transformers",
    "router.policy=mean_margin",
    "router.threshold=0.7",
    "demonstrate.samples=2",
    "sample.samples=4",
    "select.min_gap=0.1",
    "sft.epochs=1",
    "sft.batch_size=8",
    "dpo.batch_size=8",
    "dpo.epochs=1",
    "sft.workers.count=1",
    "dpo.workers.count=1",
    "benchmarks.0.rows=24",
    "cluster.num_cpus=2",
]
pytestmark = [pytest.mark.ray, pytest.mark.nightly]
ARMS = ("base", "experts", "distillation", "phase1", "carevl")
PLAN = Plan(ARMS, seeds=1, tries=1, resamples=5)


@pytest.fixture(scope="module")
def settings():
    found = load_settings("mini", SMALL)
    return found.model_copy(update={"experts": found.experts[:1]})


@pytest.fixture(scope="module")
def compared(ray, settings, tmp_path_factory):
    where = Run(tmp_path_factory.mktemp("run"))
    return where, compare(settings, where, PLAN, None, lambda _: None)


def test_every_arm_has_its_figures_and_pictures(compared):
    where, found = compared
    assert read_json(where.root / "compare.json", "") == json.loads(json.dumps(found))
    assert list(found["arms"]) == list(ARMS)
    for arm in found["arms"].values():
        for name in ("strict", "single_order", "decidable", "undecidable", "order_consistency", "ece"):
            assert set(arm[name]) == {"mean", "low", "high"}
            assert arm[name]["low"] <= arm[name]["mean"] <= arm[name]["high"]
        assert arm["strict"]["mean"] <= arm["single_order"]["mean"]
        assert set(arm["groups"]) <= {"general", "hallucination", "reasoning"}
        assert arm["kinds"]
    assert found["arms"]["experts"]["order_consistency"]["mean"] == 1.0
    files = {file.name for file in (where.root / "figures").iterdir()}
    assert files == {f"strict_by_{what}.{suffix}" for what in ("arm", "kind") for suffix in ("png", "svg")}


def test_differences_are_paired_and_against_every_other_arm(compared):
    _, found = compared
    means = {name: arm["strict"]["mean"] for name, arm in found["arms"].items()}
    compared = [("carevl", name) for name in ("base", "experts", "distillation", "phase1")]
    for one, other in (*compared, ("phase1", "base")):
        difference = found["differences"][f"{one}_minus_{other}"]
        assert difference["mean"] == pytest.approx(means[one] - means[other])
        assert difference["low"] <= difference["mean"] <= difference["high"]


def test_the_router_is_measured_apart(compared):
    _, found = compared
    routing = found["routing"]
    assert 0 < routing["high_precision"] <= 1
    assert routing["promise"]["resamples"] == 5
    coverages = [point["coverage"] for point in routing["sweep"]]
    assert coverages == sorted(coverages, reverse=True)
    assert routing["coverage"] == pytest.approx(next(p["coverage"] for p in routing["sweep"] if p["threshold"] == 0.7))


def test_arms_are_trained_on_as_many_tokens(compared):
    _, found = compared
    ours, distilled = found["arms"]["carevl"], found["arms"]["distillation"]
    assert ours["tokens"] == sum(found["tokens"][0].values())
    assert distilled["tokens"] == pytest.approx(ours["tokens"], abs=distilled["tokens"] / distilled["steps"])
    [phase2] = ours["phase2"]
    assert found["pairs"]["count"] == phase2["count"]
    assert phase2["items"] <= phase2["low_pairs"]


def test_a_person_reads_arms_differences_and_router(compared):
    _, found = compared
    text = "\n".join(report.format_lines(found))
    for what in (*ARMS, "carevl - distillation", "calibration resamples", "low pairs", "trained on"):
        assert what in text


def test_arms_made_side_by_side_are_those_made_one_after_the_other(compared, settings, tmp_path):
    where, found = compared
    shutil.copytree(
        where.root, tmp_path, ignore=shutil.ignore_patterns("dpo", "evaluate", "compare.json"), dirs_exist_ok=True
    )
    said: list[str] = []
    again = compare(settings, Run(tmp_path), replace(PLAN, at_once=2), None, said.append)
    assert again["arms"].keys() == found["arms"].keys()
    for name, arm in again["arms"].items():
        assert {key: value for key, value in arm.items() if key != "seconds"} == {
            key: value for key, value in found["arms"][name].items() if key != "seconds"
        }
    assert again["differences"] == found["differences"]


def test_again_nothing_is_made_and_test_scenes_are_listed(compared, settings):
    where, found = compared
    said: list[str] = []
    again = compare(settings, where, PLAN, None, said.append)
    assert not [line for line in said if "begins" in line or "goes on" in line]
    assert again["arms"] == found["arms"]
    final = compare(settings, where, Plan(("base", "phase1"), 1, 1, resamples=5, at_once=2), Final(5), said.append)
    [entry] = final["final"]
    assert (entry["world_seed"], entry["rows"]) == (5, 24)
    assert [arm["strict"]["mean"] is not None for arm in entry["arms"].values()] == [True, True]
    assert json.loads((where.root / "compare.json").read_text())["final"][0]["time"] == entry["time"]
    assert "other than those above" not in "\n".join(report.format_lines(final))


def test_test_data_seen_by_judges_that_were_made_anew_since_are_marked(compared):
    _, found = compared
    judges = found["judges"]
    assert judges["base"] == judges["experts"] == [None]
    assert len({judges[name][0] for name in ("distillation", "phase1", "carevl")}) == 3
    asked = {"time": "2026-01-01", "world_seed": 5, **{key: found[key] for key in ("seeds", "rows", "arms")}}
    now = {**asked, "judges": judges, "differences": {}}
    before = {**asked, "judges": {**judges, "carevl": ["0123456789abcdef"]}, "differences": {}}
    untold = {**asked, "differences": {}}
    lines = list(report.format_lines({**found, "final": [now, before, untold]}))
    assert [line for line in lines if line.startswith("on test data")] == [
        "on test data, 2026-01-01, scenes of seed 5",
        "on test data, 2026-01-01, scenes of seed 5; by judges other than those above: carevl",
        f"on test data, 2026-01-01, scenes of seed 5; by judges other than those above: {', '.join(ARMS)}",
    ]


def test_a_directory_in_use_is_left_alone(ray, settings, tmp_path):
    where = Run(tmp_path)
    with where.lock(), pytest.raises(RunError, match="in use"):
        compare(settings, where, PLAN, None, lambda _: None)
