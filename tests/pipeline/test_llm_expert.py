"""A language model as one of three experts, from the start of a run to its judge; the audit says what it adds."""

from __future__ import annotations

import pytest

from carevl.pipeline.audit import audit
from carevl.pipeline.run import run_pipeline
from carevl.settings.loader import load_settings
from carevl.store.run import Run
from tests.helpers.small_run import SMALL

pytestmark = [pytest.mark.train, pytest.mark.nightly]
READER = ["kind: llm", "name: reader", "engine: transformers", "dtype: float32", "max_model_len: 512"]


@pytest.mark.parametrize("scoring", ["likelihood", "pairwise"])
def test_a_run_with_a_language_model_among_its_experts_ends_in_a_judge(scoring, ray, smollm, tmp_path):
    run = Run(tmp_path / "run")
    expert = ", ".join([*READER, f"scoring: {scoring}", f"path: {smollm}", "pool: {num_cpus: 0.5}"])
    overrides = [f"experts.2={{{expert}}}", "miniworld.calibration_images=240"]
    settings = load_settings("mini", [*SMALL, *overrides])
    done = run_pipeline(settings, run, lambda _: None, None if scoring == "likelihood" else "route")
    assert {stage.action for stage in done} == {"ran"}
    assert {stage.name: stage.errors for stage in done}["score/reader"] == 0
    assert (run.root / "judge" / "config.json").exists() == (scoring == "likelihood")
    report = audit(run.root, 0, lambda _: None)
    assert report["experts"]["reader"]["accuracy"]["value"] > 0.5
    added = report["contributions"]["reader"]
    assert added["precision"]["change_at_same_coverage"]["n"] > 0
