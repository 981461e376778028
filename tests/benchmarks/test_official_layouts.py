from __future__ import annotations

import json

import pytest

from carevl.benchmarks.layouts import read_official
from carevl.benchmarks.suites import SUITES

VL = {"id": "RLHF-V-1", "query": "q", "response": ["good", "bad"], "image": "1.png"}
MLLM = {"id": 7, "image_path": "7.jpg", "original_dataset": "coco", "instruction": "q", "human": "A"} | {
    "pair_id": 1,
    "answer1": {"name": "m", "answer": "x"},
    "answer2": {"name": "n", "answer": "y"},
}
MULTIMODAL = {
    "ID": "a",
    "Text": "q",
    "Image": "i",
    "Output1": "x",
    "Output2": "y",
    "Better": "Output2",
    "Category": "vqa",
}
MM_RLHF = {"id": "1", "image": "long/1.png", "prompt": "q", "chosen": "good", "rejected": "bad"}


@pytest.fixture
def read(tmp_path):
    def load_both(name, row, results):
        (tmp_path / "rows.jsonl").write_text(json.dumps(row))
        (tmp_path / "results.jsonl").write_text("\n".join(map(json.dumps, results)))
        suite = SUITES[name]
        rows = suite.load(tmp_path / "rows.jsonl")
        return suite, rows, read_official(suite, tmp_path / "results.jsonl", rows, "j")

    return load_both


def _vl(text, random_number, **fields):
    return VL | {"ranking": [0, 1], "meta": {"filter_choice": text, "random_number": random_number}} | fields


def test_vl_rewardbench_results_are_draws_in_the_order_shown(read):
    template = "Overall Judgment: Answer {} is better"
    results = [
        _vl(template.format(1), 0),
        _vl(template.format(1), 1),
        _vl(template.format(2), 1),
        _vl(template.format(1), 0, id="other-1"),
    ]
    suite, rows, predictions = read("vl-rewardbench", VL | {"human_ranking": [0, 1]}, results)
    assert [(each.order, each.sample, each.winner) for each in predictions] == [
        ((0, 1), 0, 0),
        ((1, 0), 1, 1),
        ((1, 0), 2, 0),
    ]
    assert suite.score(rows, predictions, "official", draws=3).right.tolist() == [1]


def test_results_over_swapped_responses_find_their_row(read):
    swapped = _vl("Overall Judgment: Answer 1 is better", 0, response=["bad", "good"], ranking=[1, 0])
    suite, rows, predictions = read("vl-rewardbench", VL | {"human_ranking": [0, 1]}, [swapped])
    assert predictions[0].order == (1, 0)
    assert suite.score(rows, predictions, "official", draws=1).right.tolist() == [0]


def test_mllm_judge_results_are_read(read):
    results = [MLLM | {"mllm_judge": text} for text in ("[[A]]", "[[C]]", "none")]
    _, _, predictions = read("mllm-judge", MLLM, results)
    assert [(each.sample, each.winner, each.status) for each in predictions] == [
        (0, 0, "ok"),
        (1, -1, "ok"),
        (2, None, "none"),
    ]


def test_multimodal_rewardbench_results_hold_one_or_several_outputs(read):
    results = [{"Meta": MULTIMODAL, "outputs": ["[[A]]", "[[B]]"]}, {"Meta": MULTIMODAL, "output": "[[B]]"}]
    _, _, predictions = read("multimodal-rewardbench", MULTIMODAL, results)
    assert [(each.sample, each.winner) for each in predictions] == [(0, 0), (1, 1), (2, 1)]


def test_mm_rlhf_rewards_become_scores(read):
    suite, rows, predictions = read("mm-rlhf-rewardbench", MM_RLHF, [MM_RLHF | {"rewards": [0.5, 0.25]}])
    assert [(each.order, each.sample, each.rating) for each in predictions] == [((0,), 0, 0.5), ((1,), 0, 0.25)]
    assert suite.score(rows, predictions, "official").right.tolist() == [1]


def test_unknown_layouts_and_missing_fields_are_named(read, tmp_path):
    with pytest.raises(ValueError, match="no official layout is known for rewardbench2; known: vl-rewardbench"):
        read_official(SUITES["rewardbench2"], tmp_path, [], "j")
    with pytest.raises(ValueError, match=r"results.jsonl, row 1, meta: no value for filter_choice"):
        read("vl-rewardbench", VL | {"human_ranking": [0, 1]}, [VL | {"ranking": [0, 1], "meta": {"random_number": 1}}])
