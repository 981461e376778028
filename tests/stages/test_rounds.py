"""Which tables rounds of phase 2 have, what they are made from, and which rounds are kept; nothing is run."""

from functools import partial

import pyarrow as pa
import pytest

from carevl.errors import SettingsError
from carevl.models.locate import Weights
from carevl.pipeline import plan
from carevl.pipeline.admission import reservations
from carevl.pipeline.check import check_settings
from carevl.pipeline.clean import find_unneeded
from carevl.pipeline.downloads import loaded_models
from carevl.pipeline.keys import keys_until, stage_keys
from carevl.pipeline.plan import plan_run
from carevl.pipeline.publish import method_of
from carevl.pipeline.round_results import round_figures, round_lines
from carevl.pipeline.status import status_lines
from carevl.settings.loader import load_settings
from carevl.stages import STAGES
from carevl.stages.base import RunContext
from carevl.stages.examine import count_right
from carevl.stages.rounds import RoundOutcomes, all_stages, view_round
from carevl.store.run import Run
from carevl.store.stage_key import StageKey
from carevl.store.table import Table
from tests.helpers.half_labelled import load_half_labelled

TESTIMONY = ["select.testimony_weight=1", "labels={router: 1, low_router: 1, choice: 1}"]
ROUND = ["sample", "select", "dpo"]


@pytest.fixture
def run(tmp_path):
    return Run(tmp_path)


@pytest.fixture
def load(tmp_path_factory):
    """Settings of a run whose sources, of one file, are with and without labels."""
    rows = tmp_path_factory.mktemp("data") / "rows.jsonl"
    rows.write_text("{}\n")
    return partial(load_half_labelled, rows)


def _finish(run, settings, table, **facts):
    """Declare a table of a run finished."""
    key = stage_keys(settings, run)[table]
    named = {"stage": key.stage, "fingerprint": key.fingerprint, "cause": key.fingerprint_inputs}
    run.table(key).finish({**named, "rows_out": 1, "errors": 0, "finished": "now", **facts})


def _examined(run, settings, *right):
    """Declare judges examined on ten pairs, of which so many are right: phase 1's, phase 2's, that of round 2, …."""
    for n, judge in enumerate(["phase1", "phase2", "round-2", "round-3"][: len(right)]):
        _finish(run, settings, f"examine/{judge}", pairs=10, right=right[n])


def _outcomes(run, settings):
    keys = stage_keys(settings, run)
    return RoundOutcomes(run, lambda: keys)


def test_one_round_is_the_run_that_it_always_was(run, load):
    assert all_stages(load()) == STAGES
    one, three = stage_keys(load(), run), stage_keys(load("rounds=3"), run)
    assert {name for name in one if one[name] != three[name]} == {"evaluate/phase2"}
    assert three.keys() - one.keys() == {
        "choice",
        *(f"examine/{judge}" for judge in ("phase1", "phase2", "round-2", "round-3")),
        *(f"round-{number}/{table}" for number in (2, 3) for table in ROUND),
    }


def test_pairs_that_rounds_are_chosen_by_are_drawn_before_any_model_runs(load):
    names = [table for stage in all_stages(load("rounds=2")) for table in stage.tables(load("rounds=2"))]
    assert names[:2] == ["ingest", "choice"]
    assert names[names.index("dpo") :] == [
        "dpo",
        "examine/phase1",
        "examine/phase2",
        *(f"round-2/{table}" for table in ROUND),
        "examine/round-2",
        "evaluate/base",
        "evaluate/phase1",
        "evaluate/phase2",
    ]


def test_a_round_reads_its_own_tables_and_the_judge_of_the_round_before(load):
    settings = load("rounds=3", *TESTIMONY)
    inputs = {
        table: dict(stage.inputs(settings, table))
        for stage in all_stages(settings)
        for table in stage.tables(settings)
        if table.startswith("round-3/") or table.endswith(("round-3", "phase2"))
    }
    experts = [f"score_testimony/{expert.name}" for expert in settings.experts]
    own = {name: f"round-3/{name}" for name in ("testify", "sample", "route_low", "select", *experts)}
    base = {"ingest": "ingest", "route": "route", "sft": "round-2/dpo"}
    assert inputs.pop("round-3/testify") == inputs.pop("round-3/sample") == base
    for expert in experts:
        read = {"ingest": "ingest", "caption": "caption", "testify": own["testify"], "sample": own["sample"]}
        assert inputs.pop(own[expert]) == read
    scored = {expert: own[expert] for expert in experts}
    assert inputs.pop("round-3/route_low") == {"ingest": "ingest", "route": "route", **scored}
    assert inputs.pop("round-3/select").items() >= {"sample": own["sample"], "route_low": own["route_low"]}.items()
    assert inputs.pop("round-3/dpo") == {"select": own["select"], "demonstrate": "demonstrate", "sft": "round-2/dpo"}
    assert inputs == {
        "examine/phase2": {"choice": "choice", "judge": "dpo"},
        "examine/round-3": {"choice": "choice", "judge": "round-3/dpo"},
        "evaluate/phase2": {"dpo": "round-3/dpo"},
    }


def test_tables_of_rounds_lie_in_directories_of_their_own(run, load):
    settings = load("rounds=2", *TESTIMONY)
    keys = stage_keys(settings, run)
    assert keys["round-2/score_testimony/llama"].stage == "round-2/score_testimony/llama"
    assert len({key.fingerprint for key in keys.values()}) == len(keys)
    _finish(run, settings, "round-2/score_testimony/llama")
    _finish(run, settings, "examine/round-2", pairs=1, right=1)
    assert len(run.tables({})) == 2
    assert find_unneeded(settings, run) == []
    assert {table.name.rpartition("/")[0] for table in find_unneeded(load(*TESTIMONY), run)} == {
        "round-2/score_testimony/llama",
        "examine/round-2",
    }


def test_what_rounds_reserve_and_load_is_counted(load):
    settings = load("rounds=2", "judge.path=miniworld:judge")
    tables = ["round-2/sample", "round-2/dpo", "examine/round-2"]
    assert {need.stage for need in reservations(settings, tables)} == set(tables)
    assert [(table, model.setting) for table, model in loaded_models(settings, tables)] == [
        ("round-2/sample", "judge"),
        ("round-2/dpo", "judge"),
        ("round-2/dpo", "judge"),
        ("examine/round-2", "judge"),
    ]


def test_a_round_is_kept_if_more_pairs_are_right_and_the_next_is_made_then(run, load):
    settings = load("rounds=3")
    outcomes = _outcomes(run, settings)
    assert [outcomes.helped(number) for number in (1, 2, 3)] == [None] * 3
    assert outcomes.last_kept(3) == 1
    _examined(run, settings, 4, 5, 6)
    keys, outcomes = stage_keys(settings, run), _outcomes(run, settings)
    assert [outcomes.helped(number) for number in (1, 2, 3)] == [True, True, None]
    assert outcomes.last_kept(3) == 2
    assert "round-3/dpo" in keys
    _examined(run, settings, 4, 5, 6, 7)
    assert _outcomes(run, settings).last_kept(3) == 3
    assert stage_keys(settings, run)["evaluate/phase2"].fingerprint_inputs["inputs"] == {
        "dpo": keys["round-3/dpo"].fingerprint
    }


@pytest.mark.parametrize("right", [5, 4])
def test_one_that_does_not_help_is_not_kept_and_is_the_last(run, load, right):
    settings = load("rounds=3")
    _examined(run, settings, 4, 5, right)
    keys = stage_keys(settings, run)
    assert "examine/round-2" in keys
    assert not any(name.startswith("round-3/") or name == "examine/round-3" for name in keys)
    assert keys["evaluate/phase2"] == stage_keys(load(), run)["evaluate/phase2"]
    assert _outcomes(run, settings).last_kept(3) == 1
    lines = [*status_lines(settings, run)]
    assert lines[-2:] == [
        "round 1          helped: 5 of 10 labelled pairs right in both orders, 4 before",
        f"round 2          did not help: {right} of 10 labelled pairs right in both orders, 5 before; it is not kept, "
        "and round 3 is not made",
    ]
    assert [*keys_until(keys, "round-3")] == [name for name in keys if not name.startswith("evaluate/")]


def test_rounds_are_planned_and_a_run_may_end_with_one(run, load):
    settings = load("rounds=3")
    _examined(run, settings, 4, 5)
    planned = {table.name: table.action for table in plan_run(settings, run)}
    assert [name for name, action in planned.items() if action == "skip"] == ["examine/phase1", "examine/phase2"]
    assert [name for name in planned if name.startswith("round-3")] == [f"round-3/{table}" for table in ROUND]
    assert [*plan.round_lines(settings, run)] == [
        "round 1          helped: 5 of 10 labelled pairs right in both orders, 4 before",
        "rounds           each is made if the one before it helps, and kept if it helps itself",
    ]
    with pytest.raises(SettingsError, match="--until round-4: there is no such stage"):
        check_settings(settings, "round-4")


def test_a_last_round_that_does_not_help_leaves_the_judge_of_the_one_before(run, load):
    settings = load("rounds=3")
    _examined(run, settings, 3, 4, 5, 5)
    keys = stage_keys(settings, run)
    assert keys["evaluate/phase2"].fingerprint_inputs["inputs"] == {"dpo": keys["round-2/dpo"].fingerprint}
    assert _outcomes(run, settings).last_kept(3) == 2


def test_the_first_round_stays_if_it_does_not_help_and_no_other_is_made(run, load):
    settings = load("rounds=2")
    _examined(run, settings, 5, 5)
    keys = stage_keys(settings, run)
    assert not any(name.startswith("round-") for name in keys)
    assert keys["evaluate/phase2"] == stage_keys(load(), run)["evaluate/phase2"]
    assert [*_outcomes(run, settings).lines(2)] == [
        "round 1          did not help: 5 of 10 labelled pairs right in both orders, 5 before; its judge stays, being "
        "phase 2's, and round 2 is not made"
    ]


def test_a_round_without_pairs_is_the_end(run, load):
    settings = load("rounds=3")
    _examined(run, settings, 4, 5)
    _finish(run, settings, "round-2/select", rows_out=0)
    keys = stage_keys(settings, run)
    assert [name for name in keys if name.startswith("round-")] == ["round-2/sample", "round-2/select"]
    assert keys["evaluate/phase2"] == stage_keys(load(), run)["evaluate/phase2"]
    assert [*_outcomes(run, settings).lines(3)][1].startswith("round 2          has no pair of judgments to train on;")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (["data.sources.0.labels=false"], r"rounds: 2: .* no source has labels; declare one"),
        (["labels.choice=0"], r"labels\.choice is 0; raise it, or set rounds to 1"),
        (["dpo.zero.stage=3"], r"dpo\.zero\.stage: 3 says that none can"),
    ],
)
def test_rounds_that_nothing_can_choose_are_refused(load, changes, message):
    load(*changes)
    with pytest.raises(SettingsError, match=message):
        load("rounds=2", *changes)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_round_begins_with_the_judge_before_it(run, dtype):
    settings = load_settings("mini", ["rounds=3", "judge.serve=adapter", f"dpo.dtype={dtype}"])
    names = ["sft", "dpo", "round-2/dpo", "round-3/dpo"]
    context = RunContext(settings, run, {name: StageKey(name, {}) for name in names}, print)
    for name in names:
        context.table(name, "adapter").directory.mkdir(parents=True)
    first, second, third = (context.table(name).directory for name in names[:3])
    view = view_round(context, 3)
    assert view.keys["dpo"] == context.keys["round-3/dpo"]
    asked = view.trained_judge(view.phases[-1])
    assert asked.adapter == str(third / "adapter")
    if dtype == "bfloat16":  # nothing is merged on the way
        assert view.start_of("dpo") == (Weights("miniworld:judge"), third / "adapter")
        assert asked.path == "miniworld:judge"
    else:
        assert view.start_of("dpo") == (Weights(str(third / "judge")), None)
        assert asked.path == str(second / "judge")
        assert view_round(context, 2).trained_judge("round-1/dpo").path == str(first / "judge")
    assert view.table("sft").directory == first


def test_a_pair_is_right_if_it_is_in_both_orders(tmp_path):
    answers = Table(tmp_path)
    rows = {
        "item_id": ["right", "right", "one order", "one order", "unread", "unread"],
        "reference_chosen": [-1.0, -1.0, -1.0, -2.0, None, -1.0],
        "reference_rejected": [-2.0, -3.0, -2.0, -2.0, None, -2.0],
    }
    answers.write(0, pa.table(rows))
    assert count_right(answers) == (2, 1)


def test_results_say_of_each_round_what_it_had_and_whether_it_is_kept(run, load):
    settings = load("rounds=2", *TESTIMONY)
    _examined(run, settings, 4, 6, 6)
    items = {name: {"images": [f"image of {name}"]} for name in "abc"}
    finished = {}
    for name, ids in {"demonstrate": "a", "select": "b", "round-2/select": "bc"}.items():
        table = Table(run.root / name)
        below = Table(table.directory / "targets") if name == "demonstrate" else table
        below.write(0, pa.table({"item_id": list(ids)}))
        finished[name] = table
    for name in ("route_low", "round-2/route_low"):
        finished[name] = Table(run.root / name)
        rows = {"item_id": ["a", "b", "c", "labelled"], "route": ["high", "high", "low", "high"]}
        finished[name].write(0, pa.table(rows))
    one, two = round_figures(2, finished, items, _outcomes(run, settings), lambda table: {"count": 7, "items": 3})
    assert (one["kept"], two["kept"]) == (True, False)
    assert [tree["labels"] for tree in (one, two)] == [
        {"trusted": 2, "without_promise": 1},
        {"trusted": 2, "without_promise": 2},
    ]
    assert one["choice"]["pairs"] == 10
    assert [one["choice"][when]["value"] for when in ("before", "after")] == [0.4, 0.6]
    lines = [*round_lines([one, two])]
    assert [lines[0], lines[-1]] == ["round 1: 7 pairs from 3 items", "  not kept: it did not help"]


def test_the_card_says_how_many_rounds_there_were():
    assert "phase 2 was off" in method_of(0)
    assert method_of(1).endswith("(phase 2)")
    assert method_of(3).endswith("(phase 2), in 3 rounds, each from the judge of the one before")
