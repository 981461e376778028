"""What a run publishes: weights, a card, and one adapter for both phases."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace

import pytest
import torch

from carevl.audit.injection import LINES
from carevl.pipeline import results
from carevl.pipeline.publish import publish, record_injection
from carevl.training.adapters import Adapter, Rounding
from carevl.training.trainable import TrainedParts


@pytest.fixture
def phases(tmp_path):
    """Training directories of both phases, whose adapters have rank 2 and 3; `base` is what the second one is of."""

    def make(base: str, lost: float):
        torch.manual_seed(0)
        for phase, rank, of in (("sft", 2, "org/base"), ("dpo", 3, base)):
            (tmp_path / phase / "judge").mkdir(parents=True)
            (tmp_path / phase / "judge" / "config.json").write_text("{}")
            tensors = {
                "base_model.model.q.lora_A.weight": torch.randn(rank, 8),
                "base_model.model.q.lora_B.weight": torch.randn(4, rank),
            }
            config = {"r": rank, "lora_alpha": 2 * rank, "target_modules": ["q"], "base_model_name_or_path": of}
            Adapter(config, tensors).write(tmp_path / phase / "adapter")
            Rounding(lost, lost, "q", "bfloat16").write(tmp_path / phase / "rounding.json")
            TrainedParts("language", 1, rank * 12, 9, 1, 3, 3, 2, 2).write(tmp_path / phase / "trained.json")
        return [tmp_path / "sft", tmp_path / "dpo"]

    return make


def _change(directory):
    adapter = Adapter.read(directory)
    a, b = adapter.factors("q")
    return adapter.scale * b @ a


def test_an_adapter_of_merged_weights_is_joined_with_the_one_before_it(phases, tmp_path):
    directories = phases(base=str(tmp_path / "sft" / "judge"), lost=0.01)
    publish(directories, "org/base", tmp_path / "judge", "f", [])
    published = Adapter.read(tmp_path / "judge" / "adapter")
    assert (published.config["r"], published.config["base_model_name_or_path"]) == (5, "org/base")
    expected = sum(_change(directory / "adapter") for directory in directories)
    assert torch.allclose(_change(tmp_path / "judge" / "adapter"), expected, atol=1e-5)
    card = (tmp_path / "judge" / "README.md").read_text()
    assert "Merging into bfloat16 lost 0.01 of what was learned (0.01 in q)." in card
    assert "judge.serve" not in card
    frozen = "frozen: 3 of 3 tensors of the vision tower, 2 of 2 of the projector."
    assert f"Phase 1 trains 1 adapters of 24 numbers (language); {frozen}" in card
    assert f"Phase 2 trains 1 adapters of 36 numbers (language); {frozen}" in card


def test_adapters_of_rounds_are_joined_as_well(phases, tmp_path):
    directories = [*phases(base=str(tmp_path / "sft" / "judge"), lost=0.01), tmp_path / "round-2"]
    shutil.copytree(directories[1], directories[2])
    third = Adapter.read(directories[2] / "adapter")
    replace(third, config={**third.config, "base_model_name_or_path": str(tmp_path / "dpo" / "judge")}).write(
        directories[2] / "adapter"
    )
    publish(directories, "org/base", tmp_path / "judge", "f", [])
    first, second = (_change(directory / "adapter") for directory in directories[:2])
    assert torch.allclose(_change(tmp_path / "judge" / "adapter"), first + 2 * second, atol=1e-5)
    assert "Phase 3" not in (tmp_path / "judge" / "README.md").read_text()


def test_one_that_holds_both_phases_is_published_as_it_is(phases, tmp_path):
    directories = phases(base="org/base", lost=0.4)
    publish(directories, "org/base", tmp_path / "judge", "f", [])
    assert torch.equal(_change(tmp_path / "judge" / "adapter"), _change(directories[1] / "adapter"))
    card = (tmp_path / "judge" / "README.md").read_text()
    assert "Warning: merging into bfloat16 lost 0.4" in card
    assert "use judge.serve: adapter." in card
    assert json.loads((tmp_path / "judge" / "judge.json").read_text())["base"] == "org/base"


def test_results_warn_of_a_merged_judge_that_is_not_the_trained_one():
    rounding = {"overall": 0.4, "largest": 0.9, "weight": "q", "dtype": "bfloat16"}
    [line] = results.table({"rounding": {"dpo": rounding, "sft": rounding | {"overall": 0.02}}})
    assert line.startswith("dpo: warning: merging into bfloat16 lost 0.4 of what was learned (0.9 in q)")


_MEASURED = {"value": 0.25, "low": 0.125, "high": 0.375, "n": 8}
REPORT = {
    "pairs": 4,
    "lines": {name: dict.fromkeys(("changed", "won", "right"), _MEASURED) for name in ("none", *LINES)},
}


def test_what_was_measured_of_a_judge_is_in_its_card_until_other_weights_are_there(phases, tmp_path):
    directories, target = phases(base="org/base", lost=0.0), tmp_path / "judge"
    publish(directories, "org/base", target, "f", ["first"])
    plain = (target / "README.md").read_text()
    for _ in range(2):
        record_injection(target, REPORT)
        card = (target / "README.md").read_text()
        assert card.startswith(plain)
        assert card.count("On 4 pairs of the run") == 1
        assert card.count("0.25 (0.12 to 0.38)") == 1 + 3 * len(LINES)
    publish(directories, "org/base", target, "f", ["second"])
    assert (target / "README.md").read_text() == card.replace("first", "second")
    publish(directories, "org/base", target, "g", ["first"])
    assert (target / "README.md").read_text() == plain


def test_what_was_measured_is_left_out_of_the_card_where_it_is_damaged(phases, tmp_path):
    directories, target = phases(base="org/base", lost=0.0), tmp_path / "judge"
    publish(directories, "org/base", target, "f", ["first"])
    plain = (target / "README.md").read_text()
    record_injection(target, REPORT)
    file = target / "injection.json"
    for damaged in (b"", file.read_bytes()[:-9], file.read_bytes().replace(b"4", b"5", 1)):
        file.write_bytes(damaged)
        publish(directories, "org/base", target, "f", ["first"])
        assert (target / "README.md").read_text() == plain


def test_nothing_is_written_beside_a_judge_that_no_run_published(tmp_path):
    record_injection(tmp_path, REPORT)
    assert list(tmp_path.iterdir()) == []
