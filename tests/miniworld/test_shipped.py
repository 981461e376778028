"""What ships is whole, small, loadable, and as good (and as flawed) as the manifest says.

The fresh measurement is nightly: it takes two minutes, and the files that it measures are held by their hashes.
"""

import itertools
import json

import numpy as np
import pytest

from carevl.miniworld.experts import EXPERTS
from carevl.miniworld.items import draw_items
from carevl.miniworld.quality import (
    Figures,
    answers_right,
    calibration_error,
    length_slope,
    measure_captioner,
    measure_expert,
    measure_judge,
    nested,
    wilson,
)
from carevl.miniworld.questions import KINDS
from carevl.miniworld.scenes import WORLD_VERSION
from carevl.miniworld.weights import MANIFEST, WEIGHTS, damaged, write_manifest


@pytest.fixture(scope="module")
def manifest():
    return json.loads(MANIFEST.read_text())


@pytest.fixture(scope="module")
def measured():
    """A small fresh measurement; the bounds below leave room for its sampling error."""
    figures = Figures()
    drawn = [(image, items[0]) for image, items in itertools.islice(draw_items("dev", "shipped"), 96)]
    captions = measure_captioner(figures, WEIGHTS / "captioner", drawn)
    for name in EXPERTS:
        measure_expert(figures, name, WEIGHTS / f"expert-{name}", [item for _, item in drawn], captions)
    measure_judge(figures, WEIGHTS / "judge", drawn, 16)
    return nested(figures.values)


def test_files_are_those_of_the_manifest_and_at_most_40_mb():
    assert damaged() == []
    assert sum(file.stat().st_size for file in WEIGHTS.rglob("*") if file.is_file()) < 40e6
    assert not [file for file in WEIGHTS.rglob("*") if file.suffix in (".bin", ".pt", ".pkl")]


def test_damage_is_noticed(tmp_path):
    (tmp_path / "model").mkdir()
    weights = tmp_path / "model" / "model.safetensors"
    weights.write_bytes(b"weights")
    write_manifest(tmp_path, {})
    assert damaged(tmp_path) == []
    weights.write_bytes(b"Weights")
    assert damaged(tmp_path) == ["model/model.safetensors"]


def test_every_model_directory_is_complete():
    for name in ("captioner", "judge", *(f"expert-{name}" for name in EXPERTS)):
        files = {file.name for file in (WEIGHTS / name).iterdir()}
        wanted = {"README.md", "config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"}
        if not name.startswith("expert"):
            wanted |= {"processor_config.json", "generation_config.json"}
        assert wanted <= files, name
        assert "chat_template" in "".join(files) + (WEIGHTS / name / "tokenizer_config.json").read_text()


def test_manifest_quality_meets_the_promises(manifest):
    quality = manifest["quality"]
    assert manifest["world_version"] == WORLD_VERSION
    assert quality["captioner"]["exact"] >= 0.97
    assert set(quality["judge"]["answers"]) == set(KINDS)
    assert min(quality["judge"]["answers"].values()) >= 0.90
    assert quality["judge"]["parse_rate"] >= 0.98
    assert 0.60 <= quality["judge"]["pairwise_accuracy"] <= 0.75
    assert abs(quality["judge"]["first_order_accuracy"] - quality["judge"]["second_order_accuracy"]) < 0.08
    assert quality["judge"]["distinct_at_1.0"] > 2
    right, wrong = (quality["judge"][f"evidence_right_given_verdict_{verdict}"] for verdict in ("right", "wrong"))
    assert right > wrong + 0.08
    experts = quality["experts"]
    assert set(experts) == set(EXPERTS)
    for name, figures in experts.items():
        assert figures["decidable"] >= 0.90, name
        assert abs(figures["undecidable"] - 0.5) < 0.09, name
    assert experts["qwen2"]["by_kind"]["count"] <= 0.75
    assert experts["llama"]["length_slope"] > 3 * abs(experts["qwen2"]["length_slope"])
    assert experts["mistral"]["ece"] == max(figures["ece"] for figures in experts.values())
    spreads = sorted(figures["margin_spread"] for figures in experts.values())
    assert spreads[2] > 1.5 * spreads[1] > 2 * spreads[0]


@pytest.mark.vllm
@pytest.mark.nightly
def test_a_fresh_measurement_agrees(measured, manifest):
    assert measured["captioner"]["exact"] > 0.90
    assert np.mean(list(measured["judge"]["answers"].values())) > 0.88
    assert measured["judge"]["parse_rate"] > 0.95
    assert 0.5 < measured["judge"]["pairwise_accuracy"] < 0.85
    for name in EXPERTS:
        shipped = manifest["quality"]["experts"][name]["decidable"]
        assert abs(measured["experts"][name]["decidable"] - shipped) < 0.12, name
    expected = manifest["quality"]["judge"]["pairwise_accuracy"]
    assert abs(measured["judge"]["pairwise_accuracy"] - expected) < 0.15


def test_wilson_interval_of_known_cases():
    assert wilson(5, 10) == pytest.approx((0.2366, 0.7634), abs=1e-3)
    assert wilson(0, 10)[0] == 0.0
    assert wilson(10, 10) == pytest.approx((0.7225, 1.0), abs=1e-3)


def test_calibration_error_of_known_cases():
    sure = np.full(100, 0.95)
    assert calibration_error(sure, np.arange(100) < 95) == pytest.approx(0.0, abs=1e-9)
    assert calibration_error(sure, np.arange(100) < 50) == pytest.approx(0.45)
    assert calibration_error(1 - sure, np.arange(100) >= 95) == pytest.approx(0.0, abs=1e-9)


def test_length_slope_finds_a_planted_preference_and_only_that():
    rng = np.random.default_rng(0)
    ratio, right = rng.normal(size=2000), rng.random(2000) < 0.5
    margins = np.where(right, 1.0, -1.0) + 0.5 * ratio + rng.normal(scale=0.1, size=2000)
    assert length_slope(margins, ratio, right) == pytest.approx(0.5 / margins.std(), abs=0.02)
    assert length_slope(np.where(right, 1.0, -1.0), ratio, right) == pytest.approx(0.0, abs=1e-6)


def test_an_answer_is_right_by_its_conclusion_or_its_sentence():
    items = [items[0] for _, items in itertools.islice(draw_items("dev", "answers"), 64)]
    for item in items:
        assert answers_right(item, item.question.evidence)
        assert not answers_right(item, "I do not know.")
        if item.question.kind == "relation":
            flipped = {"yes": "no", "no": "yes"}[item.question.answer]
            assert not answers_right(
                item, item.question.evidence.replace(f"so {item.question.answer}", f"so {flipped}")
            )
