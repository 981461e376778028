"""The shape of every preset run to its end: its own settings on the shipped small models, without labels, benchmarks
or GPUs.

All but `single-gpu` are nightly: other tests run mini with all it has, and the other presets for GPUs differ from it
mostly in what they reserve, which is taken away here.
"""

from __future__ import annotations

import json
from typing import Any

import pytest

from carevl.pipeline import results
from carevl.pipeline.keys import stage_keys
from carevl.pipeline.plan import plan_run
from carevl.pipeline.run import run_pipeline
from carevl.settings.loader import load_settings, presets
from carevl.settings.tree import Settings
from carevl.store.run import Run

pytestmark = [pytest.mark.ray, pytest.mark.usefixtures("ray")]
EXPERTS = ("expert-llama", "expert-qwen2", "expert-mistral")
CPUS = 2
NIGHTLY = ("mini", "mini-questions", "multi-node", "small-gpu")


def _small(model: dict[str, Any], name: str) -> dict[str, Any]:
    """A preset's model, replaced by a shipped one on a CPU."""
    pool = model["pool"] | {
        "num_cpus": 1,
        "num_gpus": 0,
        "concurrency": 1,
        "preparers": min(model["pool"]["preparers"], 1),
    }
    changed = {
        "path": f"miniworld:{name}",
        "revision": None,
        "engine": "transformers",
        "dtype": "float32",
        "pool": pool,
    }
    if "tensor_parallel" in model:
        changed["tensor_parallel"] = 1
    return model | changed


def _shape(preset: str) -> Settings:
    tree = load_settings(preset).model_dump(mode="json")
    source = {"name": "pairs", "path": "miniworld:train/rlaif_v.parquet"}
    tree["data"]["sources"] = [source | ({"format": "question"} if tree["respond"]["models"] else {})]
    tree["data"]["parts"] = min(tree["data"]["parts"], 64)  # more than there are images: some parts are empty
    tree["router"]["threshold"] = 0.6  # of so few pairs, none without labels may reach a preset's own
    tree["miniworld"] = {"items": 60, "calibration_images": 1}
    tree["captioner"] = _small(tree["captioner"], "captioner")
    tree["experts"] = [_small(expert, name) for expert, name in zip(tree["experts"], EXPERTS, strict=True)]
    tree["judge"] = _small(tree["judge"], "judge")
    for phase in ("sft", "dpo"):
        tree[phase] |= {"dtype": "float32"}
        tree[phase]["workers"] |= {"count": 1, "num_cpus": 1, "num_gpus": 0}
    tree["benchmarks"] = []
    tree["cluster"]["num_cpus"] = CPUS
    return Settings.model_validate(tree)


@pytest.mark.parametrize(
    "preset", [pytest.param(name, marks=[pytest.mark.nightly] * (name in NIGHTLY)) for name in presets()]
)
def test_a_preset_runs_to_its_end_without_labels_and_benchmarks(preset, tmp_path):
    settings, run = _shape(preset), Run(tmp_path)
    done = {stage.name: stage for stage in run_pipeline(settings, run, print)}
    assert done.keys() == stage_keys(settings, run).keys()
    assert done["ingest"].rows_out > 0
    assert done["sft"].rows_out > 0
    assert done["dpo"].rows_out > 0
    assert [(stage.rows_out, stage.errors) for name, stage in done.items() if name.startswith("evaluate/")] == [
        (0, 0)
    ] * 3
    figures = json.loads((run.root / results.RESULTS).read_text())
    assert figures["judges"] == {}
    assert not any("base" in line for line in results.table(figures))
    assert (run.root / "judge" / "model.safetensors").exists()
    assert {planned.action for planned in plan_run(settings, run)} == {"skip"}
