"""Which stages arms and seeds share, by fingerprint; nothing is run."""

from concurrent.futures import ThreadPoolExecutor
from threading import Barrier, BrokenBarrierError

import pytest

from carevl.compare.arms import ARMS, OURS, Budget, with_seed
from carevl.compare.stages import DATA_STAGES, arm_stages, on_benchmark, run_tables
from carevl.data.drawn import draw
from carevl.pipeline.keys import stage_keys
from carevl.settings.loader import load_settings
from carevl.stages.base import RunContext, Stage, reads
from carevl.store.run import Run, RunError
from carevl.store.stage_key import StageKey

BUDGET = Budget(9000, 1000)


@pytest.fixture(scope="module")
def setting(tmp_path_factory):
    settings = load_settings("mini", ["miniworld.items=4", "miniworld.calibration_images=4"])
    settings = settings.model_copy(update={"experts": settings.experts[:1]})
    where = Run(tmp_path_factory.mktemp("run"))
    draw(settings, where)
    return settings, where, stage_keys(settings, where, DATA_STAGES)


def _keys(setting, name, number=0, rate=1.0, **data):
    settings, where, shared = setting
    arm = ARMS[name]
    changed = arm.settings(with_seed(settings, number), rate, BUDGET)
    return stage_keys(changed, where, arm_stages(arm.labels, oracle=arm.oracle, **data), decided=shared)


def _shared(one, other):
    return {name for name in one if one[name] == other[name]}


DATA = {"ingest", "caption", "score/llama"}


def test_items_captions_scores_and_routes_are_those_of_the_main_job(setting):
    settings, where, _ = setting
    main, ours = stage_keys(settings, where), _keys(setting, OURS.name)
    assert {name for name in main if main[name] == ours[name]} >= DATA | {"route"}
    assert ours["router"] == ours["route"]


def test_arms_of_one_seed_choose_their_targets_from_the_same_judgments(setting):
    ours, distilled = _keys(setting, "carevl"), _keys(setting, "distillation")
    assert _shared(ours, distilled) >= DATA | {"router", "judgments"}
    assert not {"route", "demonstrate", "sft"} & _shared(ours, distilled)


def test_arms_that_differ_in_selection_share_phase_1_and_its_samples(setting):
    ours, consistency = _keys(setting, "carevl"), _keys(setting, "carevl_consistency")
    assert _shared(ours, consistency) >= {"sft", "sample"}
    assert not {"select", "dpo"} & _shared(ours, consistency)
    assert _keys(setting, "phase1")["sft"] == ours["sft"]
    assert _keys(setting, "high_only")["sft"] != ours["sft"]


def test_a_rate_changes_training_and_not_what_is_learned(setting):
    ours, hotter = _keys(setting, "carevl"), _keys(setting, "carevl", rate=2.0)
    assert {"judgments", "demonstrate"} <= _shared(ours, hotter)
    assert not {"sft", "sample", "dpo"} & _shared(ours, hotter)


def test_another_seed_keeps_the_data_and_draws_the_rest_anew(setting):
    ours, other = _keys(setting, "carevl"), _keys(setting, "carevl", number=1)
    assert _shared(ours, other) == DATA


def test_judges_are_asked_in_both_orders_on_one_benchmark(setting):
    settings, _, _ = setting
    tests = on_benchmark(settings, "miniworld:test/vl_rewardbench.parquet")
    [benchmark] = tests.benchmarks
    assert (benchmark.name, benchmark.protocols, benchmark.draws) == ("vl-rewardbench", ["strict"], 1)
    dev, test = _keys(setting, "carevl"), _keys(setting, "carevl", path="miniworld:test/vl_rewardbench.parquet")
    assert set(dev) - _shared(dev, test) == {"evaluate/base", "evaluate/phase1", "evaluate/phase2"}
    with pytest.raises(RunError, match="vl-rewardbench"):
        on_benchmark(settings.model_copy(update={"benchmarks": settings.benchmarks[1:]}))


@pytest.fixture
def undrawn(setting):
    """Settings whose data need not be drawn."""
    settings, _, _ = setting
    [source, *_] = settings.data.sources
    data = settings.data.model_copy(update={"sources": [source.model_copy(update={"path": "pairs.parquet"})]})
    return settings.model_copy(update={"data": data, "benchmarks": []})


def _stage(name, *inputs, run=None):
    return Stage(name, reads(*inputs), lambda *_: {"of": name}, run)


def test_a_key_that_is_decided_moves_all_that_follow_it_and_nothing_else(undrawn, tmp_path):
    stages = (_stage("first"), _stage("second", "first"), _stage("third", "second"), _stage("apart"))
    keys = stage_keys(undrawn, Run(tmp_path), stages)
    assert stage_keys(undrawn, Run(tmp_path), stages, decided=keys) == keys
    moved = stage_keys(undrawn, Run(tmp_path), stages, decided={"first": StageKey("first", {"x": 2})})
    assert [name for name in keys if moved[name] == keys[name]] == ["apart"]
    assert moved["third"].fingerprint_inputs["inputs"] == {"second": moved["second"].fingerprint}


def test_a_table_that_two_arms_share_is_made_once(undrawn, tmp_path):
    both_at_it, made = Barrier(2), []

    def run(context):
        made.append(context.pending)
        with pytest.raises(BrokenBarrierError):
            both_at_it.wait(timeout=1)
        return {name: {"rows_in": 0, "rows_out": 0, "errors": 0} for name in context.pending}

    stages = (_stage("shared", run=run),)

    def arm(_):
        where = Run(tmp_path)
        context = RunContext(undrawn, where, stage_keys(undrawn, where, stages), lambda _: None)
        run_tables(context, ["shared"], stages)

    with ThreadPoolExecutor(2) as pool:
        list(pool.map(arm, range(2)))
    assert made == [["shared"]]
