"""How the stages load a judge that a phase trained, and what phase 2 begins with."""

import json
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from carevl.data.drawn import DataRoot
from carevl.errors import SettingsError
from carevl.models.locate import Weights
from carevl.pipeline.check import check_settings
from carevl.settings.loader import load_settings
from carevl.stages import dpo, evaluate, sample, sft
from carevl.stages.base import RunContext, find_unserved, serves_adapters
from carevl.store.run import Run
from carevl.store.stage_key import StageKey


@pytest.fixture
def trained(tmp_path):
    """Context of a run whose named phases have left an adapter beside their judge."""

    def make(serve, *phases, changes=()):
        settings = load_settings("mini", [f"judge.serve={serve}", *changes])
        context = RunContext(settings, Run(tmp_path), {name: StageKey(name, {}) for name in ("sft", "dpo")}, print)
        for phase in phases:
            context.table(phase, "adapter").directory.mkdir(parents=True)
        return context

    return make


@pytest.fixture
def halved(tmp_path):
    """A judge's directory, stored in 16 bits as far as the headers of its weights say."""
    directory = tmp_path / "halved"
    directory.mkdir()
    save_file({"weight": np.zeros(2, np.float16)}, directory / "model.safetensors")
    (directory / "config.json").write_text("{}")
    return str(directory)


def _is(judge, path, adapter):
    return judge.path == str(path) and judge.adapter == (None if adapter is None else str(adapter))


@pytest.mark.parametrize("serve", ["auto", "merged"])
def test_trained_judges_are_merged_where_the_base_is_stored_in_float32(trained, serve):
    context = trained(serve, "sft", "dpo")
    assert context.trained_judge(None) == context.settings.judge
    for phase in ("sft", "dpo"):
        assert _is(context.trained_judge(phase), context.table(phase, "judge").directory, None)
    assert context.start_of("dpo") == (Weights(str(context.merged_judge("sft"))), None)


def test_or_an_adapter_of_what_their_phase_began_with(trained):
    context = trained("adapter", "sft", "dpo")
    first, second = (context.table(phase).directory for phase in ("sft", "dpo"))
    assert _is(context.trained_judge(None), "miniworld:judge", None)
    assert _is(context.trained_judge("sft"), "miniworld:judge", first / "adapter")
    assert _is(context.trained_judge("dpo"), first / "judge", second / "adapter")


@pytest.mark.parametrize("serve", ["auto", "adapter"])
def test_in_16_bits_nothing_is_merged_on_the_way(trained, halved, serve):
    context = trained(serve, "sft", "dpo", changes=[f"judge.path={halved}"])
    first, second = (context.table(phase).directory for phase in ("sft", "dpo"))
    assert _is(context.trained_judge("sft"), halved, first / "adapter")
    assert _is(context.trained_judge("dpo"), halved, second / "adapter")
    assert context.start_of("dpo") == (Weights(halved), first / "adapter")


def test_unless_the_settings_say_so(trained, halved):
    context = trained("merged", "sft", "dpo", changes=[f"judge.path={halved}"])
    for phase in ("sft", "dpo"):
        assert _is(context.trained_judge(phase), context.table(phase, "judge").directory, None)
    assert context.start_of("dpo")[1] is not None


def test_vllm_gets_merged_weights_where_the_vision_tower_has_adapters(trained, halved):
    changes = [f"judge.path={halved}", "dpo.train=all"]
    for engine, adapter in (("vllm", False), ("transformers", True)):
        settings = trained("auto", changes=[*changes, f"judge.engine={engine}"]).settings
        assert serves_adapters(settings) == adapter
    with pytest.raises(SettingsError, match="vllm does not compute adapters of a vision tower or projector"):
        check_settings(load_settings("mini", ["judge.serve=adapter", "judge.engine=vllm", "sft.train=all"]))


@pytest.mark.parametrize("config", [{"text_config": {"num_experts": 4}}, {"model_type": "glm4v"}])
def test_vllm_gets_merged_weights_of_families_whose_adapters_it_computes_otherwise(trained, halved, config):
    assert serves_adapters(trained("auto", changes=[f"judge.path={halved}", "judge.engine=vllm"]).settings)
    (Path(halved) / "config.json").write_text(json.dumps(config))
    for engine, adapter in (("vllm", False), ("transformers", True)):
        settings = trained("auto", changes=[f"judge.path={halved}", f"judge.engine={engine}"]).settings
        assert serves_adapters(settings) == adapter
    settings = trained("adapter", changes=[f"judge.path={halved}", "judge.engine=vllm"]).settings
    assert find_unserved(settings) is not None


def test_what_is_trained_in_bfloat16_is_not_merged_before_phase_2(trained):
    context = trained("auto", "sft", "dpo", changes=["dpo.dtype=bfloat16"])
    assert context.start_of("dpo") == (Weights("miniworld:judge"), context.table("sft", "adapter").directory)


@pytest.mark.parametrize("phase", ["sft", "dpo"])
def test_with_all_weights_trained_phase_2_begins_with_whole_weights(trained, halved, phase):
    context = trained("auto", "sft", changes=[f"judge.path={halved}", f"{phase}.lora=null"])
    assert context.start_of("dpo") == (Weights(str(context.merged_judge("sft"))), None)


def test_a_judge_whose_weights_were_all_trained_has_no_adapter(trained):
    context = trained("adapter", "dpo")
    assert _is(context.trained_judge("sft"), context.table("sft", "judge").directory, None)


def _inputs(settings, run):
    root = DataRoot.of(settings.model_copy(update={"benchmarks": []}), run)
    without = settings.model_copy(update={"benchmarks": []})
    stages = (sft.STAGE, sample.STAGE, dpo.STAGE, evaluate.STAGE)
    return {
        table: stage.fingerprint_inputs(without, root, table) for stage in stages for table in stage.tables(without)
    }


def test_how_a_judge_is_served_matters_to_its_answers_in_16_bits_alone(trained, halved):
    context = trained("auto")
    run, exact = context.run, _inputs(context.settings, context.run)
    assert all(_inputs(trained(serve).settings, run) == exact for serve in ("merged", "adapter"))
    path = f"judge.path={halved}"
    merged, adapter = (_inputs(trained(serve, changes=[path]).settings, run) for serve in ("merged", "adapter"))
    changed = {table for table in merged if merged[table] != adapter[table]}
    assert changed == {"sample", "evaluate/phase1", "evaluate/phase2"}
    assert _inputs(trained("auto", changes=[path]).settings, run) == adapter
    assert "begins_with" in adapter["dpo"]
    assert "begins_with" not in exact["dpo"]


def test_sums_of_gradients_are_part_of_what_bfloat16_learns(trained):
    settings = trained("auto").settings
    assert "gradients" not in settings.sft.learned()
    halved = settings.sft.model_copy(update={"dtype": "bfloat16"})
    assert halved.learned() == {**settings.sft.learned(), "dtype": "bfloat16", "gradients": "float32"}
