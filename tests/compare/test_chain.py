"""Which stages arms and seeds share, by fingerprint; nothing is run."""

from concurrent.futures import ThreadPoolExecutor
from threading import Barrier, BrokenBarrierError

import pytest

from carevl.compare.arms import ARMS, OURS, Budget, with_seed
from carevl.compare.chain import asked, chain, data, on_benchmark, rebased
from carevl.compare.stages import run_stages
from carevl.data.drawn import draw
from carevl.pipeline import core as pipeline
from carevl.settings import load_settings
from carevl.stages.base import Context
from carevl.store.run import Run, RunError
from carevl.store.stage_key import StageKey

BUDGET = Budget(9000, 1000)


@pytest.fixture(scope="module")
def setting(tmp_path_factory):
    settings = load_settings("mini", ["miniworld.items=4", "miniworld.calibration_images=4"])
    settings = settings.model_copy(update={"experts": settings.experts[:1]})
    where = Run(tmp_path_factory.mktemp("run"))
    draw(settings, where)
    return settings, where, data(settings, where)


def _chain(setting, name, number=0, rate=1.0):
    settings, where, shared = setting
    arm = ARMS[name]
    return chain(arm.settings(with_seed(settings, number), rate, BUDGET), arm.labels, where, shared)


def _shared(one, other):
    return {name for name in one if one[name] == other[name]}


DATA = {"ingest", "caption", "score/llama"}


def test_items_captions_scores_and_routes_are_those_of_the_main_job(setting):
    settings, where, _ = setting
    main, ours = pipeline.causes(settings, where), _chain(setting, OURS.name)
    assert {name for name in main if main[name] == ours[name]} >= DATA | {"route"}
    assert ours["router"] == ours["route"]


def test_arms_of_one_seed_choose_their_targets_from_the_same_judgments(setting):
    ours, distilled = _chain(setting, "carevl"), _chain(setting, "distillation")
    assert _shared(ours, distilled) >= DATA | {"router", "judgments"}
    assert not {"route", "demonstrate", "sft"} & _shared(ours, distilled)


def test_arms_that_differ_in_selection_share_phase_1_and_its_samples(setting):
    ours, consistency = _chain(setting, "carevl"), _chain(setting, "carevl_consistency")
    assert _shared(ours, consistency) >= {"sft", "sample"}
    assert not {"select", "dpo"} & _shared(ours, consistency)
    assert _chain(setting, "phase1")["sft"] == ours["sft"]
    assert _chain(setting, "high_only")["sft"] != ours["sft"]


def test_a_rate_changes_training_and_not_what_is_learned(setting):
    ours, hotter = _chain(setting, "carevl"), _chain(setting, "carevl", rate=2.0)
    assert {"judgments", "demonstrate"} <= _shared(ours, hotter)
    assert not {"sft", "sample", "dpo"} & _shared(ours, hotter)


def test_another_seed_keeps_the_data_and_draws_the_rest_anew(setting):
    ours, other = _chain(setting, "carevl"), _chain(setting, "carevl", number=1)
    assert _shared(ours, other) == DATA


def test_judges_are_asked_in_both_orders_on_one_benchmark(setting):
    settings, where, _ = setting
    tests = on_benchmark(settings, "miniworld:test/vl_rewardbench.parquet")
    [benchmark] = tests.benchmarks
    assert (benchmark.name, benchmark.protocols, benchmark.draws) == ("vl-rewardbench", ["strict"], 1)
    ours = _chain(setting, "carevl")
    dev, test = asked(ours, on_benchmark(settings), where), asked(ours, tests, where)
    assert set(ours) - _shared(dev, test) == {"evaluate/base", "evaluate/phase1", "evaluate/phase2"}
    with pytest.raises(RunError, match="vl-rewardbench"):
        on_benchmark(settings.model_copy(update={"benchmarks": settings.benchmarks[1:]}))


def test_a_given_cause_moves_all_that_follow_it_and_nothing_else(tmp_path):
    where = Run(tmp_path)
    first = StageKey("first", {"x": 1})
    causes = {"first": first, "second": StageKey("second", {"inputs": {"first": first.fingerprint}})}
    causes |= {
        "third": StageKey("third", {"inputs": {"second": causes["second"].fingerprint}}),
        "apart": StageKey("apart", {}),
    }
    assert rebased(causes, where, {}) == causes
    moved = rebased(causes, where, {"first": StageKey("first", {"x": 2})})
    assert [name for name in causes if moved[name] == causes[name]] == ["apart"]
    assert moved["third"].facts["inputs"] == {"second": moved["second"].fingerprint}


def test_a_stage_that_two_arms_share_is_made_once(setting, tmp_path):
    settings, _, _ = setting
    cause = StageKey("shared", {"n": 1})
    both_at_it, made = Barrier(2), []

    def make(context, pending):
        made.append(pending)
        with pytest.raises(BrokenBarrierError):
            both_at_it.wait(timeout=1)
        return {name: {"rows_in": 0, "rows_out": 0, "errors": 0} for name in pending}

    def arm(_):
        context = Context(settings, Run(tmp_path), {"shared": cause}, lambda _: None)
        run_stages(context, ["shared"], {"shared": make})

    with ThreadPoolExecutor(2) as pool:
        list(pool.map(arm, range(2)))
    assert made == [["shared"]]
