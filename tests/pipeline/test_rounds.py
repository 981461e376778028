"""How a run goes from round to round and which judge it publishes; the stages themselves are left out."""

from functools import partial
from types import SimpleNamespace

import pytest

from carevl.pipeline import results
from carevl.pipeline import run as pipeline
from carevl.pipeline.keys import stage_keys
from carevl.store.run import Run
from tests.helpers.half_labelled import load_half_labelled

FIRST = ["ingest", "choice", "caption", "score/llama", "route", "demonstrate", "sft", "sample", "select", "dpo"]
EXAMINED = ["phase1", "phase2", "round-2", "round-3"]


@pytest.fixture
def load(tmp_path_factory):
    """Settings of a run of one expert whose sources, of one file, are with and without labels."""
    experts = "experts=[{name: llama, path: 'miniworld:expert-llama'}]"
    rows = tmp_path_factory.mktemp("data") / "rows.jsonl"
    rows.write_text("{}\n")
    return partial(load_half_labelled, rows, experts)


@pytest.fixture
def follow(tmp_path, monkeypatch):
    """Run settings with stages that only finish their tables; return the tables made, and the trainings published."""
    run, published = Run(tmp_path), []

    def make(settings, right, until=None, n_pairs=1):
        made = []

        def run_stage(context, stage):
            reports = []
            for name in (name for name in stage.tables(settings) if name in context.keys):
                key = context.keys[name]
                if context.run.action(key)[0] == "skip":
                    reports.append(SimpleNamespace(name=name, action="skipped"))
                    continue
                made.append(name)
                facts = {"rows_out": n_pairs if name.startswith("round-") else 1}
                if name.startswith("examine/"):
                    facts = {"pairs": 10, "right": right[EXAMINED.index(name.removeprefix("examine/"))]}
                named = {"stage": key.stage, "fingerprint": key.fingerprint, "cause": key.fingerprint_inputs}
                context.table(name).finish({**named, **facts})
                reports.append(SimpleNamespace(name=name, action="ran"))
            return reports

        monkeypatch.setattr(pipeline, "run_stage", run_stage)
        pipeline.run_pipeline(settings, run, lambda _: None, until)
        return made, published.pop()

    for name in ("check_settings", "admit", "prepare_models", "asdict"):
        monkeypatch.setattr(pipeline, name, lambda *_, **__: {})
    monkeypatch.setattr(results, "compute", lambda *_: {})
    monkeypatch.setattr(pipeline, "publish", lambda phases, *_, **__: published.append(phases))
    return SimpleNamespace(run=run, make=make)


def _trainings(follow, settings, *names):
    keys = stage_keys(settings, follow.run)
    return [follow.run.table(keys[name]).directory for name in names]


def _round(number):
    return [f"round-{number}/{stage}" for stage in ("sample", "select", "dpo")] + [f"examine/round-{number}"]


EVALUATED = ["evaluate/base", "evaluate/phase1", "evaluate/phase2"]


def test_rounds_that_help_follow_one_another_and_the_last_is_published(load, follow):
    settings = load("rounds=3")
    made, published = follow.make(settings, [1, 2, 3, 4])
    assert made == [*FIRST, "examine/phase1", "examine/phase2", *_round(2), *_round(3), *EVALUATED]
    assert published == _trainings(follow, settings, "sft", "dpo", "round-2/dpo", "round-3/dpo")
    assert follow.make(settings, [])[0] == []


def test_more_rounds_make_what_is_new_and_fewer_make_nothing(load, follow):
    follow.make(load(), [])
    made, _ = follow.make(load("rounds=2"), [1, 2, 3])
    assert made == ["choice", "examine/phase1", "examine/phase2", *_round(2), "evaluate/phase2"]
    assert follow.make(load("rounds=3"), [1, 2, 3, 4])[0] == [*_round(3), "evaluate/phase2"]
    for rounds in (2, 1):
        made, published = follow.make(load(f"rounds={rounds}"), [])
        assert made == []
        assert len(published) == 1 + rounds


def test_a_stopped_run_goes_on_in_its_round(load, follow):
    settings = load("rounds=3")
    made, published = follow.make(settings, [1, 2, 3, 4], until="round-2/select")
    assert made[-3:] == ["examine/phase2", "round-2/sample", "round-2/select"]
    assert published == _trainings(follow, settings, "sft", "dpo")
    made, published = follow.make(settings, [1, 2, 3, 4], until="round-2")
    assert made == ["round-2/dpo"]
    assert published == _trainings(follow, settings, "sft", "dpo")  # nobody knows yet whether the round helped
    assert follow.make(settings, [1, 2, 3, 4])[0] == ["examine/round-2", *_round(3), *EVALUATED]


def test_after_a_round_that_does_not_help_no_other_is_made_and_its_judge_is_not_published(load, follow):
    settings = load("rounds=3")
    made, published = follow.make(settings, [1, 2, 2], until="round-3/dpo")
    assert made == [*FIRST, "examine/phase1", "examine/phase2", *_round(2)]
    assert published == _trainings(follow, settings, "sft", "dpo")
    assert follow.make(settings, [])[0] == EVALUATED
    assert follow.make(load(), [])[0] == []


def test_a_first_round_that_does_not_help_is_all_there_is(load, follow):
    settings = load("rounds=3")
    made, published = follow.make(settings, [2, 2])
    assert made == [*FIRST, "examine/phase1", "examine/phase2", *EVALUATED]
    assert published == _trainings(follow, settings, "sft", "dpo")


def test_a_round_without_pairs_trains_nothing(load, follow):
    settings = load("rounds=3")
    made, published = follow.make(settings, [1, 2], n_pairs=0)
    assert made == [*FIRST, "examine/phase1", "examine/phase2", "round-2/sample", "round-2/select", *EVALUATED]
    assert published == _trainings(follow, settings, "sft", "dpo")
