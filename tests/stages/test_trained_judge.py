"""How the stages load a judge that a phase trained."""

import pytest

from carevl.settings import load_settings
from carevl.stages.base import RunContext
from carevl.store.run import Run
from carevl.store.stage_key import StageKey


@pytest.fixture
def trained(tmp_path):
    """Context of a run whose named phases have left an adapter beside their judge."""

    def make(serve, *phases):
        settings = load_settings("mini", [f"judge.serve={serve}"])
        context = RunContext(settings, Run(tmp_path), {name: StageKey(name, {}) for name in ("sft", "dpo")}, print)
        for phase in phases:
            context.table(phase, "adapter").directory.mkdir(parents=True)
        return context

    return make


def _is(judge, path, adapter):
    return judge.path == str(path) and judge.adapter == (None if adapter is None else str(adapter))


def test_trained_judges_are_merged_by_default(trained):
    context = trained("merged", "sft", "dpo")
    assert context.trained_judge(None) == context.settings.judge
    for phase in ("sft", "dpo"):
        assert _is(context.trained_judge(phase), context.table(phase, "judge").directory, None)


def test_or_an_adapter_of_what_their_phase_began_with(trained):
    context = trained("adapter", "sft", "dpo")
    sft, dpo = (context.table(phase).directory for phase in ("sft", "dpo"))
    assert _is(context.trained_judge(None), "miniworld:judge", None)
    assert _is(context.trained_judge("sft"), "miniworld:judge", sft / "adapter")
    assert _is(context.trained_judge("dpo"), sft / "judge", dpo / "adapter")


def test_a_judge_whose_weights_were_all_trained_has_no_adapter(trained):
    context = trained("adapter", "dpo")
    assert _is(context.trained_judge("sft"), context.table("sft", "judge").directory, None)
